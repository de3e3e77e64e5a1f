"""A log, or a part of it, as pcapng: for Wireshark, tshark, tcpdump and whoever reads captures.

Owns the order of blocks: section, an interface for each recorded port before its first packet,
packets as they lie in the log, and at the end what each interface received and lost. Filters are
the reader's (select.py), the encoding is cython_ext/pcapng. It streams: nothing is kept but counts.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np

from appliance.dataplane import pcapng
from appliance.errors import ConfigError
from appliance.record.reader import Log

__all__ = ["export", "target"]

ETHERNET = 1
# Of every interface, whatever the recorder kept of its packets: libpcap, and so tcpdump, refuses a
# file whose interfaces differ in this. It is tcpdump's own; each packet has its two lengths.
SNAP_BYTES = 262_144
NOBODY = 0xFFFFFFFF  # no interface block was written for this port id yet


@dataclass
class _Interface:
    number: int
    packets: int = 0
    lost: int = 0
    first_ns: int = 0
    last_ns: int = 0
    reasons: dict[str, int] = field(default_factory=dict)


class _Writer:
    """The state of one export."""

    def __init__(self, stream: BinaryIO, log: Log) -> None:
        self.stream = stream
        self.log = log
        self.interfaces: dict[int, _Interface] = {}
        self.numbers = np.full(65_536, NOBODY, np.uint32)
        self.bytes = 0

    def put(self, block: bytes) -> None:
        self.stream.write(block)
        self.bytes += len(block)

    def describe(self, port: int) -> _Interface:
        """The interface of a port, written when it is met for the first time."""
        if port not in self.interfaces:
            known = self.log.ports.get(port, {})
            name = known.get("interface") or known.get("name") or f"port{port}"
            self.put(pcapng.interface(known.get("link_type", ETHERNET), SNAP_BYTES, name,
                                      known.get("name", "")))
            self.numbers[port] = len(self.interfaces)
            self.interfaces[port] = _Interface(len(self.interfaces))
        return self.interfaces[port]

    def packets(self, batch: Any) -> None:
        for port in np.unique(batch.ports).tolist():
            entry = self.describe(port)
            times = batch.timestamps_ns[batch.ports == port]
            entry.packets += len(times)
            low, high = int(times.min()), int(times.max())
            entry.first_ns = min(entry.first_ns or low, low)
            entry.last_ns = max(entry.last_ns, high)
        self.put(pcapng.packets(batch, self.numbers))

    def losses(self) -> None:
        """Gaps of a port are its own; one that names no port is told with the first."""
        gaps, self.log.gaps = self.log.gaps, []
        for gap in gaps:
            port = gap["port"] if gap["port"] is not None else min(self.log.ports, default=0)
            entry = self.describe(port)
            entry.lost += gap["packets"]
            for reason, count in gap["reasons"].items():
                entry.reasons[reason] = entry.reasons.get(reason, 0) + count

    def end(self) -> None:
        for entry in self.interfaces.values():
            comment = ", ".join(f"{name} {count}" for name, count in sorted(entry.reasons.items()))
            self.put(pcapng.statistics(
                entry.number, entry.last_ns, start_ns=entry.first_ns, end_ns=entry.last_ns,
                received=entry.packets + entry.lost, dropped=entry.lost,
                comment=f"not recorded: {comment}" if comment else ""))


def export(log: Log, stream: BinaryIO, progress: Callable[[int], object] | None = None
           ) -> dict[str, Any]:
    """Writes what the log's selection leaves; returns counts, and how the reading ended.

    LogDamaged: what precedes the damage has been written, with its statistics.
    """
    writer = _Writer(stream, log)
    writer.put(pcapng.section("OpenClaw", system=f"{platform.system()} {platform.release()}"))
    packets = 0
    try:
        for batch in log:
            if not len(batch):
                stream.flush()  # a live export: show what there is
                continue
            writer.packets(batch)
            writer.losses()
            packets += len(batch)
            if progress is not None:
                progress(packets)
    finally:
        for port in sorted(log.ports):
            writer.describe(port)
        writer.losses()
        writer.end()
        stream.flush()
    return {"packets": packets, "bytes": writer.bytes, "interfaces": len(writer.interfaces),
            "lost": sum(entry.lost for entry in writer.interfaces.values()),
            "state": log.state, "cause": log.cause}


@contextlib.contextmanager
def target(path: str) -> Iterator[BinaryIO]:
    """The file to write to; "-" is standard output. A file that was not finished is removed
    unless it was there before."""
    if path == "-":
        yield sys.stdout.buffer
        return
    existed = os.path.lexists(path)
    try:
        with open(path, "wb") as stream:
            yield stream
    except OSError as error:
        if not existed:
            with contextlib.suppress(OSError):
                os.unlink(path)
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error
