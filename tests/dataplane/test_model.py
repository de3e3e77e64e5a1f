"""Frames and rings against a plain Python model: any order of receiving, holding, viewing, sending
and releasing leaves every packet intact, every frame accounted for, and nobody starved.

The loop port runs the same rings, ledger and batches as AF_XDP. Hypothesis prints the steps of a
failure and keeps its seed; OPENCLAW_FULL=1 asks for the long form.
"""

from __future__ import annotations

import collections
import os

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import appliance
from tests.dataplane.ports import BACKEND, open_memory_port
from tests.dataplane.wire import packet

FULL = bool(os.environ.get("OPENCLAW_FULL"))
FRAMES = 256
QUOTA = 24


class PortModel(RuleBasedStateMachine):
    """The model: a queue of packets on the wire, and what we hold with its content."""

    @initialize(jumbo=st.booleans(), policy=st.sampled_from(("strict", "reliable", "lossy")))
    def open(self, jumbo, policy):
        self.policy = policy
        self.port = open_memory_port(
            frames=FRAMES, quota_frames=QUOTA, jumbo=jumbo, policy=policy, mid_cap_mib=64
        )
        # What a frame holds: 4,096 less the headroom, which on loop only receiving has.
        room = 3840 if BACKEND == "loop" else self.port.packet_bytes_max if not jumbo else 3776
        self.sizes = (1, 14, 60, 1514, room - 1, room) + ((3841, 4096, 4097, 9014) if jumbo else ())
        self.wire = collections.deque()  # what was sent and not received
        self.batch = None
        self.contents: list[bytes] = []
        self.held: list[tuple[appliance.Frame, bytes]] = []
        self.views: list[tuple[memoryview, bytes]] = []
        self.stale: list[appliance.Frame] = []
        self.number = 0
        self.missing = 0  # sent, and overtaken by a later packet

    @rule(data=st.data(), count=st.integers(1, 8))
    def send_copies(self, data, count):
        packets = []
        for _ in range(count):
            self.number += 1
            packets.append(packet(self.number, data.draw(st.sampled_from(self.sizes))))
        queued = self.port.send(packets)
        assert 0 <= queued <= count
        self.wire.extend(packets[:queued])

    @rule(most=st.integers(1, 70))
    def receive_rule(self, most):
        self.receive(most)

    def receive(self, most):
        self.forget_batch()
        self.batch = next(self.port.recv(max_frames=most, timeout_ms=0))
        # In order and whole; what FILL had no frame for is missing, and the kernel's part says so.
        got = [bytes(frame) for frame in self.batch]
        self.contents = []
        for content in got:
            while self.wire and self.wire[0] != content:
                self.wire.popleft()
                self.missing += 1
            assert self.wire, "a packet that was not sent, or twice"
            self.contents.append(self.wire.popleft())
        assert self.missing <= self.dropped()
        assert self.batch.lengths.tolist() == [len(content) for content in self.contents]
        if self.contents:
            width = max(map(len, self.contents))
            rows = self.batch.head(width)
            for row, content in zip(rows, self.contents, strict=True):
                assert row.tobytes() == content.ljust(width, b"\0")
        return len(self.contents)

    def dropped(self):
        kernel = self.port.stats()["kernel"]
        return kernel["rx_dropped"] + kernel["rx_ring_full"]

    def forget_batch(self):
        if self.batch is None:
            return
        keep = {id(frame) for frame, _ in self.held}
        loose = [self.batch[n] for n in range(len(self.batch))]
        self.batch.release()
        self.stale += [f for f in loose if id(f) not in keep and f.stale][:2]
        self.batch = None

    @precondition(lambda self: self.batch is not None and self.contents)
    @rule(data=st.data())
    def hold(self, data):
        n = data.draw(st.integers(0, len(self.contents) - 1))
        frame = self.batch[n]
        if frame.stale:
            return
        pieces = -(-len(frame) // 3840)  # a frame of 4,096 bytes holds as many
        room = QUOTA - self.port.held >= pieces
        try:
            self.held.append((frame.hold(), self.contents[n]))
            assert frame.copied == (self.policy == "reliable" and not room)
            assert room or self.policy != "strict"
        except appliance.MemoryExhausted:
            assert not room and self.policy != "reliable"
        if self.policy == "lossy":  # the oldest of them had to go; whoever stays is unharmed
            ended = [kept for kept, _ in self.held if not kept.held]
            assert not (room and ended)
            self.held = [(kept, content) for kept, content in self.held if kept.held]

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data):
        frame, content = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        assert bytes(frame) == content
        frame.release()

    @precondition(lambda self: self.batch is not None and self.contents)
    @rule(data=st.data())
    def view(self, data):
        n = data.draw(st.integers(0, len(self.contents) - 1))
        if self.batch[n].stale or self.port.held + 3 > QUOTA:
            return
        self.views.append((memoryview(self.batch[n]), self.contents[n]))

    @precondition(lambda self: self.views)
    @rule(data=st.data())
    def look_away(self, data):
        view, content = self.views.pop(data.draw(st.integers(0, len(self.views) - 1)))
        assert view == content
        view.release()

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def send_a_held_frame(self, data):
        frame, content = self.held[data.draw(st.integers(0, len(self.held) - 1))]
        if self.port.send([frame]):
            self.wire.append(content)
            if frame.stale:  # moved; otherwise somebody looked at it and it was copied
                self.held = [(other, kept) for other, kept in self.held if other is not frame]

    @precondition(lambda self: self.stale)
    @rule()
    def a_stale_frame_never_shows_another_packet(self):
        for frame in self.stale:
            with pytest.raises(appliance.StaleFrame):
                memoryview(frame)
        self.stale.clear()

    @rule()
    def flush(self):
        self.port.flush(0)

    @invariant()
    def every_frame_is_somewhere(self):
        ledger = self.port.ledger()
        total = ledger.pop("total")
        assert ledger["leaked"] == 0 and sum(ledger.values()) == total
        for frame, content in self.held:
            assert bytes(frame) == content
        for view, content in self.views:
            assert view == content

    def teardown(self):
        if not hasattr(self, "port"):
            return
        for view, _ in self.views:
            view.release()
        for frame, _ in self.held:
            frame.release()
        self.port.flush(0)
        while self.receive(most=64):
            pass
        self.forget_batch()
        assert self.missing + len(self.wire) == self.dropped(), "lost without a count"
        assert self.port.held == 0 and self.port.ledger()["leased"] == 0
        assert self.port.memory()["copies"] == 0
        self.port.close()
        assert self.port.ledger()["leaked"] == 0
        assert self.port.ledger()["free"] == FRAMES


PortModel.TestCase.settings = settings(
    max_examples=2000 if FULL else 60,
    stateful_step_count=60,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
test_any_order_of_operations_keeps_packets_and_accounts_intact = PortModel.TestCase
