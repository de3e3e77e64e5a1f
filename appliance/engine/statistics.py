"""The figures of the appliance, as the contract names them.

Owns the sums over ports, workers and memories. Everything is read live and without stopping
anybody: figures of one answer may be some packets apart, until the appliance has stopped.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from appliance import image
from appliance.attachment import Attachment
from appliance.config import Config
from appliance.dataplane import Frames, bucket_upper_ns
from appliance.engine.build import Group
from appliance.engine.crew import Crew
from appliance.memory import MidTier, explain

BACKINGS = ("1G", "2M", "thp", "4k")  # best first
PERCENTILES = (("p50", 0.5), ("p99", 0.99), ("p999", 0.999))


def host() -> dict[str, Any]:
    """What is asked of the process and of the host: in the image, its version and last update."""
    return {"pid": os.getpid(), **image.facts()}


def ports(
    attachments: Iterable[Attachment], links: Mapping[str, str]
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """The entries of "ports", each with its own steering, link and state; and drops by reason."""
    entries = []
    drops: Counter[str] = Counter()
    for attachment in attachments:
        found = attachment.statistics()
        drops.update(found["drops"])
        link = links.get(attachment.name, "up")
        entry = {**found["port"], "steering": found["steering"], "link": link}
        entry["state"] = "ok" if link == "up" else "degraded"
        entry["reasons"] = [] if link == "up" else [_link_reason(attachment, link)]
        entries.append(entry)
    return entries, drops


def _link_reason(attachment: Attachment, link: str) -> str:
    where = f"{attachment.name}: {attachment.spec.interface}"
    if link == "gone":
        return f"{where} is gone; a new one of this name is used after a new start"
    return f"{where}: {'no carrier' if link == 'no carrier' else 'link is down'}"


def steering(entries: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The steering of all ports together; rule ids are unique over ports."""
    total: Counter[str] = Counter()
    by_rule: dict[str, int] = {}
    for entry in entries:
        for name, value in entry["steering"].items():
            if name == "by_rule":
                by_rule.update(value)
            else:
                total[name] += value
    names = ("seen", "consumed", "passed", "dropped", "management")
    return {**{name: total[name] for name in names}, "by_rule": by_rule}


def consumers(config: Config, crew: Crew | None) -> tuple[list[dict[str, Any]], Counter[str]]:
    """The entries of "consumers", and the packets that workers dropped, by reason."""
    counts: dict[str, Counter[str]] = {consumer.name: Counter() for consumer in config.consumers}
    drops: Counter[str] = Counter()
    for group, worker in _workers(crew):
        found = worker.statistics()
        for instance, figures in zip(group.instances, found["consumers"], strict=True):
            counts[instance.name].update(figures)
        for lane in found["drops"]:
            drops.update(lane)
    entries = [
        {
            "name": consumer.name,
            "kind": consumer.kind,
            "frames": counts[consumer.name]["frames"],
            "bytes": counts[consumer.name]["bytes"],
            # Inline ones give every frame back within its burst; of others sharing.py says.
            "leased": 0,
            "oldest_lease_ms": 0,
            "dropped": counts[consumer.name]["dropped"],
        }
        for consumer in config.consumers
    ]
    if crew is not None and crew.sharing is not None:
        crew.sharing.complete(entries)
    return entries, drops


def memories(attachments: Iterable[Attachment]) -> list[tuple[str, Frames]]:
    """Every queue by name, with the memory that it is on."""
    return [
        (f"{attachment.name}/{queue.queue_id}", queue.frames)
        for attachment in attachments
        for queue in attachment.queues
    ]


def holders(config: Config, crew: Crew | None) -> list[dict[str, Any]]:
    """What each consumer may hold, and holds: the part of `mem explain` that names who."""
    entries, _ = consumers(config, crew)
    return [
        {
            "name": entry["name"],
            "kind": entry["kind"],
            "policy": consumer.effective_policy,
            "quota_frames": consumer.quota_frames,
            "max_hold_ms": consumer.max_hold_ms,
            "held": entry["leased"],
            "oldest_hold_ms": entry["oldest_lease_ms"],
            "dropped": entry["dropped"],
            **({"members": entry["members"]} if "members" in entry else {}),
        }
        for entry, consumer in zip(entries, config.consumers, strict=True)
    ]


def workers(crew: Crew | None) -> list[dict[str, Any]]:
    """Who runs which queues on which core, and how often there was something to do."""
    entries = []
    for place, (group, worker) in enumerate(_workers(crew)):
        found = worker.statistics()
        entries.append(
            {
                "cpu": crew.cpus[place] if crew is not None and crew.cpus else None,
                "queues": [f"{lane.port}/{lane.queue}" for lane in group.lanes],
                **{name: found[name] for name in ("rounds", "rounds_with_packets", "sleeps")},
            }
        )
    return entries


def _workers(crew: Crew | None) -> Iterable[tuple[Group, Any]]:
    return zip(crew.layout.groups, crew.workers, strict=True) if crew is not None else ()


def frames(memories: Sequence[Frames], leaked: int) -> dict[str, int]:
    """Frames by state over all memories. `leaked` is what the audits found; live, what is amiss."""
    names = ("total", "free", "cached", "fill", "rx", "leased", "tx", "completion", "leaked")
    total = dict.fromkeys(names, 0)
    for memory in memories:
        for name, count in memory.count().items():
            total[name] += count
    total["leaked"] += leaked
    return total


def latency(crew: Crew | None) -> dict[str, int]:
    """XDP timestamp to worker over all workers; percentiles are upper ends of 6 % buckets."""
    counts, largest = np.zeros(1, np.uint64), 0
    for _, worker in _workers(crew):
        more, most = worker.latencies()
        counts, largest = (more if len(counts) == 1 else counts + more), max(largest, most)
    return {**percentiles(counts, largest), "max": largest}


def percentiles(counts: np.ndarray, largest: int) -> dict[str, int]:
    """Percentiles of a histogram: the upper end of the bucket, never more than the largest."""
    reached = np.cumsum(counts)
    total = int(reached[-1])
    result = {}
    for name, share in PERCENTILES:
        bucket = int(np.searchsorted(reached, share * total)) if total else 0
        result[name] = min(bucket_upper_ns(bucket), largest) if total else 0
    return result


def memory(
    config: Config, memories: Sequence[Frames], mid: MidTier | None = None
) -> dict[str, Any]:
    """The tiers. A backing worse than what was asked for is a state, not a remark."""
    backings = [made.arena.backing for made in memories]
    worst = max(backings, key=BACKINGS.index, default=BACKINGS[0])
    reasons = list(dict.fromkeys(made.arena.reason for made in memories if made.arena.reason))
    slabs = explain.summary(mid)
    reasons += slabs["reasons"]
    return {
        "fast": {
            "bytes": sum(made.arena.bytes for made in memories),
            "umems": len(memories),
            "frame_bytes": config.memory.frame_bytes,
            "hugepages": config.memory.hugepages,
        },
        "mid": slabs,
        "backing": worst,
        "state": "degraded" if reasons else "ok",
        "reasons": reasons,
    }
