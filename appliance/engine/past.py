"""The history of frames and slabs of a running appliance: `openclaw mem history`.

Owns the choice of the memories. It is a tool for finding who lost an object: while it is on, each
operation takes a lock.
"""

from __future__ import annotations

from typing import Any

from appliance.dataplane import Frames
from appliance.errors import ConfigError
from appliance.memory import EventLog, MidTier, history

ACTIONS = ("on", "off", "show")


def ask(
    memories: list[tuple[str, Frames]],
    mid: MidTier | None,
    events: EventLog,
    action: object,
    what: object = "",
) -> dict[str, Any]:
    """{"on": bool}, or the page of one object."""
    if action not in ACTIONS:
        raise ConfigError(f"action: {action!r}: one of {', '.join(ACTIONS)}")
    if action == "show":
        frames, number = history.parse(str(what), dict(memories))
        if frames is not None:
            return history.of_frame(frames, number)
        if mid is None:
            raise ConfigError(f"object: {what!r}: there is no mid tier (memory.mid_cap_mib = 0)")
        return history.of_slab(mid.slabs, number)
    on = action == "on"
    for frames in {id(frames): frames for _, frames in memories}.values():
        frames.keep_history(on)
    if mid is not None:
        mid.keep_history(on)
    events.note("mem history", f"switched {action}", 1)
    return {"on": on}
