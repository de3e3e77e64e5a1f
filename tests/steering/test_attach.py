"""The program on interfaces: modes, links, foreign programs, live packets, what remains."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from appliance.dataplane import bpf
from appliance.errors import ConfigError, PortError
from appliance.net import in_netns, link_statistics
from appliance.steering import Rule, Steering, attach_pass
from tests.probes import bpf_objects_of_this_process
from tests.steering.packets import TCP_FRAME, UDP_FRAME

pytestmark = pytest.mark.root


def on_a(lab, function):
    return in_netns(lab.a.netns, lambda: function(socket.if_nametoindex(lab.a.interface)))


@pytest.mark.parametrize("mode", ["auto", "native", "generic"])
def test_attaching_says_what_was_granted_and_detaching_takes_it_off(lab, steer, mode):
    steered = steer(Rule("udp", "consume"))
    granted = on_a(lab, lambda ifindex: steered.attach(ifindex, mode))
    assert granted == ("native" if mode == "auto" else mode)
    assert on_a(lab, bpf.attached) == {granted: steered.program["id"]}
    with pytest.raises(PortError, match="attached already"):
        on_a(lab, steered.attach)
    steered.detach()
    steered.detach()
    assert on_a(lab, bpf.attached) == {}
    on_a(lab, steered.attach)


def test_a_swap_replaces_the_program_on_the_same_link(lab, steer):
    steered = steer(Rule("udp", "consume"))
    on_a(lab, steered.attach)
    first, link = steered.program["id"], steered._link.info["id"]
    steered.swap([Rule("tcp", "consume")])
    assert steered.program["id"] != first
    assert steered._link.info == {"id": link, "program": steered.program["id"]}
    assert on_a(lab, bpf.attached) == {"native": steered.program["id"]}


@pytest.mark.parametrize("theirs", ["native", "generic"])
@pytest.mark.parametrize("ours", ["auto", "native", "generic"])
def test_a_foreign_program_is_named_and_not_replaced(lab, steer, theirs, ours):
    steered = steer(Rule("udp", "consume"))
    with on_a(lab, lambda ifindex: attach_pass(ifindex, theirs)) as foreign:
        number = foreign._program.id
        with pytest.raises(PortError, match=rf"runs XDP program {number} \({theirs}\)"):
            on_a(lab, lambda ifindex: steered.attach(ifindex, ours))
        assert on_a(lab, bpf.attached) == {theirs: number}
    assert on_a(lab, steered.attach) == "native"


def test_an_interface_that_is_not_there_and_a_mode_that_is_none_are_named(steer):
    steered = steer(Rule("udp", "consume"))
    with pytest.raises(PortError, match="interface 1000001"):
        steered.attach(1_000_001)
    with pytest.raises(ConfigError, match="attach: 'fast': one of auto, native, generic"):
        steered.attach(1_000_001, "fast")


def test_packets_are_steered_on_a_live_interface(lab, steer):
    """Frames from the other end: counted, passed, dropped as the rules say, also across a swap."""
    steered = steer(Rule("udp", "drop"), Rule("tcp", "pass"), socket=False)
    on_a(lab, steered.attach)

    def flood(frame):
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as out:
            out.bind((lab.b.interface, 0))
            for _ in range(100):
                out.send(frame)

    def settled(seen):
        deadline = time.monotonic() + 5
        while steered.counters()["seen"] < seen and time.monotonic() < deadline:
            time.sleep(0.01)
        return steered.counters()

    in_netns(lab.b.netns, flood, UDP_FRAME)
    in_netns(lab.b.netns, flood, TCP_FRAME)
    assert settled(200)["drops"]["rule"] == 100
    steered.swap([Rule("tcp", "drop"), Rule("udp", "pass")])
    in_netns(lab.b.netns, flood, TCP_FRAME)
    counted = settled(300)
    assert (counted["seen"], counted["dropped"], counted["passed"]) == (300, 200, 100)


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_swaps_under_traffic_lose_no_packet_and_count_each_once(lab, steer, mode):
    steered = steer(Rule("udp", "drop"), socket=False)
    on_a(lab, lambda ifindex: steered.attach(ifindex, mode))
    sent = threading.Event()
    count = 20_000

    def flood():
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as out:
            out.bind((lab.b.interface, 0))
            for _ in range(count):
                out.send(UDP_FRAME)
        sent.set()

    sender = threading.Thread(target=in_netns, args=(lab.b.netns, flood))
    sender.start()
    swaps = 0
    try:
        while not sent.is_set() or swaps < 5:
            # The second rule differs each time, so that each swap has a new id and a new program.
            steered.swap([Rule("udp", "drop"), Rule("tcp", "drop", priority=swaps % 200)])
            swaps += 1
    finally:
        sender.join()
    lost = link_statistics(lab.b.interface, lab.b.netns)["tx_dropped"]
    deadline = time.monotonic() + 5
    while steered.counters()["seen"] < count - lost and time.monotonic() < deadline:
        time.sleep(0.01)
    counted = steered.counters()
    assert (counted["seen"], counted["drops"]["rule"]) == (count - lost, count - lost)
    assert counted["passed"] == counted["consumed"] == 0
    assert lost < count / 10, "the sender overran the pair: nothing was shown"
    assert counted["by_rule"][str(steered.rules[0][0])] == count - lost


def test_nothing_is_left_after_many_lives(lab):
    """50 times made, attached, swapped, closed; what remains is compared around each root test."""
    rules = [Rule("udp", "consume")], [Rule("tcp", "consume")]
    before = bpf_objects_of_this_process()
    for life in range(50):
        steered = Steering(rules[life % 2])
        if life % 2:
            on_a(lab, steered.attach)
        if life % 5 == 0:
            steered.swap(rules[1 - life % 2])
        steered.close()
        steered.close()
        with pytest.raises(PortError, match="closed"):
            steered.counters()
    assert bpf_objects_of_this_process() == before


def test_a_link_ends_with_its_process(lab):
    """kill -9: the kernel detaches, and the interface is free."""
    script = (
        "import socket, sys, time\n"
        "from appliance.net import in_netns\n"
        "from appliance.steering import Rule, Steering\n"
        "made = Steering([Rule('', 'drop')])\n"
        f"in_netns({lab.a.netns!r}, lambda: made.attach("
        f"socket.if_nametoindex({lab.a.interface!r})))\n"
        "print('up', flush=True); time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    try:
        assert child.stdout.readline() == b"up\n"
        assert list(on_a(lab, bpf.attached)) == ["native"]
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
    deadline = time.monotonic() + 1.0
    while on_a(lab, bpf.attached) and time.monotonic() < deadline:
        time.sleep(0.005)
    assert on_a(lab, bpf.attached) == {}
