"""A hundred runs leave the process as it was: descriptors, BPF objects, threads, memory."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path

import pytest

import appliance
from tests.conftest import Belongings
from tests.dataplane.wire import packet

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("needs_xdp_socket", "needs_namespaces")]

RUNS = 100
WARM = 10  # caches of Python, numpy and netlink fill during the first runs
# One UMEM here is 4 MiB: a single run that kept its memory would show.
RESIDENT_GROWTH_MAX = 2 << 20


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def one_run(lab) -> None:
    with (
        appliance.open_port(
            lab.b.interface, "udp or ether proto 0x88b5", netns=lab.b.netns, frames=1024
        ) as rx,
        appliance.open_port(
            lab.a.interface, netns=lab.a.netns, transmit_only=True, frames=1024
        ) as tx,
    ):
        sent = [packet(n) for n in range(8)]
        tx.send(sent)
        batch = next(rx.recv(timeout_ms=1000))
        held = batch[0].hold()
        view = memoryview(held)
        batch.release()
        view.release()
        held.release()
    assert rx.ledger()["leaked"] == tx.ledger()["leaked"] == 0
    assert rx.ledger()["free"] == rx.ledger()["total"]


def test_a_hundred_runs_leave_descriptors_programs_threads_and_memory_as_they_were(lab):
    for _ in range(WARM):
        one_run(lab)
    gc.collect()
    before, threads, memory = Belongings(), threading.active_count(), resident()
    for _ in range(RUNS):
        one_run(lab)
    gc.collect()
    assert Belongings().beyond(before) == {}
    assert threading.active_count() == threads
    grown = resident() - memory
    assert grown < RESIDENT_GROWTH_MAX, f"resident memory grew by {grown} bytes"
