"""Packets through DPDK devices: content, order, frames, chains, and what each counter says."""

from __future__ import annotations

import time

import pytest

import appliance
from appliance.capture import read_capture, write_pcap
from tests.dataplane.wire import ledger_adds_up, packet, pump

SIZES = (60, 64, 65, 777, 1514)
JUMBO = (60, 3776, 3777, 4096, 9014, 33_000, 60)


def opened(device, **more):
    return appliance.open_port(backend="dpdk", device=device, **{"match": "", **more})


def from_file(tmp_path, packets, **more):
    write_pcap(tmp_path / "in.pcap", packets, range(1, len(packets) + 1))
    files = f"rx_pcap={tmp_path / 'in.pcap'},tx_pcap={tmp_path / 'out.pcap'}"
    return opened(f"net_pcap0,{files}", **more)


def sent_to_file(tmp_path):
    return [bytes(data) for data in read_capture(tmp_path / "out.pcap")]


def drained(port, until, seconds=10.0):
    """Receives until so many packets were seen by the rules and nothing more comes."""
    got = []
    limit = time.monotonic() + seconds
    for batch in port.recv(timeout_ms=10):
        got += [bytes(frame) for frame in batch]
        if (not len(batch) and port.steering()["seen"] >= until) or time.monotonic() > limit:
            return got
    return got


def closed_clean(port):
    port.close()
    ledger = ledger_adds_up(port)
    assert ledger["leaked"] == 0 and ledger["free"] == ledger["total"]


def test_net_af_xdp_and_our_own_port_understand_each_other_both_ways(library, lab):
    """One queue: net_af_xdp takes veth for a device that has no more (it asks for "combined")."""
    device = f"net_af_xdp0,iface={lab.b.interface}"
    with (appliance.open_port(lab.a.interface, "", netns=lab.a.netns) as ours,
          opened(device, netns=lab.b.netns) as theirs):
        sent = [packet(n, SIZES[n % 5]) for n in range(600)]
        assert pump(ours, theirs, sent) == [(0, data) for data in sent]
        assert pump(theirs, ours, sent) == [(0, data) for data in sent]
        assert theirs.stats()["rx_frames"] == theirs.stats()["tx_frames"] == 600
        # net_af_xdp receives into our frames: no packet was copied.
        assert theirs._attachment.queues[0].copied == 0
    closed_clean(theirs)


def test_each_queue_of_a_device_is_a_queue_of_the_port(library):
    with opened("net_ring0", queues=[0, 1, 2], frames=1024) as port:
        for queue in (2, 0, 1):
            sent = [packet(n + queue * 1000, SIZES[n % 5]) for n in range(500)]
            assert pump(port, port, sent, queue=queue) == [(queue, data) for data in sent]
        assert [q.statistics()["rx_frames"] for q in port._attachment.queues] == [500] * 3
    closed_clean(port)
    with pytest.raises(appliance.ConfigError, match="queues 0 to n - 1"):
        opened("net_ring0", queues=[1, 2])


@pytest.mark.parametrize("frame_bytes", [2048, 4096])
def test_packets_from_a_file_go_out_again_without_a_copy(library, tmp_path, frame_bytes):
    packets = [packet(n, SIZES[n % 5]) for n in range(3000)]
    with from_file(tmp_path, packets, frame_bytes=frame_bytes, frames=1024) as port:
        for batch in port.recv(timeout_ms=10):
            if not len(batch):
                break
            assert port.send(list(batch)) == len(batch)
            assert port.flush()
        assert port.stats()["rx_frames"] == port.stats()["tx_frames"] == 3000
        assert port._attachment.queues[0].copied == 0
    closed_clean(port)
    assert sent_to_file(tmp_path) == packets


def test_long_packets_are_chains_of_frames_in_both_directions(library, tmp_path):
    packets = [packet(n, size) for n, size in enumerate(JUMBO)]
    with from_file(tmp_path, packets, jumbo=True) as port:
        batch = next(port.recv(timeout_ms=100))
        assert [bytes(frame) for frame in batch] == packets
        assert port.send(list(batch)) == len(JUMBO), "moved as chains"
        batch.release()
        assert port.send(packets[:5]) == 5 and port.flush(), "copied into chains"
        assert port.stats()["kernel"]["tx_invalid_descs"] == 0
        ledger_adds_up(port)
    closed_clean(port)
    # net_pcap cuts what it writes at 9,234 bytes (RTE_ETH_PCAP_SNAPLEN), whatever was sent.
    written = sent_to_file(tmp_path)
    assert len(written) == len(JUMBO) + 5
    short = [data for data in [*packets, *packets[:5]] if len(data) <= 9014]
    assert [data for data in written if len(data) <= 9014] == short


def test_a_long_packet_is_counted_where_the_port_takes_one_frame_each(library, tmp_path):
    packets = [packet(0, 100), packet(1, 9000), packet(2, 100)]
    with from_file(tmp_path, packets) as port:
        assert drained(port, 3) == [packets[0], packets[2]]
        assert port.drops() == {"too_many_fragments": 1}
        assert port.stats()["lost"]["too_many_fragments"] == 1
        assert port.steering()["consumed"] == 3
    closed_clean(port)


def test_what_comes_in_anothers_memory_is_copied_and_the_sender_gets_its_frame_back(library):
    with opened("net_ring0", frames=1024) as port:
        sent = [packet(n, SIZES[n % 5]) for n in range(2000)]
        assert [data for _, data in pump(port, port, sent)] == sent
        assert port._attachment.queues[0].copied == 2000
        assert port.flush() and port.outstanding == 0
    closed_clean(port)


def test_dropped_and_passed_packets_give_their_frames_back_at_once(library, tmp_path):
    packets = [packet(n, 60 + n % 3) for n in range(30_000)]
    rules = [appliance.Rule("len = 60", "drop"), appliance.Rule("len = 61", "pass"),
             appliance.Rule("len = 62 and ether[17] = 200", "consume")]  # fmt: skip
    wanted = [data for data in packets if len(data) == 62 and data[17] == 200]
    with from_file(tmp_path, packets, match=None, rules=rules, frames=256) as port:
        assert drained(port, len(packets)) == wanted
        counts = port.steering()
        assert (counts["dropped"], counts["consumed"]) == (10_000, len(wanted))
        assert counts["passed"] == 20_000 - len(wanted) and port.drops() == {"rule": 10_000}
        assert list(counts["by_rule"].values())[:2] == [10_000, 10_000]
    closed_clean(port)


def test_a_held_frame_keeps_its_content_while_the_device_goes_on(library, tmp_path):
    packets = [packet(n, SIZES[n % 5]) for n in range(5000)]
    with from_file(tmp_path, packets, frames=1024, quota_frames=64) as port:
        held = []
        for batch in port.recv(timeout_ms=10):
            if not len(batch):
                break
            if len(held) < 50:
                held.append((batch[0].hold(), bytes(batch[0])))
        assert [bytes(frame) for frame, _ in held] == [content for _, content in held]
        assert port.ledger()["leased"] == len(held) == 50
        for frame, _ in held:
            frame.release()
        ledger_adds_up(port)
    closed_clean(port)


def test_a_program_that_holds_every_frame_is_told_and_the_device_goes_on_afterwards(library):
    with opened("net_null0,size=80", frames=256, quota_frames=4096, policy="strict") as port:
        kept = []
        for batch in port.recv(timeout_ms=0):
            kept += [frame.hold() for frame in batch]
            if not len(batch):
                break
        assert len(kept) >= 64 and port.stats()["starved"] > 0
        for frame in kept:
            frame.release()
        kept.clear()
        assert sum(len(next(port.recv(timeout_ms=100))) for _ in range(3)) > 0
    closed_clean(port)


def test_shedding_drops_what_is_less_important_and_counts_it(library):
    rules = [appliance.Rule("len < 100", "consume", priority=200)]
    with opened("net_null0,size=60", match=None, rules=rules) as port:
        assert len(next(port.recv()))
        port._attachment.steering.set_shed(100)
        for _ in range(10):
            next(port.recv(timeout_ms=0)).release()
        before = port.steering()["consumed"]
        assert len(next(port.recv(timeout_ms=20))) == 0 and port.drops()["shed"] > 0
        port._attachment.steering.set_shed(None)
        assert len(next(port.recv())) and port.steering()["consumed"] > before
    closed_clean(port)


def test_swapped_rules_keep_ids_and_counts_over_the_swap(library):
    stay, go = appliance.Rule("len = 60", "consume"), appliance.Rule("", "drop")
    with opened("net_null0,size=60", match=None, rules=[stay, go]) as port:
        received = len(next(port.recv()))
        first = port.rules
        for turn in range(5):
            port.swap_rules([appliance.Rule(f"len = {200 + turn}", "drop"), stay])
            received += len(next(port.recv()))
        assert port.rules[1] == first[0] and port.rules[0][0] > first[1][0]
        counts = port.steering()
        # The loop takes one burst more than it hands out: what is in hand stays in the ring.
        assert counts["by_rule"][str(first[0][0])] == counts["consumed"] >= received
        with pytest.raises(appliance.ConfigError, match="syntax error"):
            port.swap_rules([appliance.Rule("not a filter at all", "drop")])
        assert len(port.rules) == 2 and len(next(port.recv()))
    closed_clean(port)


def test_what_the_device_was_granted_is_read_back(library):
    with opened("net_null0,size=60", promiscuous=False, mtu=1400, frames=1024) as port:
        info = port.info
    assert (info["backend"], info["driver"], info["device"]) == (
        "dpdk", "net_null", "net_null0,size=60")
    assert info["rss"] is False and info["rx_offloads"] == [] and info["mtu"] in (1400, 1500)
    assert info["link"] == "up" and info["native_rules"] in (0, 1)
    assert any("no kernel behind" in reason for reason in info["reasons"])


def test_descriptors_that_belong_to_no_frame_are_counted_and_cost_none(library, tmp_path):
    with from_file(tmp_path, [packet(0)] * 50, frames=256) as port:
        queue = port._attachment.queues[0]
        for addr in (1 << 40, 64, 4096 * 3 + 4000):
            assert queue.post_raw("tx", addr, 60)
        assert queue.post_raw("fill", 1 << 40)
        assert port.send([packet(1)]) == 1 and port.flush()
        assert len(drained(port, 50)) == 50
        kernel = port.stats()["kernel"]
        assert kernel["tx_invalid_descs"] == 3 and kernel["rx_invalid_descs"] <= 1
    closed_clean(port)
    assert sent_to_file(tmp_path) == [packet(1)]
