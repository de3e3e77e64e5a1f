"""Rules of the running engine replaced under traffic: nothing lost, nothing half done."""

from __future__ import annotations

import threading
import time

import pytest

import appliance
from appliance.engine import accounts
from appliance.net import Lab
from tests.engine.support import (
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


class Swapper:
    """Swaps through the given rule sets from a thread, again and again, inside the context."""

    def __init__(self, engine, rule_sets) -> None:
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
                if sent - len(got) < 1024:  # what the rings hold, should the worker lose its core
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
    # A worker that loses its core leaves the rings to overflow: named, and not the swap's doing.
    assert set(final["drops"]) <= {"rx_dropped"}
    lost = final["drops"].get("rx_dropped", 0)
    assert consumed(final, "c")["frames"] + lost == final["steering"]["consumed"]
    assert accounts.problems(final) == []


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


def test_when_the_second_port_cannot_swap_the_first_has_its_old_rules_again(lab):
    with Lab.temporary(queues=1) as far:
        text = (port_table("in0", lab.b) + port_table("in1", far.b)
                + rule_table("in0", "udp", consumers=["c"])
                + rule_table("in1", "udp", consumers=["c"]) + consumer_table("c", "count"))
        new = [{"port": port, "match": "tcp", "action": "consume", "consumers": ["c"]}
               for port in ("in0", "in1")]
        with started(text) as engine:
            # The port that fails last: its maps are gone, as when the kernel refuses new ones.
            engine._ports["in1"].steering.close()
            with pytest.raises(appliance.PortError):
                engine.swap(new)
            assert [rule.match for _, rule in engine._ports["in0"].steering.rules] == ["udp"]
            with open_sender(lab.a) as sender:
                send_all(sender, [udp(i) for i in range(100)])
            assert wait_for(lambda: engine._ports["in0"].queues[0].statistics()["rx_frames"] == 100)
            worker = engine._crew.workers[0].statistics()
            assert worker["consumers"][0]["frames"] == 100
            assert worker["drops"][0]["no_consumer"] == 0
            engine._ports["in1"].steering = None  # so that the end can read its figures
