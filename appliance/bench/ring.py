"""`bench ring`: 8-byte elements from one thread to another, 32 at once, beside rte_ring.

Two threads on two cores, each with nothing else to do; wall time per element as the consumer sees
it. Our MPMC ring is in head/tail sync mode (it survives a preempted thread), rte_ring's MP/MC in
its default mode (it waits for the preempted one). On a busy machine both measure the scheduler.
"""

from __future__ import annotations

import os
import threading
from typing import Any

from appliance.bench import host, rte
from appliance.bench.contest import Options, compete
from appliance.bench.figures import OURS, Case, Sample
from appliance.dataplane import ShmRing, memory_gauge
from appliance.errors import HostError

PEER = "rte_ring"
BULK = 32
ELEMENTS = 4096  # RING of rte_peer.c
UNIT = "ns/element"
CASES = (("ring: SPSC bulk 32, 2 threads", "spsc", "sp"),
         ("ring: MPMC bulk 32, 2 threads", "mpmc", "mp"))


class _Ring:
    name = OURS
    command = "openclaw bench ring"

    def __init__(self, case: str, mode: str) -> None:
        self.case, self.mode = case, mode

    def measure(self, seconds: float) -> Sample:
        ring, stop = ShmRing.new(self.mode, ELEMENTS, 8), memory_gauge.Stop()
        values: list[float] = []

        def feed(core: int) -> None:
            os.sched_setaffinity(0, {core})
            memory_gauge.ring_feed(ring, BULK, stop)

        def take(core: int) -> None:
            os.sched_setaffinity(0, {core})
            values.append(memory_gauge.ring_ns(ring, BULK, seconds, stop))

        producer, consumer = host.cores()
        threads = [threading.Thread(target=feed, args=(producer,)),
                   threading.Thread(target=take, args=(consumer,))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return Sample({self.case: values[0]})


class _RteRing:
    name = PEER
    command = ""

    def __init__(self, case: str, mode: str) -> None:
        self.case, self.mode = case, mode

    def measure(self, seconds: float) -> Sample:
        words = ["ring", self.mode, str(BULK)]
        value, self.command = rte.figure(words, list(host.cores()), seconds)
        return Sample({self.case: value})


def run(options: Options) -> list[dict[str, Any]]:
    if len(os.sched_getaffinity(0)) < 2:
        raise HostError("a ring between two threads needs two cores", fix="give it two")
    results = []
    peer = options.wants(PEER, rte.missing())
    notes = [f"{host.clock_mhz()} MHz measured; {ELEMENTS} elements; wall time"]
    for name, ours, theirs in CASES:
        contestants: list[Any] = [_Ring(name, ours)]
        if peer:
            contestants.append(_RteRing(name, theirs))
        results += compete([Case(name, UNIT, False)], contestants, options, notes)
    return results
