#!/usr/bin/env python3
"""Packets as a table: time, length, rule and the first bytes, to Parquet (pyarrow). Needs no root.

    examples/to_parquet.py OUT.parquet [SOCKET [CONSUMER [SECONDS]]]

Without pyarrow it says so, and what would install it.
"""

import sys
import time

import appliance

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError:
    sys.exit("to_parquet: pyarrow is missing; fix: .venv/bin/pip install pyarrow")

HEAD = 64
ROWS = 1 << 16  # of a row group
out, *rest = sys.argv[1:]
where, consumer, seconds = [*rest, *["/run/openclaw/control.sock", "taps", "10"][len(rest):]]
schema = pa.schema([("timestamp_ns", pa.uint64()), ("length", pa.uint32()),
                    ("rule_id", pa.uint32()), ("head", pa.binary(HEAD))])


def table(batch) -> pa.Table:
    """Columns go over as they are; the heads are one gathered copy."""
    heads = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(HEAD), len(batch), [None, pa.py_buffer(batch.head(HEAD))])
    columns = [batch.timestamps_ns.copy(), batch.lengths.copy(), batch.rule_ids.copy(), heads]
    return pa.table(dict(zip(schema.names, columns, strict=True)), schema)


until = time.monotonic() + float(seconds)
with appliance.attach(where, consumer=consumer) as port, pq.ParquetWriter(out, schema) as writer:
    tables, rows = [], 0
    for batch in port.recv(max_frames=4096):
        if len(batch):
            tables.append(table(batch))
            rows += len(batch)
        if tables and (rows >= ROWS or time.monotonic() >= until):
            writer.write_table(pa.concat_tables(tables))
            tables, rows = [], 0
        if time.monotonic() >= until:
            break
    print(port.stats())
