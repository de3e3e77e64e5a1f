"""Memory that runs out at every place where it is asked for: an error, never a crash, nothing lost.

Each scenario is first run to count its allocation sites, then once for each of them with that site
failing, and each time once more without: the next allocation must work. Real code all the way; only
the answer of one allocation is changed (cython_ext/arena.pyx, fail_allocation).
"""

from __future__ import annotations

import gc
import os

import pytest

import appliance
from appliance.config import parse
from appliance.dataplane import ShmRing, arena
from appliance.engine import accounts
from appliance.engine.engine import Engine
from appliance.errors import OpenClawError
from appliance.memory import MidTier
from tests.dataplane.wire import packet
from tests.engine.test_tiers import ONE


def slabs():
    tier = MidTier(12, "off")
    cache = tier.cache("scenario")
    held = [cache.alloc_bulk(size, n) for size, n in ((2048, 1500), (64, 10), (65536, 20))]
    if None in held:
        for part in held:
            assert part is None or cache.free_bulk(part) == 0
        raise MemoryError("a cache says it by None")
    with tier.alloc(100) as one:
        assert memoryview(one).nbytes == 100
    for part in held:
        assert cache.free_bulk(part) == 0
    cache.drain()
    page = tier.explain()
    assert page["used_bytes"] == 0 and not any(page["violations"].values())


def slab_history():
    tier = MidTier(4, "off")
    tier.keep_history(True)
    slab = tier.alloc(64)
    assert tier.history(slab)["operations"]
    slab.release()


def rings():
    ring = ShmRing.new("mpmc", 64)
    other = ShmRing.join(ring.fd)
    other.leave()
    ring.delete()


def held_frames_that_are_copied_out():
    with appliance.open_port("loop", backend="loop", frames=1024, quota_frames=1, mid_cap_mib=2,
                             hugepages="off") as port:
        port.send([packet(n, 700) for n in range(3)])
        batch = next(port.recv(timeout_ms=0))
        try:
            held = [frame.hold() for frame in batch]
            assert [bytes(frame) for frame in held] == [packet(n, 700) for n in range(3)]
            for frame in held:
                frame.release()
        finally:
            batch.release()
            assert port.ledger()["leaked"] == 0
        del batch, held


def an_appliance():
    engine = Engine(parse(ONE.format(cap=8)))
    engine.start()
    try:
        with engine.mid.alloc(3000):
            engine._ports["l0"].queues[0].inject(bytes(60))
    finally:
        assert accounts.problems(engine.stop()) == []


SCENARIOS = (slabs, slab_history, rings, held_frames_that_are_copied_out, an_appliance)


def descriptors() -> list[str]:
    gc.collect()
    return sorted(name for fd in os.listdir("/proc/self/fd")
                  if (name := _target(fd)).startswith(("/memfd:", "anon_inode:[eventfd]")))


def _target(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda one: one.__name__)
def test_whatever_allocation_fails_it_is_an_error_and_the_next_one_works(scenario):
    passed = arena.fail_allocation(-1)
    scenario()
    sites = arena.fail_allocation(-1) - passed
    assert sites > 0, "a scenario without an allocation"
    before = descriptors()
    failed = 0
    for site in range(sites):
        arena.fail_allocation(site)
        try:
            scenario()
        except (MemoryError, OpenClawError) as error:
            failed += 1
            assert str(error) and "\n" not in str(error)
        finally:
            arena.fail_allocation(-1)
        assert descriptors() == before, f"site {site}"
        scenario()
    # Where there is a next rung (small pages for hugepages, no cache), it goes on without an error.
    print(f"{scenario.__name__}: {sites} sites, {failed} errors")
    assert failed > 0
    assert descriptors() == before
