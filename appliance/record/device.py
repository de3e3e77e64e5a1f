"""Segments as slots of a raw block device or of DAX memory: prepared, used again, never foreign.

Owns one device while its recorder runs (O_EXCL: a mounted one refuses). The first page is `state`,
the slots begin at 1 MiB. A device whose first megabyte holds anything that is not a log of ours is
refused: there is no undo. A reader of a slot that is used again sees another epoch and stops.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
import struct
from pathlib import Path

from appliance.errors import HostError, PortError
from appliance.record.directory import PAGE, lock_pages
from appliance.record.place import Prepared

FIRST = 1 << 20  # OC_LOG_DEVICE_FIRST
_HEADER = struct.Struct("<8sII16sQQ")  # magic, version, header bytes, uuid, epoch, index
_STATE_MAGIC, _SEGMENT_MAGIC = b"OCLOGSTA", b"OCLOGSEG"


def is_device(path: str) -> bool:
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return path.startswith("/dev/")
    return stat.S_ISBLK(mode) or stat.S_ISCHR(mode)


class Device:
    """`Device(path, segment_bytes)`; the same methods as a Directory."""

    def __init__(self, path: str, segment_bytes: int, max_age_s: float = 0) -> None:
        self.path = path
        self.segment_bytes = segment_bytes
        self.max_age_s = max_age_s
        self.why_buffered = ""
        self.recycled = self.removed = 0
        self.slots = 0
        self.blank = False  # nothing of a log is on it yet
        self._fd = -1
        self._map: mmap.mmap | None = None
        self._index: dict[int, int] = {}  # slot -> index; a slot without has never been begun
        self._ours: set[int] = set()  # slots

    def lock(self) -> None:
        try:
            self._open()
        except OSError as error:
            busy = "in use (mounted, or another recorder)" if error.errno == 16 else error.strerror
            raise HostError(f"{self.path}: {busy}", fix="a device of its own") from None
        try:
            self._refuse_foreign()
        except BaseException:
            self.close()
            raise
        self._read_headers()

    def _open(self) -> None:
        mode = os.stat(self.path).st_mode
        if stat.S_ISBLK(mode):
            flags = os.O_RDWR | os.O_EXCL | os.O_CLOEXEC | os.O_DIRECT
            self._fd = os.open(self.path, flags)
            size = os.lseek(self._fd, 0, os.SEEK_END)
        else:  # devdax: only a mapping reads and writes it
            self._fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            size = _dax_bytes(self._fd)
            self._map = mmap.mmap(self._fd, size)
        self.slots = (size - FIRST) // self.segment_bytes if size > FIRST else 0
        if not self.slots:
            text = f"{self.path}: {size >> 20} MiB: no room for a segment"
            raise HostError(text, fix="a smaller segment_mib")

    def _read(self, offset: int, nbytes: int) -> bytes:
        """Aligned memory, because the descriptor is O_DIRECT."""
        if self._map is not None:
            return self._map[offset : offset + nbytes]
        space = mmap.mmap(-1, nbytes)
        got = os.preadv(self._fd, [space], offset)
        return space[:got]

    def _zero(self, offset: int) -> None:
        if self._map is not None:
            self._map[offset : offset + PAGE] = bytes(PAGE)
            self._map.flush(offset, PAGE)
            return
        os.pwritev(self._fd, [mmap.mmap(-1, PAGE)], offset)
        os.fdatasync(self._fd)

    def _refuse_foreign(self) -> None:
        first = self._read(0, FIRST)
        stride = 512  # OC_LOG_STATE_STRIDE: two places that take turns
        if _STATE_MAGIC in (first[:8], first[stride : stride + 8]):
            place = 0 if first[:8] == _STATE_MAGIC else stride
            (slot_bytes,) = struct.unpack_from("<Q", first, place + 96)
            if slot_bytes not in (0, self.segment_bytes):
                raise PortError(
                    f"{self.path}: a log with segments of {slot_bytes >> 20} MiB: "
                    f"set segment_mib = {slot_bytes >> 20}, or clear the device"
                )
        elif not any(first):
            self.blank = not self._read_headers()
        else:
            raise PortError(
                f"{self.path}: holds something that is no log of ours: "
                f"clear its first MiB to give it away (blkdiscard -z -l 1M {self.path})"
            )

    def _read_headers(self) -> int:
        """How many slots have been used."""
        for slot in range(self.slots):
            head = self._read(self._at(slot), PAGE)
            magic, _, _, _, _, index = _HEADER.unpack_from(head)
            if magic == _SEGMENT_MAGIC:
                self._index[slot] = index
        return len(self._index)

    def _at(self, slot: int) -> int:
        return FIRST + slot * self.segment_bytes

    def state_page(self) -> mmap.mmap:
        if self._map is not None:
            return self._map
        page = mmap.mmap(self._fd, PAGE)
        lock_pages(page)
        return page

    def open(self) -> None:
        """A device that was unplugged and is back is opened again, and must be the same log."""
        if self._fd < 0:
            self._open()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def clean(self) -> None:
        """Slots without a header are free."""

    def look(self) -> None:
        """Slots are used again in their order; age alone frees none."""

    def prepare(self, index: int) -> Prepared:
        """A slot that has not been used yet, or that with the oldest segment."""
        free = [slot for slot in range(self.slots) if slot not in self._ours]
        if not free:
            raise OSError(28, "every slot is being written")
        slot = min(free, key=lambda one: self._index.get(one, -1))
        if self._index.pop(slot, None) is not None:
            self.recycled += 1
        self._zero(self._at(slot))
        self._ours.add(slot)
        fd = os.dup(self._fd)
        return Prepared(index, fd, self._at(slot), self.segment_bytes, self._map is None,
                        self._map, self.path, slot)

    def retire(self, prepared: Prepared, end: int) -> None:
        self._ours.discard(prepared.slot)
        self._index[prepared.slot] = prepared.index
        os.close(prepared.fd)

    def discard(self, prepared: Prepared) -> None:
        self._ours.discard(prepared.slot)
        os.close(prepared.fd)
        self._zero(self._at(prepared.slot))


def _dax_bytes(fd: int) -> int:
    device = os.fstat(fd).st_rdev
    path = Path(f"/sys/dev/char/{os.major(device)}:{os.minor(device)}/size")
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        raise HostError("no size in sysfs: not a DAX device", fix="a devdax device") from None
