"""A window: nothing is written until somebody asks, then exactly what matches and was there."""

from __future__ import annotations

import threading
import time

import pytest

from appliance import record
from appliance.engine import client
from appliance.errors import ConfigError
from tests.engine.support import (
    Appliance,
    consumer_table,
    control_table,
    number_of,
    open_sender,
    port_table,
    rule_table,
    run,
    send_all,
    udp,
    wait_for,
)
from tests.record.recorder_support import PACKET, Rig, records


def payloads(where) -> list[bytes]:
    return [one[-1] for one in records(where) if one[2] == PACKET]


def fed(rig, packets) -> None:
    before = rig.recording.summary()["packets"]
    rig.feed(packets)
    assert rig.wait(lambda now: now["packets"] == before + len(packets))
    time.sleep(0.1)  # a commit's time: the open block has gone over


def test_nothing_is_written_until_it_is_asked_for_and_then_what_matches(tmp_path):
    some = [udp(i, 100, port=53) for i in range(300)]
    others = [udp(i, 100, port=80) for i in range(300)]
    mixed = [one for pair in zip(some, others, strict=True) for one in pair]
    with Rig(tmp_path, window_s=60) as rig:
        fed(rig, mixed)
        assert payloads(tmp_path) == [] and rig.recording.summary()["durable"] == 0
        told = rig.recording.keep(30, "udp port 53")
        assert told["packets"] == 300 and told["durable"]
        assert payloads(tmp_path) == some
        again = rig.recording.keep(30, "udp port 53")
        assert again["packets"] == 0, "a packet is written once"
        assert rig.recording.keep(30)["packets"] == 300
    final = rig.recording.stop()
    assert payloads(tmp_path) == some + others
    assert (final["packets"], final["durable"], final["expired"]) == (600, 600, 0)


def test_what_nobody_asked_for_expires_by_age_and_is_counted(tmp_path):
    with Rig(tmp_path, window_s=0.4) as rig:
        fed(rig, [udp(i) for i in range(100)])
        assert rig.wait(lambda now: now["expired"] == 100), rig.recording.summary()
        fed(rig, [udp(i) for i in range(50)])
        assert rig.recording.keep(0.4)["packets"] == 50
    final = rig.recording.stop()
    assert (final["packets"], final["durable"], final["expired"]) == (150, 50, 100)


def test_a_window_larger_than_its_memory_holds_the_newest(tmp_path):
    with Rig(tmp_path, generate=1000, window_s=600, memory_mib=2) as rig:
        for _ in range(10):
            rig.pump(1000, settle=False)
            time.sleep(0.05)
        assert rig.wait(lambda now: now["expired"] > 0)
        held = rig.recording.summary()
        told = rig.recording.keep(600)
        assert 0 < told["packets"] <= held["packets"] - held["expired"]
    final = rig.recording.stop()
    dropped = sum(final["dropped"].values())
    assert final["durable"] == told["packets"]
    assert final["packets"] == final["durable"] + final["expired"] + dropped
    assert record.verify(record.Store(str(tmp_path)))["state"] == "clean"


def test_requests_at_once_wait_for_each_other(tmp_path):
    with Rig(tmp_path, window_s=60) as rig:
        fed(rig, [udp(i) for i in range(1000)])
        told: list[int] = []
        threads = [
            threading.Thread(target=lambda: told.append(rig.recording.keep(60)["packets"]))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(told) == [0, 0, 0, 1000]


@pytest.mark.parametrize(
    ("last", "match", "says"),
    [(0, "", "last: 0"), (61, "", "up to 60 s"), (1, "not a filter (", "match: ")],
)
def test_a_request_that_cannot_be_is_one_line(tmp_path, last, match, says):
    with Rig(tmp_path, window_s=60) as rig, pytest.raises(ConfigError, match=says):
        rig.recording.keep(last, match)


@pytest.mark.usefixtures("needs_xdp_socket", "needs_namespaces")
def test_the_command_writes_the_window_of_a_running_appliance(lab, tmp_path):
    where = tmp_path / "log"
    text = (port_table("in0", lab.b) + rule_table("in0", "udp", consumers=["keep"])
            + consumer_table("keep", "record", directory=str(where), window_s=60)
            + control_table(tmp_path))
    with Appliance(text, tmp_path) as made:
        made.ready()
        with open_sender(lab.a) as sender:
            send_all(sender, [udp(i, port=53 + i % 2) for i in range(200)])
        assert wait_for(lambda: client.ask(made.socket, "stats")["consumers"][0]["frames"] == 200)
        time.sleep(0.2)
        said = run("log", "keep", "--last", "30s", "--match", "udp dst port 53",
                   "--socket", made.socket)
        assert said.returncode == 0 and "keep: 100 packets kept" in said.stdout, said
        wrong = run("log", "keep", "--last", "a while", "--socket", made.socket)
        assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1
        status, final, errors = made.end()
    assert status == 0 and final["problems"] == [], errors
    assert [number_of(one) for one in payloads(where)] == list(range(0, 200, 2))
    assert final["consumers"][0]["record"]["expired"] == 100
