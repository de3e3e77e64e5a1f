"""What lies in a log, without reading it: for `openclaw log ls`.

Headers, seals and the state page only, so a terabyte is listed at once. What a seal says is proved
by its own checksum; whether the records are as it says is for verify.py.
"""

from __future__ import annotations

from typing import Any

from appliance.record.store import PAGE, Place, Store, live

__all__ = ["listing"]


def listing(store: Store) -> dict[str, Any]:
    """The segments of a log, oldest first."""
    state = store.state()
    alive = live(state)
    segments = []
    for place in store.segments():
        newest = alive and state is not None and place.index == state["index"]
        try:
            segments.append(_segment(place, newest))
        except (FileNotFoundError, BlockingIOError):
            continue  # being recycled
    ports: dict[int, dict[str, Any]] = {}
    for segment in segments:
        ports.update((port["id"], port) for port in segment.pop("ports"))
    return {
        "name": store.name,
        "live": alive,
        "durable_seq": state["durable_seq"] if state else 0,
        "bytes": sum(segment["bytes"] for segment in segments),
        "ports": [ports[number] for number in sorted(ports)],
        "segments": segments,
    }


def _segment(place: Place, newest: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"index": place.index, "path": place.name, "bytes": place.size,
                             "state": "no header", "first_seq": 0, "last_seq": 0, "records": None,
                             "lost": None, "from_ns": None, "to_ns": None, "ports": []}
    mapped = place.open() if place.size >= PAGE else None
    if mapped is None or not mapped.valid:
        return found | ({"state": "prepared"} if mapped is not None and mapped.blank else {})
    header = mapped.header
    found |= {"state": "recording" if newest else "open", "first_seq": header["first_seq"],
              "from_ns": header["created_ns"], "ports": header["ports"]}
    seal = mapped.seal(place.size)
    if seal is not None:
        found |= {"state": "sealed", "last_seq": seal["last_seq"], "records": seal["records"],
                  "lost": seal["lost"], "from_ns": seal["low_ns"] or None,
                  "to_ns": seal["high_ns"] or None}
    return found
