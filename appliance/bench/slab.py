"""`bench slab`: taking and giving objects of 2 KiB, ledger on, beside rte_mempool with its cache.

In CPU time of the threads, on cores of their own: neither side ever sleeps, and what else runs on
the machine is nobody's cost. "scattered" gives our caches objects in random order, which defeats
the ledger's runs of sixteen; rte_mempool keeps pointers only and does not care.
"""

from __future__ import annotations

import os
import statistics
import threading
from typing import Any

from appliance.bench import host, rte
from appliance.bench.contest import Options, compete
from appliance.bench.figures import OURS, Case, Sample
from appliance.dataplane import memory_gauge
from appliance.memory import MidTier

PEER = "rte_mempool"
OBJECT_BYTES = 2048
UNIT = "ns/object"

# name, objects at once, threads, scattered
CASES = (
    ("slab: bulk 32 get+put, 1 thread", 32, 1, False),
    ("slab: bulk 32 get+put, 2 threads", 32, 2, False),
    ("slab: bulk 32 get+put, scattered", 32, 1, True),
    ("slab: single get+put, 1 thread", 1, 1, False),
)


def _cores(threads: int) -> list[int]:
    load, ours = host.cores()
    return [ours] if threads == 1 else [load, ours]


class _Slabs:
    name = OURS
    command = "openclaw bench slab"

    def __init__(self, case: str, bulk: int, threads: int, scattered: bool) -> None:
        self.case, self.bulk, self.threads, self.scattered = case, bulk, threads, scattered

    def measure(self, seconds: float) -> Sample:
        with host.Hugepages(rte.PAGES):
            tier = MidTier(64)
            values: list[float] = []
            workers = [
                threading.Thread(target=self._one, args=(tier, core, seconds, values))
                for core in _cores(self.threads)
            ]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            del tier
        return Sample({self.case: statistics.mean(values)})

    def _one(self, tier: MidTier, core: int, seconds: float, values: list[float]) -> None:
        os.sched_setaffinity(0, {core})
        if self.scattered:
            memory_gauge.slab_shuffle(tier.slabs, OBJECT_BYTES, core + 1)
        if self.bulk == 1:
            values.append(memory_gauge.slab_single_ns(tier.slabs, OBJECT_BYTES, seconds))
        else:
            values.append(memory_gauge.slab_ns(tier.slabs, OBJECT_BYTES, self.bulk, seconds))


class _Mempool:
    name = PEER
    command = ""

    def __init__(self, case: str, bulk: int, threads: int) -> None:
        self.case, self.bulk, self.threads = case, bulk, threads

    def measure(self, seconds: float) -> Sample:
        words = ["slab", str(self.bulk), str(self.threads)]
        value, self.command = rte.figure(words, _cores(self.threads), seconds)
        return Sample({self.case: value})


def run(options: Options) -> list[dict[str, Any]]:
    results = []
    peer = options.wants(PEER, rte.missing())
    notes = [f"{host.clock_mhz()} MHz measured; objects of {OBJECT_BYTES} B; CPU time of threads"]
    for name, bulk, threads, scattered in CASES:
        if threads > len(os.sched_getaffinity(0)):
            continue
        contestants: list[Any] = [_Slabs(name, bulk, threads, scattered)]
        if peer:
            contestants.append(_Mempool(name, bulk, threads))
        results += compete([Case(name, UNIT, False)], contestants, options, notes)
    return results
