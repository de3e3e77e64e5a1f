"""The demo's result: figures put together as the contract names them, and what must hold of them.

Pure: dictionaries in, dictionaries and sentences out. `faults` is the demo's judgement; an empty
list is a pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from appliance.demo.exchange import Outcome
from appliance.demo.traffic import Traffic


def entry(traffic: Traffic, outcome: Outcome, before: Mapping[str, Any],
          after: Mapping[str, Any]) -> dict[str, Any]:
    """One capture's part, from the figures before and after it."""
    drops = Counter(after["drops"])
    drops.subtract(before["drops"])
    return {
        "name": traffic.name,
        "packets": traffic.packets,
        "repeat": traffic.repeat,
        "skipped": dict(traffic.skipped),
        "truncated": traffic.truncated,
        "sent": outcome.sent,
        "received": outcome.received,
        "passed": after["steering"]["passed"] - before["steering"]["passed"],
        "drops": {reason: count for reason, count in drops.items() if count},
        "verified": outcome.verified,
        "mismatched": outcome.mismatched,
        "unexpected": outcome.unexpected,
        "misruled": outcome.misruled,
        "missing": outcome.missing,
        "sent_bytes": outcome.sent_bytes,
        "received_bytes": outcome.received_bytes,
        "elapsed_s": outcome.elapsed_s,
        "fault": outcome.first_fault,
    }


SUMS = ("packets", "sent", "received", "passed", "verified", "mismatched", "unexpected", "misruled",
        "missing", "sent_bytes", "received_bytes", "elapsed_s")


def result(entries: Sequence[Mapping[str, Any]], figures: Mapping[str, Any],
           latency: Mapping[str, Any], matches: Mapping[int, str], reasons: Sequence[str],
           recorded: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The whole, with the names of the contract; `figures` are those after the ports closed, and
    `recorded` is the recording's account (--keep)."""
    total: dict[str, Any] = {name: sum(one[name] for one in entries) for name in SUMS}
    skipped: Counter[str] = Counter()
    for one in entries:
        skipped.update(one["skipped"])
    receiving = figures["ports"][1]
    backing = receiving["backing"]
    frames = figures["frames"]
    found = {
        **{key: figures[key] for key in ("ports", "steering", "drops", "frames")},
        "rules": {str(number): match for number, match in matches.items()},
        "consumers": [
            {"name": "verify", "kind": "python", "frames": total["received"],
             "bytes": total["received_bytes"], "leased": frames["leased"], "oldest_lease_ms": 0,
             "dropped": 0}
        ],
        "latency_ns": dict(latency),
        "memory": {
            "fast": {"frames": frames["total"], "frame_bytes": receiving["frame_bytes"],
                     "bytes": frames["total"] * receiving["frame_bytes"]},
            "mid": {},
            "persistent": {},
            "backing": backing,
            "state": "ok" if backing == "2M" else "degraded",
            "reasons": [] if backing == "2M" else [why for why in reasons if "hugepage" in why],
        },
        "notes": list(reasons),
        **total,
        "skipped": dict(skipped),
        "pps": round(total["sent"] / total["elapsed_s"]) if total["elapsed_s"] else 0,
        "captures": [dict(one) for one in entries],
    }
    if recorded is not None:
        found["consumers"].append(
            {"name": "keep", "kind": "record", "frames": recorded["packets"],
             "bytes": recorded["bytes"], "leased": 0, "oldest_lease_ms": 0,
             "dropped": sum(recorded["dropped"].values()), "record": dict(recorded)}
        )
        found["memory"]["persistent"] = {"bytes": recorded["durable_bytes"],
                                         "devices": recorded["devices"]}
    found["faults"] = faults(found)
    return found


def faults(found: Mapping[str, Any]) -> list[str]:
    """What does not hold, each as one line."""
    wrong: list[str] = []
    for one in found["captures"]:
        wrong += [f"{one['name']}: {line}" for line in _accounts(one)]
    wrong += [one["fault"] for one in found["captures"] if one["fault"]]
    if not wrong:
        # The parts are right; the sum must be the same story, told by the ports once closed.
        wrong += _accounts({**found, "passed": found["steering"]["passed"]})
    for consumer in found.get("consumers", ()):
        if "record" not in consumer:
            continue
        durable = consumer["record"]["durable"]
        if durable != found["received"]:
            wrong.append(f"received {found['received']}, of which {durable} are durable")
    if found["frames"]["leaked"]:
        wrong.append(f"frames.leaked is {found['frames']['leaked']}, not 0")
    return wrong


def _accounts(one: Mapping[str, Any]) -> list[str]:
    wrong = []
    dropped = sum(one["drops"].values())
    rest = one["sent"] - one["received"] - one["passed"] - dropped
    if rest:
        wrong.append(
            f"sent {one['sent']} is not received {one['received']} + passed {one['passed']} + "
            f"dropped {dropped}: {abs(rest)} {'unaccounted for' if rest > 0 else 'too many'}"
        )
    elif one["missing"] > dropped:
        wrong.append(
            f"{one['missing']} packets did not arrive that the rules consume, and only {dropped} "
            "were dropped"
        )
    if one["mismatched"]:
        wrong.append(f"mismatched is {one['mismatched']}, not 0")
    return wrong
