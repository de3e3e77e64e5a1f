"""Rings against a queue in Python: order, content and room, at any start index up to the wrap.

Hypothesis prints the steps of a failure and keeps its seed; OPENCLAW_FULL=1 asks for the long form.
"""

from __future__ import annotations

import collections
import os

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from appliance.dataplane import ShmRing

FULL = bool(os.environ.get("OPENCLAW_FULL"))


class RingModel(RuleBasedStateMachine):
    """One end made the ring, the other joined it; now and then a third joins, works and leaves."""

    @initialize(
        mode=st.sampled_from(("spsc", "mpmc")),
        size=st.sampled_from((2, 4, 64)),
        element=st.sampled_from((8, 16, 32, 64)),
        start=st.one_of(st.just(0), st.integers(2**32 - 130, 2**32 - 1)),
    )
    def open(self, mode, size, element, start):
        self.ring = ShmRing.new(mode, size, element, start_index=start)
        self.other = ShmRing.join(self.ring.fd)
        self.size, self.element = size, element
        self.model: collections.deque[bytes] = collections.deque()
        self.number = 0

    @rule(count=st.integers(0, 80), whole=st.booleans())
    def put(self, count, whole):
        elements = []
        for _ in range(count):
            self.number += 1
            elements.append(self.number.to_bytes(8, "little") * (self.element // 8))
        done = self.ring.enqueue(b"".join(elements), whole=whole)
        room = self.size - len(self.model)
        assert done == (0 if whole and count > room else min(count, room))
        self.model.extend(elements[:done])

    @rule(count=st.integers(0, 80))
    def take(self, count):
        expected = [self.model.popleft() for _ in range(min(count, len(self.model)))]
        assert self.other.dequeue(count) == b"".join(expected)

    @rule()
    def one_side_leaves_and_joins_again(self):
        self.other.leave()
        self.other = ShmRing.join(self.ring.fd)

    @invariant()
    def both_see_as_many(self):
        assert self.ring.count() == self.other.count() == len(self.model)

    def teardown(self):
        if hasattr(self, "ring"):
            self.other.leave()
            self.ring.delete()


RingModel.TestCase.settings = settings(
    max_examples=1000 if FULL else 60,
    stateful_step_count=1000 if FULL else 50,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
test_a_ring_is_a_queue_whatever_its_indices = RingModel.TestCase
