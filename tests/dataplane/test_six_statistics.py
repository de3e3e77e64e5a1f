"""Each of the six drop counters of an AF_XDP socket, provoked alone, and no frame lost.

They are the kernel's: `XDP_STATISTICS`. The queue is opened by hand where the port would, rightly,
refuse to be set up so badly.
"""

from __future__ import annotations

import time

import pytest

import appliance
from appliance.dataplane import Endpoint, Frames, XskQueue
from appliance.net import Lab, in_netns, interface
from appliance.steering import Rule, Steering
from tests.dataplane.wire import packet

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("needs_xdp_socket", "needs_namespaces")]

ALL = {
    "rx_dropped",
    "rx_invalid_descs",
    "tx_invalid_descs",
    "rx_ring_full",
    "rx_fill_ring_empty_descs",
    "tx_ring_empty_descs",
}


class Bench:
    """A sender on a, and on b one queue with the sizes that the test asks for."""

    def __init__(self, lab, *, frames=1024, frame_bytes=4096, rx_ring=512, fill=256):
        self.lab = lab
        ifindex = interface(lab.b.interface, lab.b.netns).ifindex
        self.frames = Frames(frames, frame_bytes, hugepages="off")
        self.queue = in_netns(
            lab.b.netns,
            lambda: XskQueue(self.frames, ifindex, 0, rx_ring, 256, 512, fill, mode="copy"),
        )
        self.endpoint = Endpoint([self.queue])
        self.steering = Steering([Rule("", "consume")])
        self.steering.set_socket(0, self.queue.fd)
        in_netns(lab.b.netns, self.steering.attach, ifindex)
        self.tx = appliance.open_port(
            lab.a.interface, netns=lab.a.netns, transmit_only=True, frames=1024
        )

    def send(self, packets):
        """All of them, slowly enough for the veth ring, and waits until they have arrived."""
        at = 0
        expected = self.steering.counters()["seen"] + len(packets)
        limit = time.monotonic() + 10
        while at < len(packets) and time.monotonic() < limit:
            at += self.tx.send(packets[at : at + 32])
            assert self.tx.flush(2000)
        assert at == len(packets)
        limit = time.monotonic() + 2
        while self.steering.counters()["seen"] < expected and time.monotonic() < limit:
            time.sleep(0.001)

    def provoked(self):
        return {name: n for name, n in self.queue.kernel_statistics().items() if n}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.steering.detach()
        self.endpoint.close()
        self.steering.close()
        self.tx.close()
        assert self.endpoint.leaked == 0
        assert self.frames.count()["free"] == self.frames.total


def test_nothing_is_counted_when_nothing_is_wrong(lab):
    with Bench(lab) as bench:
        assert set(bench.queue.kernel_statistics()) == ALL
        bench.send([packet(n) for n in range(64)])
        assert bench.provoked() == {}


def test_rx_dropped_counts_packets_longer_than_a_frame():
    with Lab.temporary(queues=1, mtu=3000) as lab, Bench(lab, frame_bytes=2048) as bench:
        bench.send([packet(n, 1792) for n in range(5)] + [packet(n, 1793) for n in range(7)])
        assert bench.provoked() == {"rx_dropped": 7}


def test_rx_ring_full_counts_what_the_application_was_too_slow_for(lab):
    with Bench(lab, rx_ring=64, fill=256) as bench:
        bench.send([packet(n) for n in range(100)])
        assert bench.provoked() == {"rx_ring_full": 36}


def test_an_empty_fill_ring_is_counted_each_time_that_a_packet_finds_it_so(lab):
    with Bench(lab, fill=64) as bench:
        bench.send([packet(n) for n in range(100)])
        # In copy mode the kernel says both: it found FILL empty, and so it dropped the packet.
        assert bench.provoked() == {"rx_fill_ring_empty_descs": 36, "rx_dropped": 36}


def test_fill_entries_outside_the_umem_are_skipped_and_cost_no_frame(lab):
    """rx_invalid_descs cannot be provoked: up to Linux 7.2 at least, the kernel counts a bad FILL
    entry at the FILL ring and reports the counter of the RX ring (net/xdp/xsk.c, XDP_STATISTICS),
    which nothing increments. So this accepts both that and a kernel that has mended it."""
    with Bench(lab, fill=64) as bench:
        for n in range(5):
            assert bench.queue.post_raw("fill", (1 << 40) + n * 4096)
        for _ in range(3):  # the bad entries stand behind the first 64 good ones
            sent = [packet(n) for n in range(48)]
            bench.send(sent)
            batch = next(bench.endpoint.recv(max_frames=64))
            assert [bytes(frame) for frame in batch] == sent
            batch.release()
        assert bench.provoked() in ({}, {"rx_invalid_descs": 5})
        assert bench.queue.filled == 64 and bench.frames.count()["leaked"] == 0


def test_tx_invalid_descs_counts_descriptors_outside_their_frame_and_costs_no_frame(lab):
    with Bench(lab) as bench:
        for n in range(3):
            assert bench.queue.post_raw("tx", (1 << 40) + n)
        counted = bench.provoked()
        assert counted.pop("tx_invalid_descs") == 3
        assert set(counted) <= {"tx_ring_empty_descs"}, "the kernel looked for more and found none"
        assert bench.endpoint.send([packet(1)]) == 1 and bench.endpoint.flush()
        assert bench.queue.outstanding == 0


def test_tx_ring_empty_descs_counts_that_the_kernel_found_nothing_more_to_send(lab):
    with Bench(lab) as bench:
        assert bench.endpoint.send([packet(1)]) == 1 and bench.endpoint.flush()
        assert set(bench.provoked()) == {"tx_ring_empty_descs"}
