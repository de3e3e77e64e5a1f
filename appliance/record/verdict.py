"""What a log proves: the pure decision whether it is clean, torn or damaged, and where to cut.

Takes the facts of a walk through each segment, in order, and the recorder's state page; looks at
nothing else and changes nothing. The rule:

    every byte up to the end is accounted for                                       clean
    at the first place that fails, nothing of this log follows                      torn
    something follows, and records from that place on were said to be durable       damaged
    something follows, but nothing from that place on was known to be durable       torn

Torn may be cut: it is what a crash leaves, pages that were on their way and came in any order.
Damaged is never cut: what a flush had confirmed is missing while later records are there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from appliance.dataplane import log_scan

__all__ = ["Facts", "Verdict", "decide", "ends_well"]

Evidence = dict[str, int]


@dataclass(frozen=True)
class Facts:
    """One segment as it was walked. `header` None: it fails its check, and nothing was walked."""

    index: int
    name: str
    size: int
    header: dict[str, Any] | None
    walk: dict[str, Any] = field(default_factory=dict)
    why: str = ""
    evidence: Evidence = field(default_factory=dict)
    stray_heads: int = 0  # writes that name this segment, where the header is lost
    prepared: bool = False  # nothing but zeros where the header will be, and no writes: not begun

    @property
    def seq(self) -> int:
        """The number that the next record must have."""
        return int(self.walk["seq"])

    @property
    def sealed(self) -> bool:
        return bool(self.walk["stop"] == log_scan.SEALED)


@dataclass(frozen=True)
class Verdict:
    state: str  # clean, torn, damaged
    cause: str = ""
    position: int | None = None  # of the segment with the break, among the facts
    missing: int = 0  # records that were durable and are not there
    next_seq: int = 1
    chain: int = 0
    next_index: int = 0
    durable_seq: int = 0


def ends_well(facts: Facts) -> bool:
    """Whether a walk ended where a write ended, with nothing of this segment behind it."""
    stop = facts.walk["stop"]
    if stop in (log_scan.GOES_ON, log_scan.SEALED, log_scan.AT_LIMIT):
        return True  # GOES_ON: the rest is superseded, and was not looked at
    return bool(stop == log_scan.NO_WRITE and not facts.evidence.get("first_at"))


def decide(segments: Sequence[Facts], state: dict[str, Any] | None) -> Verdict:
    """The verdict on segments in order of their index."""
    if not segments:
        promised = 0 if state is None else state["durable_seq"]
        if promised:
            return Verdict("torn", f"no segment is there; {promised} was durable", None, promised,
                           durable_seq=promised)
        return Verdict("clean")
    position, problem = _first_break(segments)
    durable = _durable(segments, state)
    if position is None:
        return _whole(segments, state, durable)
    broken = segments[position]
    before = _last_good(segments[:position])
    seq, chain = before if broken.header is None else (broken.seq, broken.walk["chain"])
    place = {"position": position, "next_seq": seq, "chain": chain,
             "next_index": broken.index + (broken.header is not None), "durable_seq": durable}
    missing = max(0, durable - seq + 1)
    line = f"segment {broken.index}: {problem}"
    if problem in _NEVER_TORN:
        return Verdict("damaged", line, **place)
    if _followed(segments, position):
        if missing or broken.header is None:
            return Verdict("damaged", f"{line}; later records follow it", **place)
        return Verdict("torn", f"{line}; what follows was never flushed", **place)
    return Verdict("torn", line + _lost(missing), missing=missing, **place)


_FOREIGN = "it belongs to another log"
_MISNAMED = "its header has another index"
_TWICE = "its index is there twice"
_NEVER_TORN = frozenset({_FOREIGN, _MISNAMED, _TWICE})


def _lost(missing: int) -> str:
    return f"; {missing} durable records are missing" if missing else ""


def _whole(segments: Sequence[Facts], state: dict[str, Any] | None, durable: int) -> Verdict:
    """No place fails; the end may still be earlier than it was."""
    last = segments[-1]
    place = {"next_seq": last.seq, "chain": last.walk["chain"], "next_index": last.index + 1,
             "durable_seq": durable}
    if durable >= last.seq:
        missing = durable - last.seq + 1
        return Verdict("torn", f"the end is gone{_lost(missing)}", len(segments) - 1, missing,
                       **place)
    written = state["last_seq"] if state and _same_log(segments, state) else 0
    if written >= last.seq:
        count = written - last.seq + 1
        return Verdict("torn", f"the last {count} records were written, but not flushed",
                       len(segments) - 1, **place)
    return Verdict("clean", **place)


def _same_log(segments: Sequence[Facts], state: dict[str, Any]) -> bool:
    first = next((facts.header for facts in segments if facts.header), None)
    return first is not None and first["uuid"] == state["uuid"]


def _durable(segments: Sequence[Facts], state: dict[str, Any] | None) -> int:
    """The highest number that anything which can be believed calls flushed."""
    marks = [0]
    if state is not None and _same_log(segments, state):
        marks.append(state["durable_seq"])
    for facts in segments:
        if facts.header is not None:
            marks += [facts.walk["durable_seq"], facts.evidence.get("durable_seq", 0)]
    return max(marks)


def _followed(segments: Sequence[Facts], position: int) -> bool:
    """Whether anything of this log lies behind the break."""
    broken = segments[position]
    if broken.stray_heads or broken.evidence.get("first_at"):
        return True
    uuid = next((facts.header["uuid"] for facts in segments if facts.header), None)
    return any(facts.stray_heads or (facts.header and facts.header["uuid"] == uuid)
               for facts in segments[position + 1:])


def _last_good(segments: Sequence[Facts]) -> tuple[int, int]:
    return (segments[-1].seq, segments[-1].walk["chain"]) if segments else (1, 0)


def _first_break(segments: Sequence[Facts]) -> tuple[int | None, str]:
    """The first segment that does not hold, or after which something is missing."""
    uuid = next((facts.header["uuid"] for facts in segments if facts.header), None)
    for position, facts in enumerate(segments):
        after = segments[position + 1] if position + 1 < len(segments) else None
        if facts.header is None:
            return position, "its header fails its check"
        if facts.header["uuid"] != uuid:
            return position, _FOREIGN
        if facts.header["index"] != facts.index:
            return position, _MISNAMED
        if after is not None and after.index == facts.index:
            return position + 1, _TWICE
        if after is not None and after.header is not None and after.header["uuid"] == uuid:
            if after.header["fresh"] and after.header["first_seq"] <= facts.seq:
                continue  # begun after a fault: what is missing here is there
            problem = _link(facts, after)
        else:
            problem = "" if ends_well(facts) else facts.why
        if problem:
            return position, problem
    return None, ""


def _link(facts: Facts, after: Facts) -> str:
    """Why `after` is not what comes next; empty: it is, and so `facts` ended where it ends."""
    assert after.header is not None
    if not ends_well(facts) and facts.walk["stop"] != log_scan.NO_WRITE:
        return facts.why
    if after.header["first_seq"] != facts.seq:
        count = after.header["first_seq"] - facts.seq
        where = f", with segment {facts.index + 1}" if after.index > facts.index + 1 else ""
        return (f"{count} records after it are missing{where}" if count > 0
                else "the next one overlaps it")
    if not after.header["fresh"] and after.header["chain"] != facts.walk["chain"]:
        return "the next one does not continue its chain"
    return ""
