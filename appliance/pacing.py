"""When to send which packets of a capture: as fast as it goes, at a rate, or as recorded.

Owns the schedule and nothing else: it is pure, looks at no clock and never sleeps. A sender takes
one burst after the other, waits until `due_ns` after its own start (not at all when that is past)
and sends packets start..stop of the capture. Being late never makes a burst longer, and the
schedule does not drift: every due time is computed from the start, not from the burst before.

Bad numbers are ConfigError, one line, before anything is sent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from appliance.errors import ConfigError

BURST_MAX = 64  # what the rings take and give at once
# Packets due this close together go in one burst, the later ones early. Linux wakes a sleeper up
# to 50 us late by default (timer slack), so finer steps would cost wake-ups and gain nothing.
BURST_SPAN_NS = 100_000
SECOND_NS = 10**9
RATE_MAX = 10**9  # packets a second: one each nanosecond, the resolution of a due time
SPEED_MAX = 10**9
DUE_MAX_NS = 2**62  # 146 years; what lies beyond is a damaged timestamp or a speed of nearly 0


class Burst(NamedTuple):
    """Send packets start..stop (stop excluded) when due_ns have gone by since the start."""

    start: int
    stop: int
    due_ns: int


class Schedule:
    """The bursts of a replay; iterate as often as you like.

    `rate` is packets a second, `speed` a factor on the recorded distances; neither means as fast
    as it goes. `loop` is how often the capture is sent, 0 is without end. Between two rounds at
    recorded speed lies the mean distance of the packets. Timestamps that go back count as equal.
    """

    def __init__(
        self,
        timestamps_ns: Sequence[int] | npt.NDArray[np.uint64],
        *,
        rate: float | None = None,
        speed: float | None = None,
        loop: int = 1,
    ) -> None:
        if rate is not None and speed is not None:
            raise ConfigError("rate and speed exclude each other: give one of them")
        self.count = len(timestamps_ns)
        self.rate = None if rate is None else _fraction("rate", rate, "packets a second", RATE_MAX)
        self.speed = None
        if isinstance(loop, bool) or not isinstance(loop, int) or loop < 0:
            raise ConfigError(f"loop: {loop!r} is not a number of rounds (1 or more; 0: no end)")
        self.loop = loop
        self._due = np.zeros(0, np.int64)
        if speed is not None:
            self.speed = _fraction("speed", speed, "times the recorded speed", SPEED_MAX)
            self._due = _recorded(np.asarray(timestamps_ns, np.uint64), self.speed)

    @property
    def packets(self) -> int | None:
        """How many packets will be sent; None without end."""
        return self.count * self.loop if self.loop else None

    @property
    def round_ns(self) -> int:
        """From the first packet of one round to the first of the next; 0: as fast as it goes."""
        if self.rate is not None:
            return self.count * SECOND_NS * self.rate.denominator // self.rate.numerator
        if self.speed is None or self.count < 2:
            return 0
        last = int(self._due[-1])
        return last + last // (self.count - 1)

    def __iter__(self) -> Iterator[Burst]:
        number = 0
        while self.count and (number < self.loop or not self.loop):
            if self.rate is not None:
                yield from self._at_rate(number)
            elif self.speed is not None:
                yield from self._as_recorded(number)
            else:
                for start in range(0, self.count, BURST_MAX):
                    yield Burst(start, min(start + BURST_MAX, self.count), 0)
            number += 1

    def _at_rate(self, number: int) -> Iterator[Burst]:
        assert self.rate is not None
        together = 1 + BURST_SPAN_NS * self.rate.numerator // (SECOND_NS * self.rate.denominator)
        step = min(together, BURST_MAX)
        for start in range(0, self.count, step):
            sent = number * self.count + start
            due = sent * SECOND_NS * self.rate.denominator // self.rate.numerator
            yield Burst(start, min(start + step, self.count), due)

    def _as_recorded(self, number: int) -> Iterator[Burst]:
        begin, start = number * self.round_ns, 0
        while start < self.count:
            window = self._due[start : start + BURST_MAX]
            stop = start + int(np.searchsorted(window, window[0] + BURST_SPAN_NS, side="right"))
            yield Burst(start, stop, begin + int(window[0]))
            start = stop


def _fraction(name: str, value: float, unit: str, maximum: int) -> Fraction:
    """The number as it was written, so that 0.1 is a tenth."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{name}: {value!r} is not a number of {unit}")
    if not 0 < value <= maximum:
        raise ConfigError(f"{name}: {value!r} {unit} is not above 0 and at most {maximum}")
    return Fraction(str(value))


def _recorded(timestamps_ns: npt.NDArray[np.uint64], speed: Fraction) -> npt.NDArray[np.int64]:
    """Due times of one round: distances from the first packet, never going back, over speed."""
    if not len(timestamps_ns):
        return np.zeros(0, np.int64)
    elapsed = np.maximum.accumulate(timestamps_ns) - timestamps_ns[0]
    longest = int(elapsed[-1]) * speed.denominator // speed.numerator
    if longest > DUE_MAX_NS:
        raise ConfigError(
            f"speed: at {float(speed)} times the recorded speed the capture lasts "
            f"{longest // SECOND_NS} s; its timestamps are damaged or the speed is too low"
        )
    # Integers, because a float holds no years of nanoseconds; Python's own where 64 bits end.
    if int(elapsed[-1]) * speed.denominator < 2**63 and speed.numerator < 2**63:
        return elapsed.astype(np.int64) * speed.denominator // speed.numerator
    return np.array(
        [int(t) * speed.denominator // speed.numerator for t in elapsed], dtype=np.int64
    )
