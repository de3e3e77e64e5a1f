"""Rates from two answers of a running appliance: what `top` and the progress line show.

Pure. Counters only grow while an appliance runs; an appliance that was started anew in between
gives rates since its start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Entries = Sequence[Mapping[str, Any]]
PerSecond = Callable[[float, float], float]


def rates(
    before: Mapping[str, Any] | None, now: Mapping[str, Any], rules: list[dict[str, Any]]
) -> dict[str, Any]:
    """Packets (and bits) a second by port, rule, consumer and drop reason, with the totals."""
    if before is None or before["pid"] != now["pid"]:
        before = {"uptime_s": 0.0, "ports": [], "consumers": [], "drops": {},
                  "steering": {"by_rule": {}}}
    elapsed = now["uptime_s"] - before["uptime_s"]

    def per_second(new: float, old: float) -> float:
        return (new - old) / elapsed if elapsed > 0 else 0.0

    old_rules, by_rule = before["steering"]["by_rule"], now["steering"]["by_rule"]
    listed = []
    for rule in rules:
        number = str(rule["id"])
        packets = by_rule.get(number, 0)
        entry = {key: rule[key] for key in ("id", "port", "action", "match")}
        pps = per_second(packets, old_rules.get(number, 0))
        listed.append({**entry, "pps": pps, "packets": packets})
    return {
        **{key: now[key] for key in ("uptime_s", "state", "reasons", "frames", "latency_ns",
                                     "events")},
        "ports": _ports(before["ports"], now["ports"], per_second),
        "rules": listed,
        "consumers": _consumers(before["consumers"], now["consumers"], per_second),
        "drops": [
            {
                "reason": reason,
                "pps": per_second(count, before["drops"].get(reason, 0)),
                "packets": count,
            }
            for reason, count in now["drops"].items()
        ],
    }


def _ports(before: Entries, now: Entries, per_second: PerSecond) -> list[dict[str, Any]]:
    former = {port["name"]: port for port in before}
    found = []
    for port in now:
        old = former.get(port["name"], {})
        found.append(
            {
                **{key: port[key] for key in ("name", "link", "rx_frames", "tx_frames")},
                "rx_pps": per_second(port["rx_frames"], old.get("rx_frames", 0)),
                "rx_bps": 8 * per_second(port["rx_bytes"], old.get("rx_bytes", 0)),
                "tx_pps": per_second(port["tx_frames"], old.get("tx_frames", 0)),
            }
        )
    return found


def _consumers(before: Entries, now: Entries, per_second: PerSecond) -> list[dict[str, Any]]:
    former = {entry["name"]: entry["frames"] for entry in before}
    return [
        {
            **{key: entry[key] for key in ("name", "kind", "frames", "dropped")},
            "pps": per_second(entry["frames"], former.get(entry["name"], 0)),
        }
        for entry in now
    ]
