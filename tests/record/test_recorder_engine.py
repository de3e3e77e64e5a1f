"""The recording consumer in a running appliance: exact accounts, and nobody else loses anything."""

from __future__ import annotations

import subprocess

import pytest

import appliance
from appliance.config import parse
from appliance.engine import accounts
from appliance.engine.engine import Engine
from appliance.errors import ConfigError
from tests.engine.support import (
    consumed,
    consumer_table,
    feed,
    number_of,
    open_sender,
    port_table,
    rule_table,
    send_all,
    started,
    udp,
    wait_for,
)
from tests.record.test_faults_devices import tmpfs

needs_network = pytest.mark.usefixtures("needs_xdp_socket", "needs_namespaces")


def recording(side, directory, **more) -> str:
    return (port_table("in0", side) + rule_table("in0", "udp", consumers=["keep", "c"])
            + consumer_table("keep", "record", directory=str(directory), **more)
            + consumer_table("c", "count"))


@needs_network
def test_packets_of_both_queues_are_in_the_log_in_order_and_the_account_is_exact(lab, tmp_path):
    packets = [udp(i) for i in range(4000)]
    with started(recording(lab.b, tmp_path)) as engine:
        with open_sender(lab.a) as sender:
            for queue in (0, 1):
                for at in range(0, 2000, 500):
                    assert send_all(sender, packets[queue::2][at : at + 500], queue) == 500
        assert wait_for(lambda: consumed(engine.statistics(), "keep")["frames"] == 4000)
        live = engine.statistics()
        assert live["memory"]["persistent"]["devices"][0]["path"] == str(tmp_path)
        final = engine.stop()
    entry = consumed(final, "keep")
    assert accounts.problems(final) == []
    assert entry["record"]["durable"] == entry["frames"] == 4000 and entry["dropped"] == 0
    assert final["memory"]["persistent"]["bytes"] == sum(map(len, packets))
    by_queue: dict[int, list[int]] = {0: [], 1: []}
    with appliance.open_log(str(tmp_path)) as log:
        for batch in log:
            for one, queue in zip(batch, batch.queues.tolist(), strict=True):
                by_queue[queue].append(number_of(bytes(memoryview(one))))
    assert by_queue == {0: list(range(0, 4000, 2)), 1: list(range(1, 4000, 2))}


@needs_network
def test_with_the_disk_full_the_other_consumer_loses_nothing_and_the_state_says_why(lab, tmp_path):
    with tmpfs(tmp_path / "disk", "3m") as disk:
        text = recording(lab.b, disk / "log", segment_mib=1, memory_mib=4)
        with started(text) as engine:
            with open_sender(lab.a) as sender:
                feed(engine, "in0", sender, [udp(i, 1000) for i in range(12000)])
            assert wait_for(lambda: consumed(engine.statistics(), "c")["frames"] == 12000)
            live = engine.statistics()
            assert live["state"] == "degraded"
            # Memory may fill before the next try says why the disk takes nothing.
            assert wait_for(lambda: any("No space left" in reason
                                        for reason in engine.statistics()["reasons"])), live
            assert any("keeps packets in memory" in event["action"] for event in live["events"])
            assert engine.explain()["state"] == "degraded"
            final = engine.stop()
        kept, counted = consumed(final, "keep"), consumed(final, "c")
        assert counted["frames"] == kept["frames"] == 12000
        assert accounts.problems(final) == []
        assert final["drops"]["record_device"] == kept["record"]["dropped"]["device"] > 0
        assert kept["record"]["durable"] > 0


def test_a_recording_without_a_mid_tier_is_refused(tmp_path):
    text = ('[memory]\nmid_cap_mib = 0\n[[port]]\nname = "in0"\nbackend = "loop"\n'
            + rule_table("in0", "udp", consumers=["keep"])
            + consumer_table("keep", "record", directory=str(tmp_path)))
    with pytest.raises(ConfigError, match="mid_cap_mib"):
        Engine(parse(text))


def test_a_limit_without_room_for_three_segments_is_refused(tmp_path):
    text = ('[[port]]\nname = "in0"\nbackend = "loop"\n'
            + rule_table("in0", "udp", consumers=["keep"])
            + consumer_table("keep", "record", directory=str(tmp_path), limit_mib=100))
    with pytest.raises(ConfigError, match="limit_mib: 100: 0, or at least 192"):
        Engine(parse(text))


@needs_network
def test_the_command_records_and_the_log_commands_read_it(lab, tmp_path):
    from tests.engine.support import COMMAND, Appliance, control_table

    text = recording(lab.b, tmp_path / "log") + control_table(tmp_path)
    with Appliance(text, tmp_path) as made:
        made.ready()
        with open_sender(lab.a) as sender:
            send_all(sender, [udp(i) for i in range(500)])
        status, final, errors = made.end()
    assert status == 0, errors
    assert final["problems"] == [] and final["consumers"][0]["record"]["durable"] == 500
    said = subprocess.run([COMMAND, "log", "verify", str(tmp_path / "log")], capture_output=True,
                          text=True, timeout=60)
    assert said.returncode == 0 and "clean: 500 records" in said.stdout, said
