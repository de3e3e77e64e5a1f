"""`bench latency`: from the kernel's timestamp of a packet to the consumer, beside a UDP socket.

20,000 single packets a second from the same sender. Ours: XDP timestamp to the worker's round, for
the profiles irq (sleeps), defer (sleeps, interrupts held back) and busy (never sleeps). The peer:
SO_TIMESTAMPNS to the return of recvmsg, in a compiled loop that blocks. Both stamps are taken in
the receive path of the same interface, ours (XDP) a little earlier.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from typing import Any

import numpy as np

from appliance.bench import host, ours
from appliance.bench.contest import Options, compete
from appliance.bench.figures import OURS, Case, Sample, histogram_percentile, percentile
from appliance.bench.load import SETTLE_S, UDP_PORT, Trickle
from appliance.dataplane import bucket_upper_ns, gauge
from appliance.net import Lab, in_netns
from appliance.steering import Rule

RATE = 20_000  # one packet in 50 us: longer than the worker looks before it sleeps (20 us)
PROFILES = ("irq", "defer", "busy")
SHARES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
PEER = "udp-socket"
_SO_TIMESTAMPNS = 35  # asm-generic/socket.h; Python names it only from 3.14 on


def _cases(poll: str) -> list[Case]:
    return [Case(f"latency {poll}, {name}", "ns", False) for name in SHARES]


class _Ours:
    name = OURS

    def __init__(self, lab: Lab, poll: str) -> None:
        self.lab, self.poll = lab, poll
        self.command = f"openclaw bench latency --poll {poll}"

    def measure(self, seconds: float) -> Sample:
        rule = Rule(match=f"udp port {UDP_PORT}", action="consume")
        with (
            ours.Working([self.lab.b], "count", self.poll, rule) as working,
            Trickle(self.lab.a, self.lab.b.ipv4, RATE),
        ):
            time.sleep(SETTLE_S)
            before, _ = working.worker.latencies()
            sample = ours.window(working, seconds, "rate")
            after, _ = working.worker.latencies()
        counts = (after - before).tolist()
        upper = [bucket_upper_ns(bucket) for bucket in range(len(counts))]
        values = {
            case.name: histogram_percentile(counts, upper, share)
            for case, share in zip(_cases(self.poll), SHARES.values(), strict=True)
        }
        return Sample(values, sample.drops, sample.cpu_ns_per_packet, sample.per_packet)


class _Socket:
    name = PEER
    command = f"recvmsg with SO_TIMESTAMPNS on UDP port {UDP_PORT}, blocking"

    def __init__(self, lab: Lab, poll: str) -> None:
        self.lab, self.poll = lab, poll

    def _open(self) -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 1, 0))
        made.bind((self.lab.b.ipv4, UDP_PORT))
        return made

    def measure(self, seconds: float) -> Sample:
        latencies = np.zeros(int(RATE * seconds), np.uint64)
        settle = np.zeros(int(RATE * SETTLE_S), np.uint64)
        figures: dict[str, float] = {}

        def receive() -> None:
            os.sched_setaffinity(0, {host.cores()[1]})
            gauge.socket_latencies(receiver.fileno(), settle)
            cpu = host.CpuClock()
            figures["packets"] = gauge.socket_latencies(receiver.fileno(), latencies)
            figures["busy"] = cpu.busy_ns()

        with in_netns(self.lab.b.netns, self._open) as receiver:
            thread = threading.Thread(target=receive, name="bench socket", daemon=True)
            with Trickle(self.lab.a, self.lab.b.ipv4, RATE):
                thread.start()
                thread.join()
        packets = int(figures["packets"])
        found = np.sort(latencies[:packets]).tolist()
        values = {
            case.name: percentile(found, share)
            for case, share in zip(_cases(self.poll), SHARES.values(), strict=True)
        }
        return Sample(values, {}, figures["busy"] / packets if packets else None,
                      {"syscalls_per_packet": 1.0})


def run(options: Options, poll: str | None) -> list[dict[str, Any]]:
    results = []
    with Lab.temporary(queues=1) as lab:
        for profile in PROFILES if poll is None else (poll,):
            contestants: list[Any] = [_Ours(lab, profile)]
            if options.wants(PEER):
                contestants.append(_Socket(lab, profile))
            results += compete(_cases(profile), contestants, options,
                               [f"{RATE} packets/s, one at a time"])
    return results
