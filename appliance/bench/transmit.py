"""`bench tx` and `bench forward`: packets per second that arrive at a far end, which only counts.

tx: our AF_XDP sender beside testpmd's txonly. forward: two veth pairs whose middle ends stand in
one namespace, ours a worker over one shared UMEM (no copy between the ports), the peer testpmd's io
mode over two af_xdp devices. The far end is the same for all: an XDP program that counts and drops.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from typing import Any

from appliance.bench import host, ours, testpmd
from appliance.bench.contest import Options, compete
from appliance.bench.figures import OURS, Case, Sample
from appliance.bench.load import LOADS, SETTLE_S, Pump
from appliance.errors import HostError
from appliance.net import Lab, inside
from appliance.net.lab import Side


def far_window(sink: ours.Sink, seconds: float, case: str) -> Sample:
    """Packets per second that reached the far end."""
    cpu = host.CpuClock()
    began, before = time.monotonic(), sink.packets
    time.sleep(seconds)
    ended, after = time.monotonic(), sink.packets
    packets = after - before
    return Sample(
        values={case: packets / (ended - began)},
        cpu_ns_per_packet=cpu.busy_ns() / packets if packets else None,
    )


class _OursTx:
    name = OURS

    def __init__(self, lab: Lab, size: int, poll: str, case: str) -> None:
        self.lab, self.size, self.poll, self.case = lab, size, poll, case
        self.command = f"openclaw bench tx --size {size} --poll {poll}"

    def measure(self, seconds: float) -> Sample:
        with (
            ours.hugepages(),
            ours.Sink(self.lab.b) as sink,
            Pump(self.lab.a, self.size, core=host.cores()[1], poll=self.poll) as sending,
        ):
            time.sleep(SETTLE_S)
            calls = sending.calls()
            sample = far_window(sink, seconds, self.case)
            calls = sending.calls() - calls
        packets = sample.values[self.case] * seconds
        return Sample(sample.values, {}, sample.cpu_ns_per_packet,
                      {"syscalls_per_packet": calls / packets} if packets else {})


class _PmdTx:
    name = testpmd.NAME
    command = ""

    def __init__(self, lab: Lab, size: int, case: str) -> None:
        self.lab, self.size, self.case = lab, size, case

    def measure(self, seconds: float) -> Sample:
        devices = [testpmd.af_xdp(0, self.lab.a.interface)]
        with (
            ours.Sink(self.lab.b) as sink,
            testpmd.Testpmd(devices, "txonly", self.lab.a.netns, size=self.size) as peer,
        ):
            self.command = peer.command
            time.sleep(SETTLE_S)
            return far_window(sink, seconds, self.case)


def run_tx(options: Options, poll: str) -> list[dict[str, Any]]:
    results = []
    with Lab.temporary(queues=1) as lab:
        for size in options.sizes:
            case = Case(f"tx {size} bytes, {poll}", "packets/s", True)
            contestants: list[Any] = [_OursTx(lab, size, poll, case.name)]
            if options.wants(testpmd.NAME, testpmd.missing()):
                contestants.append(_PmdTx(lab, size, case.name))
            results += compete([case], contestants, options, [
                "tx: ours copies every packet whole into its frame, testpmd writes its headers only"
            ])
    return results


class Chain:
    """near ==== (in, out) ==== far: two pairs whose middle ends share a namespace."""

    def __init__(self, near: Side, entry: Side, leave: Side, far: Side) -> None:
        self.near, self.entry, self.leave, self.far = near, entry, leave, far


@contextlib.contextmanager
def chain() -> Iterator[Chain]:
    """Two labs, the near end of the second moved into the first one's far namespace."""
    with Lab.temporary(queues=1) as first, Lab.temporary(queues=1) as second:
        middle, name = first.b.netns, second.a.interface
        for command in (
            inside(second.a.netns, "ip", "link", "set", name, "netns", middle),
            inside(middle, "ip", "link", "set", name, "up"),
        ):
            try:
                subprocess.run(command, check=True, capture_output=True, timeout=10)
            except FileNotFoundError:
                raise HostError("ip is not installed", fix="apt install iproute2") from None
            except subprocess.CalledProcessError as error:
                raise HostError(f"{' '.join(command)}: {error.stderr.decode().strip()}") from None
        yield Chain(first.a, first.b, second.a._replace(netns=middle), second.b)


class _OursForward:
    name = OURS

    def __init__(self, path: Chain, size: int, load: str, poll: str, case: str) -> None:
        self.path, self.size, self.load, self.poll, self.case = path, size, load, poll, case
        self.command = f"openclaw bench forward --size {size} --poll {poll} --load {load}"

    def measure(self, seconds: float) -> Sample:
        path = self.path
        with (
            ours.Sink(path.far) as sink,
            ours.Working([path.entry, path.leave], "forward", self.poll) as working,
            LOADS[self.load](path.near, self.size),
        ):
            time.sleep(SETTLE_S)
            before, lost = working.figures(), working.forward_drops()
            sample = far_window(sink, seconds, self.case)
            after = working.figures()
            drops = working.drops()
            drops["forward_ring_full"] = working.forward_drops() - lost
        packets = sample.values[self.case] * seconds
        calls = after["calls"] - before["calls"]
        return Sample(sample.values, {name: n for name, n in drops.items() if n},
                      sample.cpu_ns_per_packet,
                      {"syscalls_per_packet": calls / packets} if packets else {})


class _PmdForward:
    name = testpmd.NAME
    command = ""

    def __init__(self, path: Chain, size: int, load: str, case: str) -> None:
        self.path, self.size, self.load, self.case = path, size, load, case

    def measure(self, seconds: float) -> Sample:
        path = self.path
        devices = [testpmd.af_xdp(0, path.entry.interface),
                   testpmd.af_xdp(1, path.leave.interface)]
        with (
            ours.Sink(path.far) as sink,
            testpmd.Testpmd(devices, "io", path.entry.netns) as peer,
            LOADS[self.load](path.near, self.size),
        ):
            self.command = peer.command
            time.sleep(SETTLE_S)
            sample = far_window(sink, seconds, self.case)
            _, entry = peer.counters(0)
            _, leave = peer.counters(1)
        drops = {"RX-missed": entry["RX-missed"], "TX-errors": leave["TX-errors"]}
        return Sample(sample.values, {name: n for name, n in drops.items() if n},
                      sample.cpu_ns_per_packet)


def run_forward(options: Options, poll: str) -> list[dict[str, Any]]:
    results = []
    with chain() as path:
        for load in options.loads:
            for size in options.sizes:
                case = Case(f"forward {size} bytes, {poll}, {load} load", "packets/s", True)
                contestants: list[Any] = [_OursForward(path, size, load, poll, case.name)]
                if options.wants(testpmd.NAME, testpmd.missing()):
                    contestants.append(_PmdForward(path, size, load, case.name))
                results += compete([case], contestants, options)
    return results
