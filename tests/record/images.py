"""Logs as bytes in memory, for tests that break them: written once, laid down changed many times.

An image knows what a crash may take: the records, where each write lies, what was durable when.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

from appliance.dataplane import log_writer

PAGE = 4096
BASE_NS = 1_700_000_000 * 10**9


@dataclass
class Record:
    seq: int
    timestamp_ns: int
    packet: bytes
    port: int = 0
    queue: int = 0
    rule: int = 0
    original: int = 0


@dataclass
class Commit:
    """How things stood after one write."""

    last_seq: int
    durable_seq: int
    index: int  # of the segment
    start: int  # of the write
    end: int
    state: bytes  # the state page


@dataclass
class Image:
    segments: dict[int, bytes] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    commits: list[Commit] = field(default_factory=list)
    state: bytes = b""

    def lay(self, directory: Path) -> None:
        for index, data in self.segments.items():
            (directory / log_writer.segment_name(index)).write_bytes(data)
        if self.state:
            (directory / "state").write_bytes(self.state)


def packet(random_: random.Random, small: bool = False) -> bytes:
    return random_.randbytes(random_.choice([14, 60, 64, 100] if small else [60, 590, 1514, 4000]))


def build(directory: Path, random_: random.Random, *, writes: int, segment_bytes: int = 147456,
          preallocate: bool = True, seal: bool = False, epoch: int | None = None,
          uuid: bytes | None = None, sync_every: int = 2, small: bool = False) -> Image:
    """Writes a log of `writes` commits, of which every sync_every-th is flushed; its image.

    The writer is killed at the end (its state page names no living process) unless `seal`.
    """
    image = Image()
    writer = log_writer.LogWriter(
        directory, segment_bytes=segment_bytes, block_bytes=45056, preallocate=preallocate,
        ports=[(0, "in0", "veth-a", 1, 0), (1, "in1", "veth-b", 1, 96)], epoch=epoch, uuid=uuid)
    for number in range(writes):
        for _ in range(random_.choice([1, 2, 5])):
            data = packet(random_, small)
            made = Record(writer.next_seq, BASE_NS + writer.next_seq * 1000, data,
                          random_.randrange(2), random_.randrange(4), random_.randrange(9),
                          len(data) + random_.choice([0, 0, 40]))
            writer.append(data, made.timestamp_ns, original=made.original, port=made.port,
                          queue=made.queue, rule=made.rule)
            image.records.append(made)
        before = writer.index, writer.offset
        last = writer.commit(sync=number % sync_every == 0)
        start = before[1] if before[0] == writer.index else PAGE
        image.commits.append(Commit(last, writer.durable_seq, writer.index, start, writer.offset,
                                    dead(directory / "state")))
    if seal:
        writer.close()
        image.state = (directory / "state").read_bytes()
    else:
        writer.close(seal=False)
        image.state = dead(directory / "state")
    for path in directory.glob("*.oclog"):
        image.segments[int(path.name.split(".")[0])] = path.read_bytes()
        path.unlink()
    (directory / "state").unlink()
    return image


def dead(path: Path) -> bytes:
    """The state page as a killed recorder leaves it: here, of a process that is still alive."""
    data = path.read_bytes()
    copy = path.with_name("state-copy")
    copy.write_bytes(data)
    log_writer.lower_state(copy, (1 << 63) - 1)
    try:
        return copy.read_bytes()
    finally:
        copy.unlink()
