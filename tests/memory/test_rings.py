"""Rings in shared memory: joining believes nothing, no index is trusted, threads lose nothing."""

from __future__ import annotations

import mmap
import os
import random
import struct
import subprocess
import sys
import threading

import numpy as np
import pytest

from appliance.dataplane import ShmRing, memory_gauge

# (offset, format, value): header fields in their order; see oc_ring_header in shm_ring.pxd
FLIPS = {
    "magic": (0, "<Q", 0x31676E69724C4350),
    "version": (8, "<I", 2),
    "mode": (12, "<I", 7),
    "size that is no power of two": (16, "<I", 63),
    "size beyond the file": (16, "<I", 1 << 20),
    "size of nothing": (16, "<I", 0),
    "element_bytes": (20, "<I", 24),
    "element_bytes beyond the file": (20, "<I", 64),
    "bytes": (24, "<Q", 4096 * 77),
}


def poke(fd: int, offset: int, form: str, value: int) -> None:
    with mmap.mmap(fd, 0) as memory:
        struct.pack_into(form, memory, offset, value)


@pytest.mark.parametrize("field", FLIPS)
@pytest.mark.parametrize("mode", ["spsc", "mpmc"])
def test_a_ring_whose_header_was_changed_is_refused(field, mode):
    ring = ShmRing.new(mode, 64 if "beyond" not in field else 512, 8)
    ShmRing.join(ring.fd).leave()
    poke(ring.fd, *FLIPS[field])
    with pytest.raises(ValueError, match=r"ring") as refusal:
        ShmRing.join(ring.fd)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("mode", ["spsc", "mpmc"])
def test_a_ring_whose_indices_lie_is_refused_at_joining(mode):
    ring = ShmRing.new(mode, 64, 8)
    poke(ring.fd, 256, "<Q", 65 | 65 << 32)
    with pytest.raises(ValueError, match="65 elements in a ring of 64"):
        ShmRing.join(ring.fd)


@pytest.mark.parametrize("mode", ["spsc", "mpmc"])
@pytest.mark.parametrize("index", [200, 2**31, 2**32 - 70])
def test_an_index_that_lies_later_moves_nothing(mode, index):
    ring = ShmRing.new(mode, 64, 8)
    assert ring.enqueue(bytes(8 * 4)) == 4
    other = ShmRing.join(ring.fd)
    assert len(other.dequeue(4)) == 32
    poke(ring.fd, 256, "<Q", index | index << 32)
    for _ in range(2):
        assert other.dequeue(64) == b""
    poke(ring.fd, 256, "<Q", 4 | 4 << 32)
    behind = (index + 5) & 0xFFFFFFFF  # of the producer, by more than a ring
    poke(ring.fd, 512, "<Q", behind | behind << 32)
    for _ in range(2):
        assert ring.enqueue(bytes(8 * 64)) == 0
    poke(ring.fd, 512, "<Q", 4 | 4 << 32)
    assert ring.enqueue(bytes(8 * 64)) == 64


def test_a_file_that_is_too_short_is_no_ring():
    fd = os.memfd_create("short")
    os.ftruncate(fd, 100)
    with pytest.raises(ValueError, match="not a ring: 100 bytes"):
        ShmRing.join(fd)
    os.close(fd)


def test_a_deleted_ring_can_not_be_joined_and_a_left_one_not_used():
    ring = ShmRing.new("spsc", 16)
    other = ShmRing.join(ring.fd)
    fd = os.dup(ring.fd)
    ring.delete()
    with pytest.raises(ValueError, match="not a ring"):
        ShmRing.join(fd)
    os.close(fd)
    other.leave()
    for use in (lambda: other.enqueue(bytes(8)), lambda: other.dequeue(1), other.count,
                ring.delete):
        with pytest.raises(ValueError, match="left or deleted"):
            use()


@pytest.mark.parametrize(
    "size,element", [(0, 8), (3, 8), (1 << 25, 8), (64, 4), (64, 24), (64, 128)]
)
def test_a_geometry_that_can_not_be_is_refused(size, element):
    with pytest.raises(ValueError):
        ShmRing.new("spsc", size, element)


def test_bytes_that_are_no_whole_elements_are_refused():
    with pytest.raises(ValueError, match="not elements of 16"):
        ShmRing.new("spsc", 16, 16).enqueue(bytes(24))


def test_another_process_takes_what_was_put_in():
    ring = ShmRing.new("spsc", 64, 16, start_index=2**32 - 3)
    assert ring.enqueue(bytes(range(96))) == 6
    child = (
        "import sys; from appliance.dataplane import ShmRing; "
        "r = ShmRing.join(int(sys.argv[1])); sys.stdout.buffer.write(r.dequeue(10)); r.leave()"
    )
    done = subprocess.run(
        [sys.executable, "-c", child, str(ring.fd)],
        pass_fds=[ring.fd],
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == bytes(range(96))
    assert ring.count() == 0


@pytest.mark.parametrize("element", [8, 16, 64])
@pytest.mark.parametrize("mode,producers,consumers", [("spsc", 1, 1), ("mpmc", 3, 2)])
def test_threads_lose_nothing_and_tear_nothing(mode, producers, consumers, element):
    each = 20_000
    ring = ShmRing.new(mode, 64, element, start_index=2**32 - 5000)
    seen = [np.zeros(16 * each, np.uint32) for _ in range(consumers)]
    outcome: list[tuple[int, int]] = []
    # A number's sixteenth part is its producer's: consumers check each producer's order by it.
    part = 16 * each // 16 + 1
    threads = [
        threading.Thread(
            target=memory_gauge.ring_produce, args=(ring, 1 + 13 * n, each, n * part)
        )
        for n in range(producers)
    ]
    share = producers * each // consumers
    threads += [
        threading.Thread(
            target=lambda n=n: outcome.append(memory_gauge.ring_consume(ring, 32, share, seen[n]))
        )
        for n in range(consumers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcome == [(0, 0)] * consumers
    total = sum(seen)
    for n in range(producers):
        assert (total[n * part : n * part + each] == 1).all()
    assert total.sum() == producers * each and ring.count() == 0


def test_a_preempted_producer_does_not_stop_the_others_for_good():
    """Many more threads than cores: each is preempted somewhere, also between head and tail."""
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    ring = ShmRing.new("mpmc", 256, 8)
    producers, each = 12, 4_000
    part = 16 * each // 16 + 1
    seen = np.zeros(16 * each, np.uint32)
    threads = [
        threading.Thread(
            target=memory_gauge.ring_produce,
            args=(ring, 1 + (seed + n) % 60, each, n * part),
        )
        for n in range(producers)
    ]
    for thread in threads:
        thread.start()
    assert memory_gauge.ring_consume(ring, 64, producers * each, seen) == (0, 0)
    for thread in threads:
        thread.join()
    assert seen.sum() == producers * each and seen.max() == 1
