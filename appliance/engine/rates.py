"""Rates from two answers of a running appliance: what `top` and the progress line show.

Pure. Counters only grow while an appliance runs; an appliance that was started anew in between
gives rates since its start.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def rates(
    before: Mapping[str, Any] | None, now: Mapping[str, Any], rules: list[dict[str, Any]]
) -> dict[str, Any]:
    """Packets (and bits) a second by port, rule, consumer and drop reason, with the totals."""
    if before is not None and before["pid"] != now["pid"]:
        before = None
    elapsed = now["uptime_s"] - (before["uptime_s"] if before else 0.0)

    def per_second(new: float, old: float) -> float:
        return (new - old) / elapsed if elapsed > 0 else 0.0

    old_ports = {port["name"]: port for port in before["ports"]} if before else {}
    old_consumers = {entry["name"]: entry for entry in before["consumers"]} if before else {}
    old_rules = before["steering"]["by_rule"] if before else {}
    old_drops = before["drops"] if before else {}
    by_rule = now["steering"]["by_rule"]
    ports = []
    for port in now["ports"]:
        old = old_ports.get(port["name"], {})
        ports.append(
            {
                "name": port["name"],
                "link": port["link"],
                "rx_pps": per_second(port["rx_frames"], old.get("rx_frames", 0)),
                "rx_bps": 8 * per_second(port["rx_bytes"], old.get("rx_bytes", 0)),
                "tx_pps": per_second(port["tx_frames"], old.get("tx_frames", 0)),
                "rx_frames": port["rx_frames"],
                "tx_frames": port["tx_frames"],
            }
        )
    return {
        "uptime_s": now["uptime_s"],
        "state": now["state"],
        "reasons": now["reasons"],
        "frames": now["frames"],
        "latency_ns": now["latency_ns"],
        "ports": ports,
        "rules": [
            {
                "id": rule["id"],
                "port": rule["port"],
                "action": rule["action"],
                "match": rule["match"],
                "pps": per_second(
                    by_rule.get(str(rule["id"]), 0), old_rules.get(str(rule["id"]), 0)
                ),
                "packets": by_rule.get(str(rule["id"]), 0),
            }
            for rule in rules
        ],
        "consumers": [
            {
                "name": entry["name"],
                "kind": entry["kind"],
                "pps": per_second(
                    entry["frames"], old_consumers.get(entry["name"], {}).get("frames", 0)
                ),
                "frames": entry["frames"],
                "dropped": entry["dropped"],
            }
            for entry in now["consumers"]
        ],
        "drops": [
            {
                "reason": reason,
                "pps": per_second(count, old_drops.get(reason, 0)),
                "packets": count,
            }
            for reason, count in now["drops"].items()
        ],
    }
