"""The mid tier's page of `mem explain`: figures into the words that a person reads.

Owns arithmetic over figures that were read live, so sums may be off by what moved meanwhile; at a
standstill they are exact. It measures nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from appliance.memory.tier import MidTier

ARENA_MIB = 2
_WORST = {"2M": 0, "thp": 1, "4k": 2}


def page(tier: MidTier) -> dict[str, Any]:
    """{"cap_mib", "used_bytes", ..., "classes": [...], "arenas": [...], "magazines", "history"}.

    Per class: total, used, cached (in magazines) and depot are objects; asked_bytes is what Python
    asked for, wasted_bytes what its objects hold beyond that; fragmentation is the share of the
    class's free objects that stand in arenas which cannot be given back.
    """
    figures = tier.slabs.figures()
    arenas = [
        {"class_bytes": size, "number": number, "backing": backing, "node": node, "free": free}
        for size, number, backing, node, free in tier.slabs.arenas()
    ]
    classes = [_class(one, arenas, tier.asked) for one in figures["classes"]]
    backings = {arena["backing"] for arena in arenas}
    return {
        "cap_mib": tier.cap_mib,
        "mapped_mib": figures["arenas"] * ARENA_MIB,
        "peak_mib": figures["arenas_peak"] * ARENA_MIB,
        "used_bytes": sum(one["used"] * one["bytes"] for one in classes),
        "cached_bytes": sum(one["cached"] * one["bytes"] for one in classes),
        "hugepages": tier.hugepages,
        "backing": max(backings, key=_WORST.__getitem__, default=""),
        "reasons": _reasons(figures),
        "refusals": figures["refusals"],
        "violations": figures["violations"],
        "classes": classes,
        "arenas": arenas,
        "magazines": figures["magazines"],
        "history": [
            {
                "time_ns": time_ns,
                "what": "grown" if grown else "given back",
                "class_bytes": size,
                "number": number,
                "backing": backing,
                "arenas": after,
            }
            for time_ns, grown, size, number, backing, after in tier.slabs.events()
        ],
    }


def summary(tier: MidTier | None) -> dict[str, Any]:
    """The tier's entry of the statistics; all zero for an appliance without one."""
    if tier is None:
        return {"bytes": 0, "cap_bytes": 0, "used_bytes": 0, "peak_bytes": 0, "refusals": 0,
                "hugepages": "off", "backing": "", "state": "ok", "reasons": []}
    figures = tier.slabs.figures()
    reasons = _reasons(figures)
    backings = {backing for _, _, backing, _, _ in tier.slabs.arenas()}
    return {
        "bytes": figures["arenas"] * ARENA_MIB << 20,
        "cap_bytes": tier.cap_mib << 20,
        "used_bytes": sum(
            max(0, one["total"] - one["depot"] - one["cached"]) * one["bytes"]
            for one in figures["classes"]
        ),
        "peak_bytes": figures["arenas_peak"] * ARENA_MIB << 20,
        "refusals": figures["refusals"],
        "hugepages": tier.hugepages,
        "backing": max(backings, key=_WORST.__getitem__, default=""),
        "state": "degraded" if reasons else "ok",
        "reasons": reasons,
    }


def _class(one: dict[str, int], arenas: list[dict[str, Any]], asked: list[int]) -> dict[str, Any]:
    size = one["bytes"]
    used = max(0, one["total"] - one["depot"] - one["cached"])
    asked_bytes = asked[size.bit_length() - 7]
    full = ARENA_MIB * 1048576 // size
    scattered = sum(
        arena["free"]
        for arena in arenas
        if arena["class_bytes"] == size and arena["free"] < full
    )
    return {
        "bytes": size,
        "arenas": one["arenas"],
        "empty_arenas": one["empty"],
        "total": one["total"],
        "used": used,
        "cached": one["cached"],
        "depot": one["depot"],
        "asked_bytes": asked_bytes,
        "wasted_bytes": max(0, used * size - asked_bytes) if asked_bytes else 0,
        "fragmentation": round(scattered / one["total"], 4) if one["total"] else 0.0,
    }


def _reasons(figures: dict[str, Any]) -> list[str]:
    """Why the tier is not as good as was asked for."""
    reasons = []
    if figures["fallbacks"]:
        reasons.append(f"mid tier: {figures['fallbacks']} arenas found no free hugepage")
    if figures["unbound"]:
        reasons.append("mid tier: the kernel did not take the preferred NUMA nodes")
    broken = {name: count for name, count in figures["violations"].items() if count}
    if broken:
        kinds = ", ".join(f"{count} {name}" for name, count in broken.items())
        reasons.append(f"mid tier: misuse: {kinds}, last at {figures['violation_address']:#x}")
    return reasons


def refusal(tier: MidTier, nbytes: int, count: int) -> tuple[str, str]:
    """For MemoryExhausted: what was asked and why not; and the summary: who has the most."""
    figures = tier.slabs.figures()
    wanted = f"{count} x {nbytes} B" if count != 1 else f"{nbytes} B"
    why = (
        f"at its cap of {tier.cap_mib} MiB"
        if not figures["error"]
        else f"{figures['arenas'] * ARENA_MIB} of {tier.cap_mib} MiB, and the host has no more "
        f"({figures['error']})"
    )
    held = sorted(
        (
            ((one["total"] - one["depot"] - one["cached"]) * one["bytes"], one["bytes"])
            for one in figures["classes"]
        ),
        reverse=True,
    )
    most = ", ".join(f"{size} B: {used / 1048576:.1f} MiB" for used, size in held[:3] if used > 0)
    cached = sum(one["cached"] * one["bytes"] for one in figures["classes"])
    return (
        f"no slab for {wanted}: the mid tier is {why}",
        f"used by class: {most or 'nothing'}; in caches: {cached / 1048576:.1f} MiB",
    )
