"""SlabReader: slabs of another process, by their handle, read only.

A handle is a 16-bit generation above 38 bits of place in units of 64 B. The reader gets three
descriptors and believes their content only within bounds: the place is checked, state and
generation are looked at before and after the copy, so that it is whole or StaleFrame. It reads
instead of mapping: an arena that is given back meanwhile cannot take it down.
"""

from __future__ import annotations

import os
import struct

from appliance.errors import PortError, StaleFrame

MAGIC = 0x3162616C734C434F  # "OCLslab1" in memory: cython_ext/slab_tier.pyx
VERSION = 1
CLASSES = 11
_HEADER = struct.Struct(f"<QII{2 * CLASSES}QQ")
_PLACE_BITS = 38
_NAMED = b"\x03"  # live, with a handle: include/oc_slab_ledger.h


class SlabReader:
    """`SlabReader(fds)`: fds as from MidTier.slabs.read_only_fds(); close() closes them."""

    def __init__(self, fds: dict[str, int]) -> None:
        self._fds = fds
        head = os.pread(fds["ledger"], _HEADER.size, 0)
        if len(head) < _HEADER.size:
            raise PortError("not a ledger of slabs: too short")
        magic, version, self._region_shift, *places = _HEADER.unpack(head)
        if magic != MAGIC or version != VERSION or not 21 <= self._region_shift <= 40:
            raise PortError(f"not a ledger of slabs: magic {magic:#x}, version {version}")
        self._states, self._generations = places[:CLASSES], places[CLASSES : 2 * CLASSES]
        self._backings = places[2 * CLASSES]

    def _live(self, cls: int, number: int, generation: int) -> bool:
        ledger = self._fds["ledger"]
        state = os.pread(ledger, 1, self._states[cls] + number)
        word = os.pread(ledger, 2, self._generations[cls] + 2 * number)
        if state != _NAMED or len(word) < 2:
            return False
        return int.from_bytes(word, "little") == generation

    def read(self, handle: int, nbytes: int) -> bytes:
        """The first nbytes of the object; StaleFrame if it has been given back."""
        place = (handle & ((1 << _PLACE_BITS) - 1)) << 6
        generation = handle >> _PLACE_BITS
        cls = place >> self._region_shift
        offset = place & ((1 << self._region_shift) - 1)
        if cls >= CLASSES or offset % (64 << cls):
            raise StaleFrame(f"handle {handle:#x} names no slab")
        number = offset // (64 << cls)
        nbytes = min(nbytes, 64 << cls)
        if self._live(cls, number, generation):
            backing = os.pread(self._fds["ledger"], 1, self._backings + (place >> 21))
            name = "2M" if backing == b"\x01" else "4k"
            if name in self._fds:
                content = os.pread(self._fds[name], nbytes, place)
                if len(content) == nbytes and self._live(cls, number, generation):
                    return content
        raise StaleFrame(f"handle {handle:#x} is stale: the slab has been given back")

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds = {}

    def __enter__(self) -> SlabReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
