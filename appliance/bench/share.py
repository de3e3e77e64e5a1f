"""`bench share`: one worker that lends to four members, beside the same worker that only counts.

Two reliable and two lossy members, each a process of its own that takes every batch and looks at
nothing: what is measured is the lending. All but the load runs on the contestant's core; with two
cores, worker and members share one, and the ratio is that of the work, not of the waiting.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from appliance.bench import host
from appliance.bench.contest import Options, compete
from appliance.bench.figures import OURS, Case, Sample
from appliance.bench.inline import INLINE, Inline
from appliance.bench.load import SETTLE_S, Blast
from appliance.bench.process import Child
from appliance.config import parse
from appliance.engine.engine import Engine
from appliance.net import Lab

MEMBERS = (("sure", 2), ("tap", 2))
# One program for all: takes batches until the appliance ends.
MEMBER = """
import os, sys
import appliance.attaching
path, consumer, cpu = sys.argv[1:]
os.sched_setaffinity(0, {int(cpu)})
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
with appliance.attaching.attach(path, consumer) as port:
    print("attached", flush=True)
    for batch in port.recv(256):
        pass
"""
CONFIG = """
[[port]]
name = "in0"
interface = "{interface}"
netns = "{netns}"
queues = [0]
poll = "{poll}"
[[rule]]
port = "in0"
match = ""
action = "consume"
consumers = {consumers}
{tables}
[control]
socket = "{directory}/control.sock"
metrics = ""
"""
SHARE = """[[consumer]]
name = "{name}"
kind = "share"
policy = "{policy}"
allow_users = [65534]
max_members = 2
quota_frames = 2048
max_hold_ms = 1000
"""


class _Shared:
    """Our engine with a share for each policy, and their members."""

    name = OURS
    command = "openclaw run with two share consumers, two members attached to each"

    def __init__(self, lab: Lab, size: int, poll: str, case: str) -> None:
        self.lab, self.size, self.poll, self.case = lab, size, poll, case

    def _engine(self, directory: str) -> Engine:
        tables = SHARE.format(name="sure", policy="reliable") + SHARE.format(
            name="tap", policy="lossy")
        side = self.lab.b
        return Engine(parse(CONFIG.format(
            interface=side.interface, netns=side.netns, poll=self.poll, directory=directory,
            consumers='["sure", "tap"]', tables=tables)))

    def measure(self, seconds: float) -> Sample:
        with contextlib.ExitStack() as stack:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="openclaw-share-"))
            os.chmod(directory, 0o711)
            engine = stack.enter_context(self._engine(directory))
            for name, count in MEMBERS:
                for _ in range(count):
                    words = [sys.executable, "-c", MEMBER, str(Path(directory, "control.sock")),
                             name, str(host.cores()[1])]
                    child = stack.enter_context(Child(words, None))
                    child.wait_for(lambda said: "attached" in said, 30.0, "it was attached")
            stack.enter_context(Blast(self.lab.a, self.size))
            time.sleep(SETTLE_S)
            before, cpu = _taken(engine), host.CpuClock()
            began = time.monotonic()
            time.sleep(seconds)
            after, took = _taken(engine), time.monotonic() - began
            busy = cpu.busy_ns()
        packets = after["packets"] - before["packets"]
        lost = {name: after[name] - before[name] for name in ("missed", "overruns", "copied")}
        return Sample(
            values={self.case: packets / took},
            drops={name: count for name, count in lost.items() if count},
            cpu_ns_per_packet=busy / packets if packets else None,
        )


def _taken(engine: Engine) -> dict[str, int]:
    entries = {entry["name"]: entry for entry in engine.statistics()["consumers"]}
    members = [one for entry in entries.values() for one in entry["members"]]
    return {
        "packets": entries["sure"]["frames"],
        "missed": sum(one["dropped"] for one in members),
        "overruns": sum(one["overruns"] for one in members),
        "copied": sum(one["copied"] for one in members),
    }


def run(options: Options, poll: str) -> list[dict[str, Any]]:
    results = []
    with Lab.temporary(queues=1) as lab:
        for size in options.sizes:
            case = Case(f"share to 4 members, {size} bytes, {poll}", "packets/s", True)
            contestants: list[Any] = [_Shared(lab, size, poll, case.name)]
            if options.wants(INLINE):
                contestants.append(Inline(lab, size, poll, case.name))
            results += compete([case], contestants, options)
    return results
