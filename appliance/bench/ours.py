"""Our own side of the comparisons: ports with a worker, or with a Python loop, in this process.

Owns the thread that runs on the contestant's core. What it reports are the port's own counters.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from typing import Any

from appliance.attachment import Attachment
from appliance.bench import host
from appliance.bench.figures import Sample
from appliance.dataplane import Worker
from appliance.net import in_netns, interface
from appliance.net.lab import Side
from appliance.port import Port, open_port
from appliance.spec import PortSpec, Umem
from appliance.steering import Rule, Steering


def hugepages(ports: int = 1) -> host.Hugepages:
    """What ports of the default size take (32 MiB each); the peers' memory is got ready as well."""
    return host.Hugepages(16 * ports)


EVERYTHING = Rule(match="", action="consume")


class Sink:
    """Counts and drops, in XDP, all that arrives at one side: what transmitting is measured by."""

    def __init__(self, side: Side) -> None:
        self._steering = Steering([Rule(match="", action="drop")], keep_management=False)
        try:
            index = interface(side.interface, side.netns).ifindex
            in_netns(side.netns, self._steering.attach, index, "native")
        except BaseException:
            self._steering.close()
            raise

    @property
    def packets(self) -> int:
        return int(self._steering.counters()["seen"])

    def __enter__(self) -> Sink:
        return self

    def __exit__(self, *_: object) -> None:
        self._steering.detach()
        self._steering.close()


class Working:
    """One or two ports and a worker over them, running until the end of the context."""

    def __init__(self, sides: Sequence[Side], consumer: str, poll: str,
                 rule: Rule = EVERYTHING) -> None:
        self.ports: list[Attachment] = []
        self._pages = hugepages(len(sides))
        # One memory for all ports, as large as they would have had alone: what `run` gives them.
        umem = Umem(8192 * len(sides), 2048 * len(sides))
        try:
            for number, side in enumerate(sides):
                spec = PortSpec(side.interface, netns=side.netns, queues=[0], poll=poll)
                first = number == 0
                self.ports.append(Attachment(spec, [rule] if first else None, umems=[umem]))
            target = len(sides) - 1 if consumer == "forward" else -1
            self.worker = Worker([port.queues[0] for port in self.ports], [(consumer, target)])
            steering = self.ports[0].steering
            assert steering is not None
            self.worker.set_routes(0, {rule_id: [0] for rule_id, _ in steering.rules})
        except BaseException:
            self._close()
            raise
        self._thread = threading.Thread(target=self._run, name="bench worker", daemon=True)

    def _run(self) -> None:
        self.worker.run(cpu=host.cores()[1])

    def _close(self) -> None:
        for port in reversed(self.ports):
            port.close()
        self._pages.restore()

    def figures(self) -> dict[str, Any]:
        """The moment, packets, rounds, sleeps and system calls so far."""
        worker = self.worker.statistics()
        return {
            "now": time.monotonic(),
            "packets": worker["consumers"][0]["frames"],
            "rounds": worker["rounds_with_packets"],
            "sleeps": worker["sleeps"],
            "calls": worker["sleeps"]
            + sum(queue.statistics()["wakeups"] for port in self.ports for queue in port.queues),
        }

    def drops(self) -> dict[str, int]:
        return self.ports[0].statistics()["drops"]

    def forward_drops(self) -> int:
        return sum(lane["forward_ring_full"] for lane in self.worker.statistics()["drops"])

    def __enter__(self) -> Working:
        self.ports[0].start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ports[0].stop()
        self.worker.stop()
        self._thread.join()
        self._close()


class Looping:
    """A port and a Python loop over its batches: packets, and bytes by numpy columns."""

    def __init__(self, side: Side, poll: str) -> None:
        with hugepages():  # open_port takes them; restoring makes them surplus until it is closed
            self.port: Port = open_port(side.interface, match="", netns=side.netns, queues=[0],
                                        poll=poll)
        self.packets = self.bytes = self.batches = 0
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="bench loop", daemon=True)

    def _run(self) -> None:
        os.sched_setaffinity(0, {host.cores()[1]})
        for batch in self.port.recv(max_frames=256, timeout_ms=20):
            n = len(batch)
            if n:
                self.packets += n
                self.bytes += int(batch.lengths.sum())
                self.batches += 1
            if self._stopped:
                return

    def figures(self) -> dict[str, Any]:
        return {"now": time.monotonic(), "packets": self.packets, "rounds": self.batches}

    def drops(self) -> dict[str, int]:
        return self.port.drops()

    def __enter__(self) -> Looping:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        self._thread.join()
        self.port.close()


def window(running: Any, seconds: float, case: str) -> Sample:
    """Packets per second of something that runs, over one window, with what they cost."""
    cpu = host.CpuClock()
    dropped = running.drops()
    before = running.figures()
    time.sleep(seconds)
    after = running.figures()
    busy = cpu.busy_ns()
    packets = after["packets"] - before["packets"]
    per: dict[str, float] = {}
    if packets:
        rounds = after["rounds"] - before["rounds"]
        per["packets_per_burst"] = packets / rounds if rounds else 0.0
        if "calls" in after:
            per["syscalls_per_packet"] = (after["calls"] - before["calls"]) / packets
            sleeps = after["sleeps"] - before["sleeps"]
            if sleeps:
                per["packets_per_wakeup"] = packets / sleeps
    lost = {name: count - dropped.get(name, 0) for name, count in running.drops().items()}
    return Sample(
        values={case: packets / (after["now"] - before["now"])},
        drops={name: count for name, count in lost.items() if count},
        cpu_ns_per_packet=busy / packets if packets else None,
        per_packet=per,
    )
