"""`bench python`: the loop over batches in Python, beside what else can be had in Python.

Ours is `for batch in port.recv()` with a count and a sum over numpy columns. Beside it: our own
inline count (the worker, no Python at all: what the loop gives away), a raw AF_PACKET recv loop,
and Scapy's sniff. Same pair, same load (the kernel's: no other is fast enough); for the peers a
program that passes everything stands on the interface, since the load needs one there.
"""

from __future__ import annotations

import importlib.util
import re
import sys
import time
from pathlib import Path
from typing import Any

from appliance.bench import host, ours
from appliance.bench.contest import Options, compete
from appliance.bench.figures import OURS, Case, Sample
from appliance.bench.inline import INLINE, Inline
from appliance.bench.load import SETTLE_S, Blast
from appliance.bench.process import Child
from appliance.net import Lab, in_netns, inside, interface
from appliance.steering.peer import attach_pass

LOOPS = Path(__file__).with_name("loops.py")


class _Ours:
    name = OURS
    command = "for batch in port.recv(256): n += len(batch); total += int(batch.lengths.sum())"

    def __init__(self, lab: Lab, size: int, poll: str, case: str) -> None:
        self.lab, self.size, self.poll, self.case = lab, size, poll, case

    def measure(self, seconds: float) -> Sample:
        with ours.Looping(self.lab.b, self.poll) as looping, Blast(self.lab.a, self.size):
            time.sleep(SETTLE_S)
            return ours.window(looping, seconds, self.case)


class _Loop:
    """One of loops.py, in a process of its own."""

    def __init__(self, name: str, kind: str, lab: Lab, size: int, case: str) -> None:
        self.name, self.kind, self.lab, self.size, self.case = name, kind, lab, size, case
        self.command = " ".join(inside(lab.b.netns, *self._arguments(1.0)))

    def _arguments(self, seconds: float) -> list[str]:
        cpu = str(host.cores()[1])
        return [sys.executable, str(LOOPS), self.kind, self.lab.b.interface, str(seconds), cpu]

    def measure(self, seconds: float) -> Sample:
        side = self.lab.b
        index = interface(side.interface, side.netns).ifindex
        with (
            in_netns(side.netns, attach_pass, index),
            Child(self._arguments(seconds), side.netns) as child,
        ):
            child.wait_for(lambda said: "ready" in said, 30.0, "it was ready")
            with Blast(self.lab.a, self.size):
                time.sleep(SETTLE_S)
                cpu = host.CpuClock()
                child.say("go")
                said = child.wait_for(lambda text: "counted" in text, seconds + 30.0, "its count")
                busy = cpu.busy_ns()
        words = re.search(r"counted (\d+) (\d+) ([\d.]+) (\d+)", said)
        assert words is not None
        packets, took, dropped = int(words[1]), float(words[3]), int(words[4])
        return Sample(
            values={self.case: packets / took},
            drops={"socket": dropped} if dropped else {},
            cpu_ns_per_packet=busy / packets if packets else None,
        )


def run(options: Options, poll: str) -> list[dict[str, Any]]:
    results = []
    with Lab.temporary(queues=1) as lab:
        for size in options.sizes:
            case = Case(f"python loop {size} bytes, {poll}", "packets/s", True)
            contestants: list[Any] = [_Ours(lab, size, poll, case.name)]
            if options.wants(INLINE):
                contestants.append(Inline(lab, size, poll, case.name))
            if options.wants("raw-socket"):
                contestants.append(_Loop("raw-socket", "raw", lab, size, case.name))
            no_scapy = importlib.util.find_spec("scapy") is None
            if options.wants("scapy", "pip install scapy" if no_scapy else ""):
                contestants.append(_Loop("scapy", "scapy", lab, size, case.name))
            results += compete([case], contestants, options)
    return results
