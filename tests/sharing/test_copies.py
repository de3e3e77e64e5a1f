"""Packets that members get as copies: sent on by the appliance, or spread over several frames."""

from __future__ import annotations

import subprocess

import pytest

import appliance
from appliance.engine import accounts
from appliance.net import inside
from tests.engine.support import (
    SOURCE,
    TARGET,
    consumed,
    consumer_table,
    control_table,
    open_sender,
    port_table,
    receive,
    rule_table,
    send_all,
    started,
    udp,
    wait_for,
)
from tests.sharing.support import share, socket_of

pytestmark = pytest.mark.usefixtures("needs_xdp_socket", "needs_namespaces")


def taken(port, wanted: int) -> list[bytes]:
    got: list[bytes] = []
    for batch in port.recv(timeout_ms=500):
        got += [bytes(frame) for frame in batch]
        if len(got) >= wanted or not len(batch):
            batch.release()
            return got
    return got


@pytest.mark.parametrize("policy", ["reliable", "lossy"])
def test_members_see_packets_that_are_sent_on_as_they_came(lab, home, policy):
    text = (port_table("in0", lab.b, queues=[0])
            + rule_table("in0", "udp", consumers=["back", "seen"])
            + consumer_table("back", "reflect")
            + share("seen", policy=policy, max_members=1) + control_table(home))
    packets = [udp(i, 20 + i % 1400) for i in range(300)]
    with (started(text) as engine,
          appliance.open_port(lab.a.interface, match="udp", netns=lab.a.netns) as peer):
        port = appliance.attach(socket_of(home), "seen")
        assert send_all(peer, packets) == 300
        back = receive(peer, 300)
        assert taken(port, 300) == packets
        port.close()
        assert wait_for(lambda: not consumed(engine.statistics(), "seen")["members"])
        entry = consumed(engine.statistics(), "seen")
        final = engine.stop()
    assert back == [SOURCE + TARGET + packet[12:] for packet in packets]
    assert entry["copied"] == 300 and entry["copied_bytes"] == 0
    assert accounts.problems(final) == []


@pytest.mark.parametrize("policy", ["reliable", "lossy"])
def test_a_packet_of_several_frames_comes_in_one_piece(lab, home, policy):
    for side in (lab.a, lab.b):
        subprocess.run(inside(side.netns, "ip", "link", "set", side.interface, "mtu", "9000"),
                       check=True)
    text = (port_table("in0", lab.b, queues=[0], jumbo=True)
            + rule_table("in0", "udp", consumers=["seen"])
            + share("seen", policy=policy, max_members=1) + control_table(home))
    packets = [udp(i, 8 + 88 * i) for i in range(100)]
    with started(text) as engine, open_sender(lab.a, jumbo=True) as sender:
        port = appliance.attach(socket_of(home), "seen")
        assert send_all(sender, packets, burst=16) == 100
        assert taken(port, 100) == packets
        port.close()
        entry = consumed(engine.statistics(), "seen")
        assert accounts.problems(engine.stop()) == []
    assert 0 < entry["copied"] < 100, "only those that needed several frames"
