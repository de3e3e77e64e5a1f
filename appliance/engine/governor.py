"""The governor's decisions: from how full a port's memory is to what is done about it.

Pure: a State and the readings of one moment in, the next State out. guard.py takes the readings and
acts. The ladder of a port, one rung at a time:

    shed the rules of the largest priority number, in XDP, before the copy
    ... the next ones; those of the smallest number that the port has are never shed
    withhold FILL, so that the kernel or the NIC drops (only when frames run out: a full RX ring,
    and a tier that can take no more, drop by themselves, and count it)

Rings and frames belong to a port. A tier (mid, persistent) belongs to the ports whose packets go
there: what is shed of them before the copy need not be kept.

Up at once when a level trips and goes on rising, and again when it has not fallen after SETTLE_S.
Down when all levels have been clear for a while, which doubles when a step down was too early.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

STATES = ("ok", "pressure", "shedding", "degraded")  # in the order of gravity


@dataclass(frozen=True)
class Watermark:
    """Shares of what there is. Between clear and trip it is as it was before: no flutter."""

    pressure: float
    trip: float
    clear: float


# The half of the ring above `trip` is the reserve of what is never shed: at 100,000 packets/s more
# than are consumed, 1,024 entries last 10 ms, two beats of the guard.
RING = Watermark(pressure=0.25, trip=0.5, clear=0.125)
# Bursts cut short for want of a frame, as beats in a row over BEATS: one may be chance.
FRAMES = Watermark(pressure=0.3, trip=1.0, clear=0.0)
MID = Watermark(pressure=0.75, trip=0.9, clear=0.6)
# What waits for the disk, of the memory that may: a disk that stalls for a second is usual, and is
# what that memory is for.
PERSISTENT = Watermark(pressure=0.5, trip=0.8, clear=0.4)
MARKS = {"ring": RING, "frames": FRAMES, "mid": MID, "persistent": PERSISTENT}

BEATS = 3
RUNGS_MAX = 8  # so that all are taken back within a second: 0.3 s, then 0.1 s each
SETTLE_S = 0.02  # a ring of 2,048 is consumed in less at 100,000 packets/s
RESTORE_S = 0.1
RESTORE_S_MAX = 0.3
RELAPSE_S = 1.0  # up again so soon after a step down: the step was too early


@dataclass(frozen=True)
class Reading:
    """How full one thing is: kind of MARKS, whose it is, share from 0 to 1, packets or frames."""

    kind: str
    name: str
    share: float
    amount: int = 0


class Tier(Protocol):
    """Memory that can fill up. `kind` of MARKS is said where it is given to the guard."""

    def pressure(self) -> tuple[int, int, str, Sequence[str]]:
        """(used, capacity, one of STATES, reasons in words); used and capacity in bytes."""


@dataclass(frozen=True)
class Level:
    """What a tier answered. `ports` send packets there; None: all do."""

    kind: str
    name: str
    used: int
    capacity: int
    state: str = "ok"
    reasons: tuple[str, ...] = ()
    ports: frozenset[str] | None = None

    @property
    def share(self) -> float:
        return min(1.0, self.used / self.capacity) if self.capacity > 0 else 0.0

    def of(self, port: str) -> bool:
        return self.ports is None or port in self.ports


@dataclass(frozen=True)
class State:
    """What is in force for one port, and why."""

    rung: int = 0
    over: frozenset[tuple[str, str]] = frozenset()  # readings between trip and clear
    pressed: tuple[str, ...] = ()  # reasons, in words
    worst: float = 0.0  # at the last step up
    stepped: float = -1e9  # time of the last step up
    restored: float = -1e9  # of the last step down
    calm_since: float | None = None
    wait_s: float = RESTORE_S


@dataclass(frozen=True)
class Ladder:
    """What can be done for one port: thresholds of shedding, mildest first, then FILL."""

    thresholds: tuple[int, ...] = ()

    @classmethod
    def of(cls, priorities: Iterable[int]) -> Ladder:
        """From the priorities of the rules that consume. The smallest of them is never shed."""
        found = sorted(set(priorities))[:-1][::-1]
        if len(found) > RUNGS_MAX:
            step = len(found) / RUNGS_MAX
            found = [found[int((place + 1) * step) - 1] for place in range(RUNGS_MAX)]
        return cls(tuple(found))

    @property
    def top(self) -> int:
        return len(self.thresholds) + 1

    def shed_above(self, rung: int) -> int | None:
        """Rules with a larger priority number are shed; None: none is."""
        at = min(rung, len(self.thresholds))
        return self.thresholds[at - 1] if at else None

    def withholds(self, rung: int) -> bool:
        return rung >= self.top


def readings_of(port: str, levels: Iterable[Level]) -> list[Reading]:
    """The tiers of a port that are worth a word; everything else is clear."""
    return [
        Reading(level.kind, level.name, level.share, level.used)
        for level in levels
        if level.of(port) and level.share > MARKS[level.kind].clear
    ]


def decide(ladder: Ladder, state: State, readings: Iterable[Reading], now: float) -> State:
    """The state from `now` on."""
    found = list(readings)
    over = frozenset(
        (one.kind, one.name)
        for one in found
        if one.share >= MARKS[one.kind].trip
        or ((one.kind, one.name) in state.over and one.share > MARKS[one.kind].clear)
    )
    pressed = tuple(_words(one) for one in found if one.share >= MARKS[one.kind].pressure)
    tripped = [one for one in found if one.share >= MARKS[one.kind].trip]
    state = replace(state, over=over, pressed=pressed)
    if tripped:
        return _up(ladder, replace(state, calm_since=None), tripped, now)
    if over or pressed:
        return replace(state, calm_since=None)
    if state.calm_since is None:
        state = replace(state, calm_since=now)
    assert state.calm_since is not None
    first = state.stepped > state.restored  # it may be too early; the steps after it follow soon
    if state.rung and now - state.calm_since >= (state.wait_s if first else RESTORE_S):
        return replace(state, rung=state.rung - 1, restored=now, calm_since=now)
    return state


def _up(ladder: Ladder, state: State, tripped: list[Reading], now: float) -> State:
    worst = max(one.share for one in tripped)
    most = ladder.top if any(one.kind == "frames" for one in tripped) else ladder.top - 1
    rising = state.rung == 0 or worst > state.worst
    if state.rung >= most or not (rising or now - state.stepped >= SETTLE_S):
        return state
    relapse = now - state.restored < RELAPSE_S
    return replace(
        state,
        rung=state.rung + 1,
        worst=worst,
        stepped=now,
        wait_s=min(2 * state.wait_s, RESTORE_S_MAX) if relapse else RESTORE_S,
    )


def name_of(ladder: Ladder, state: State) -> str:
    """One of STATES."""
    if ladder.withholds(state.rung):
        return "degraded"
    if state.rung:
        return "shedding"
    return "pressure" if state.over or state.pressed else "ok"


def reasons(port: str, ladder: Ladder, state: State) -> list[str]:
    """Why it is not ok, in words."""
    found = [f"{port}: {words}" for words in state.pressed]
    shed = ladder.shed_above(state.rung)
    if shed is not None:
        found.append(f"{port}: rules above priority {shed} are shed")
    if ladder.withholds(state.rung):
        found.append(f"{port}: FILL is withheld")
    return found


def worst_of(names: Iterable[str]) -> str:
    return max(names, key=STATES.index, default="ok")


def _words(one: Reading) -> str:
    if one.kind == "frames":
        return f"{one.name}: no free frames to receive with"
    what = "RX ring " if one.kind == "ring" else ""
    return f"{one.name}: {what}{one.share:.0%} full"


def summary(
    ports: Mapping[str, tuple[Ladder, State]], levels: Sequence[Level] = ()
) -> dict[str, Any]:
    """{"state", "reasons", "shed_above", "withheld", "ports", "tiers"}: what statistics show."""
    states = {name: name_of(ladder, state) for name, (ladder, state) in ports.items()}
    sheds = [ladder.shed_above(state.rung) for ladder, state in ports.values()]
    return {
        "state": worst_of([*states.values(), *(level.state for level in levels)]),
        "reasons": [
            line for name, (ladder, state) in ports.items() for line in reasons(name, ladder, state)
        ]
        + [line for level in levels for line in level.reasons],
        "shed_above": min((shed for shed in sheds if shed is not None), default=None),
        "withheld": any(ladder.withholds(state.rung) for ladder, state in ports.values()),
        "ports": states,
        "tiers": {
            level.name: {"kind": level.kind, "used": level.used, "capacity": level.capacity,
                         "state": level.state}
            for level in levels
        },
    }
