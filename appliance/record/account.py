"""What a recording says of itself: its account and how it stands, in the words of the statistics.

Pure. packets = durable + in memory + expired + dropped, by reason; `durable` counts what a flush
has confirmed, `in_memory` what may still be lost with the process, `expired` what left a window
unasked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from appliance.record.place import Place

BLOCK_SHIFT = 16  # 64 KiB


def summary(
    name: str, figures: Mapping[str, Any], places: Sequence[Place], reasons: Sequence[str],
    engine: str, engine_reason: str,
) -> dict[str, Any]:
    """The entry of a recording consumer; see README.md for what the figures are."""
    notes = [place.medium.why_buffered for place in places if place.medium.why_buffered]
    if engine_reason:
        notes.append(f"{engine_reason}: writes by threads")
    dropped = {
        "no_memory": figures["no_memory"],
        "device": figures["dropped"],
        "flow_cut": figures["flow_cut"],
    }
    return {
        "name": name,
        "packets": figures["packets"],
        "bytes": figures["bytes"],
        "durable": figures["durable"],
        "durable_bytes": figures["durable_bytes"],
        "in_memory": figures["in_memory"],
        "expired": figures["expired"],
        "kept": figures["kept"],
        "dropped": {reason: count for reason, count in dropped.items() if count},
        "cut_packets": figures["cut_packets"],
        "durable_seq": figures["durable_seq"],
        "gaps": figures["gaps"],
        "gap_packets": figures["gap_packets"],
        "memory_bytes": figures["blocks"] << BLOCK_SHIFT,
        "memory_peak_bytes": figures["blocks_peak"] << BLOCK_SHIFT,
        "memory_cap_bytes": figures["blocks_max"] << BLOCK_SHIFT,
        "stuck_bytes": figures["blocks_stuck"] << BLOCK_SHIFT,
        "engine": engine,
        "writes": figures["writes"],
        "write_bytes": figures["write_bytes"],
        "flushes": figures["syncs"],
        "flush_ms_mean": round(figures["sync_ms_mean"], 3),
        "flush_ms_worst": round(figures["sync_ms_worst"], 3),
        "segment": figures["index"],
        "segment_bytes": figures["written"],
        "devices": [_device(place) for place in places],
        "state": "degraded" if reasons else "ok",
        "reasons": list(reasons),
        "notes": notes,
    }


def _device(place: Place) -> dict[str, Any]:
    return {
        "path": place.path,
        "state": "failed" if place.error else "ok",
        "reason": place.error,
        "direct": place.direct,
        "recycled": place.medium.recycled,
        "removed": place.medium.removed,
    }


def problem(record: Mapping[str, Any], frames: int) -> str:
    """At the end nothing is in memory: the line that says what does not add up, or nothing."""
    dropped = sum(record["dropped"].values())
    if record["packets"] == frames == record["durable"] + record["expired"] + dropped:
        return ""
    return (f"{record['name']}: {frames} packets to record, {record['durable']} durable, "
            f"{record['in_memory']} in memory, {record['expired']} expired, {dropped} dropped")
