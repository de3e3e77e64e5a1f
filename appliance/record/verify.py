"""Walking a whole log: the facts of every segment, the verdict, the report.

Owns the order of looking (state page first, then segments from the oldest on) and what a living
recorder means for it: nothing behind what it has published is looked at. It changes nothing;
recover.py acts on what is found here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from appliance.dataplane import log_scan
from appliance.errors import LogDamaged
from appliance.record.store import Place, Store, live
from appliance.record.verdict import Facts, Verdict, decide, ends_well

__all__ = ["Examined", "examine", "facts_of", "report", "superseded_from", "verify"]

NO_END = (1 << 64) - 1
GAPS_MAX = 1000  # listed in a report, the oldest; `lost` counts all
Progress = Callable[[int], object]


@dataclass
class Examined:
    """A log that was walked from end to end."""

    places: list[Place]
    facts: list[Facts]
    state: dict[str, Any] | None
    live: bool
    verdict: Verdict
    gaps: list[dict[str, Any]] = field(default_factory=list)

    @property
    def kept(self) -> list[Facts]:
        """The segments whose records count: up to and with the one that breaks."""
        end = self.verdict.position
        kept = self.facts if end is None else self.facts[: end + 1]
        return [facts for facts in kept if facts.header is not None]


def facts_of(place: Place, limit: int | None = None, gaps: list[dict[str, Any]] | None = None,
             until: int | None = None) -> Facts:
    """Walks one segment; `limit` is how much of it may be looked at (a live one), `until` the
    number from which on its records do not count."""
    if place.size < log_scan.PAGE:
        return Facts(place.index, place.name, place.size, None, why="it is shorter than a header")
    mapped = place.open()
    length = place.size if limit is None else min(limit, place.size)
    if not mapped.valid:
        heads = _readable(place, lambda: mapped.stray_heads(place.index, length))
        return Facts(place.index, place.name, place.size, None, stray_heads=heads,
                     prepared=mapped.blank and not heads)
    walk = log_scan.Walk(mapped, length)
    first = mapped.header["first_seq"]
    most = NO_END if until is None else max(0, until - first)
    room = 0 if gaps is None else GAPS_MAX - len(gaps)
    found = _readable(place, lambda: walk.run(most, gaps_max=room))
    if gaps is not None:
        gaps += found
    header, facts, why = mapped.header, walk.facts, walk.why
    evidence = {}
    if walk.stop not in (log_scan.GOES_ON, log_scan.SEALED, log_scan.AT_LIMIT):
        evidence = _readable(place, walk.search)
    return Facts(place.index, place.name, place.size, header, facts, why, evidence)


def superseded_from(places: list[Place]) -> list[int | None]:
    """For each segment the first number that a later one, begun after a fault, has anew."""
    found: list[int | None] = []
    lowest: int | None = None
    for place in reversed(places):
        found.append(lowest)
        try:
            header = place.open(log_scan.PAGE).header if place.size >= log_scan.PAGE else None
        except (FileNotFoundError, BlockingIOError):
            continue
        if header is not None and header["fresh"]:
            lowest = min(lowest or NO_END, header["first_seq"])
    return found[::-1]


def _readable(place: Place, action: Callable[[], Any]) -> Any:
    try:
        return action()
    except OSError as error:
        raise LogDamaged(f"{place.name}: {error.strerror or error}") from error


def examine(store: Store, progress: Progress | None = None) -> Examined:
    """Walks everything. The state is read first: what it promises must then be found."""
    state = store.state()
    alive = live(state)
    places: list[Place] = []
    found: list[Facts] = []
    gaps: list[dict[str, Any]] = []
    done = 0
    listed = store.segments()
    for place, until in zip(listed, superseded_from(listed), strict=True):
        limit = None
        if alive and state is not None:
            if place.index > state["index"]:
                continue  # made since the state was read
            limit = state["published"] if place.index == state["index"] else None
        try:
            facts = facts_of(place, limit, gaps, until)
        except (FileNotFoundError, BlockingIOError):
            if found:
                raise LogDamaged(f"{place.name} went away while it was read") from None
            continue  # the recorder has taken the oldest for something new
        if not facts.prepared:  # else a recorder has made it ahead of need
            places.append(place)
            found.append(facts)
        done += place.size
        if progress is not None:
            progress(done)
    return Examined(places, found, state, alive, decide(found, state), gaps)


def report(examined: Examined) -> dict[str, Any]:
    """What `openclaw log verify` says."""
    verdict = examined.verdict
    kept = examined.kept
    records = sum(facts.walk["records"] for facts in kept)
    first = kept[0].header["first_seq"] if kept and kept[0].header else 0
    last = verdict.next_seq - 1
    return {
        "segments": len(examined.facts),
        "records": records,
        "bytes": sum(facts.walk["bytes"] for facts in kept),
        "state": verdict.state,
        "first_seq": first if last >= first else 0,
        "last_seq": last if last >= first else 0,
        "durable_seq": verdict.durable_seq,
        "gaps": [gap for gap in examined.gaps if gap["seq"] <= last],
        "lost": sum(facts.walk["lost"] for facts in kept),
        "missing": verdict.missing,
        "cause": verdict.cause,
        "live": examined.live,
        "sealed": bool(kept) and ends_well(kept[-1]) and kept[-1].sealed,
    }


def verify(store: Store, progress: Progress | None = None) -> dict[str, Any]:
    """Verifies a log; the report's `state` is the verdict."""
    return report(examine(store, progress))
