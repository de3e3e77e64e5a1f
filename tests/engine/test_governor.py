"""The governor: decisions as a pure function of readings, and what they do on a real veth pair."""

from __future__ import annotations

import random
import time

import pytest

from appliance.engine import accounts, governor
from appliance.engine.governor import FRAMES, RING, Ladder, Reading, State, decide, name_of
from tests.engine.support import (
    consumed,
    consumer_table,
    open_sender,
    port_table,
    rule_table,
    started,
    udp,
    wait_for,
)

THREE = Ladder.of([0, 1, 2, 2])
BEAT = 0.004


def ring(share):
    return [Reading("ring", "in0/0", share, int(share * 2048))]


def run(ladder, state, readings, seconds, now):
    """The same readings for a while; (state, the time after)."""
    until = now + seconds
    while now < until:
        state = decide(ladder, state, readings, now)
        now += BEAT
    return state, now


def test_the_ladder_sheds_the_largest_numbers_first_and_never_the_smallest():
    assert [THREE.shed_above(rung) for rung in range(5)] == [None, 1, 0, 0, 0]
    assert Ladder.of([10, 10]).thresholds == () == Ladder.of([]).thresholds
    assert Ladder.of([5, 9]).shed_above(1) == 5
    many = Ladder.of(range(100))
    assert len(many.thresholds) == governor.RUNGS_MAX and many.thresholds[-1] == 0
    assert list(many.thresholds) == sorted(many.thresholds, reverse=True)


def test_a_level_below_its_trip_is_pressure_and_changes_nothing():
    state = decide(THREE, State(), ring(RING.pressure), 0.0)
    assert name_of(THREE, state) == "pressure" and state.rung == 0
    assert "RX ring 25% full" in governor.reasons("in0", THREE, state)[0]
    assert name_of(THREE, decide(THREE, state, ring(0.0), 0.1)) == "ok"


def test_a_tripped_level_sheds_at_once_and_more_only_if_that_does_not_help():
    state = decide(THREE, State(), ring(0.55), 0.0)
    assert (state.rung, name_of(THREE, state)) == (1, "shedding")
    state = decide(THREE, state, ring(0.52), BEAT)
    assert state.rung == 1, "it falls: wait"
    risen = decide(THREE, state, ring(0.7), 2 * BEAT)
    assert risen.rung == 2
    stuck, _ = run(THREE, state, ring(0.52), 2 * governor.SETTLE_S, BEAT)
    assert stuck.rung == 2
    stuck, _ = run(THREE, stuck, ring(1.0), 5.0, 1.0)
    assert THREE.shed_above(stuck.rung) == 0 and not THREE.withholds(stuck.rung), \
        "a full ring drops by itself; withholding FILL would cost priority 0 as well"


def test_fill_is_withheld_last_and_only_when_frames_run_out():
    starving = [Reading("frames", "in0/0", FRAMES.trip)]
    state, _ = run(THREE, State(), starving, 1.0, 0.0)
    assert THREE.withholds(state.rung) and name_of(THREE, state) == "degraded"
    assert THREE.shed_above(state.rung) == 0
    alone = Ladder.of([10])
    state, _ = run(alone, State(), starving, 1.0, 0.0)
    assert alone.withholds(state.rung) and alone.shed_above(state.rung) is None


def test_between_clear_and_trip_it_stays_as_it_is():
    state, now = run(THREE, State(), ring(0.6), 0.1, 0.0)
    rung = state.rung
    state, now = run(THREE, state, ring((RING.clear + RING.trip) / 2), 10.0, now)
    assert state.rung == rung and name_of(THREE, state) == "shedding"


def test_full_rate_is_back_within_a_second_of_the_end_of_the_overload():
    for ladder in (THREE, Ladder.of(range(100))):
        state, now = run(ladder, State(), ring(1.0), 1.0, 0.0)
        # Even after steps down that were too early and are waited for longer.
        for _ in range(5):
            state, now = run(ladder, state, ring(0.0), 0.35, now)
            state, now = run(ladder, state, ring(1.0), 0.5, now)
        assert state.rung == len(ladder.thresholds)
        state, now = run(ladder, state, ring(0.0), 1.1, now)
        assert state.rung == 0 and name_of(ladder, state) == "ok"


def test_a_step_down_that_was_too_early_is_waited_for_longer():
    state, now = run(THREE, State(), ring(0.6), 2 * BEAT, 0.0)
    waits = []
    for _ in range(4):
        waits.append(state.wait_s)
        begin = now
        while state.rung:
            state, now = run(THREE, state, ring(0.0), BEAT, now)
        assert now - begin >= state.wait_s - BEAT
        state, now = run(THREE, state, ring(0.6), BEAT, now)
    assert waits == [pytest.approx(s) for s in (0.1, 0.2, 0.3, 0.3)]


def test_any_course_of_readings_keeps_within_the_ladder_and_comes_back_to_rest():
    seed = random.randrange(1 << 32)
    print("seed", seed)
    source = random.Random(seed)
    for _ in range(100):
        ladder = Ladder.of([source.randrange(6) for _ in range(source.randrange(6))])
        state, now = State(), 0.0
        for _ in range(200):
            readings = [
                Reading(source.choice(("ring", "frames", "mid")), f"q{n}", source.random())
                for n in range(source.randrange(4))
            ]
            before = state.rung
            state = decide(ladder, state, readings, now)
            assert 0 <= state.rung <= ladder.top and abs(state.rung - before) <= 1
            if state.rung < before:
                assert not state.over and not state.pressed
            now += source.random() * 0.2
        state, now = run(ladder, state, [], 3.0, now)
        assert state.rung == 0 and name_of(ladder, state) == "ok"


PORTS = {0: 4000, 1: 4001, 2: 4002}


def three_priorities(side) -> str:
    text = port_table("in0", side, queues=[0])
    for priority, port in PORTS.items():
        text += rule_table("in0", f"udp dst port {port}", consumers=[f"p{priority}"],
                           priority=priority)
        text += consumer_table(f"p{priority}", "count")
    return text


def at_rest(engine) -> bool:
    """Nothing shed, and still so after fifty looks of the guard: while a backlog drains, the ladder
    may come to rest for a moment and go up again."""

    def now() -> bool:
        governor = engine.explain()["governor"]
        return governor["state"] == "ok" and governor["shed_above"] is None

    if not now():
        return False
    time.sleep(0.2)
    return now()


@pytest.mark.usefixtures("needs_xdp_socket", "needs_namespaces")
def test_in_overload_priority_0_loses_nothing_and_what_is_shed_is_counted_exactly(lab):
    """Three priorities at 12,000 packets/s together, and a consumer that takes 6,000."""
    packets = [udp(i, port=PORTS[i % 3]) for i in range(24)]
    with started(three_priorities(lab.b)) as engine, open_sender(lab.a) as sender:
        [worker] = engine._crew.workers
        worker.slow(1_000_000_000 // 6_000)
        sent = 0
        begin = time.monotonic()
        seen = set()
        while time.monotonic() - begin < 3.0:
            sent += sender.send(packets)
            sender.flush(1000)
            seen.add(engine.statistics()["memory"]["governor"]["state"])
            time.sleep(max(0.0, begin + sent / 12_000 - time.monotonic()))
        worker.slow(0)
        assert sent % 24 == 0 and sent > 15_000, "the host was too busy to make an overload"
        assert wait_for(lambda: at_rest(engine), 10.0)
        stats = engine.statistics()
        page = engine.explain()
        final = engine.stop()
    counts = {priority: consumed(final, f"p{priority}")["frames"] for priority in PORTS}
    assert "shedding" in seen
    assert counts[0] == sent // 3
    assert counts[2] < counts[0], "priority 2 is the first to go"
    assert set(final["drops"]) == {"shed"}
    assert sent == sum(counts.values()) + final["drops"]["shed"]
    assert accounts.problems(final) == []
    assert page["governor"]["shed_above"] is None and page["events"]
    actions = [event["action"] for event in page["events"]]
    # Equal events within a second are one entry, so the order of a back and forth is not kept.
    assert {"sheds above priority 1", "sheds nothing any more"} <= set(actions)
    assert all(event["why"] and event["time"] for event in page["events"])
    assert any(event["culprit"] == "worker of in0/0" for event in page["events"])
    assert "sheds nothing any more" in {event["action"] for event in stats["events"]}


@pytest.mark.usefixtures("needs_xdp_socket", "needs_namespaces")
def test_fill_that_was_withheld_is_posted_again_also_on_a_port_at_rest(lab):
    with started(three_priorities(lab.b)) as engine:
        [queue] = engine._ports["in0"].queues
        guard, ladder, full = engine._guard, Ladder.of([0, 1, 2]), queue.filled
        assert full == queue.fill_target > 256
        guard._act("in0", ladder, 0, ladder.top)
        with open_sender(lab.a) as sender:
            for i in range(0, 2 * full, 32):
                sender.send([udp(i, port=PORTS[0])] * 32)
                sender.flush(1000)
            assert wait_for(lambda: queue.filled == full // 4)
            guard._act("in0", ladder, ladder.top, 0)
            assert wait_for(lambda: queue.filled == full), "posted without a packet to push it"
        final = engine.stop()
    assert accounts.problems(final) == []
