"""The engine on real veth pairs: what consumers get, what goes out again, what a swap loses."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import appliance
from appliance.config import parse
from appliance.engine import accounts
from appliance.engine.engine import Engine
from appliance.net import Lab, in_netns
from tests.engine.support import (
    SOURCE,
    TARGET,
    Traffic,
    consumed,
    consumer_table,
    number_of,
    open_sender,
    port_table,
    receive,
    rule_table,
    send_all,
    started,
    udp,
    wait_for,
)

pytestmark = pytest.mark.usefixtures("needs_xdp_socket", "needs_namespaces")


def test_a_counting_consumer_sees_every_packet_and_byte_of_both_queues(lab):
    text = (port_table("in0", lab.b) + rule_table("in0", "udp", consumers=["c"])
            + consumer_table("c", "count"))
    packets = [udp(i) for i in range(4000)]
    with started(text) as engine:
        with open_sender(lab.a) as sender:
            for queue in (0, 1):
                assert send_all(sender, packets[queue::2], queue) == 2000
        assert wait_for(lambda: consumed(engine.statistics(), "c")["frames"] == 4000)
        final = engine.stop()
    assert consumed(final, "c")["bytes"] == sum(map(len, packets))
    assert final["steering"]["by_rule"][next(iter(final["steering"]["by_rule"]))] == 4000
    assert final["frames"]["leaked"] == 0
    assert accounts.problems(final) == []


@pytest.mark.parametrize(
    "more",
    [{"poll": "busy"}, {"poll": "defer"}, {"attach": "generic"}, {"jumbo": True}, {"queues": [1]}],
    ids=str,
)
def test_every_way_to_open_a_port_counts_exactly_and_restores_the_device(lab, more):
    text = (port_table("in0", lab.b, **more) + rule_table("in0", "udp", consumers=["c"])
            + consumer_table("c", "count"))
    before = in_netns(lab.b.netns, device_settings, lab.b.interface)
    with started(text) as engine:
        with open_sender(lab.a) as sender:
            send_all(sender, [udp(i, 20 + i % 1400) for i in range(1000)], queue=1)
        assert wait_for(lambda: consumed(engine.statistics(), "c")["frames"] == 1000)
        port = engine.statistics()["ports"][0]
        if "poll" in more:
            assert in_netns(lab.b.netns, device_settings, lab.b.interface) != before
        final = engine.stop()
    assert port["attach_mode"] == more.get("attach", "native")
    assert accounts.problems(final) == []
    assert in_netns(lab.b.netns, device_settings, lab.b.interface) == before


def device_settings(interface: str) -> list[str]:
    folder = Path("/sys/class/net") / interface
    return [(folder / name).read_text() for name in ("napi_defer_hard_irqs", "gro_flush_timeout")]


def test_a_backing_that_is_worse_than_asked_for_is_a_state_with_a_reason(lab):
    text = (port_table("in0", lab.b) + rule_table("in0", "udp", consumers=["c"])
            + consumer_table("c", "count"))
    with started(text) as engine:
        memory = engine.statistics()["memory"]
        assert (memory["backing"] == "2M") == (memory["state"] == "ok") == (not memory["reasons"])
        assert memory["backing"] == "2M" or "hugepages" in memory["reasons"][0]
    with started(text + '[memory]\nhugepages = "off"\n') as engine:
        memory = engine.statistics()["memory"]
        assert (memory["backing"], memory["state"], memory["reasons"]) == ("4k", "ok", [])


def test_a_dropping_consumer_counts_each_packet_under_one_reason(lab):
    text = (port_table("in0", lab.b) + rule_table("in0", "udp", consumers=["seen", "away"])
            + consumer_table("away", "drop") + consumer_table("seen", "count"))
    with started(text) as engine:
        with open_sender(lab.a) as sender:
            send_all(sender, [udp(i) for i in range(1000)])
        assert wait_for(lambda: engine.statistics()["drops"].get("consumer") == 1000)
        final = engine.stop()
    assert final["drops"] == {"consumer": 1000}
    assert consumed(final, "seen")["frames"] == consumed(final, "away")["frames"] == 1000
    assert accounts.problems(final) == []


def test_a_reflected_packet_comes_back_with_its_macs_swapped_and_nothing_else_changed(lab):
    text = (port_table("in0", lab.b)
            + rule_table("in0", "udp", consumers=["one", "back", "two"])
            + consumer_table("back", "reflect") + consumer_table("one", "count")
            + consumer_table("two", "count"))
    packets = [udp(i, 20 + i % 1400) for i in range(1000)]
    with (started(text) as engine,
          appliance.open_port(lab.a.interface, match="udp", netns=lab.a.netns) as peer):
        assert send_all(peer, packets) == 1000
        got = receive(peer, 1000)
        assert wait_for(lambda: engine.statistics()["ports"][0]["tx_frames"] == 1000)
        final = engine.stop()
    assert [number_of(packet) for packet in got] == list(range(1000))
    for sent, back in zip(packets, got, strict=True):
        assert back == SOURCE + TARGET + sent[12:]
    assert {entry["frames"] for entry in final["consumers"]} == {1000}
    assert accounts.problems(final) == []


def test_forwarding_between_two_ports_keeps_every_byte_and_copies_none(lab):
    with Lab.temporary(queues=2) as far:
        text = (port_table("in0", lab.b) + port_table("out0", far.b)
                + rule_table("in0", "udp", consumers=["over"])
                + rule_table("out0", "udp", consumers=["back"])
                + consumer_table("over", "forward", to="out0")
                + consumer_table("back", "forward", to="in0"))
        packets = [udp(i, 20 + i % 1400) for i in range(2000)]
        with (started(text) as engine,
              appliance.open_port(lab.a.interface, match="udp", netns=lab.a.netns) as near,
              appliance.open_port(far.a.interface, match="udp", netns=far.a.netns) as there):
            assert send_all(near, packets) == 2000
            assert receive(there, 2000) == packets
            assert send_all(there, packets[:500], queue=1) == 500
            assert receive(near, 500) == packets[:500]
            stats = engine.statistics()
            final = engine.stop()
    # Four queues on two memories: what came in at one port left from the same frame at the other.
    assert stats["memory"]["fast"]["umems"] == 2
    assert [worker["queues"] for worker in stats["workers"]] == [
        ["in0/0", "out0/0"], ["in0/1", "out0/1"]
    ]
    assert [port["tx_frames"] for port in final["ports"]] == [500, 2000]
    assert final["frames"]["leaked"] == 0
    assert accounts.problems(final) == []


def test_queues_of_unequal_ports_forward_to_the_one_queue_that_there_is(lab):
    with Lab.temporary(queues=1) as far:
        text = (port_table("in0", lab.b) + port_table("out0", far.b)
                + rule_table("in0", "udp", consumers=["over"])
                + rule_table("out0", "udp", consumers=["seen"])
                + consumer_table("over", "forward", to="out0")
                + consumer_table("seen", "count"))
        with (started(text) as engine, open_sender(lab.a) as near,
              appliance.open_port(far.a.interface, match="udp", netns=far.a.netns) as there):
            for queue in (0, 1):
                send_all(near, [udp(queue * 500 + i) for i in range(500)], queue)
            got = receive(there, 1000)
            assert engine.statistics()["memory"]["fast"]["umems"] == 1
            final = engine.stop()
    assert sorted(map(number_of, got)) == list(range(1000))
    assert accounts.problems(final) == []


def test_a_clean_stop_under_load_leaves_every_account_even(lab):
    text = (port_table("in0", lab.b) + rule_table("in0", "udp", consumers=["back"])
            + consumer_table("back", "reflect"))
    with Traffic(lab.a, queues=2, pause_s=0, burst=64) as traffic:
        for _ in range(3):
            with started(text) as engine:
                time.sleep(0.3)
                begin = time.monotonic()
                final = engine.stop()
                assert time.monotonic() - begin < 1.0
            assert final["steering"]["consumed"] > 1000
            assert final["frames"]["leaked"] == 0
            assert accounts.problems(final) == []
    assert traffic.sent


def test_a_foreign_program_is_not_replaced_and_what_was_opened_is_closed_again(lab):
    text = (port_table("in0", lab.b) + rule_table("in0", "udp", consumers=["c"])
            + consumer_table("c", "count"))
    with appliance.open_port(lab.b.interface, match="udp", netns=lab.b.netns, queues=[1]):
        first_queue = text.replace('"veth-b"', '"veth-b"\nqueues = [0]')
        other = Engine(parse(first_queue))
        with pytest.raises(appliance.PortError, match="not replaced"):
            other.start()
    with started(text) as engine:
        assert engine.statistics()["running"]
