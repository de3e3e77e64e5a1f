"""The guard: a thread that looks at rings, frames and tiers and does what the governor says.

Owns the beat, the readings and the acting: the shed threshold of the steering program and how many
frames are posted to FILL. Decisions are governor.py's. It takes no lock of the engine, moves no
frame, and a failure to act is an event, never the end. When memory has run out it says so
(`ran_out`), as often as it is seen.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from appliance.attachment import Attachment
from appliance.engine import governor
from appliance.engine.governor import Ladder, Reading, State
from appliance.engine.tiers import Tiers
from appliance.errors import OpenClawError
from appliance.memory import EventLog
from appliance.plan import BURST
from appliance.steering import Rule

BEAT_S = 0.004  # a look costs 0.5 us per queue: with 128 of them 2 % of a core
WITHHELD = 4  # a withheld FILL keeps one of so many frames posted: what counts still trickles in
TAKING = ("consume", "sample")


class Guard:
    """`Guard(ports, events, tiers)`; set_rules() for each port, start(), then summary(); stop()."""

    def __init__(
        self,
        ports: Mapping[str, Attachment],
        events: EventLog,
        tiers: Tiers | None = None,
        ran_out: Callable[[str], None] | None = None,
    ) -> None:
        self._ports = dict(ports)
        self._events = events
        self._ran_out = ran_out or (lambda why: None)
        self._tiers = tiers if tiers is not None else Tiers()
        self._ladders = {name: Ladder() for name in ports}
        self._states = {name: State() for name in ports}
        # By queue: bursts cut short so far, and for how many beats in a row it has grown
        self._starved = {
            name: [(queue.starved, 0) for queue in attachment.queues]
            for name, attachment in ports.items()
        }
        self._targets = {
            name: [queue.fill_target for queue in attachment.queues]
            for name, attachment in ports.items()
        }
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def set_rules(self, port: str, rules: Iterable[Rule]) -> None:
        """The priorities that there are to shed; on every start and swap."""
        if self._ports[port].steering is not None:
            taking = (rule.priority for rule in rules if rule.action in TAKING)
            self._ladders[port] = Ladder.of(taking)

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="guard", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """No more beats. Nothing is in force any more: the ports are about to close."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._states = {name: State() for name in self._ports}

    def summary(self) -> dict[str, Any]:
        """State, reasons, and what is in force, over all ports."""
        return governor.summary(
            {name: (self._ladders[name], self._states[name]) for name in self._ports},
            self._tiers.levels,
        )

    # ------------------------------------------------------------------------------------- beat

    def _run(self) -> None:
        while not self._ended.wait(BEAT_S):
            now = time.monotonic()
            for why in self._tiers.look(now):
                self._ran_out(why)
            for name in self._ports:
                self.beat(name, now)
            self._tiers.rest(now, quiet=not any(state.rung for state in self._states.values()))

    def beat(self, port: str, now: float) -> None:
        """One look at one port, and what follows from it."""
        ladder, before = self._ladders[port], self._states[port]
        readings = self._readings(port)
        if not readings and not (before.rung or before.over or before.pressed):
            return
        after = governor.decide(ladder, before, readings, now)
        for one in readings:
            if one.kind == "frames" and one.share >= governor.FRAMES.trip:
                self._ran_out(f"{one.name}: no free frames to receive with")
        if after.rung != before.rung:
            self._act(port, ladder, before.rung, after.rung)
            self._note(port, ladder, before, after, readings, now)
        self._states[port] = after

    def _readings(self, port: str) -> list[Reading]:
        """What is worth a word; everything else is clear."""
        found = []
        starved = self._starved[port]
        for place, queue in enumerate(self._ports[port].queues):
            waiting, fresh = queue.waiting, queue.starved
            share = waiting / queue.rx_ring
            if share > governor.RING.clear:
                found.append(Reading("ring", f"{port}/{queue.queue_id}", share, waiting))
            count, beats = starved[place]
            if fresh != count or beats:
                beats = min(beats + 1, governor.BEATS) if fresh != count else 0
                starved[place] = (fresh, beats)
                name = f"{port}/{queue.queue_id}"
                found.append(Reading("frames", name, beats / governor.BEATS, waiting))
        return found + governor.readings_of(port, self._tiers.levels)

    def _act(self, port: str, ladder: Ladder, before: int, after: int) -> None:
        attachment = self._ports[port]
        try:
            if ladder.shed_above(before) != ladder.shed_above(after):
                assert attachment.steering is not None
                attachment.steering.set_shed(ladder.shed_above(after))
        except OpenClawError as error:
            self._events.note(port, "could not act", 1, why=str(error))
        if ladder.withholds(before) != ladder.withholds(after):
            for queue, target in zip(attachment.queues, self._targets[port], strict=True):
                least = max(BURST, target // WITHHELD)
                queue.set_fill_target(min(least, target) if ladder.withholds(after) else target)

    def _note(
        self,
        port: str,
        ladder: Ladder,
        before: State,
        after: State,
        readings: list[Reading],
        now: float,
    ) -> None:
        """Who: the worker that is behind on its queue, or the tier. Age: since the step before."""
        worst = max(readings, key=lambda one: one.share, default=Reading("ring", port, 0.0))
        up = after.rung > before.rung
        shed, withheld = ladder.shed_above(after.rung), ladder.withholds(after.rung)
        if withheld or (not up and ladder.withholds(before.rung)):
            action = "withholds FILL" if withheld else "posts to FILL again"
        elif shed is None:
            action = "sheds nothing any more"
        else:
            action = f"sheds above priority {shed}"
        since = before.stepped if before.rung else now
        who = f"worker of {worst.name}" if worst.kind in ("ring", "frames") else worst.name
        culprit = who if up else port
        why = "; ".join(after.pressed) if up else "clear again"
        self._events.note(culprit, action, worst.amount, int((now - since) * 1000), why)
