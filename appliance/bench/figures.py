"""Figures of a comparison: samples in, min/median/max and ratios out, in the words of the contract.

Owns arithmetic only; it measures nothing. A ratio above 1 always means that ours is better, and it
is taken pair by pair: the first run of ours by the first run of the peer, which stood beside it.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

OURS = "ours"


@dataclass(frozen=True)
class Sample:
    """One measurement of one contestant. `values` by case: a latency run gives three at once."""

    values: Mapping[str, float]
    drops: Mapping[str, int] = field(default_factory=dict)
    cpu_ns_per_packet: float | None = None
    per_packet: Mapping[str, float] = field(default_factory=dict)  # "packets per wake-up", ...


@dataclass(frozen=True)
class Case:
    """What is compared: its name, its unit, and which way is better."""

    name: str
    unit: str
    higher_is_better: bool


def spread(values: Sequence[float]) -> dict[str, float]:
    """Least, median and greatest, with four significant digits: no more are measured."""
    return {
        "min": rounded(min(values)),
        "median": rounded(statistics.median(values)),
        "max": rounded(max(values)),
    }


def rounded(value: float) -> float:
    return float(f"{value:.4g}")


def ratios(ours: Sequence[float], peer: Sequence[float], higher_is_better: bool) -> list[float]:
    """Pair by pair, above 1 where ours is better. A pair without a figure has no ratio."""
    pairs = zip(ours, peer, strict=True)
    if higher_is_better:
        return [mine / theirs for mine, theirs in pairs if theirs]
    return [theirs / mine for mine, theirs in pairs if mine]


def result(
    case: Case,
    samples: Mapping[str, Sequence[Sample]],
    commands: Mapping[str, str],
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """One entry of "results". `samples` has OURS and any peers, all with as many runs."""
    values = {who: [run.values[case.name] for run in runs] for who, runs in samples.items()}
    peers = [who for who in samples if who != OURS]
    out: dict[str, Any] = {
        "case": case.name,
        "unit": case.unit,
        "higher_is_better": case.higher_is_better,
        "reps": len(values[OURS]),
        "ours": {**spread(values[OURS]), "command": commands.get(OURS, "")},
        "peers": {
            who: {**spread(values[who]), "command": commands.get(who, "")} for who in peers
        },
        "ratio": {},
        "drops": {who: _sum(run.drops for run in runs) for who, runs in samples.items()},
        "cpu_ns_per_packet": {},
        "per_packet": {who: _medians(runs) for who, runs in samples.items() if _medians(runs)},
        "notes": list(notes),
    }
    for who in peers:
        pairs = ratios(values[OURS], values[who], case.higher_is_better)
        if pairs:
            out["ratio"][who] = spread(pairs)
    for who, runs in samples.items():
        costs = [run.cpu_ns_per_packet for run in runs if run.cpu_ns_per_packet is not None]
        if costs:
            out["cpu_ns_per_packet"][who] = spread(costs)
    return out


def _sum(counts: Any) -> dict[str, int]:
    total: dict[str, int] = {}
    for count in counts:
        for reason, number in count.items():
            total[reason] = total.get(reason, 0) + number
    return {reason: number for reason, number in total.items() if number}


def _medians(runs: Sequence[Sample]) -> dict[str, float]:
    names = {name for run in runs for name in run.per_packet}
    return {
        name: rounded(statistics.median(run.per_packet[name] for run in runs
                                        if name in run.per_packet))
        for name in sorted(names)
    }


def percentile(sorted_values: Sequence[float], share: float) -> float:
    """The value that `share` of the values do not exceed (nearest rank)."""
    if not len(sorted_values):
        return 0.0
    rank = max(0, min(len(sorted_values) - 1, int(share * len(sorted_values) + 0.999999) - 1))
    return float(sorted_values[rank])


def histogram_percentile(counts: Sequence[int], upper: Sequence[float], share: float) -> float:
    """The same over a histogram: the upper edge of the bucket that holds that rank."""
    wanted = share * sum(counts)
    seen = 0
    for count, edge in zip(counts, upper, strict=True):
        seen += count
        if count and seen >= wanted:
            return float(edge)
    return 0.0
