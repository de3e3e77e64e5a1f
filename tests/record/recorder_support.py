"""What the recorder's tests share: a worker over a port in memory that records, and a plain reader.

The reader is an oracle of its own: some 60 lines of struct and a table for CRC32C, written from
include/oc_log_format.h's words alone. It knows no maps, no index and no recovery.
"""

from __future__ import annotations

import struct
import threading
import time
from pathlib import Path

from appliance.dataplane import Frames, LoopQueue, Worker
from appliance.memory import MidTier
from appliance.record.recording import Recording
from appliance.record.settings import LogPort, Settings

PAGE, RECORD = 4096, struct.Struct("<IIHHHHIIIIQQ")
PACKET, GAP, HEAD, SEAL = 1, 2, 3, 4


def _table() -> list[int]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return table


_TABLE = _table()


def crc32c(crc: int, data: bytes) -> int:
    crc ^= 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


class Segment:
    """One file: header fields, and the records of its writes as far as the chain holds."""

    def __init__(self, path: Path, payloads: bool = True) -> None:
        data = path.read_bytes()
        self.path, self.begun = path, data[:8] == b"OCLOGSEG"
        self.records: list[tuple] = []
        self.sealed = False
        self.last_crc: int | None = None  # of the seal: the next segment goes on from it
        if not self.begun:
            return
        head = struct.unpack_from("<8sII16sQQQQQqIIIIII", data)
        (_, _, _, self.uuid, self.epoch, self.index, _, self.first_seq, _, _, self.chain,
         self.flags, *_) = head
        assert crc32c(0, data[: PAGE - 4]) == struct.unpack_from("<I", data, PAGE - 4)[0]
        self._walk(data, payloads)

    def _walk(self, data: bytes, payloads: bool) -> None:
        fold = (self.epoch ^ self.epoch >> 32) & 0xFFFFFFFF
        at, before = PAGE, self.chain
        while at + PAGE <= len(data):
            crc = crc32c(before ^ fold, data[at + 4 : at + 48])
            if crc != struct.unpack_from("<I", data, at)[0]:
                return
            magic, epoch, _, _, _, _, nbytes, count, _, _ = struct.unpack_from(
                "<8sQQQQQIIII", data, at + 48)
            assert magic == b"OCLOGWRT" and epoch == self.epoch
            place, before = at + 112, crc
            for _ in range(count):
                if PAGE - place % PAGE < 48:
                    place += PAGE - place % PAGE
                fields = RECORD.unpack_from(data, place)
                if crc32c(before ^ fold, data[place + 4 : place + 48]) != fields[0]:
                    return
                payload = data[place + 48 : place + 48 + fields[7]]
                if payloads:
                    assert crc32c(0, payload) == fields[1]
                before = fields[0]
                if fields[2] == SEAL:
                    self.sealed, self.last_crc = True, before
                else:
                    self.records.append((*fields, payload))
                place += 48 + (fields[7] + 7 & ~7)
            at += nbytes


def segments(*directories: Path, payloads: bool = True) -> list[Segment]:
    found = [
        Segment(path, payloads)
        for directory in directories
        for path in sorted(Path(directory).glob("*.oclog"))
    ]
    return sorted((one for one in found if one.begun), key=lambda one: one.index)


def records(*directories: Path, payloads: bool = True) -> list[tuple]:
    """All records of a log in order. A segment that began after a fault overrides what it says."""
    out: list[tuple] = []
    before = None
    for segment in segments(*directories, payloads=payloads):
        if segment.flags & 1:
            out = [record for record in out if record[10] < segment.first_seq]
        elif before is not None:
            assert segment.chain == before, "the chain does not go on"
        out += segment.records
        before = segment.last_crc
    return out


def gap_of(record: tuple) -> dict[str, int]:
    """{reason: packets} of a GAP record."""
    payload = record[-1]
    count = struct.unpack_from("<I", payload, 32)[0]
    found = {}
    for i in range(count):
        name, packets = struct.unpack_from("<24sQ", payload, 40 + 32 * i)
        found[name.rstrip(b"\0").decode()] = packets
    return found


class Rig:
    """A port in memory, a worker, a recording: feed() or generate, then end()."""

    def __init__(self, *directories: Path, generate: int = 0, frames: int = 8192,
                 tier_mib: int = 256, **settings) -> None:
        self.generates = generate > 0
        self.tier = MidTier(tier_mib, "off")
        made = Settings(tuple(str(path) for path in directories), **settings)
        self.recording = Recording(made, self.tier, [LogPort(0, "in0", "loop0")], "keep")
        self.queue = LoopQueue(Frames(frames, hugepages="off"), generate=generate)
        self.worker = Worker([self.queue], [("count", -1), ("record", self.recording.spool())])
        self.worker.set_routes(0, {1: [0, 1]})
        self.thread = threading.Thread(target=self.worker.run, daemon=True)

    def start(self):
        self.recording.start()
        if not self.generates:
            self.thread.start()
        return self

    def pump(self, packets: int, *, settle: bool = True) -> None:
        """With generate: so many packets, from this thread.

        settle: until they are durable, so that the disk of whatever host keeps up.
        """
        self.worker.run(packets)
        for spool in self.recording.spools:
            spool.hand_over()  # what the worker's next round would do
        if settle:
            assert self.wait(lambda now: now["in_memory"] == 0), self.recording.summary()

    def wait(self, condition, seconds: float = 20.0) -> bool:
        until = time.monotonic() + seconds
        while not condition(self.recording.summary()):
            if time.monotonic() > until:
                return False
            time.sleep(0.005)
        return True

    def feed(self, packets: list[bytes]) -> None:
        for packet in packets:
            while not self.queue.inject(packet):
                time.sleep(0.0005)

    def stop_worker(self) -> None:
        if self.thread.is_alive():
            self.worker.stop()
            self.thread.join()

    def end(self, seconds: float = 20.0) -> dict:
        self.stop_worker()
        final = self.recording.stop(seconds)
        self.queue.close()
        return final

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.end()
