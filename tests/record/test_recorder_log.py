"""The recorder writes what came, all of it, in order; what it calls durable is on the device."""

from __future__ import annotations

import gc
import os
import random
import time

import pytest

import appliance
from appliance import record
from appliance.dataplane import LogDevice
from appliance.errors import HostError, LogDamaged, PortError
from tests.record.recorder_support import PACKET, Rig, gap_of, records, segments

ENGINES = ["threads"]
try:
    LogDevice("io_uring").close()
    ENGINES.append("io_uring")
except OSError:
    pass  # forbidden here, or built without liburing: the recorder uses threads, too


def numbered(count: int, seed: int, largest: int = 2000) -> list[bytes]:
    rng = random.Random(seed)
    return [
        i.to_bytes(8, "big") + rng.randbytes(rng.randint(6, largest)) for i in range(count)
    ]


def payloads(found) -> list[bytes]:
    return [one[-1] for one in found if one[2] == PACKET]


@pytest.mark.parametrize("engine", ENGINES)
def test_what_came_is_in_the_log_byte_for_byte_and_in_order(tmp_path, engine):
    packets = numbered(5000, 1)
    with Rig(tmp_path, engine=engine, segment_mib=2) as rig:
        rig.feed(packets)
        until = time.monotonic() + 20
        while rig.recording.summary()["packets"] < len(packets) and time.monotonic() < until:
            time.sleep(0.01)
    final = rig.recording.stop()
    assert final["durable"] == final["packets"] == len(packets)
    assert final["in_memory"] == 0 and not final["dropped"] and not final["reasons"]
    found = records(tmp_path)
    assert payloads(found) == packets
    assert [one[10] for one in found] == list(range(1, len(packets) + 1))
    times = [one[11] for one in found]
    assert times == sorted(times) and abs(times[0] / 1e9 - time.time()) < 60
    assert len(segments(tmp_path)) > 1 and all(one.sealed for one in segments(tmp_path))


def test_the_log_is_clean_to_verify_and_to_read(tmp_path):
    packets = numbered(3000, 2)
    with Rig(tmp_path, segment_mib=2) as rig:
        rig.feed(packets)
        while rig.recording.summary()["packets"] < len(packets):
            time.sleep(0.01)
    report = record.verify(record.Store(str(tmp_path)))
    assert (report["state"], report["records"], report["durable_seq"]) == ("clean", 3000, 3000)
    with appliance.open_log(str(tmp_path)) as log:
        got = [bytes(memoryview(one)) for batch in log for one in batch]
    assert got == packets


def test_a_packet_is_durable_soon_after_it_came_although_no_other_follows(tmp_path):
    with Rig(tmp_path, commit_ms=40) as rig:
        rig.feed([b"only one of these" * 4])
        until = time.monotonic() + 5
        while rig.recording.summary()["durable_seq"] < 1 and time.monotonic() < until:
            time.sleep(0.002)
        assert rig.recording.summary()["durable_seq"] == 1
        assert len(payloads(records(tmp_path))) == 1  # read while it is being written


def test_a_recording_goes_on_where_the_last_one_ended(tmp_path):
    for part in range(3):
        with Rig(tmp_path, segment_mib=2) as rig:
            rig.feed(numbered(200, part))
            while rig.recording.summary()["packets"] < 200:
                time.sleep(0.005)
    found = records(tmp_path)
    assert [one[10] for one in found] == list(range(1, 601))
    assert len({one.uuid for one in segments(tmp_path)}) == 1
    assert record.verify(record.Store(str(tmp_path)))["state"] == "clean"


def test_segments_are_used_again_and_the_log_stays_within_its_limit(tmp_path):
    with Rig(tmp_path, generate=1000, segment_mib=1, limit_mib=4, memory_mib=16) as rig:
        for _ in range(12):
            rig.pump(1500)
            assert sum(file.stat().st_size for file in tmp_path.glob("*.oclog")) <= 4 << 20
        device = rig.recording.summary()["devices"][0]
    final = rig.recording.stop()
    assert final["durable"] == final["packets"], final
    assert device["recycled"] > 3
    found = records(tmp_path, payloads=False)
    assert found[0][10] > 1, "nothing was recycled"
    assert [one[10] for one in found] == list(range(found[0][10], final["durable_seq"] + 1))
    assert record.verify(record.Store(str(tmp_path)))["state"] == "clean"


def test_a_segment_that_is_read_is_removed_instead_and_lives_on_for_its_reader(tmp_path):
    with Rig(tmp_path, generate=1000, segment_mib=1, limit_mib=3, memory_mib=16) as rig:
        rig.pump(1500)
        while not (tmp_path / f"{1:012d}.oclog").exists():
            time.sleep(0.01)
        before = (tmp_path / f"{0:012d}.oclog").read_bytes()
        with appliance.open_log(str(tmp_path)) as log:
            batch = next(iter(log))
            view = memoryview(batch[0])
            for _ in range(8):
                rig.pump(1500)
            assert not (tmp_path / f"{0:012d}.oclog").exists()
            assert bytes(view) in before
            del view, batch
        assert rig.recording.summary()["devices"][0]["removed"] >= 1


def test_a_longer_packet_than_snap_bytes_is_cut_and_its_length_kept(tmp_path):
    with Rig(tmp_path, snap_bytes=100) as rig:
        rig.feed([bytes(60), bytes(1500)])
        while rig.recording.summary()["packets"] < 2:
            time.sleep(0.005)
    found = records(tmp_path)
    assert [(one[7], one[8]) for one in found] == [(60, 60), (100, 1500)]
    assert rig.recording.stop()["cut_packets"] == 1


def test_of_each_flow_only_the_first_bytes_are_kept(tmp_path):
    from tests.engine.support import udp

    one = [udp(i, 200, port=53) for i in range(50)]
    other = [udp(i, 200, port=54) for i in range(3)]
    with Rig(tmp_path, flow_bytes=1000) as rig:
        rig.feed([*one, *other])
        while rig.recording.summary()["packets"] < 53:
            time.sleep(0.005)
    final = rig.recording.stop()
    keeps = -(-1000 // len(one[0]))
    assert final["durable"] == keeps + 3
    assert final["dropped"] == {"flow_cut": 50 - keeps}
    assert payloads(records(tmp_path)) == [*one[:keeps], *other]


def test_without_memory_packets_are_counted_and_the_log_says_how_many(tmp_path):
    with Rig(tmp_path, generate=1400, segment_mib=64, memory_mib=1) as rig:
        rig.pump(30000, settle=False)  # as fast as memory goes: 16 blocks cannot hold it
    final = rig.recording.stop()
    lost = final["dropped"]["no_memory"]
    assert lost > 0 and final["durable"] + lost == final["packets"]
    found = records(tmp_path, payloads=False)
    gaps = [gap_of(one) for one in found if one[2] == 2]
    assert sum(gap["no_memory"] for gap in gaps) == lost == final["gap_packets"]
    assert len(found) - len(gaps) == final["durable"]


def test_two_recorders_never_write_to_one_directory(tmp_path):
    with Rig(tmp_path):
        second = Rig(tmp_path)
        with pytest.raises(PortError, match="another recorder writes there"):
            second.start()


def test_a_damaged_log_is_not_appended_to(tmp_path):
    for part in range(2):
        with Rig(tmp_path, segment_mib=1) as rig:
            rig.feed(numbered(400, part))
            while rig.recording.summary()["packets"] < 400:
                time.sleep(0.005)
    victim = sorted(tmp_path.glob("*.oclog"))[0]
    with open(victim, "r+b") as file:
        file.seek(8192)
        file.write(b"\xff" * 64)
    with pytest.raises(LogDamaged, match="move it away"):
        Rig(tmp_path).start()
    rig = Rig(tmp_path / "other").start()  # and nothing is left of the attempt
    assert rig.end()["packets"] == 0


def test_a_directory_that_cannot_be_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match="Not a directory"):
        Rig(tmp_path / "file" / "log").start()


def test_segments_stripe_over_directories_and_are_one_log(tmp_path):
    places = [tmp_path / name for name in "abc"]
    with Rig(*places, generate=1000, segment_mib=1, memory_mib=16) as rig:
        for _ in range(6):
            rig.pump(1000)
    final = rig.recording.stop()
    assert final["durable"] == final["packets"]
    assert all(segments(place) for place in places)
    found = records(*places, payloads=False)
    assert [one[10] for one in found] == list(range(1, len(found) + 1))
    report = record.verify(record.Store([str(place) for place in places]))
    assert (report["state"], report["records"]) == ("clean", final["durable"])


def test_nothing_is_left_behind(tmp_path):
    Rig(tmp_path / "warm").start().end()
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    threads = len(os.listdir("/proc/self/task"))
    for part in range(3):
        with Rig(tmp_path / "log", segment_mib=1) as rig:
            rig.feed(numbered(100, part))
        final = rig.recording.stop()
        assert final["durable"] + sum(final["dropped"].values()) == final["packets"]
        used = [one for one in rig.tier.explain()["classes"] if one["used"]]
        assert not used, used
        del rig
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(os.listdir("/proc/self/task")) == threads
