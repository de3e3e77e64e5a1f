"""The history of one object in words: who did what with a frame or a slab, and when.

Owns how an object is named from outside, and the shape of the answer. What is noted, and at what
price, is cython_ext/history.pxd. A frame is `QUEUE:NUMBER` (in0/0:123), a slab its address or its
handle, as a number; hexadecimal with 0x.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from appliance.dataplane import Frames, History, Slabs
from appliance.errors import ConfigError

NO_QUEUE = 0xFFFF  # of cython_ext/frames.pxd
OFF = "no history is kept: switch it on first (openclaw mem history on)"


def parse(text: str, memories: Mapping[str, Frames]) -> tuple[Frames | None, int]:
    """(the memory and number of a frame), or (None, the address or handle of a slab)."""
    queue, colon, number = text.rpartition(":")
    try:
        value = int(number, 0)
    except ValueError:
        raise ConfigError(
            f"object: {text!r}: a frame as QUEUE:NUMBER (in0/0:123), or a slab's address or handle"
        ) from None
    if not colon:
        return None, value
    if queue not in memories:
        raise ConfigError(f"object: {text!r}: queue, one of {', '.join(memories)}")
    return memories[queue], value


def of_frame(frames: Frames, number: int) -> dict[str, Any]:
    """The last operations of a frame, oldest first."""
    if not 0 <= number < frames.total:
        raise ConfigError(f"frame: {number}: 0 to {frames.total - 1}")
    if frames.history is None:
        raise ConfigError(OFF)

    def who(queue: int, owner: int) -> str:
        where = "memory" if queue == NO_QUEUE else f"queue {queue}"
        return f"{where}, consumer {owner}" if owner else where

    return _page(f"frame {number}", frames.history, number, frames.history_is_on, who)


def of_slab(slabs: Slabs, name: int) -> dict[str, Any]:
    """The last operations of the slab with this address or handle, oldest first."""
    place = slabs.place_of(name) if 0 <= name < 1 << 64 else -1
    if place < 0:
        raise ConfigError(f"object: {name:#x}: no address and no handle of the mid tier")
    if slabs.history is None:
        raise ConfigError(OFF)
    history = slabs.history
    return _page(f"slab {name:#x}", history, place, slabs.history_is_on,
                 lambda number, _: history.name(number))


def _page(title: str, history: History, number: int, on: bool, who: Any) -> dict[str, Any]:
    operations, before = history.of(number)
    return {
        "object": title,
        "on": on,
        "earlier": before,
        "operations": [
            {"time": time_ns / 1e9, "what": what, "who": who(name, owner), "generation": generation}
            for time_ns, what, name, owner, generation in operations
        ],
    }
