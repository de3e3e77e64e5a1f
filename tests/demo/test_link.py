"""What the demo's flow control stands on: a completion comes when the far end has taken the packet.

A veth's receiving side is a NAPI context, and with threaded NAPI it is a kernel thread that can be
held back: on our CPU, behind us. What is sent then lies in veth's ring for all to see.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from appliance.demo.exchange import WINDOW
from appliance.demo.rig import Rig
from appliance.demo.traffic import RULES
from appliance.net import in_netns, link_statistics

pytestmark = pytest.mark.root

SIZE = 60


def napi_threads() -> set[int]:
    found = set()
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            if path.read_text().startswith("napi/veth-b-"):
                found.add(int(path.parent.name))
        except OSError:
            continue  # it ended meanwhile
    return found


@pytest.fixture
def slow_rig():
    """A rig whose receiving side runs only when we sleep: it shares our CPU, and we are FIFO."""
    allowed = os.sched_getaffinity(0)
    cpu = {min(allowed)}
    before = napi_threads()
    with Rig(RULES, 1514) as rig:
        try:
            in_netns(rig.lab.b.netns, Path("/sys/class/net/veth-b/threaded").write_text, "1")
            os.sched_setaffinity(0, cpu)
            for thread in napi_threads() - before:
                os.sched_setaffinity(thread, cpu)
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        except OSError as error:
            pytest.skip(f"probe threaded_napi: {error}")
        try:
            yield rig
        finally:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
            os.sched_setaffinity(0, allowed)


def send(rig, count):
    packet = bytes.fromhex("020000000002020000000001" "88b5").ljust(SIZE, b"\0")
    offsets = np.arange(count, dtype=np.uint64) * SIZE
    lengths = np.full(count, SIZE, np.uint32)
    return rig.sender.send_packed(memoryview(packet * count), offsets, lengths, 0, count)


def receive(rig, expected):
    """How many arrive: all that are expected, and what comes within 50 ms after them."""
    count, until = 0, time.monotonic() + 10.0
    for batch in rig.receiver.recv(64, 50):
        count += len(batch)
        if not len(batch) and (count >= expected or time.monotonic() > until):
            return count


def test_a_completion_comes_only_when_the_far_end_has_taken_the_packet(slow_rig):
    assert send(slow_rig, 100) == 100
    waiting, taken = slow_rig.sender.outstanding, slow_rig.receiver.steering()["seen"]
    assert waiting >= 100 - taken and waiting > 0
    assert receive(slow_rig, 100) == 100
    assert slow_rig.sender.flush(1000) and slow_rig.sender.outstanding == 0


def test_a_full_window_loses_nothing_even_when_the_far_end_sleeps(slow_rig):
    before = link_statistics("veth-a", slow_rig.lab.a.netns)["tx_dropped"]
    for _ in range(20):
        assert send(slow_rig, WINDOW) == WINDOW
        assert slow_rig.sender.outstanding > 0
        time.sleep(0.001)
        assert receive(slow_rig, WINDOW) == WINDOW
        assert slow_rig.sender.flush(1000)
    assert link_statistics("veth-a", slow_rig.lab.a.netns)["tx_dropped"] == before
