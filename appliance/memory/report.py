"""The page of `mem explain`: who holds what now, for how long, and what was done about it.

Owns the shape of the page. Figures are read live and without stopping anybody, so they may be some
packets apart. It knows memories, consumers and events; how they came to be is not its matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from appliance.dataplane import Frames
from appliance.memory.tier import MidTier

STATES = ("free", "cached", "fill", "rx", "leased", "tx", "completion")


def page(
    memories: Iterable[tuple[str, Frames]],
    consumers: Sequence[Mapping[str, Any]],
    tier: MidTier | None,
    events: Sequence[Mapping[str, Any]],
    governor: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """{"arenas", "frames", "consumers", "mid", "governor", "events", "state", "reasons"}.

    `memories` are (queue, its Frames); queues that share memory are one arena with several names.
    """
    arenas = _arenas(memories)
    totals = {
        name: sum(arena["frames"][name] for arena in arenas)
        for name in ("total", *STATES, "leaked")
    }
    mid = tier.explain() if tier is not None else None
    reasons = list(dict.fromkeys(arena["reason"] for arena in arenas if arena["reason"]))
    reasons += mid["reasons"] if mid is not None else []
    state = "degraded" if reasons else "ok"
    if governor is not None:
        reasons += governor["reasons"]
        state = state if reasons and state == "degraded" else governor["state"]
    return {
        "arenas": arenas,
        "frames": totals,
        "consumers": [dict(consumer) for consumer in consumers],
        "mid": mid,
        "governor": dict(governor) if governor is not None else None,
        "events": [dict(event) for event in events],
        "state": state,
        "reasons": reasons,
    }


def _arenas(memories: Iterable[tuple[str, Frames]]) -> list[dict[str, Any]]:
    named: dict[int, tuple[list[str], Frames]] = {}
    for name, frames in memories:
        named.setdefault(id(frames), ([], frames))[0].append(name)
    found = []
    for names, frames in named.values():
        arena = frames.arena
        found.append(
            {
                "queues": names,
                "bytes": arena.bytes,
                "backing": arena.backing,
                "reason": arena.reason,
                "numa_node": arena.numa_node if arena.numa_node >= 0 else None,
                "frames": frames.count(),
            }
        )
    return found
