"""Links that go away under a running engine: a state with a reason, and never a crash."""

from __future__ import annotations

import time

import pytest

from appliance.engine import accounts
from appliance.net import Lab
from tests.engine.support import (
    consumed,
    consumer_table,
    feed,
    open_sender,
    port_table,
    rule_table,
    send_all,
    set_link,
    started,
    udp,
    wait_for,
)

pytestmark = pytest.mark.usefixtures("needs_xdp_socket", "needs_namespaces")


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
            feed(engine, "in0", near, [udp(i, port=1) for i in range(6000)])
            feed(engine, "in0", near, [udp(i, port=2) for i in range(3000)])
            assert wait_for(lambda: consumed(engine.statistics(), "seen")["frames"] == 3000)
            stats = engine.statistics()
            final = engine.stop()
    assert stats["state"] == "degraded"
    assert any("out0" in reason and "down" in reason for reason in stats["reasons"])
    assert consumed(final, "over")["frames"] == 6000
    assert final["drops"]["forward_ring_full"] == consumed(final, "over")["dropped"]
    assert 0 < final["drops"]["forward_ring_full"] <= 6000
    assert accounts.problems(final) == []


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
