"""The engine on real veth pairs: what consumers get, what goes out again, what a swap loses."""

from __future__ import annotations

import time

import pytest

import appliance
from appliance.config import parse
from appliance.engine import accounts
from appliance.engine.engine import Engine
from appliance.net import Lab
from tests.engine.support import (
    SOURCE,
    TARGET,
    Traffic,
    consumer_table,
    number_of,
    open_sender,
    port_table,
    rule_table,
    send_all,
    udp,
    wait_for,
)

pytestmark = pytest.mark.usefixtures("needs_xdp_socket", "needs_namespaces")


def consumed(stats, name):
    return next(entry for entry in stats["consumers"] if entry["name"] == name)


def started(text: str) -> Engine:
    return Engine(parse(text))


def receive(port, wanted: int, seconds: float = 10.0) -> list[bytes]:
    """Up to `wanted` packets of a port, as bytes, in the order of arrival."""
    got: list[bytes] = []
    until = time.monotonic() + seconds
    for batch in port.recv(timeout_ms=50):
        got += [bytes(frame) for frame in batch]
        if len(got) >= wanted or time.monotonic() > until:
            return got
    return got


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


def test_forwarding_into_a_port_that_is_down_is_counted_and_starves_nobody(lab):
    with Lab.temporary(queues=1) as far:
        text = (port_table("in0", lab.b) + port_table("out0", far.b)
                + rule_table("in0", "udp port 1", consumers=["over"])
                + rule_table("in0", "udp", consumers=["seen"])
                + rule_table("out0", "udp", consumers=["seen"])
                + consumer_table("over", "forward", to="out0")
                + consumer_table("seen", "count"))
        with started(text) as engine, open_sender(lab.a) as near:
            set_link(far.b, "down")
            send_all(near, [udp(i, port=1) for i in range(6000)])
            send_all(near, [udp(i, port=2) for i in range(3000)])
            assert wait_for(lambda: consumed(engine.statistics(), "seen")["frames"] == 3000)
            stats = engine.statistics()
            final = engine.stop()
    assert stats["state"] == "degraded"
    assert any("out0" in reason and "down" in reason for reason in stats["reasons"])
    assert consumed(final, "over")["frames"] == 6000
    assert final["drops"]["forward_ring_full"] == consumed(final, "over")["dropped"]
    assert 0 < final["drops"]["forward_ring_full"] <= 6000
    assert accounts.problems(final) == []


def test_swapping_rules_under_traffic_loses_no_packet_and_keeps_their_order(lab):
    rules = {name: {"port": "in0", "match": "udp", "action": "consume", "consumers": [name, "back"]}
             for name in ("one", "two")}
    text = (port_table("in0", lab.b) + rule_table("in0", "udp", consumers=["one", "back"])
            + consumer_table("back", "reflect") + consumer_table("one", "count")
            + consumer_table("two", "count"))
    got: list[bytes] = []
    with (started(text) as engine,
          appliance.open_port(lab.a.interface, match="udp", netns=lab.a.netns) as peer):
        sent = 0
        until = time.monotonic() + 3.0
        receiver = peer.recv(timeout_ms=0)
        swapper = Swapper(engine, [[rules["two"]], [rules["one"]]])
        with swapper:
            while time.monotonic() < until:
                sent += peer.send([udp(sent + i) for i in range(16)])
                got += [bytes(frame) for frame in next(receiver)]
                time.sleep(0.001)
        swaps = swapper.done
        while len(got) < sent and (more := receive(peer, sent - len(got), 2.0)):
            got += more
        final = engine.stop()
    assert swaps >= 4
    assert [number_of(packet) for packet in got] == list(range(sent))
    counts = [consumed(final, name)["frames"] for name in ("one", "two")]
    assert min(counts) > 0
    assert sum(counts) == sent == consumed(final, "back")["frames"]
    assert final["drops"] == {}
    assert accounts.problems(final) == []


def test_swapping_between_consume_and_pass_accounts_for_every_packet_sent(lab):
    table = {"port": "in0", "match": "udp"}
    consume = [{**table, "action": "consume", "consumers": ["c"]}]
    text = (port_table("in0", lab.b) + rule_table("in0", "udp", consumers=["c"])
            + consumer_table("c", "count"))
    with started(text) as engine:
        with Traffic(lab.a) as traffic, Swapper(engine, [[{**table, "action": "pass"}], consume]):
            time.sleep(2.5)
        assert wait_for(lambda: engine.statistics()["steering"]["seen"] >= traffic.sent)
        final = engine.stop()
    assert final["steering"]["seen"] == traffic.sent
    assert min(final["steering"]["consumed"], final["steering"]["passed"]) > 0
    assert final["steering"]["consumed"] + final["steering"]["passed"] == traffic.sent
    assert consumed(final, "c")["frames"] == final["steering"]["consumed"]
    assert accounts.problems(final) == []


class Swapper:
    """Swaps through the given rule sets from a thread, again and again, inside the context."""

    def __init__(self, engine, rule_sets) -> None:
        import threading

        self.done = 0
        self._engine, self._sets = engine, rule_sets
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._engine.swap(self._sets[self.done % len(self._sets)])
            self.done += 1
            self._stop.wait(0.1)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()


def test_a_swap_that_fails_leaves_the_old_rules_in_force_on_every_port(lab):
    text = (port_table("in0", lab.b) + rule_table("in0", "udp", consumers=["c"])
            + consumer_table("c", "count"))
    good = {"port": "in0", "match": "udp", "action": "consume", "consumers": ["c"]}
    with started(text) as engine:
        before = [(rule["id"], rule["match"]) for rule in engine.rules()]
        for bad, words in (
            ([{**good, "match": "udp and and"}], "rule[0].match"),
            ([{**good, "consumers": ["nobody"]}], "nobody"),
            ([{**good, "port": "in9"}], "in9"),
            ([], "in0"),
            ([{**good, "action": "eat"}], "action"),
            ("udp", "rule"),
            ([good] * 300, "rule"),
        ):
            with pytest.raises(appliance.ConfigError, match=words.replace("[", r"\[")):
                engine.swap(bad)
            assert [(rule["id"], rule["match"]) for rule in engine.rules()] == before
        with open_sender(lab.a) as sender:
            send_all(sender, [udp(i) for i in range(100)])
        assert wait_for(lambda: consumed(engine.statistics(), "c")["frames"] == 100)


def set_link(side, state: str) -> None:
    import subprocess

    words = ["ip", "-n", side.netns, "link", "set", side.interface, state]
    subprocess.run(words, check=True)


def test_a_link_that_goes_down_is_a_reason_and_packets_flow_again_when_it_is_up(lab):
    text = (port_table("in0", lab.b) + rule_table("in0", "udp", consumers=["c"])
            + consumer_table("c", "count"))
    with started(text) as engine:
        assert engine.statistics()["ports"][0]["link"] == "up"
        set_link(lab.b, "down")
        stats = engine.statistics()
        assert stats["state"] == stats["ports"][0]["state"] == "degraded"
        assert "in0: veth-b: link is down" in stats["reasons"]
        set_link(lab.b, "up")
        assert wait_for(lambda: engine.statistics()["ports"][0]["link"] == "up")
        with open_sender(lab.a) as sender:
            send_all(sender, [udp(i) for i in range(500)])
        assert wait_for(lambda: consumed(engine.statistics(), "c")["frames"] == 500)
        assert accounts.problems(engine.stop()) == []


def test_an_interface_that_vanishes_degrades_the_appliance_and_does_not_spin_or_crash(lab):
    text = (port_table("in0", lab.b) + rule_table("in0", "udp", consumers=["c"])
            + consumer_table("c", "count"))
    with started(text) as engine:
        with open_sender(lab.a) as sender:
            send_all(sender, [udp(i) for i in range(500)])
        assert wait_for(lambda: consumed(engine.statistics(), "c")["frames"] == 500)
        lab.down()
        stats = engine.statistics()
        assert stats["ports"][0]["link"] == "gone"
        assert any("is gone" in reason for reason in stats["reasons"])
        sleeps = sum(worker["sleeps"] for worker in stats["workers"])
        time.sleep(0.5)
        later = sum(worker["sleeps"] for worker in engine.statistics()["workers"])
        assert later - sleeps < 100  # two workers, 100 ms each time; one that spins: 20,000
        final = engine.stop()
    assert consumed(final, "c")["frames"] == 500
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
