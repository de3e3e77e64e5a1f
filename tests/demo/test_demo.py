"""The demo: everything is accounted for, and its check fails when anything is not as sent."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from appliance import demo
from appliance.capture import read_capture, write_pcap
from appliance.cli.main import main
from appliance.demo import accounts, make_sample
from appliance.demo.exchange import Exchange, Latencies
from appliance.demo.rig import Rig
from appliance.demo.traffic import RULES, flow_queues, prepare
from appliance.net import in_netns, namespaces
from appliance.net.interface import netlink
from appliance.steering import verdicts

pytestmark = pytest.mark.root


def frame(size: int, number: int = 0) -> bytes:
    """An Ethernet frame of a type that nobody knows, different for each number."""
    body = np.random.default_rng(number).integers(0, 256, max(0, size - 14), np.uint8).tobytes()
    return (bytes.fromhex("020000000002020000000001" "88b5") + body)[:size]


def capture_of(tmp_path, packets, name="made.pcap"):
    path = tmp_path / name
    write_pcap(path, packets, range(len(packets)))
    return read_capture(path)


def exchange(rig, traffic, **options):
    """One traffic over the rig; the outcome, and its entry as the demo would make it."""
    before = rig.figures()
    outcome = Exchange(rig.sender, rig.receiver, traffic, Latencies(), **options).run()
    return outcome, accounts.entry(traffic, outcome, before, rig.figures())


@pytest.fixture
def rig():
    with Rig(RULES, 1514) as made:
        yield made


@pytest.fixture
def sample(rig):
    return prepare(read_capture(demo.SAMPLE), longest=rig.longest, queues=2)


# ---------------------------------------------------------------------------- what it promises


def test_the_command_accounts_for_every_packet_in_one_json_object(capsys):
    assert main(["demo", "--repeat", "20", "--json"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert printed.out.count("\n") == 1
    count = len(read_capture(demo.SAMPLE))
    assert found["packets"] == count and found["sent"] == 20 * count
    dropped = sum(found["drops"].values())
    assert found["sent"] == found["received"] + found["steering"]["passed"] + dropped
    assert found["verified"] == found["received"] > 0
    assert found["mismatched"] == 0 and found["faults"] == []
    assert found["frames"]["leaked"] == 0
    assert found["frames"]["free"] == found["frames"]["total"]
    assert 0 < found["latency_ns"]["p50"] <= found["latency_ns"]["max"]
    assert {"ports", "steering", "consumers", "memory", "elapsed_s"} <= found.keys()
    assert found["ports"][0]["tx_frames"] == found["sent"]
    assert found["ports"][1]["rx_frames"] == found["received"]


def test_the_table_says_what_holds(capsys):
    assert main(["demo"]) == 0
    shown = capsys.readouterr().out
    assert "sample.pcap" in shown and "ARP, ND, DHCP, SSH" in shown
    assert "ok    sent 146 = received 132 + passed 14 + dropped 0" in shown


def test_management_packets_stay_with_the_kernel_and_are_counted_as_passed():
    capture = read_capture(demo.SAMPLE)
    found = demo.run([capture], repeat=3)
    passed = sum(verdict == "pass" for _, verdict in verdicts(RULES, capture))
    assert found["steering"]["passed"] == found["steering"]["management"] == 3 * passed > 0


def test_several_captures_are_replayed_one_after_the_other(tmp_path):
    first = capture_of(tmp_path, [frame(60, n) for n in range(5)], "first.pcap")
    second = capture_of(tmp_path, [frame(1514, n) for n in range(7)], "second.pcap")
    found = demo.run([first, second, first])
    assert [one["sent"] for one in found["captures"]] == [5, 7, 5]
    assert found["verified"] == 17 and not found["faults"]


def test_a_rate_is_kept():
    found = demo.run([read_capture(demo.SAMPLE)], repeat=14, rate=2000)
    assert found["sent"] == 2044 and not found["faults"]
    assert found["elapsed_s"] == pytest.approx(2044 / 2000, rel=0.1)


@pytest.mark.parametrize("sizes", [[14, 15, 59, 60], [3500, 3501, 4096, 4097, 9014, 3500 * 3],
                                   [65_549, 60, 65_000]])
def test_every_length_that_a_link_can_carry_arrives(tmp_path, sizes):
    found = demo.run([capture_of(tmp_path, [frame(size) for size in sizes])], repeat=2)
    assert found["faults"] == [] and found["skipped"] == {}
    assert found["verified"] == 2 * len(sizes)
    assert found["received_bytes"] == 2 * sum(sizes)


def test_packets_that_no_wire_carries_are_skipped_by_reason_and_not_sent(tmp_path):
    sizes = [0, 1, 13, 14, 60, 65_549, 65_550, 100_000]
    found = demo.run([capture_of(tmp_path, [frame(size) for size in sizes])])
    assert found["skipped"] == {"shorter_than_ethernet_header": 3, "longer_than_link": 2}
    assert found["sent"] == found["verified"] == 3 and found["faults"] == []


def test_an_empty_capture_is_nothing_to_send_and_no_fault(tmp_path):
    found = demo.run([capture_of(tmp_path, [])])
    assert found["sent"] == 0 and found["faults"] == [] and found["latency_ns"]["p50"] is None


def test_both_queues_are_used_and_both_directions_of_a_flow_share_one():
    capture = read_capture(demo.SAMPLE)
    queues = flow_queues(capture, 2)
    assert set(queues.tolist()) == {0, 1}
    by_talk: dict[frozenset, set[int]] = {}
    for packet, queue in zip(capture, queues.tolist(), strict=True):
        if packet[12:14] == b"\x08\x00" and packet[23] == 6:
            ends = frozenset((bytes(packet[26:30]) + bytes(packet[34:36]),
                              bytes(packet[30:34]) + bytes(packet[36:38])))
            by_talk.setdefault(ends, set()).add(queue)
    assert len(by_talk) >= 3 and all(len(used) == 1 for used in by_talk.values())


# ----------------------------------------------------------------------- the check can fail


@pytest.mark.parametrize("place", [0, 14, 59])
def test_one_changed_byte_is_one_mismatch(rig, tmp_path, place):
    traffic = prepare(capture_of(tmp_path, [frame(60, n) for n in range(300)]),
                      longest=rig.longest, queues=2)
    spoiled = bytearray(traffic.data)
    spoiled[60 * 150 + place] ^= 1
    outcome, found = exchange(rig, dataclasses.replace(traffic, expected=memoryview(spoiled)))
    assert outcome.mismatched == 1 and outcome.verified == 299 and outcome.missing == 0
    assert any("mismatched is 1" in line for line in _faults([found]))


def test_a_changed_byte_in_the_last_fragment_of_a_jumbo_packet_is_found(tmp_path):
    with Rig(RULES, 9014) as rig:
        traffic = prepare(capture_of(tmp_path, [frame(9014)]), longest=rig.longest, queues=2)
        spoiled = bytearray(traffic.data)
        spoiled[-1] ^= 0x80
        outcome, _ = exchange(rig, dataclasses.replace(traffic, expected=memoryview(spoiled)))
        assert (outcome.mismatched, outcome.verified) == (1, 0)


def test_two_packets_that_change_places_are_a_fault(rig, tmp_path):
    traffic = prepare(capture_of(tmp_path, [frame(60, n) for n in range(20)]),
                      longest=rig.longest, queues=1)
    lane = traffic.lanes[0]
    order = lane.expected_offsets.copy()
    order[[7, 8]] = order[[8, 7]]
    lane = dataclasses.replace(lane, expected_offsets=order)
    outcome, found = exchange(rig, dataclasses.replace(traffic, lanes=(lane,)))
    assert (outcome.verified, outcome.mismatched, outcome.missing) == (19, 1, 0)
    assert "out of order" in outcome.first_fault
    assert _faults([found])


def test_a_packet_that_never_comes_is_a_fault(rig, tmp_path):
    traffic = prepare(capture_of(tmp_path, [frame(60, n) for n in range(20)]),
                      longest=rig.longest, queues=1)
    lane = traffic.lanes[0]
    # Expected of 20 is that the last is consumed, and the kernel gets it: ARP.
    wrong = bytearray(traffic.data)
    wrong[60 * 19 + 12:60 * 19 + 14] = b"\x08\x06"
    assert lane.arriving == 20
    outcome, found = exchange(rig, dataclasses.replace(traffic, data=memoryview(wrong)))
    assert (outcome.verified, outcome.missing, found["passed"]) == (19, 1, 1)
    assert any("1 packets did not arrive that the rules consume" in line
               for line in _faults([found]))


def test_a_packet_with_another_rules_id_is_a_fault(rig, sample):
    lanes = tuple(dataclasses.replace(lane, expected_rules=np.full_like(lane.expected_rules, 5))
                  for lane in sample.lanes)
    outcome, found = exchange(rig, dataclasses.replace(sample, lanes=lanes))
    consumed_by = rig.receiver.steering()["by_rule"]
    last = str(rig.receiver.rules[-1][0])
    assert outcome.misruled == outcome.verified - consumed_by[last] > 0
    assert any("another rule" in line for line in _faults([found]))


def test_a_packet_that_somebody_else_sent_is_a_fault(rig, sample):
    before = rig.figures()
    assert rig.sender.send([frame(60)]) == 1 and rig.sender.flush()
    outcome = Exchange(rig.sender, rig.receiver, sample, Latencies()).run()
    found = accounts.entry(sample, outcome, before, rig.figures())
    assert any("1 too many" in line for line in _faults([found]))


def test_what_the_link_loses_is_attributed_and_what_follows_is_still_verified(rig, tmp_path):
    """The far end has a smaller MTU: the kernel drops what is longer, before XDP."""
    in_netns(rig.lab.b.netns, _set_mtu, "veth-b", 1000)
    packets = [frame(1200 if n % 10 == 3 else 600, n) for n in range(400)]
    traffic = prepare(capture_of(tmp_path, packets), longest=rig.longest, queues=2)
    outcome, found = exchange(rig, traffic)
    assert found["drops"] == {"link": 40}
    assert (outcome.sent, outcome.verified, outcome.missing) == (400, 360, 40)
    assert outcome.mismatched == 0 and _faults([found]) == []


def test_a_drop_that_nobody_counted_is_a_fault(rig, sample):
    _, found = exchange(rig, sample)
    for change in ({"sent": found["sent"] + 1}, {"received": found["received"] - 1}):
        lines = _faults([{**found, **change}])
        assert any("1 unaccounted for" in line for line in lines)


def test_a_leaked_frame_is_a_fault(rig, sample):
    _, found = exchange(rig, sample)
    assert _faults([found], leaked=3) == ["frames.leaked is 3, not 0"]


def _faults(entries, leaked=0):
    """The demo's judgement over these entries, with sums that agree with them."""
    sums = {name: sum(one[name] for one in entries) for name in accounts.SUMS}
    drops = {}
    for one in entries:
        for reason, count in one["drops"].items():
            drops[reason] = drops.get(reason, 0) + count
    return accounts.faults({**sums, "captures": entries, "drops": drops,
                            "steering": {"passed": sums["passed"]}, "frames": {"leaked": leaked}})


def _set_mtu(name, mtu):
    with netlink() as route:
        route.link("set", index=route.link_lookup(ifname=name)[0], mtu=mtu)


# -------------------------------------------------------------------------------- how it ends


def test_a_fault_is_exit_status_1_and_one_line(capsys, monkeypatch):
    """The judgement is the real one; the link is made to lose without a trace by lying to it."""
    honest = accounts.entry
    monkeypatch.setattr(accounts, "entry",
                        lambda *given: {**honest(*given), "sent": honest(*given)["sent"] + 1})
    assert main(["demo", "--json"]) == 1
    printed = capsys.readouterr()
    assert len(json.loads(printed.out)["faults"]) == 1
    assert [line for line in printed.err.splitlines() if "unaccounted for" in line]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--repeat", "0"], "--repeat"),
        (["--rate", "0"], "--rate"),
        (["--pcap", "/nowhere/at.all"], "/nowhere/at.all"),
        (["--pcap", __file__], "not a capture"),
    ],
)
def test_bad_usage_is_exit_status_2_and_one_line(capsys, arguments, words):
    assert main(["demo", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and words in printed.err


def test_a_capture_that_is_not_ethernet_is_refused_before_anything_is_made(tmp_path, capsys):
    path = tmp_path / "wlan.pcap"
    write_pcap(path, [bytes(60)], [0], link_type=105)
    assert main(["demo", "--pcap", str(demo.SAMPLE), "--pcap", str(path)]) == 2
    printed = capsys.readouterr()
    assert "only Ethernet" in printed.err and printed.err.count("\n") == 1


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_takes_everything_down(number, status):
    command = [sys.executable, "-m", "appliance.cli.main", "demo", "--repeat", "100000000"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        mine = _namespaces_of(running.pid, 20.0)
        assert len(mine) == 2
        time.sleep(1.0)
        running.send_signal(number)
        _, errors = running.communicate(timeout=20)
    finally:
        running.kill()
        running.communicate()
    assert running.returncode == status
    assert b"Traceback" not in errors
    assert not set(mine) & set(namespaces())


def _namespaces_of(pid, seconds):
    until = time.monotonic() + seconds
    found: list[str] = []
    while len(found) < 2 and time.monotonic() < until:
        time.sleep(0.05)
        found = [name for name in namespaces() if f"-{pid}-" in name]
    return found


# ---------------------------------------------------------------------------------- the sample


def test_the_sample_is_what_its_generator_makes_and_small():
    content = demo.SAMPLE.read_bytes()
    assert content == make_sample.pcap()
    assert len(content) < 60 * 1024


def test_the_sample_holds_what_the_demo_is_to_show():
    capture = read_capture(demo.SAMPLE)
    from appliance.dataplane import parser

    table = parser.parse_many(capture.data, capture.offsets, capture.lengths)
    flags = table["flags"]
    assert (table["vlan_count"] == 1).any() and (table["vlan_count"] == 2).any()
    assert (table["mpls_count"] == 1).any() and (table["mpls_count"] == 2).any()
    assert (table["ip_version"] == 6).any() and (table["eth_type"] == 0x0806).any()
    assert ((flags & parser.FRAGMENT) > 0).sum() >= 6
    assert ((table["has_ports"] > 0) & (table["dport"] == 53)).any()
    assert set(parser.management(table).tolist()) == {0, 1, 2, 4, 8}
