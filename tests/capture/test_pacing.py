"""The schedule of a replay: complete, in order, on time, in bursts that the rings take."""

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import ConfigError
from appliance.pacing import BURST_MAX, BURST_SPAN_NS, Burst, Schedule

SECOND = 10**9
TIMES = st.lists(st.integers(0, 10**12), max_size=300)


def sent(schedule):
    """The index of each packet in the order of sending."""
    return [index for burst in schedule for index in range(burst.start, burst.stop)]


def due_times(schedule):
    """When each packet goes: that of its burst."""
    return [burst.due_ns for burst in schedule for _ in range(burst.start, burst.stop)]


@settings(max_examples=200, deadline=None, print_blob=True)
@given(TIMES, st.integers(1, 3), st.sampled_from(
    [{}, {"rate": 1}, {"rate": 0.5}, {"rate": 999_999}, {"speed": 1}, {"speed": 0.1},
     {"speed": 1000.0}]))
def test_every_packet_is_sent_once_a_round_in_order_and_in_bursts_of_64_at_most(times, loop, pace):
    schedule = Schedule(times, loop=loop, **pace)
    assert sent(schedule) == list(range(len(times))) * loop
    assert len(sent(schedule)) == schedule.packets
    assert all(0 < burst.stop - burst.start <= BURST_MAX for burst in schedule)
    dues = [burst.due_ns for burst in schedule]
    assert dues == sorted(dues) and (not dues or dues[0] == 0)


@settings(max_examples=200, deadline=None, print_blob=True)
@given(TIMES.filter(bool), st.sampled_from([0.25, 0.5, 1, 2, 3, 10]))
def test_at_recorded_speed_no_packet_is_early_by_more_than_a_burst_span_nor_late(times, speed):
    times.sort()
    for time, due in zip(times, due_times(Schedule(times, speed=speed)), strict=True):
        exact = (time - times[0]) / speed
        assert due <= exact + 1 and due >= exact - BURST_SPAN_NS - 1


def test_as_fast_as_it_goes_nothing_waits():
    assert list(Schedule(range(130))) == [Burst(0, 64, 0), Burst(64, 128, 0), Burst(128, 130, 0)]


def test_a_low_rate_sends_packets_one_by_one():
    assert list(Schedule([0] * 4, rate=2)) == [
        Burst(0, 1, 0), Burst(1, 2, SECOND // 2), Burst(2, 3, SECOND), Burst(3, 4, 3 * SECOND // 2)]


def test_a_rate_does_not_drift_over_rounds():
    *_, last = islice(Schedule([0], rate=3, loop=0), 300_001)
    assert last == Burst(0, 1, 100_000 * SECOND)
    *_, last = Schedule([0] * 100, rate=7_000_000, loop=7_000)
    assert last == Burst(64, 100, (6_999 * 100 + 64) * SECOND // 7_000_000)


def test_a_high_rate_fills_bursts_and_keeps_its_mean():
    schedule = Schedule([0] * 1_000_000, rate=1_000_000)
    bursts = list(schedule)
    assert {burst.stop - burst.start for burst in bursts} == {BURST_MAX}
    assert bursts[-1].due_ns == (1_000_000 - BURST_MAX) * 1000
    assert schedule.round_ns == SECOND


def test_recorded_distances_are_kept_and_close_packets_go_together():
    times = [5 * SECOND, 5 * SECOND + 10, 5 * SECOND + BURST_SPAN_NS, 6 * SECOND]
    assert list(Schedule(times, speed=1)) == [Burst(0, 3, 0), Burst(3, 4, SECOND)]
    assert list(Schedule(times, speed=0.5)) == [
        Burst(0, 2, 0), Burst(2, 3, 2 * BURST_SPAN_NS), Burst(3, 4, 2 * SECOND)]


def test_rounds_at_recorded_speed_are_a_mean_distance_apart():
    schedule = Schedule([0, SECOND, 2 * SECOND], speed=2, loop=2)
    assert due_times(schedule) == [0, SECOND // 2, SECOND,
                                   3 * SECOND // 2, 2 * SECOND, 5 * SECOND // 2]


def test_timestamps_that_go_back_do_not_turn_time_back():
    assert due_times(Schedule([10 * SECOND, 12 * SECOND, 0, 13 * SECOND], speed=1)) == [
        0, 2 * SECOND, 2 * SECOND, 3 * SECOND]


def test_zero_rounds_mean_without_end():
    schedule = Schedule([0, 1], loop=0)
    assert schedule.packets is None
    assert list(islice(schedule, 5)) == [Burst(0, 2, 0)] * 5
    assert list(Schedule([], loop=0)) == []


def test_timestamps_of_a_capture_far_from_1970_keep_their_nanoseconds():
    start = 1_900_000_000 * SECOND
    times = np.array([start, start + SECOND + 1, start + 86_400 * SECOND + 7], np.uint64)
    assert due_times(Schedule(times, speed=1)) == [0, SECOND + 1, 86_400 * SECOND + 7]


@pytest.mark.parametrize("bad", [
    {"rate": 0}, {"rate": -1}, {"rate": float("nan")}, {"rate": float("inf")}, {"rate": 10**10},
    {"rate": "7"}, {"rate": True}, {"speed": 0}, {"speed": -0.5}, {"speed": float("nan")},
    {"loop": -1}, {"loop": 1.5}, {"loop": True}, {"rate": 1, "speed": 1}])
def test_a_pace_that_cannot_be_is_refused_in_one_line_that_names_it(bad):
    with pytest.raises(ConfigError) as caught:
        Schedule([0, 1], **bad)
    assert "\n" not in str(caught.value) and next(iter(bad)) in str(caught.value)


def test_a_damaged_timestamp_is_refused_at_recorded_speed_and_no_matter_otherwise():
    damaged = np.array([0, 2**64 - 1], np.uint64)
    with pytest.raises(ConfigError, match="speed"):
        Schedule(damaged, speed=1)
    assert len(sent(Schedule(damaged, rate=10))) == 2
