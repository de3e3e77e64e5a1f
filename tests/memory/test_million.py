"""A million operations on slabs and rings from a thousand seeds, against plain Python models.

The models of Hypothesis (test_slabs_model.py, test_rings_model.py) look for short courses that go
wrong; this one goes far. The smoke form does 30 seeds. A seed that once failed goes into KEPT.
"""

from __future__ import annotations

import collections
import ctypes
import os
import random

import pytest

from appliance.dataplane import ShmRing, arena
from appliance.memory import MidTier

FULL = os.environ.get("OPENCLAW_FULL") == "1"
SEEDS = 1000 if FULL else 30
OPERATIONS = 1000  # of each seed
KEPT: tuple[int, ...] = ()
SIZES = (64, 64, 128, 2048, 2048, 4096, 65536)
FIRST = random.SystemRandom().randrange(1 << 32)


def seeds(of):
    print(f"seeds {FIRST}..{FIRST + SEEDS - 1} of {of}")
    return [*KEPT, *range(FIRST, FIRST + SEEDS)]


def stamp(address: int, size: int, mark: int) -> None:
    ctypes.c_uint64.from_address(address).value = mark
    ctypes.c_uint64.from_address(address + size - 8).value = mark


def stamped(address: int, size: int, mark: int) -> bool:
    return (ctypes.c_uint64.from_address(address).value == mark
            == ctypes.c_uint64.from_address(address + size - 8).value)


def slab_course(seed: int) -> int:
    """One course of takings and givings over two caches in a tier that is often full."""
    source = random.Random(seed)
    tier = MidTier(source.choice((4, 8, 24)), "off")
    caches = [tier.cache("one"), tier.cache("two")]
    live: dict[int, tuple[int, int]] = {}
    refused = marks = 0
    for step in range(OPERATIONS):
        what = source.random()
        cache = caches[source.randrange(2)]
        if what < 0.5:
            size, count = source.choice(SIZES), source.choice((1, 1, 7, 32, 64, 100))
            if source.random() < 0.02:
                arena.fail_allocation(source.randrange(6))
            got = cache.alloc_bulk(size, count)
            arena.fail_allocation(-1)
            if got is None:
                refused += 1
                continue
            assert live.keys().isdisjoint(got) and len(set(got)) == count, f"seed {seed}"
            for address in got:
                marks += 1
                stamp(address, size, marks)
                live[address] = (size, marks)
        elif what < 0.97:
            count = min(len(live), source.choice((1, 7, 32, 64, 100)))
            names = list(live) if source.random() < 0.3 else list(live)[-2 * count:]
            chosen = source.sample(names, min(count, len(names)))
            for address in chosen:
                size, mark = live.pop(address)
                assert stamped(address, size, mark), f"seed {seed}, step {step}"
            if chosen:
                assert cache.free_bulk(chosen) == 0, f"seed {seed}, step {step}"
        elif what < 0.98:
            cache.drain()
        elif what < 0.99:
            tier.slabs.trim(source.random() < 0.5)
        else:
            tier.keep_history(source.random() < 0.5)
    page = tier.explain()
    used = collections.Counter(size for size, _ in live.values())
    assert {one["bytes"]: one["used"] for one in page["classes"] if one["used"]} == used, seed
    assert not any(page["violations"].values()), f"seed {seed}"
    assert caches[0].free_bulk(list(live)[:4096]) == 0
    assert caches[1].free_bulk(list(live)[4096:8192]) == 0
    return OPERATIONS


def ring_course(seed: int) -> int:
    """A ring from an index near the wrap of 2^32, put and taken in bulk, by either end."""
    source = random.Random(seed)
    start = source.choice((0, source.randrange((1 << 32) - 5000, 1 << 32)))
    size = source.choice((2, 64, 1024))
    ring = ShmRing.new(source.choice(("spsc", "mpmc")), size, start_index=start)
    other = ShmRing.join(ring.fd)
    expected: collections.deque[int] = collections.deque()
    number = 0
    for _ in range(OPERATIONS):
        count = source.randrange(1, 80)
        if source.random() < 0.5:
            elements = range(number, number + count)
            done = ring.enqueue(b"".join(one.to_bytes(8, "little") for one in elements))
            assert done == min(count, size - len(expected)), f"seed {seed}"
            expected.extend(elements[:done])
            number += count
        else:
            wanted = [expected.popleft() for _ in range(min(count, len(expected)))]
            got = other.dequeue(count)
            assert got == b"".join(one.to_bytes(8, "little") for one in wanted), f"seed {seed}"
    other.leave()
    ring.delete()
    return OPERATIONS


@pytest.mark.parametrize("course", [slab_course, ring_course], ids=lambda one: one.__name__)
def test_a_long_course_from_any_seed_keeps_every_object_and_its_content(course):
    assert sum(course(seed) for seed in seeds(course.__name__)) == (SEEDS + len(KEPT)) * OPERATIONS
