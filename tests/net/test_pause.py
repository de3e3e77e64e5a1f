"""Ethernet pause: asked of the real kernel, refused by name where there is none, and restored.

Nothing virtual has pause, so what the kernel answers for a NIC that has is decoded from its bytes
(linux/ethtool_netlink.h), and set and restored on the first NIC here that has it, if there is one.
"""

from __future__ import annotations

import struct

import pytest

import appliance
from appliance.config import parse
from appliance.doctor import examine_interface
from appliance.errors import ConfigError, HostError
from appliance.net import Settings, pause_of
from appliance.net.journal import Change, Journal
from appliance.net.pause import Pause, PauseMessage, answer
from appliance.net.settings import undo

pytestmark = pytest.mark.usefixtures("needs_namespaces")


def attribute(kind: int, content: bytes) -> bytes:
    padding = bytes(-len(content) % 4)
    return struct.pack("HH", 4 + len(content), kind) + content + padding


def reply(*attributes: bytes) -> PauseMessage:
    body = struct.pack("BBH", 22, 1, 0) + b"".join(attributes)
    head = struct.pack("IHHII", 16 + len(body), 20, 0, 1, 0)
    message = PauseMessage(head + body)
    message.decode()
    return message


def test_veth_has_no_pause_and_every_way_to_ask_says_so_in_one_line(lab):
    assert pause_of(lab.b.interface, lab.b.netns) is None
    [finding] = [one for one in examine_interface(lab.b.interface, lab.b.netns)
                 if one.name == "pause"]
    assert finding.state == "ok" and "veth has none" in finding.found
    with Settings(lab.b.interface, lab.b.netns) as settings:
        with pytest.raises(HostError, match="has no Ethernet pause") as refusal:
            settings.pause(True)
        assert settings.changed == {} and refusal.value.exit_status == 3
    assert 'pause = ""' in refusal.value.fix


@pytest.mark.usefixtures("needs_xdp_socket")
def test_a_port_that_asks_for_pause_on_veth_is_refused_and_nothing_is_left(lab):
    with pytest.raises(HostError, match="veth-b: the driver has no Ethernet pause"):
        appliance.open_port(lab.b.interface, "udp", netns=lab.b.netns, pause="on")
    with appliance.open_port(lab.b.interface, "udp", netns=lab.b.netns) as port:
        assert port.info["pause"] is None is port.stats()["pause"]
    with pytest.raises(ConfigError, match="pause: 'maybe'"):
        appliance.open_port(lab.b.interface, "udp", netns=lab.b.netns, pause="maybe")


def test_what_a_nic_answers_is_read_attribute_by_attribute():
    counted = attribute(2, struct.pack("Q", 7)) + attribute(3, struct.pack("Q", 9))
    stats = attribute(5 | 1 << 15, counted)
    flags = [attribute(2, b"\1"), attribute(3, b"\0"), attribute(4, b"\1")]
    assert answer(reply(*flags)) == Pause(True, False, True)
    found = answer(reply(*flags, stats))
    assert (found.tx_frames, found.rx_frames) == (7, 9)
    assert found.words() == "rx off, tx on, autoneg on; 7 sent, 9 got"


def test_what_is_remembered_is_what_is_restored(tmp_path):
    for bits in range(8):
        assert Pause.of_bits(bits).bits() == bits
    # An interface that is gone, or that has no pause any more, keeps nobody from starting.
    journal = Journal(tmp_path / "journal")
    journal.remember(Change("pause", "", "lo", 1, "pause", 6))
    [change] = journal.entries
    assert undo(change) is None


def test_the_configuration_takes_on_off_and_nothing():
    text = ('port = [{{name = "p", {port}}}]\n'
            'rule = [{{port = "p", match = "udp", action = "pass"}}]')
    port = 'interface = "x0", pause = "on"'
    assert parse(text.format(port=port)).ports[0].pause == "on"
    for wrong in ('interface = "x0", pause = "yes"', 'backend = "loop", pause = "on"'):
        with pytest.raises(ConfigError, match=r"port\[0\]\.pause"):
            parse(text.format(port=wrong))
