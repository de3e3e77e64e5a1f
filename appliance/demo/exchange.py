"""Sends prepared traffic and checks what arrives, packet by packet and in order for each queue.

Owns the loop and its counts. Ports and link are the rig's, and what should arrive was decided
beforehand (traffic.py); so a packet that arrives wrong, late or not at all cannot go unseen.

One thread, sending and receiving in turn. In copy mode the kernel carries a packet through veth,
XDP and into the receiver's memory within the sender's own system call: on two cores 98 % of the
time was spent sending and 2 % receiving, so that a second thread would only take turns at the GIL.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from appliance.dataplane import Batch, compare
from appliance.demo.traffic import Lane, Traffic
from appliance.errors import PortError
from appliance.port import Port

# veth's ring holds 256 packets (240 while the reader has 16 slots still to clear) and drops the
# next one. A completion comes back when the receiving end has taken its packet out of that ring
# (tests/demo/test_link.py shows it), so what is outstanding is all that can be in the ring. The
# bound is on all queues together: none can overflow.
WINDOW = 192
BURST = 64
# Nothing arrived for so long, though all was sent: it does not come any more. The longest way is a
# softirq that waits for its CPU; 0.5 s is a hundred times what a busy two-core machine showed.
QUIET_S = 0.5
STUCK_S = 5.0  # the kernel takes nothing at all any more
SHOW_S = 0.05
LATENCIES_MAX = 1 << 20  # the newest are kept: 8 MiB, whatever the length of the run


class Latencies:
    """XDP timestamp to batch in hand, in nanoseconds: the newest million, and the maximum."""

    def __init__(self) -> None:
        self._kept = np.zeros(LATENCIES_MAX, np.int64)
        self._count = 0
        self._max = 0
        # Timestamps are since the epoch by an offset that the port took once, as we do here.
        self._epoch = time.time_ns() - time.monotonic_ns()

    def add(self, timestamps_ns: np.ndarray) -> None:
        now = time.monotonic_ns() + self._epoch
        values = now - timestamps_ns[timestamps_ns > 0].astype(np.int64)
        if not len(values):
            return
        at = (self._count + np.arange(len(values))) % LATENCIES_MAX
        self._kept[at] = values
        self._count += len(values)
        self._max = max(self._max, int(values.max()))

    def summary(self) -> dict[str, int | None]:
        """p50, p99, p999 and max; None where nothing arrived."""
        values = self._kept[: min(self._count, LATENCIES_MAX)]
        if not len(values):
            return dict.fromkeys(("p50", "p99", "p999", "max"))
        found = np.percentile(values, (50, 99, 99.9)).astype(int).tolist()
        return {**dict(zip(("p50", "p99", "p999"), found, strict=True)), "max": self._max}


@dataclass
class Outcome:
    """What came of one traffic. received = verified + mismatched + unexpected."""

    sent: int = 0
    sent_bytes: int = 0
    verified: int = 0  # compared byte for byte and the same
    mismatched: int = 0  # compared, and different or out of order
    unexpected: int = 0  # arrived though nothing was under way
    misruled: int = 0  # the right bytes with another rule's id
    missing: int = 0  # the rules consume it and it did not arrive
    received_bytes: int = 0
    elapsed_s: float = 0.0
    first_fault: str = ""

    @property
    def received(self) -> int:
        return self.verified + self.mismatched + self.unexpected


@dataclass
class _Run:
    """Where one lane stands."""

    lane: Lane
    total: int
    sent: int = 0
    expected: int = 0  # packets accounted for on the receiving side, arrived or given up
    under_way: int = 0  # sent, to be consumed, not yet accounted for
    skipped: collections.deque[int] = field(  # given up, newest last: one may yet come late
        default_factory=lambda: collections.deque(maxlen=WINDOW)
    )

    def note_sent(self, count: int) -> int:
        """Counts packets as sent; returns their bytes."""
        start = self.sent % len(self.lane.lengths)
        self.sent += count
        self.under_way = self.lane.arriving_of(self.sent) - self.expected
        return int(self.lane.lengths[start : start + count].sum())

    def account(self, count: int) -> None:
        self.expected += count
        self.under_way -= count


class Exchange:
    """One traffic over one pair of ports."""

    def __init__(self, sender: Port, receiver: Port, traffic: Traffic, latencies: Latencies,
                 *, rate: float | None = None, window: int = WINDOW,
                 keep: Callable[[Batch], None] | None = None) -> None:
        self._sender, self._receiver, self._traffic = sender, receiver, traffic
        self._latencies, self._rate, self._window = latencies, rate, window
        self._keep = keep
        self._runs = [_Run(lane, lane.packets * traffic.repeat) for lane in traffic.lanes]
        self._lane_of = {number: place for place, number in enumerate(receiver.info["queues"])}
        self._rule_ids = np.array([0, *(number for number, _ in receiver.rules)], np.uint32)
        self._present: Iterator[Batch] = receiver.recv(BURST, 0)
        self._coming: Iterator[Batch] = receiver.recv(BURST, 10)
        self.outcome = Outcome()

    def run(self, progress: Callable[[int], None] = lambda _: None) -> Outcome:
        """Sends everything, waits for what is under way, and returns the counts."""
        start = moved_at = shown_at = time.monotonic()
        while any(run.sent < run.total for run in self._runs):
            moved = self._send(start) + self._receive()
            now = time.monotonic()
            if moved or self._paced_out(start):
                moved_at = now
            elif now - moved_at > STUCK_S:
                self._sender.flush(0)  # raises what the kernel has to say
                raise PortError(f"{self._sender.info['name']}: sends nothing since {STUCK_S:.0f} s")
            if now - shown_at > SHOW_S:
                shown_at = now
                progress(self.outcome.sent)
        self._sender.flush(1000 * STUCK_S)
        self._drain()
        self.outcome.elapsed_s = time.monotonic() - start
        progress(self.outcome.sent)
        return self.outcome

    # ------------------------------------------------------------------------------- sending

    def _send(self, start: float) -> int:
        moved = 0
        # The lane that is furthest behind goes first: a low rate leaves room for one of them only.
        behind = sorted(enumerate(self._runs), key=lambda lane: lane[1].sent / (lane[1].total or 1))
        for number, run in behind:
            count = min(self._window - self._sender.outstanding, run.total - run.sent, BURST)
            if self._rate:
                due = int((time.monotonic() - start) * self._rate) + 1
                count = min(count, due - self.outcome.sent)
            if count <= 0:
                continue
            lane = run.lane
            at = run.sent % len(lane.lengths)
            stop = min(at + count, len(lane.lengths))
            done = self._sender.send_packed(
                self._traffic.data, lane.offsets, lane.lengths, at, stop, number
            )
            self.outcome.sent_bytes += run.note_sent(done)
            self.outcome.sent += done
            moved += done
        return moved

    def _paced_out(self, start: float) -> bool:
        """True while it is the rate that holds us back; then it naps, since there is time."""
        if not self._rate:
            return False
        early = self.outcome.sent / self._rate - (time.monotonic() - start)
        if early > 0:
            time.sleep(min(early, 0.001))
        return early > 0

    # ----------------------------------------------------------------------------- receiving

    def _receive(self) -> int:
        """Takes everything that is there."""
        moved = 0
        while count := self._check(next(self._present)):
            moved += count
        return moved

    def _drain(self) -> None:
        """The end: until everything arrived, or nothing more does."""
        last = time.monotonic()
        while any(run.under_way for run in self._runs):
            if self._check(next(self._coming)):
                last = time.monotonic()
            elif time.monotonic() - last > QUIET_S:
                break
        for run in self._runs:
            self.outcome.missing += run.under_way
            run.account(run.under_way)
        self._receive()  # what nobody sent, if there is any

    def _check(self, batch: Batch) -> int:
        count = len(batch)
        if not count:
            return 0
        self._latencies.add(batch.timestamps_ns)
        if self._keep is not None:
            self._keep(batch)
        self.outcome.received_bytes += int(batch.lengths.sum())
        run = self._runs[self._lane_of[batch.queue_id]]
        at = 0
        while at < count:
            same = self._equal(run, batch, at, run.expected)
            if not same:
                at += self._differs(run, batch, at)
                continue
            self._rules(run, batch, at, same)
            self.outcome.verified += same
            run.account(same)
            at += same
        return count

    def _equal(self, run: _Run, batch: Batch, at: int, expected: int) -> int:
        """How many packets from `at` on are those that are expected from there on."""
        lane, under_way = run.lane, run.under_way - (expected - run.expected)
        if under_way <= 0:
            return 0
        start = expected % len(lane.expected_lengths)
        stop = min(start + under_way, len(lane.expected_lengths))
        return compare.equal_run(batch, at, self._traffic.expected, lane.expected_offsets[:stop],
                                 lane.expected_lengths[:stop], start)

    def _differs(self, run: _Run, batch: Batch, at: int) -> int:
        """The packet is not the next one: others before it were lost, or it is a wrong one.

        It walks forward over what is under way. Found there, the packets in between are missing
        (or late). Not found, it counts as the next one, changed on its way. Returns how many it
        dealt with.
        """
        for ahead in range(1, run.under_way):
            if self._equal(run, batch, at, run.expected + ahead):
                self.outcome.missing += ahead
                run.skipped.extend(range(run.expected, run.expected + ahead))
                run.account(ahead)
                return 0
        for late in run.skipped:
            if self._equal(run, batch, at, late):
                run.skipped.remove(late)
                self.outcome.missing -= 1
                self.outcome.mismatched += 1
                self._fault(f"packet {late} of queue {batch.queue_id} came out of order")
                return 1
        if run.under_way <= 0:
            self.outcome.unexpected += 1
            self._fault(f"a packet of {batch.lengths[at]} bytes that nobody sent")
            return 1
        self.outcome.mismatched += 1
        self._fault(f"packet {run.expected} of queue {batch.queue_id} differs from what was sent")
        run.account(1)
        return 1

    def _rules(self, run: _Run, batch: Batch, at: int, count: int) -> None:
        lane = run.lane
        start = run.expected % len(lane.expected_rules)
        wanted = self._rule_ids[lane.expected_rules[start : start + count]]
        wrong = int((batch.rule_ids[at : at + count] != wanted).sum())
        if wrong:
            self.outcome.misruled += wrong
            self._fault(f"{wrong} packets carry the id of another rule than they matched")

    def _fault(self, text: str) -> None:
        self.outcome.first_fault = self.outcome.first_fault or f"{self._traffic.name}: {text}"
