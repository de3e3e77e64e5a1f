"""Members in processes of their own, without root: what they get, may, and cannot."""

from __future__ import annotations

import pytest

import appliance
from appliance.engine import accounts
from tests.engine.support import (
    consumed,
    consumer_table,
    feed,
    open_sender,
    send_all,
    started,
    udp,
    wait_for,
)
from tests.sharing.support import (
    FULL,
    NOBODY,
    MemberProcess,
    check_of,
    members,
    share,
    shared,
    socket_of,
)

pytestmark = pytest.mark.usefixtures("needs_xdp_socket", "needs_namespaces")

PACKETS = 200_000 if FULL else 12_000


def test_two_reliable_and_two_lossy_members_without_root_read_the_same_packets_in_place(lab, home):
    text = shared(lab, home, share("sure", policy="reliable", quota_frames=2048, max_members=2,
                                   max_hold_ms=5000), share("tap", quota_frames=1024))
    packets = [udp(i, 20 + i % 1400) for i in range(PACKETS)]
    with started(text) as engine:
        each = dict(packets=PACKETS, seconds=60)
        both = [MemberProcess(socket_of(home), "sure", "in_place", **each) for _ in range(2)]
        taps = [MemberProcess(socket_of(home), "tap", "collect", packets=PACKETS) for _ in range(2)]
        with members(*both, *taps), open_sender(lab.a) as sender:
            for one in (*both, *taps):
                said = one.attached()
                assert int(said["capabilities"], 16) == 0
                assert said["uid"] == NOBODY
            for at in range(0, PACKETS, 128):
                # Never further ahead than half a member's quota: none has to be copied.
                send_all(sender, packets[at : at + 128], pause_s=0)
                assert wait_for(lambda: all(
                    entry["leased"] < 512
                    for entry in consumed(engine.statistics(), "sure")["members"]), 20, 0.001)
            found = [one.end() for one in both]
            lossy = [one.end() for one in taps]
        final = engine.stop()
    assert consumed(final, "sure")["frames"] == PACKETS, (final["drops"], final["ports"])
    for one in found:
        assert (one["numbers"], one["missed"]) == (PACKETS, 0), (one, consumed(final, "sure"))
        assert one["check"] == check_of(packets)
    for one in lossy:
        assert one["numbers"] + one["overruns"] + one["stale"] >= PACKETS
        assert one["different"] == one["numbers"]
    entries = {name: consumed(final, name) for name in ("sure", "tap")}
    assert entries["sure"]["copied"] == entries["tap"]["copied"] == 0
    assert entries["sure"]["dropped"] == 0
    assert final["frames"]["leaked"] == 0
    assert accounts.problems(final) == []


def test_a_user_who_is_not_named_is_refused_in_one_line_and_root_is_not(lab, home):
    text = shared(lab, home, consumer_table("closed", "share"))
    with started(text) as engine:
        stranger = MemberProcess(socket_of(home), "closed", "collect")
        friend = MemberProcess(socket_of(home), "closed", "collect", user="root", quiet=0.1)
        with members(stranger, friend):
            said = stranger.line()
            assert said["exit_status"] == 1
            assert "may not attach" in said["refused"] and "\n" not in said["refused"]
            friend.attached()
            assert friend.end()["numbers"] == 0
        assert accounts.problems(engine.stop()) == []


def test_a_group_lets_its_members_in_and_no_others(lab, home):
    text = shared(lab, home, consumer_table("team", "share", allow_groups=[4242]))
    with started(text):
        inside = MemberProcess(socket_of(home), "team", "collect", gid=4242, quiet=0.1)
        outside = MemberProcess(socket_of(home), "team", "collect", gid=4243, quiet=0.1)
        with members(inside, outside):
            inside.attached()
            assert "may not attach" in outside.line()["refused"]


def test_what_is_not_there_is_said_in_one_line(lab, home):
    with pytest.raises(appliance.HostError, match="no appliance shares packets"):
        appliance.attach(socket_of(home), "tap")
    with started(shared(lab, home, share("tap"), share("other"))):
        with pytest.raises(appliance.ConfigError, match="one of other, tap"):
            appliance.attach(socket_of(home), "tup")
        with pytest.raises(appliance.ConfigError, match="match: 'udp and'"):
            appliance.attach(socket_of(home), "tap", "udp and")
        with pytest.raises(appliance.ConfigError, match="protochain"):
            appliance.attach(socket_of(home), "tap", "ip6 protochain 17")


def test_places_are_bounded_and_a_member_that_leaves_makes_room(lab, home):
    with started(shared(lab, home, share("two", policy="reliable", max_members=2))):
        first, second = (appliance.attach(socket_of(home), "two") for _ in range(2))
        with pytest.raises(appliance.PortError, match="2 members already"):
            appliance.attach(socket_of(home), "two")
        first.close()

        def again():
            try:
                appliance.attach(socket_of(home), "two").close()
            except appliance.PortError:
                return False
            return True

        assert wait_for(again, 5)
        second.close()


def test_a_member_cannot_write_to_what_it_was_given_to_read(lab, home):
    with started(shared(lab, home, share("sure", policy="reliable"))):
        thief = MemberProcess(socket_of(home), "sure", "trespass")
        with members(thief):
            thief.attached()
            found = thief.end()
    assert found == {"could": [], "reopened": []}


def test_a_members_own_filter_is_applied_before_anything_is_lent(lab, home):
    text = shared(lab, home, share("sure", policy="reliable", quota_frames=1024))
    packets = [udp(i, port=5000 + i % 4) for i in range(2000)]
    with started(text) as engine:
        picky = appliance.attach(socket_of(home), "sure", "udp dst port 5002")
        with picky, open_sender(lab.a) as sender:
            feed(engine, "in0", sender, packets)
            got = []
            for batch in picky.recv(timeout_ms=200):
                got += [bytes(frame) for frame in batch]
                if len(got) >= 500 or not len(batch):
                    break
            entry = consumed(engine.statistics(), "sure")["members"][0]
        assert accounts.problems(engine.stop()) == []
    assert got == packets[2::4]
    assert entry["offered"] == 500


def test_the_columns_of_a_batch_are_those_of_a_port_of_ones_own(lab, home):
    text = shared(lab, home, share("sure", policy="reliable"), share("tap"))
    packets = [udp(i, 20 + 7 * i) for i in range(60)]
    with started(text) as engine:
        ports = [appliance.attach(socket_of(home), name) for name in ("sure", "tap")]
        with open_sender(lab.a) as sender:
            assert send_all(sender, packets) == 60
        assert wait_for(lambda: consumed(engine.statistics(), "tap")["frames"] == 60)
        for port in ports:
            taken = 0
            for batch in port.recv(timeout_ms=500):
                here = packets[taken : taken + len(batch)]
                assert batch.lengths.tolist() == list(map(len, here))
                assert set(batch.rule_ids.tolist()) == {batch[0].rule_id}
                assert (abs(batch.timestamps_ns.astype("i8") - batch[0].timestamp_ns) < 1e9).all()
                head = batch.head(48)
                assert [bytes(row[: len(one)]) for row, one in zip(head, here, strict=True)] == [
                    one[:48] for one in here]
                taken += len(batch)
                if taken == 60:
                    lengths = batch.lengths
                    break
            batch.release()
            assert lengths[-1] == len(packets[-1])
            with pytest.raises(appliance.StaleFrame):
                batch.head(8)
            port.close()
        assert accounts.problems(engine.stop()) == []


def test_what_is_held_or_looked_at_outlives_its_batch_and_the_port_and_goes_home_once(lab, home):
    text = shared(lab, home, share("sure", policy="reliable", quota_frames=64, max_members=1,
                                   max_hold_ms=60000))
    packets = [udp(i) for i in range(40)]
    with started(text) as engine:
        port = appliance.attach(socket_of(home), "sure")
        with open_sender(lab.a) as sender:
            send_all(sender, packets[:20])
            batch = next(batch for batch in port.recv(timeout_ms=1000) if len(batch))
            assert len(batch) >= 3
            held, view, third = batch[0].hold(), memoryview(batch[1]), batch[2]
            batch.release()
            assert third.stale and not held.stale
            with pytest.raises(appliance.StaleFrame):
                bytes(third)
            send_all(sender, packets[20:])

            def taken() -> bool:
                for more in port.recv(timeout_ms=100):
                    if not len(more):
                        break
                return port.held == 2

            assert taken()

            def leased() -> int:
                return consumed(engine.statistics(), "sure")["members"][0]["leased"]

            assert wait_for(lambda: leased() == 2)
        port.close()
        assert bytes(held) == packets[0] and bytes(view) == packets[1]
        held.release()
        assert wait_for(lambda: leased() == 1)
        view.release()
        assert wait_for(lambda: not consumed(engine.statistics(), "sure")["members"])
        final = engine.stop()
    assert consumed(final, "sure")["reclaimed"] == 0
    assert accounts.problems(final) == []


def test_past_its_quota_a_reliable_member_gets_copies_and_past_those_a_count(lab, home):
    text = shared(lab, home, share("sure", policy="reliable", quota_frames=32, max_members=1,
                                   max_hold_ms=60000, mid_mib=1), mid_cap_mib=16)
    packets = [udp(i, 1200) for i in range(1000)]
    with started(text) as engine:
        port = appliance.attach(socket_of(home), "sure")
        with open_sender(lab.a) as sender:
            feed(engine, "in0", sender, packets)
            entry = consumed(engine.statistics(), "sure")
            member = entry["members"][0]
            # Half of the MiB that this consumer may fill: 256 slabs of 2 KiB.
            assert (member["leased"], member["copied"], member["copies"]) == (32, 256, 256)
            assert member["dropped"] == 1000 - 32 - 256
            assert member["offered"] == member["frames"] + member["dropped"]
            got = []
            for batch in port.recv(timeout_ms=100):
                got += [bytes(frame) for frame in batch]
                if not len(batch):
                    break
            assert got == packets[: 32 + 256]
            assert wait_for(lambda: consumed(engine.statistics(), "sure")["copied_bytes"] == 0)
            feed(engine, "in0", sender, packets[:20])
            got = []
            while len(got) < 20:
                got += [bytes(frame) for frame in next(port.recv(timeout_ms=1000))]
            assert got == packets[:20]
            assert port.stats()["missed"] == member["dropped"]
        actions = {event["action"] for event in engine.events.listed()}
        port.close()
        final = engine.stop()
    assert "dropped: no room for copies" in actions
    assert accounts.problems(final) == []


def test_a_lossy_member_that_does_not_keep_up_is_overrun_and_never_shown_another_packet(lab, home):
    text = shared(lab, home, share("tap", quota_frames=64))
    packets = [udp(i) for i in range(3000)]
    with started(text) as engine:
        port = appliance.attach(socket_of(home), "tap")
        with open_sender(lab.a) as sender:
            send_all(sender, packets[:40])
            assert wait_for(lambda: consumed(engine.statistics(), "tap")["frames"] == 40)
            batch = next(port.recv(timeout_ms=1000))
            frames = list(batch)
            kept = frames[0].hold()
            first = bytes(kept)
            feed(engine, "in0", sender, packets[40:])
            for frame in frames[1:]:
                with pytest.raises(appliance.StaleFrame):
                    bytes(frame)
            assert not batch.head(64).any(), "every packet of it was overrun"
            assert bytes(kept) == first == packets[0]
            got = []
            for batch in port.recv(timeout_ms=100):
                got += [bytes(frame) for frame in batch]
                if not len(batch):
                    break
        entry = consumed(engine.statistics(), "tap")
        port.close()
        final = engine.stop()
    assert got == packets[-len(got) :] and 32 <= len(got) <= 64
    assert entry["leased"] == 64
    assert entry["members"][0]["overruns"] >= 3000 - 40 - 64
    assert accounts.problems(final) == []


def test_the_loop_ends_when_the_appliance_does_and_gives_all_that_was_lent_before(lab, home):
    text = shared(lab, home, share("sure", policy="reliable", quota_frames=512, max_members=1))
    packets = [udp(i) for i in range(100)]
    engine = started(text)
    engine.start()
    port = appliance.attach(socket_of(home), "sure")
    with open_sender(lab.a) as sender:
        send_all(sender, packets)
    final = engine.stop()
    got = [bytes(frame) for batch in port.recv(timeout_ms=1000) for frame in batch]
    port.close()
    assert got == packets
    assert consumed(final, "sure")["reclaimed"] == 100
    assert accounts.problems(final) == []


def test_the_same_loop_in_asyncio_leaves_room_for_others(lab, home):
    text = shared(lab, home, share("sure", policy="reliable", quota_frames=1024))
    with started(text) as engine:
        one = MemberProcess(socket_of(home), "sure", "asynchronously", packets=3000)
        with members(one), open_sender(lab.a) as sender:
            one.attached()
            feed(engine, "in0", sender, [udp(i) for i in range(3000)])
            found = one.end()
        assert accounts.problems(engine.stop()) == []
    assert found["numbers"] == 3000 and found["ticks"] > 0
