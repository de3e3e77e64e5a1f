"""`openclaw run` with DPDK ports: the same workers and consumers, exact accounts, a clean end."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

import appliance
from appliance.capture import read_capture, write_pcap
from appliance.dataplane import bpf
from appliance.engine import accounts
from appliance.net import in_netns
from tests.engine.support import (
    FULL,
    Appliance,
    consumed,
    consumer_table,
    control_table,
    open_sender,
    receive,
    rule_table,
    send_all,
    started,
    udp,
    wait_for,
)

pytestmark = pytest.mark.root


def device_table(name: str, device: str, netns: str = "", **more) -> str:
    lines = [f'name = "{name}"', 'backend = "dpdk"', f'device = "{device}"', f'netns = "{netns}"']
    return "[[port]]\n" + "\n".join([*lines, *(f"{k} = {v}" for k, v in more.items())]) + "\n"


def files(tmp_path, packets):
    """A net_pcap device string, and the file that what it sends ends up in."""
    write_pcap(tmp_path / "in.pcap", packets, range(1, len(packets) + 1))
    out = tmp_path / "out.pcap"
    return f"rx_pcap={tmp_path / 'in.pcap'},tx_pcap={out}", out


def test_packets_forwarded_from_device_to_device_keep_every_byte(library, tmp_path):
    packets = [udp(i, 20 + i % 1400) for i in range(3000)]
    source, _ = files(tmp_path, packets)
    sink = tmp_path / "forwarded.pcap"
    text = (
        device_table("in0", f"net_pcap0,{source}")
        + device_table("out0", f"net_pcap1,tx_pcap={sink},rx_pcap={tmp_path / 'in.pcap'}")
        + rule_table("in0", "udp", consumers=["f", "c"])
        + rule_table("out0", "tcp", consumers=["c"])
        + consumer_table("f", "forward", to="out0")
        + consumer_table("c", "count")
    )
    with started(text) as engine:
        assert wait_for(lambda: consumed(engine.statistics(), "f")["frames"] == 3000)
        assert wait_for(lambda: engine.statistics()["ports"][1]["tx_frames"] == 3000)
        final = engine.stop()
    assert [bytes(packet) for packet in read_capture(sink)] == packets
    assert consumed(final, "f")["dropped"] == 0 and consumed(final, "c")["frames"] == 3000
    assert final["frames"]["leaked"] == 0 and accounts.problems(final) == []
    port = final["ports"][1]
    assert (port["backend"], port["driver"], port["rx_frames"]) == ("dpdk", "net_pcap", 0)
    assert port["steering"]["seen"] == port["steering"]["passed"] == 3000


def test_a_packet_reflected_over_net_af_xdp_comes_back_swapped(library, lab):
    text = (
        device_table("in0", f"net_af_xdp0,iface={lab.b.interface}", lab.b.netns)
        + rule_table("in0", "udp", consumers=["r"]) + consumer_table("r", "reflect")
    )  # fmt: skip
    packets = [udp(i, 20 + i % 1000) for i in range(500)]
    with (started(text) as engine,
          appliance.open_port(lab.a.interface, match="udp", netns=lab.a.netns) as peer):
        assert send_all(peer, packets, burst=64) == 500
        back = receive(peer, 500)
        final = engine.stop()
    assert back == [p[6:12] + p[:6] + p[12:] for p in packets]
    assert final["frames"]["leaked"] == 0 and accounts.problems(final) == []
    port = final["ports"][0]
    assert port["tx_frames"] == 500 and port["mtu"] == 1500
    assert port["link"] == "up" and port["promiscuous"], "as it was, not as the closed device is"
    assert not in_netns(lab.b.netns, bpf.attached, lab_index(lab)), "the driver's program stays"


def lab_index(lab) -> int:
    return int(in_netns(
        lab.b.netns, Path(f"/sys/class/net/{lab.b.interface}/ifindex").read_text))


def test_rules_are_swapped_while_a_device_delivers_without_end(library):
    text = (
        device_table("in0", "net_null0,size=60")
        + rule_table("in0", "len > 1000", consumers=["c"]) + rule_table("in0", "", "drop")
        + consumer_table("c", "count")
    )  # fmt: skip
    with started(text) as engine:
        kept = engine.rules()[1]["id"]
        assert wait_for(lambda: engine.statistics()["steering"]["dropped"] > 1000)
        engine.swap([{"port": "in0", "match": "len < 100", "action": "consume",
                      "consumers": ["c"]}, {"port": "in0", "match": "", "action": "drop"}])
        assert engine.rules()[1]["id"] == kept, "a rule that stays keeps its id"
        assert wait_for(lambda: consumed(engine.statistics(), "c")["frames"] > 1000)
        final = engine.stop()
    assert final["steering"]["dropped"] > 1000
    assert accounts.problems(final) == []
    assert final["steering"]["consumed"] == consumed(final, "c")["frames"]


def test_a_port_that_fails_to_open_leaves_no_device_plugged_in(library):
    text = (
        device_table("in0", "net_null0") + device_table("in1", "net_pcap0,rx_pcap=/nowhere")
        + rule_table("in0", "", "drop") + rule_table("in1", "", "drop")
    )  # fmt: skip
    for _ in range(2):  # the second would find net_null0 taken
        with pytest.raises(appliance.PortError, match="net_pcap0"):
            started(text).start()


@pytest.mark.parametrize("attempt", range(8 if FULL else 3))
def test_sigterm_in_any_phase_ends_the_process_and_leaves_nothing(
    library, lab, tmp_path, attempt
):
    text = (
        device_table("in0", f"net_af_xdp0,iface={lab.b.interface}", lab.b.netns)
        + rule_table("in0", "udp", consumers=["c"]) + consumer_table("c", "count")
        + control_table(tmp_path)
    )  # fmt: skip
    seed = random.randrange(1 << 32)
    print("seed", seed)
    with Appliance(text, tmp_path) as process:
        pid = process.process.pid
        if attempt == 0:
            process.ready()
            with open_sender(lab.a) as sender:
                send_all(sender, [udp(i) for i in range(200)])
        else:
            time.sleep(random.Random(seed).uniform(0.2, 2.5))
        status, final, errors = process.end(signal.SIGTERM)
    # Before the start is complete the process ends with 143, or at once while Python is loading.
    assert status in ((0,) if attempt == 0 else (0, 143, -signal.SIGTERM)), errors
    if status == 0 and final:
        assert final["frames"]["leaked"] == 0
    assert not in_netns(lab.b.netns, bpf.attached, lab_index(lab))
    assert not os.path.exists(f"/var/run/dpdk/openclaw-{pid}")
