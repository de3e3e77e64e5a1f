"""Members that divide the packets of a consumer: by flow, in turn, and as they come and go.

The hand-over rule: a packet is lent to exactly one member, who has its flow at that moment. When a
member joins, a flow goes over once the old member has given back what it had of it, so that the
order within the flow holds; after max_hold_ms it goes over all the same. When one leaves, its flows
go over at once, and what it had been lent and had not given back is counted as reclaimed.
"""

from __future__ import annotations

import random
import time

import pytest

import appliance
from appliance.dataplane import flow
from appliance.engine import accounts
from appliance.engine.buckets import BUCKETS, NOBODY, dealt
from tests.engine.support import (
    Traffic,
    consumed,
    feed,
    open_sender,
    started,
    udp,
    wait_for,
)
from tests.sharing.support import FULL, MemberProcess, members, share, shared, socket_of

FLOWS = 97


class Flows(Traffic):
    """Numbered packets of many flows: packet i is of flow i % FLOWS."""

    def _run(self) -> None:
        while not self._stop.is_set():
            packets = [udp(n, port=5000 + n % FLOWS)
                       for n in range(self.sent, self.sent + self._burst)]
            self.sent += self._port.send(packets)
            time.sleep(self._pause_s)
        self._port.flush(2000)


# -------------------------------------------------------------------------------- without a host


def test_buckets_are_dealt_out_evenly_and_move_as_little_as_can_be():
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    table, there = bytes([NOBODY]) * BUCKETS, set()
    for _ in range(300):
        before = set(there)
        there ^= {chance.randrange(16)}
        fresh = dealt(table, there)
        counts = [fresh.count(place) for place in there]
        if there:
            assert sum(counts) == BUCKETS and max(counts) - min(counts) <= 1, seed
        else:
            assert set(fresh) == {NOBODY}
        moved = [at for at in range(BUCKETS) if fresh[at] != table[at]]
        if before and there:
            # Only to who came, or from who left, but for one each that evenness asks for.
            odd = [at for at in moved if fresh[at] in before and table[at] in there]
            assert len(odd) <= len(there), seed
        table = fresh


def test_both_directions_of_a_flow_have_one_bucket_and_flows_are_spread():
    there = udp(0)
    back = there[6:12] + there[:6] + there[12:26] + there[30:34] + there[26:30] + there[36:38] + (
        there[34:36]) + there[38:]
    assert flow.bucket(there, 5) == flow.bucket(back, 5)
    buckets = {flow.bucket(udp(0, port=port), 5) for port in range(1000, 2000)}
    assert len(buckets) > 200
    assert flow.bucket(there, 5) != flow.bucket(there, 6) or flow.bucket(there, 7) != flow.bucket(
        there, 8)


def test_fragments_of_a_packet_without_ports_stay_together():
    first = bytearray(udp(0))
    first[20:22] = b"\x20\x00"   # more fragments
    last = bytearray(first)
    last[20:22] = b"\x00\x05"    # offset 40
    last[34:38] = b"\xab\xcd\xef\x01"   # payload where ports would be
    assert flow.bucket(bytes(first), 1) == flow.bucket(bytes(last), 1)


@pytest.mark.parametrize("packet", [b"", b"\0", b"\xff" * 13, b"\xff" * 14, b"\x08\0" * 20])
def test_what_is_no_packet_has_a_bucket_too(packet):
    assert 0 <= flow.bucket(packet, 3) < BUCKETS


# ------------------------------------------------------------------------------------- over veth


@pytest.mark.usefixtures("needs_xdp_socket", "needs_namespaces")
def test_a_flow_has_one_member_and_joining_and_leaving_lose_and_double_nothing(lab, home):
    text = shared(lab, home, share("team", policy="reliable", members="flow", quota_frames=2048,
                                   max_members=4, max_hold_ms=2000))
    some = 60_000 if FULL else 3_000
    with started(text) as engine:
        first = MemberProcess(socket_of(home), "team", "collect", numbers=1, packets=3 * some)
        with members(first):
            first.attached()
            with Flows(lab.a, pause_s=0.004) as traffic:
                assert wait_for(lambda: traffic.sent > some, 60)
                second = MemberProcess(socket_of(home), "team", "collect", numbers=1, quiet=3)
                with members(second):
                    second.attached()
                    one = first.end()         # it leaves when it has had its part
                    left_at = traffic.sent
                    assert wait_for(lambda: traffic.sent > left_at + some, 60)
                    sent = traffic.end()
                    two = second.end()
        assert wait_for(lambda: not consumed(engine.statistics(), "team")["members"])
        entry = consumed(engine.statistics(), "team")
        final = engine.stop()
    a, b = one["numbers"], two["numbers"]
    assert len(set(a)) == len(a) and len(set(b)) == len(b) and not set(a) & set(b)
    # All that arrived: a busy host loses some on the link and in the kernel's rings.
    assert len(a) + len(b) + entry["reclaimed"] == entry["frames"] <= sent
    assert entry["dropped"] == 0 and b
    # By flow: the first has all, then the second has some of them alone, then all.
    for number in range(FLOWS):
        mine = [n for n in a if n % FLOWS == number]
        theirs = [n for n in b if n % FLOWS == number]
        assert mine == sorted(mine) and theirs == sorted(theirs)
        assert not mine or not theirs or mine[-1] < theirs[0], "it went over once"
    joined_share = {n % FLOWS for n in b if n < max(a)}
    assert 0 < len(joined_share) < FLOWS
    assert accounts.problems(final) == []


@pytest.mark.usefixtures("needs_xdp_socket", "needs_namespaces")
def test_a_flow_that_an_old_member_sits_on_goes_over_after_the_deadline(lab, home):
    text = shared(lab, home, share("team", policy="reliable", members="flow", quota_frames=2048,
                                   max_members=2, max_hold_ms=200))
    with started(text) as engine:
        old = appliance.attach(socket_of(home), "team")
        with open_sender(lab.a) as sender:
            feed(engine, "in0", sender, [udp(i, port=5000 + i % FLOWS) for i in range(FLOWS)])
            held = []
            while len(held) < FLOWS:
                held += [frame.hold() for frame in next(old.recv(timeout_ms=1000))]
            new = appliance.attach(socket_of(home), "team")
            feed(engine, "in0", sender, [udp(i, port=5000 + i % FLOWS) for i in range(FLOWS)])
            offered = lambda: [one["offered"] for one in  # noqa: E731
                               consumed(engine.statistics(), "team")["members"]]
            assert sum(offered()) == 2 * FLOWS
            time.sleep(0.4)
            before = offered()[1]
            feed(engine, "in0", sender, [udp(i, port=5000 + i % FLOWS) for i in range(FLOWS)])
            assert offered()[1] - before > FLOWS // 5
        for frame in held:
            frame.release()
        old.close(), new.close()
        assert accounts.problems(engine.stop()) == []


@pytest.mark.usefixtures("needs_xdp_socket", "needs_namespaces")
@pytest.mark.parametrize("policy", ["reliable", "lossy"])
def test_in_turn_every_member_gets_its_part_and_no_packet_comes_twice(lab, home, policy):
    text = shared(lab, home, share("turns", policy=policy, members="robin", quota_frames=1024,
                                   max_members=3))
    packets = [udp(i) for i in range(300)]
    with started(text) as engine:
        ports = [appliance.attach(socket_of(home), "turns") for _ in range(3)]
        with open_sender(lab.a) as sender:
            feed(engine, "in0", sender, packets)
        got = []
        for port in ports:
            mine = []
            while len(mine) < 100:
                mine += [bytes(frame) for frame in next(port.recv(timeout_ms=2000))]
            assert len(mine) == 100
            got += mine
            port.close()
        assert accounts.problems(engine.stop()) == []
    assert sorted(got) == sorted(packets)
