"""The tiers of memory that the governor watches, beside the ports' own rings and frames.

Owns the list of them, what each answered last, and the moment when a tier may tidy up. Who adds a
tier gives an object with governor.Tier's one method; `tidy()` and the count `refusals` are used if
they are there. What the
figures lead to is decided in governor.py. One thread looks; any may add.

    tiers.watch("persistent", "recorder keep", recorder, ports=["in0"])
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

from appliance.engine.governor import MARKS, Level, Tier

LOOK_S = 0.02  # five beats of the guard: a tier fills in seconds, not within a ring's length
TIDY_S = 1.0  # quiet for so long: unmapping an arena costs what receiving 100 packets costs


@dataclass(frozen=True)
class _Watched:
    kind: str
    name: str
    tier: Tier
    ports: frozenset[str] | None


class Tiers:
    """`watch` what there is; the guard calls `look` and `rest`; `levels` is the last answer."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watched: tuple[_Watched, ...] = ()
        self._looked = -1e9
        self._quiet_since: float | None = None
        self._refusals: dict[str, int] = {}
        self.levels: tuple[Level, ...] = ()

    def watch(
        self, kind: str, name: str, tier: Tier, ports: Iterable[str] | None = None
    ) -> None:
        """From now on, as a kind of governor.MARKS. `ports` send packets there; None: all do."""
        if kind not in MARKS:
            raise ValueError(f"kind: {kind!r}: one of {', '.join(MARKS)}")
        one = _Watched(kind, name, tier, None if ports is None else frozenset(ports))
        with self._lock:
            self._watched = (*self._watched, one)

    def forget(self) -> None:
        """None of them any more; the last answer stays for the final figures."""
        with self._lock:
            self._watched = ()

    def look(self, now: float) -> list[str]:
        """Asks every tier, if it is time. A line for each that refused memory since the last."""
        if now - self._looked < LOOK_S:
            return []
        self._looked = now
        self.levels = tuple(_level(one) for one in self._watched)
        ran_out = []
        for one in self._watched:
            count = getattr(one.tier, "refusals", 0)
            if count > self._refusals.get(one.name, 0):
                ran_out.append(f"{one.name}: refused {count - self._refusals.get(one.name, 0)}")
            self._refusals[one.name] = count
        return ran_out

    def rest(self, now: float, *, quiet: bool) -> None:
        """Lets tiers tidy up, once nothing has been shed or withheld for a while."""
        if not quiet:
            self._quiet_since = None
        elif self._quiet_since is None:
            self._quiet_since = now
        elif now - self._quiet_since >= TIDY_S:
            self._quiet_since = now
            for one in self._watched:
                tidy = getattr(one.tier, "tidy", None)
                if tidy is not None:
                    tidy()


def _level(one: _Watched) -> Level:
    """Whatever a tier does when it is asked, the guard goes on looking at the others."""
    try:
        used, capacity, state, reasons = one.tier.pressure()
    except Exception as error:
        reason = f"{one.name}: does not answer: {error}"
        return Level(one.kind, one.name, 0, 0, "degraded", (reason,), one.ports)
    return Level(one.kind, one.name, used, capacity, state, tuple(reasons), one.ports)
