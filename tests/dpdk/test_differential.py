"""One capture, four ways in: AF_XDP, DPDK over AF_XDP, DPDK over a file, and the loop port.

The same packets must come out, in the same order, under the same rules, and every account must say
the same. The loop port has no rules of its own: there `rules test` decides on what it received.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

import appliance
from appliance.capture import read_capture, write_pcap
from appliance.steering import Rule, decide
from tests.conftest import ethernet_captures
from tests.dataplane.wire import ledger_adds_up, pump

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("needs_xdp_socket", "needs_namespaces")]

FULL = os.environ.get("OPENCLAW_FULL") == "1"
PACKETS_MAX = 2000
RULES = [
    Rule("udp port 53 or udp port 67", "consume"),
    Rule("tcp[tcpflags] & tcp-syn != 0", "consume"),
    Rule("icmp or icmp6", "sample", sample=3),
    Rule("vlan or mpls", "consume"),
    Rule("ip6", "consume"),
    Rule("tcp portrange 1-1023", "drop"),
    Rule("greater 1000", "pass"),
    Rule("", "consume"),
]
FILES = ethernet_captures()
CHOSEN = FILES if FULL else FILES[:: max(1, len(FILES) // 12)][:12]
COUNTS = ("seen", "consumed", "passed", "dropped", "management")


def sendable(path: Path) -> list[bytes]:
    """What a veth of MTU 1500 carries."""
    found = [bytes(packet) for packet in read_capture(path)]
    return [packet for packet in found if 14 <= len(packet) <= 1514][:PACKETS_MAX]


class Seen:
    """What one way in gave: (place of the rule, packet) in order, and the accounts."""

    def __init__(self, port) -> None:
        self.port = port
        self.place = {number: place for place, (number, _) in enumerate(port.rules)}
        self.packets: list[tuple[int, bytes]] = []
        self.counts: dict[str, int] = {}

    def take(self, batch) -> None:
        pairs = zip(batch.rule_ids.tolist(), batch, strict=True)
        self.packets += [(self.place[rule], bytes(frame)) for rule, frame in pairs]

    def close(self) -> Seen:
        steering = self.port.steering()
        by_rule = [steering["by_rule"].get(str(number), 0) for number in self.place]
        self.counts = {**{name: steering[name] for name in COUNTS}, "by_rule": by_rule}
        ledger_adds_up(self.port)
        self.port.close()
        assert self.port.ledger()["leaked"] == 0
        assert self.port.stats()["rx_frames"] == steering["consumed"] == len(self.packets)
        assert not any(self.port.stats()["lost"].values())
        return self


def over_veth(lab, packets, **how) -> Seen:
    sender = appliance.open_port(lab.a.interface, netns=lab.a.netns, transmit_only=True)
    with sender, appliance.open_port(rules=RULES, netns=lab.b.netns, **how) as port:
        seen = Seen(port)
        batches = port.recv(timeout_ms=5)
        until = time.monotonic() + 30
        for at in range(0, len(packets), 64):
            part = packets[at : at + 64]
            assert sender.send(part) == len(part) and sender.flush(5000)
            while time.monotonic() < until:
                batch = next(batches)
                seen.take(batch)
                if not len(batch) and port.steering()["seen"] >= at + len(part):
                    break
        return seen.close()


def over_file(path, packets) -> Seen:
    write_pcap(path, packets, range(1, len(packets) + 1))
    device = f"net_pcap0,rx_pcap={path},tx_pcap={path}.out"
    with appliance.open_port(backend="dpdk", device=device, rules=RULES) as port:
        seen = Seen(port)
        for batch in port.recv(timeout_ms=20):
            seen.take(batch)
            if not len(batch) and port.steering()["seen"] == len(packets):
                return seen.close()
    raise AssertionError("recv ended")


def over_loop(path, packets):
    """The packets as the loop port gives them, and what `rules test` says of those."""
    with appliance.open_port("loop", backend="loop") as port:
        came = [data for _, data in pump(port, port, packets)]
    write_pcap(path, came, range(1, len(came) + 1))
    found = decide(RULES, read_capture(path))
    rules, consumed = found.rule_ids.astype(int) - 1, found.verdicts == 1
    kept = [(int(rules[n]), came[n]) for n in np.flatnonzero(consumed)]
    passed, dropped = (int((found.verdicts == verdict).sum()) for verdict in (0, 2))
    return kept, {"seen": len(came), "consumed": len(kept), "dropped": dropped, "passed": passed}


@pytest.mark.parametrize("capture", CHOSEN, ids=lambda path: path.name)
def test_every_way_in_gives_the_same_packets_verdicts_and_accounts(
    lab, library, captures, tmp_path, capture
):
    packets = sendable(capture)
    if not packets:
        pytest.skip(f"probe capture: {capture.name} has no packet of 14 to 1,514 bytes")
    reference, accounts = over_loop(tmp_path / "loop.pcap", packets)
    ways = {
        "afxdp": over_veth(lab, packets, interface=lab.b.interface, queues=[0]),
        "dpdk over net_af_xdp": over_veth(
            lab, packets, backend="dpdk", device=f"net_af_xdp0,iface={lab.b.interface}"
        ),
        "dpdk over net_pcap": over_file(tmp_path / "in.pcap", packets),
    }
    first = ways["afxdp"].counts
    for name, seen in ways.items():
        assert seen.packets == reference, name
        assert seen.counts == first, name
        assert {key: seen.counts[key] for key in accounts} == accounts, name
