"""What was done about scarce memory: a bounded log of events, each with its culprit.

    log = EventLog()
    log.note("taps", "copied out at the quota", 12, 350)

Owns the log and its bound. The same action on the same culprit within a second is one event that
grows, so that a flood of one kind pushes nothing else out. It decides nothing.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any

from appliance.limits import MEMORY_EVENTS_MAX

MERGE_S = 1.0  # one line per second and culprit is what a person can follow


class EventLog:
    """`note` from any thread; `listed` gives the last events, oldest first."""

    def __init__(self, most: int = MEMORY_EVENTS_MAX) -> None:
        self._lock = threading.Lock()
        self._events: deque[dict[str, Any]] = deque(maxlen=most)
        self._total = 0

    def note(self, culprit: str, action: str, amount: int, age_ms: int = 0, why: str = "") -> None:
        """`amount` is packets or frames, as the action says; `age_ms` that of the oldest."""
        now = time.time()
        with self._lock:
            for event in reversed(self._events):
                if now - event["time"] > MERGE_S:
                    break
                if (event["culprit"], event["action"]) == (culprit, action):
                    event["amount"] += amount
                    event["age_ms"] = max(event["age_ms"], age_ms)
                    event["why"] = why or event["why"]
                    return
            self._total += 1
            self._events.append(
                {
                    "time": now,
                    "culprit": culprit,
                    "action": action,
                    "amount": amount,
                    "age_ms": age_ms,
                    "why": why,
                }
            )

    @property
    def total(self) -> int:
        """Events since the start, forgotten ones too."""
        return self._total

    def listed(self, most: int | None = None) -> list[dict[str, Any]]:
        """Copies of the last events, oldest first."""
        with self._lock:
            events = [dict(event) for event in self._events]
        return events if most is None else events[-most:]
