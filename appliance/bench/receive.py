"""`bench rx`: packets per second into a consumer that counts, beside testpmd's rxonly.

The same pair, the same load on the same core, one queue, the contestant on the other core. On veth
the kernel's part of receiving runs on the load's core, so the rate shows what a receiver makes the
kernel do; what does not fit is dropped and counted. testpmd's driver polls busily unless told
otherwise, so that is the profile that ours has here, too (`--poll` asks for another).
"""

from __future__ import annotations

import time
from typing import Any

from appliance.bench import host, ours, testpmd
from appliance.bench.contest import Options, compete
from appliance.bench.figures import OURS, Case, Sample
from appliance.bench.load import LOADS, SETTLE_S
from appliance.net import Lab


class _Ours:
    name = OURS

    def __init__(self, lab: Lab, size: int, load: str, poll: str, case: str) -> None:
        self.lab, self.size, self.load, self.poll, self.case = lab, size, load, poll, case
        self.command = f"openclaw bench rx --size {size} --poll {poll} --load {load}"

    def measure(self, seconds: float) -> Sample:
        with (
            ours.Working([self.lab.b], "count", self.poll) as working,
            LOADS[self.load](self.lab.a, self.size),
        ):
            time.sleep(SETTLE_S)
            return ours.window(working, seconds, self.case)


class _Testpmd:
    name = testpmd.NAME
    command = ""

    def __init__(self, lab: Lab, size: int, load: str, case: str) -> None:
        self.lab, self.size, self.load, self.case = lab, size, load, case

    def measure(self, seconds: float) -> Sample:
        devices = [testpmd.af_xdp(0, self.lab.b.interface)]
        with (
            testpmd.Testpmd(devices, "rxonly", self.lab.b.netns) as peer,
            LOADS[self.load](self.lab.a, self.size),
        ):
            self.command = peer.command
            time.sleep(SETTLE_S)
            return pmd_window(peer, seconds, self.case)


def pmd_window(peer: testpmd.Testpmd, seconds: float, case: str, counter: str = "RX-packets",
               port: int = 0) -> Sample:
    """Packets per second by testpmd's own counter."""
    began, before = peer.counters(port)
    cpu = host.CpuClock()
    time.sleep(seconds)
    ended, after = peer.counters(port)
    busy = cpu.busy_ns()
    packets = after[counter] - before[counter]
    lost = {name: after[name] - before[name] for name in ("RX-missed", "RX-nombuf", "TX-errors")}
    return Sample(
        values={case: packets / (ended - began)},
        drops={name: count for name, count in lost.items() if count},
        cpu_ns_per_packet=busy / packets if packets else None,
    )


def run(options: Options, poll: str) -> list[dict[str, Any]]:
    results = []
    with Lab.temporary(queues=1) as lab:
        for load in options.loads:
            for size in options.sizes:
                case = Case(f"rx {size} bytes, {poll}, {load} load", "packets/s", True)
                contestants: list[Any] = [_Ours(lab, size, load, poll, case.name)]
                if options.wants(testpmd.NAME, testpmd.missing()):
                    contestants.append(_Testpmd(lab, size, load, case.name))
                results += compete([case], contestants, options)
    return results
