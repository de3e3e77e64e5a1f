"""The page of `mem explain` for people: tables from the figures of appliance/memory/report.py.

Owns words and columns. What is not there (no mid tier yet, no events) has no table.
"""

from __future__ import annotations

import datetime
from collections import Counter
from typing import Any

from rich.console import Group

from appliance.cli import output

STATES = ("total", "free", "cached", "fill", "rx", "leased", "tx", "completion", "leaked")
EVENTS_SHOWN = 20
HISTORY_SHOWN = 8  # of growth and give-back; the JSON has all that is remembered


def render(page: dict[str, Any]) -> Any:
    """All tables, then the state with its reasons."""
    parts = [_arenas(page), _consumers(page)]
    if page["mid"] is not None:
        parts += _mid(page["mid"])
    if page["governor"] is not None:
        parts.append(_governor(page["governor"]))
    if page["events"]:
        parts.append(events(page["events"]))
    state = output.state_line(page["state"], "memory", "; ".join(page["reasons"]) or page["state"])
    return Group(*parts, state)


def events(listed: list[dict[str, Any]]) -> Any:
    """What was done, the last last."""
    rows = [
        [datetime.datetime.fromtimestamp(event["time"]).strftime("%H:%M:%S.%f")[:-3],
         event["culprit"], event["action"], event["amount"], event["age_ms"], event["why"]]
        for event in listed[-EVENTS_SHOWN:]
    ]
    return output.table("events", ["time", "culprit", "action", "amount", "age ms", "why"], rows)


def history(found: dict[str, Any]) -> Any:
    """What was done with one object, the last last; or whether it is noted at all."""
    if "operations" not in found:
        return f"history is {'on' if found['on'] else 'off'}"
    rows = [
        [datetime.datetime.fromtimestamp(one["time"]).strftime("%H:%M:%S.%f"), one["what"],
         one["who"], one["generation"]]
        for one in found["operations"]
    ]
    title = f"{found['object']} ({found['earlier']} operations before these)"
    return output.table(title, ["time", "operation", "who", "generation"], rows)


def _arenas(page: dict[str, Any]) -> Any:
    rows = [
        [", ".join(arena["queues"]), arena["bytes"] >> 20, arena["backing"],
         "any" if arena["numa_node"] is None else arena["numa_node"],
         *(arena["frames"][state] for state in STATES)]
        for arena in page["arenas"]
    ]
    return output.table("frames", ["queues", "MiB", "pages", "node", *STATES], rows)


def _consumers(page: dict[str, Any]) -> Any:
    rows = [
        [entry["name"], entry["policy"], entry["held"], entry["quota_frames"],
         entry["oldest_hold_ms"], entry["max_hold_ms"] or "none",
         entry.get("copies", 0), entry.get("dropped", entry.get("overrun", 0))]
        for entry in page["consumers"]
    ]
    rows += [
        [f"{entry['name']} (pid {one['pid']})", "overdue" if one["overdue"] else one["policy"],
         one["leased"], "", one["oldest_lease_ms"], "", one["copies"], one["dropped"]]
        for entry in page["consumers"] for one in entry.get("members", ())
    ]
    return output.table("who holds", ["consumer", "policy", "held", "quota", "oldest ms", "most ms",
                                      "copies", "dropped"], rows)


def _mid(mid: dict[str, Any]) -> list[Any]:
    """Classes; where the arenas are; who keeps how much; how it grew and shrank, the last last."""
    rows = [
        [one["bytes"], one["arenas"], one["total"], one["used"], one["cached"],
         one["wasted_bytes"], f"{one['fragmentation']:.1%}"]
        for one in mid["classes"]
    ]
    title = f"mid tier: {mid['mapped_mib']} of {mid['cap_mib']} MiB, {mid['backing'] or 'unused'}"
    heads = ["slab", "arenas", "total", "used", "cached", "wasted", "scattered"]
    parts = [output.table(title, heads, rows)]
    places = Counter((one["backing"], one["node"]) for one in mid["arenas"])
    if places:
        rows = [[pages, "any" if node < 0 else node, 2 * count]
                for (pages, node), count in sorted(places.items())]
        parts.append(output.table("mid tier: arenas", ["pages", "node", "MiB"], rows))
    kept = [
        [one["owner"], ", ".join(f"{count} x {size} B" for size, count in one["objects"].items())]
        for one in mid["magazines"] if one["objects"]
    ]
    if kept:
        parts.append(output.table("mid tier: magazines", ["owner", "objects"], kept))
    rows = [
        [datetime.datetime.fromtimestamp(one["time_ns"] / 1e9).strftime("%H:%M:%S.%f")[:-3],
         one["what"], one["class_bytes"], one["backing"], one["arenas"]]
        for one in mid["history"][-HISTORY_SHOWN:]
    ]
    if rows:
        heads = ["time", "arena", "slab", "pages", "arenas then"]
        parts.append(output.table("mid tier: growth", heads, rows))
    return parts


def _governor(governor: dict[str, Any]) -> Any:
    shed = governor["shed_above"]
    return output.table("governor", ["state", "sheds above priority", "FILL withheld"],
                        [[governor["state"], "nothing" if shed is None else shed,
                          "yes" if governor["withheld"] else "no"]])
