"""Proof that the final figures add up: every packet and every frame is somewhere.

Pure. Only meaningful for the figures of an appliance that has stopped; live ones are read while
packets move.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from appliance.record.account import problem

STATES = ("free", "cached", "fill", "rx", "leased", "tx", "completion")


def problems(stats: Mapping[str, Any]) -> list[str]:
    """One line for each account that does not add up; none if all do."""
    found = []
    frames = stats["frames"]
    if frames["leaked"]:
        found.append(f"{frames['leaked']} frames leaked")
    held = sum(frames[state] for state in STATES)
    if held + frames["leaked"] != frames["total"]:
        found.append(f"{held} frames in all states, of {frames['total']}")
    for port in stats["ports"]:
        found += _port(port)
    for consumer in stats.get("consumers", ()):
        line = problem(consumer["record"], consumer["frames"]) if "record" in consumer else ""
        found += [line] if line else []
    return found


def _port(port: Mapping[str, Any]) -> list[str]:
    """What the program handed over is what we received and what is known to be lost between."""
    steering = port["steering"]
    found = []
    decided = steering["consumed"] + steering["passed"] + steering["dropped"]
    if steering["seen"] != decided:
        found.append(f"{port['name']}: {steering['seen']} packets seen, {decided} decided")
    if port["backend"] == "loop":
        return found  # no program counts what comes in
    lost = port["lost"]
    arrived = port["rx_frames"] + sum(lost.values())
    if arrived != steering["consumed"]:
        words = ", ".join(f"{name} {count}" for name, count in lost.items() if count)
        found.append(
            f"{port['name']}: {steering['consumed']} packets given to the sockets, "
            f"{arrived} arrived ({port['rx_frames']} received{', ' if words else ''}{words})"
        )
    return found
