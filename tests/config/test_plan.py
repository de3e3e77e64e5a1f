"""The plan's arithmetic: what must always hold, and what is refused with its sum."""

import pytest

from appliance import config
from appliance.plan import BURST, PortFacts, packet_bytes_max, plan, size_queue

TEXT = """
memory.frames_per_queue = {frames}
port = [{{name = "in0", interface = "veth-b", {port}}}]
rule = [{{port = "in0", match = "", action = "consume", consumers = ["c"]}}]
consumer = [{{name = "c", {consumer}}}]
"""


def read(frames=8192, port="jumbo = false", consumer='kind = "count"'):
    return config.parse(TEXT.format(frames=frames, port=port, consumer=consumer))


def test_the_manuals_numbers_make_one_umem_of_32_mib_for_each_queue():
    made = plan(read(), {"in0": PortFacts(queues=2)})
    assert made.ok and len(made.queues) == 2
    assert {queue.arena_bytes for queue in made.queues} == {32 << 20}
    assert made.as_dict()["arenas"]["hugepages_2m"] == 32
    [first, _] = made.queues
    assert (first.rx_ring, first.tx_ring, first.fill_ring) == (2048, 2048, 4096)


@pytest.mark.parametrize("frames", [1024, 1025, 4095, 4096, 8192, 100_000, 1 << 20])
@pytest.mark.parametrize("hardware", [0, 64, 256, 512])
def test_frames_add_up_and_rings_are_powers_of_two_that_hold_what_they_must(frames, hardware):
    one = size_queue("p", 0, frames, 4096, hardware, None)
    assert one.rx_frames + one.tx_frames == frames
    for ring in (one.rx_ring, one.tx_ring, one.fill_ring):
        assert ring > 0 and ring & (ring - 1) == 0
    assert one.fill_ring >= one.fill_target >= min(hardware + one.rx_ring, one.rx_frames)
    assert one.tx_ring <= one.tx_frames
    assert one.arena_bytes >= frames * 4096 and one.arena_bytes % (2 << 20) == 0
    assert one.rx_frames == hardware + one.rx_ring + BURST + one.spare_frames


def test_the_smallest_number_of_frames_still_leaves_some_for_consumers():
    assert size_queue("p", 0, 1024, 2048, 0, None).spare_frames > 0


def test_quotas_beyond_the_frames_are_refused_with_the_sum():
    share = 'kind = "share", policy = "reliable", quota_frames = 5000'
    made = plan(read(consumer=share), {"in0": PortFacts()})
    assert not made.ok
    assert made.refused == (
        "in0/0: 6144 rx frames < 7112 = hardware ring 0 + RX ring 2048 + burst 64 + quotas 5000: "
        "raise memory.frames_per_queue to 16384 or lower the quotas",
    )
    assert plan(read(frames=16384, consumer=share), {"in0": PortFacts()}).ok


def test_a_lossy_consumer_needs_no_frames_of_its_own():
    assert plan(read(consumer='kind = "share", quota_frames = 100000'), {"in0": PortFacts()}).ok


def test_a_hardware_ring_that_takes_all_frames_is_refused():
    made = plan(read(frames=1024), {"in0": PortFacts(hardware_ring=4096)})
    assert not made.ok and "hardware ring 4096" in made.refused[0]


def test_a_queue_that_the_interface_has_not_got_is_refused():
    made = plan(read(port="queues = [0, 2]"), {"in0": PortFacts(queues=2)})
    assert made.refused == ("in0: queue 2 of an interface with 2 (0..1)",)


@pytest.mark.parametrize(("mtu", "ok"), [(1500, True), (3822, True), (3823, False), (9000, False)])
def test_an_mtu_beyond_the_frame_is_refused_unless_jumbo(mtu, ok):
    assert plan(read(), {"in0": PortFacts(mtu=mtu)}).ok is ok
    assert plan(read(port="jumbo = true"), {"in0": PortFacts(mtu=mtu)}).ok
    assert (mtu + 18 <= packet_bytes_max(4096)) is ok


def test_assumptions_are_said():
    assert "assumed 1 queue" in plan(read()).as_dict()["reasons"][0]
