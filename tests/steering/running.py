"""Many filters as programs in the kernel, from one compilation, for comparison with libpcap.

Each filter becomes the offline program of a single rule, as appliance.steering.offline makes it;
only the functions stand together in one text, because bcc takes 0.3 s for its headers.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator, Sequence

import numpy as np

from appliance.dataplane import bpf
from appliance.limits import RULES_MAX
from appliance.steering import compiler, loader, program
from appliance.steering.program import Options
from appliance.steering.rules import Numbered, Rule

CONSUMED_BY_1 = 1 << 2 | 1  # rule id 1, OC_VERDICT_CONSUME


@contextlib.contextmanager
def programs(filters: Sequence, *, jumbo: bool = False) -> Iterator[list[bpf.Program]]:
    options = Options(jumbo=jumbo, offline=True, keep_management=False)
    names = [f"oc_steer_{place}" for place in range(len(filters))]
    text = ""
    for name, code in zip(names, filters, strict=True):
        rule = Numbered(1, Rule("", "consume"), tuple(code), 0)
        whole = program.source([rule], options)
        head, mark, body = whole.partition("int oc_steer(")
        text += (head + mark + body if not text else mark + body).replace("oc_steer(", name + "(")
    code = compiler.compile_functions(text, names)
    shared = loader.SharedMaps()
    counters = bpf.Map(bpf.PERCPU_ARRAY, "oc_counters", loader.COUNTER_BYTES, 1)
    ids = bpf.Map(bpf.ARRAY, "oc_rule_ids", 4 * RULES_MAX, 1)
    ids[0] = struct.pack(f"={RULES_MAX}I", 1, *[0] * (RULES_MAX - 1))
    maps = {1: shared.sockets, 2: counters, 3: shared.shed, 4: ids}
    loaded: list[bpf.Program] = []
    try:
        loaded += [loader.load(name, code[name], maps, frags=jumbo) for name in names]
        yield loaded
    finally:
        for one in loaded:
            one.close()
        counters.close()
        ids.close()
        shared.close()


def run(loaded: bpf.Program, packets: Sequence[bytes], wires: Sequence[int]) -> list[bool]:
    """Which packets the program's one rule matches."""
    lengths = np.array([len(packet) for packet in packets], dtype=np.uint32)
    offsets = np.zeros(len(packets), dtype=np.uint64)
    offsets[1:] = np.cumsum(lengths[:-1], dtype=np.uint64)
    results = np.zeros(len(packets), dtype=np.uint32)
    wire = np.array(wires, dtype=np.uint32)
    loaded.test_run_many(b"".join(packets), offsets, lengths, wire, results)
    assert set(results.tolist()) <= {0, CONSUMED_BY_1}
    return [result == CONSUMED_BY_1 for result in results.tolist()]
