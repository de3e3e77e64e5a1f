"""The lab: what it promises to be, and that nothing of it stays, however it ends."""

import os
import signal
import subprocess
import sys
import time

import pytest

from appliance.errors import ConfigError, HostError
from appliance.net import Lab, in_netns, interface, lab, link_statistics, namespaces, recover
from appliance.net.journal import Journal

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("needs_namespaces")]


def ping(side_from, address):
    command = ["ping", "-c", "3", "-i", "0.02", "-W", "1", address]
    done = in_netns(side_from.netns, lambda: subprocess.run(command, capture_output=True))
    return done.returncode


@pytest.mark.parametrize("queues", [1, 2, 4])
def test_each_side_has_the_queues_that_were_asked_for(queues):
    with Lab.temporary(queues=queues) as made:
        for side in (made.a, made.b):
            found = interface(side.interface, side.netns)
            assert (found.queues.rx, found.queues.tx) == (queues, queues)
            assert found.up and found.carrier and found.driver == "veth"
            assert found.xdp_prog_id is None


@pytest.mark.parametrize("mtu", [1280, 1500, 3498, 9000, 65535])
def test_both_ends_have_the_mtu_that_was_asked_for(mtu):
    with Lab.temporary(mtu=mtu) as made:
        assert {interface(s.interface, s.netns).mtu for s in (made.a, made.b)} == {mtu}


def test_what_would_change_packets_on_their_way_is_off(lab):
    for side in (lab.a, lab.b):
        offloads = interface(side.interface, side.netns).offloads
        for name in ("tx-checksum", "tso", "gro", "lro", "tx-vlan-insert", "rx-vlan-strip"):
            assert offloads[name] is False, name


def test_ping_reaches_the_other_side_both_ways(lab):
    assert ping(lab.a, lab.b.ipv4) == 0
    assert ping(lab.b, lab.a.ipv4) == 0


def test_ping_reaches_the_other_side_over_ipv6_where_it_is_kept():
    with Lab.temporary(ipv6=True) as made:
        assert ping(made.a, made.b.ipv6) == 0


def test_nobody_sends_a_packet_that_was_not_asked_for(lab):
    time.sleep(0.5)
    for side in (lab.a, lab.b):
        assert link_statistics(side.interface, side.netns)["tx_packets"] == 0


def test_every_packet_sent_is_counted_once_on_each_side(lab):
    assert ping(lab.a, lab.b.ipv4) == 0
    sent = link_statistics(lab.a.interface, lab.a.netns)
    received = link_statistics(lab.b.interface, lab.b.netns)
    assert sent["tx_packets"] == received["rx_packets"] >= 3
    assert sent["tx_bytes"] == received["rx_bytes"]


def test_a_named_lab_stays_until_it_is_taken_down():
    name = f"t{os.getpid()}"
    try:
        made = lab_module_up(name)
        assert name in lab.labs()
        assert lab.find(name).queues == made.queues == 3
        with pytest.raises(HostError) as caught:
            lab_module_up(name)
        assert str(caught.value).endswith(f"fix: openclaw lab down {name}")
    finally:
        lab.down(name)
    assert name not in lab.labs()
    with pytest.raises(HostError):
        lab.down(name)


def lab_module_up(name):
    return lab.up(name, queues=3)


@pytest.mark.parametrize("name", ["", "a/b", "a b", "../x", "-x", "a\n", "x" * 33])
def test_a_lab_name_cannot_leave_its_place(name):
    before = namespaces()
    with pytest.raises(ConfigError):
        lab.up(name)
    assert namespaces() == before


@pytest.mark.parametrize(("queues", "mtu"), [(0, 1500), (65, 1500), (2, 67), (2, 65536)])
def test_sizes_out_of_range_are_refused_before_anything_is_made(queues, mtu):
    before = namespaces()
    with pytest.raises(ConfigError):
        lab.up(f"t{os.getpid()}", queues, mtu)
    assert namespaces() == before


def test_an_exception_inside_takes_the_lab_down():
    with pytest.raises(ZeroDivisionError), Lab.temporary() as made:
        1 / 0  # noqa: B018
    assert made.a.netns not in namespaces() and made.b.netns not in namespaces()


def test_a_lab_that_cannot_be_completed_leaves_nothing():
    name = f"t{os.getpid()}"
    from appliance.net import namespace

    namespace.create(f"oc-{name}-b")
    try:
        with pytest.raises(HostError):
            lab.up(name)
        assert f"oc-{name}-a" not in namespaces()
    finally:
        namespace.delete(f"oc-{name}-b")


CHILD = """
import pathlib, sys, time
from appliance.net import Lab
from appliance.net.journal import Journal
with Lab.temporary(using=Journal(pathlib.Path(sys.argv[1]))) as made:
    print(made.a.netns, made.b.netns, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def journal(tmp_path):
    """A journal of its own: another run of the suite may recover from the common one."""
    return Journal(tmp_path / "journal")


def started_child(journal):
    child = subprocess.Popen([sys.executable, "-c", CHILD, journal.directory],
                             stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    names = child.stdout.readline().split()
    assert set(names) <= set(namespaces()) and len(names) == 2
    return child, names


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_takes_the_lab_down(number, journal):
    child, names = started_child(journal)
    with child:
        child.send_signal(number)
        assert child.wait(timeout=20) != 0
    assert not set(names) & set(namespaces())


def test_a_lab_of_a_killed_process_goes_with_the_next_start(journal):
    child, names = started_child(journal)
    with child:
        child.kill()
        child.wait(timeout=20)
    assert set(names) <= set(namespaces()), "kill -9 leaves them: nobody was there to remove them"
    recover(journal)
    assert not set(names) & set(namespaces())


def test_a_living_lab_is_not_taken_by_the_next_start(journal):
    child, names = started_child(journal)
    with child:
        recover(journal)
        assert set(names) <= set(namespaces())
        child.terminate()
        child.wait(timeout=20)
    assert not set(names) & set(namespaces())
