"""`bench loop`: our own cost per packet, without a kernel: receive, count, recycle, ledger on.

A port in memory hands out a 64-byte packet in every frame; a worker (and, as a case of its own, a
Python loop) takes bursts, counts and gives the frames back. The peer is testpmd's rxonly over
DPDK's null device, which does the same for mbufs: allocate, hand over, count, free.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

from appliance.bench import host, ours, testpmd
from appliance.bench.contest import Options, compete
from appliance.bench.figures import OURS, Case, Sample
from appliance.dataplane import Endpoint, Frames, LoopQueue, Worker

FRAMES = 8192  # as a port has by default: 32 MiB, more than any second-level cache holds
FILL = 256  # frames under way at once: as many mbufs as testpmd's cache turns over
SIZE = 64
PIECE = 1 << 21  # packets between two looks at the clock, about 10 ms
PEER = "testpmd-null"


def _pinned(function: Callable[[], Sample]) -> Sample:
    """Runs it in a thread of its own on the contestant's core; this thread keeps its own."""
    outcome: list[Sample] = []

    def run() -> None:
        os.sched_setaffinity(0, {host.cores()[1]})
        outcome.append(function())

    with ours.hugepages():
        thread = threading.Thread(target=run, name="bench cycle", daemon=True)
        thread.start()
        thread.join()
    return outcome[0]


class _Worker:
    name = OURS
    command = "openclaw bench loop"

    def __init__(self, case: str) -> None:
        self.case = case

    def measure(self, seconds: float) -> Sample:
        return _pinned(lambda: self._measure(seconds))

    def _measure(self, seconds: float) -> Sample:
        queue = LoopQueue(Frames(FRAMES), generate=SIZE, fill_target=FILL)
        worker = Worker([queue], [("count", -1)])
        worker.set_routes(0, {1: [0]})
        worker.run(PIECE)
        packets, begin = 0, time.perf_counter_ns()
        while (took := time.perf_counter_ns() - begin) < seconds * 1e9:
            packets += worker.run(PIECE)
        queue.close()
        return Sample({self.case: took / packets})


class _Endpoint:
    name = OURS
    command = "for batch in Endpoint([LoopQueue]).recv(64): n += len(batch); lengths.sum()"

    def __init__(self, case: str) -> None:
        self.case = case

    def measure(self, seconds: float) -> Sample:
        return _pinned(lambda: self._measure(seconds))

    def _measure(self, seconds: float) -> Sample:
        endpoint = Endpoint([LoopQueue(Frames(FRAMES), generate=SIZE, fill_target=FILL)])
        packets = total = 0
        begin = time.perf_counter_ns()
        until = begin + seconds * 1e9
        for batch in endpoint.recv(64):
            packets += len(batch)
            total += int(batch.lengths.sum())
            if packets & 0xFFFF == 0 and time.perf_counter_ns() > until:
                break
        took = time.perf_counter_ns() - begin
        endpoint.close()
        return Sample({self.case: took / packets})


class _Null:
    name = PEER
    command = ""

    def __init__(self, case: str) -> None:
        self.case = case

    def measure(self, seconds: float) -> Sample:
        with testpmd.Testpmd([f"net_null0,size={SIZE}"], "rxonly") as peer:
            self.command = peer.command
            time.sleep(0.1)
            began, before = peer.counters()
            time.sleep(seconds)
            ended, after = peer.counters()
        return Sample({self.case: (ended - began) * 1e9
                       / max(1, after["RX-packets"] - before["RX-packets"])})


def run(options: Options) -> list[dict[str, Any]]:
    clock = [f"one core, {host.clock_mhz()} MHz measured"]
    inline = Case("loop: rx, count, recycle", "ns/packet", False)
    python = Case("loop: Python batches of 64", "ns/packet", False)
    contestants: list[Any] = [_Worker(inline.name)]
    if options.wants(PEER, testpmd.missing()):
        contestants.append(_Null(inline.name))
    results = compete([inline], contestants, options, clock)
    return results + compete([python], [_Endpoint(python.name)], options, clock)
