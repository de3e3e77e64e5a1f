"""Disks that fill, fail, vanish and hang: the recorder says so, loses nothing silently, comes back.

The faults are real: small file systems on tmpfs, and loop devices whose backing is cut away under
them.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from pathlib import Path

import pytest

from appliance import record
from tests.record.recorder_support import PACKET, Rig, gap_of, records


def run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    if done.returncode:
        pytest.skip(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout.strip()


@contextlib.contextmanager
def tmpfs(where: Path, size: str):
    """A file system of its own, gone afterwards whoever still uses it."""
    where.mkdir(parents=True, exist_ok=True)
    run("mount", "-t", "tmpfs", "-o", f"size={size}", "oc-test", str(where))
    try:
        yield where
    finally:
        subprocess.run(["umount", "-l", str(where)], check=False)


@contextlib.contextmanager
def loop_device(backing: Path, mib: int):
    """A block device over a file; cutting the file short makes real I/O errors."""
    with open(backing, "wb") as file:
        file.truncate(mib << 20)
    device = run("losetup", "--find", "--show", "--sector-size", "4096", str(backing))
    try:
        yield device
    finally:
        subprocess.run(["losetup", "-d", device], check=False)


def exact(final: dict) -> None:
    """The account: what came is durable or was dropped for a reason, and nothing is both."""
    dropped = sum(final["dropped"].values())
    assert final["in_memory"] == 0
    assert final["durable"] + dropped == final["packets"], final


def the_log_says_the_same(final: dict, *places: Path) -> None:
    found = records(*places, payloads=False)
    packets = [one for one in found if one[2] == PACKET]
    gaps = [gap_of(one) for one in found if one[2] == 2]
    assert [one[10] for one in found] == list(range(1, len(found) + 1))
    assert len(packets) == final["durable"]
    assert sum(sum(gap.values()) for gap in gaps) == sum(final["dropped"].values())


def test_a_full_disk_is_met_in_memory_and_left_again_with_an_exact_gap(tmp_path):
    with tmpfs(tmp_path / "disk", "9m") as disk:
        where = disk / "log"
        with Rig(where, generate=1000, segment_mib=4, memory_mib=2) as rig:
            for _ in range(12):
                rig.pump(600, settle=False)
                time.sleep(0.05)
            assert rig.wait(lambda now: now["state"] == "degraded"), rig.recording.summary()
            reason = rig.recording.summary()["reasons"][0]
            assert "No space left on device" in reason and "limit_mib" in reason
            for _ in range(10):
                rig.pump(600, settle=False)
                time.sleep(0.02)
            now = rig.recording.summary()
            assert now["dropped"]["device"] > 0, "the oldest make room"
            assert 0 < now["in_memory"] <= now["packets"] - now["durable"]
            run("mount", "-o", "remount,size=64m", str(disk))  # somebody made room
            assert rig.wait(lambda now: now["state"] == "ok"), rig.recording.summary()
            rig.pump(300)
        final = rig.recording.stop()
        exact(final)
        the_log_says_the_same(final, where)
        report = record.verify(record.Store(str(where)))
        assert report["state"] == "clean", report
        assert report["lost"] == sum(final["dropped"].values())


def test_a_raw_device_takes_segments_in_slots_and_uses_them_again(tmp_path):
    with loop_device(tmp_path / "backing", 10) as device:
        with Rig(Path(device), generate=1000, segment_mib=2, memory_mib=8) as rig:
            for _ in range(9):
                rig.pump(1500)
            assert rig.recording.summary()["devices"][0]["recycled"] > 2
        final = rig.recording.stop()
        exact(final)
        assert not final["dropped"]
        report = record.verify(record.Store(device))
        assert (report["state"], report["last_seq"]) == ("clean", final["durable"]), report
        with Rig(Path(device), generate=1000, segment_mib=2, memory_mib=8) as rig:
            rig.pump(100)
        assert record.verify(record.Store(device))["last_seq"] > final["durable"]


def test_a_device_with_something_else_on_it_is_refused(tmp_path):
    from appliance.errors import PortError

    with loop_device(tmp_path / "backing", 16) as device:
        with open(device, "r+b") as file:
            file.seek(1024 + 56)
            file.write(b"\x53\xef")  # what ext4 has there
        with pytest.raises(PortError, match="no log of ours"):
            Rig(Path(device), segment_mib=2).start()
        with open(device, "rb") as file:
            file.seek(1024 + 56)
            assert file.read(2) == b"\x53\xef"


def test_a_device_that_shrinks_fails_and_comes_back_with_an_exact_gap(tmp_path):
    """What was durable stays below the new end. (A loop device over a full file system would not
    do: it takes a short write of its backing for a whole one, and the log is rightly damaged.)"""
    backing = tmp_path / "backing"
    with loop_device(backing, 32) as device:
        with Rig(Path(device), generate=1000, segment_mib=4, memory_mib=4) as rig:
            rig.pump(4200)  # the first slot, and a tenth of the second
            os.truncate(backing, 6 << 20)
            run("losetup", "-c", device)
            for _ in range(16):
                rig.pump(600, settle=False)
                time.sleep(0.1)
            assert rig.wait(lambda now: now["state"] == "degraded"), rig.recording.summary()
            assert device in rig.recording.summary()["reasons"][0]
            os.truncate(backing, 32 << 20)
            run("losetup", "-c", device)
            assert rig.wait(lambda now: now["state"] == "ok"), rig.recording.summary()
            rig.pump(500)
        final = rig.recording.stop()
        exact(final)
        report = record.verify(record.Store(device))
        assert report["state"] == "clean", report
        assert report["last_seq"] - len(report["gaps"]) == final["durable"]
        assert report["lost"] == sum(final["dropped"].values()) > 0


def test_of_several_directories_one_that_fails_leaves_the_set_and_comes_back(tmp_path):
    with tmpfs(tmp_path / "small", "6m") as small, tmpfs(tmp_path / "large", "200m") as large:
        places = [small / "log", large / "log"]
        with Rig(*places, generate=1000, segment_mib=4, memory_mib=16) as rig:
            for _ in range(12):
                rig.pump(1500)
            now = rig.recording.summary()
            assert now["state"] == "degraded" and "small" in now["reasons"][0]
            assert [one["state"] for one in now["devices"]] == ["failed", "ok"]
            assert not now["dropped"], "the other directory takes everything"
            run("mount", "-o", "remount,size=100m", str(small))
            for _ in range(12):
                rig.pump(1500)
                if rig.recording.summary()["state"] == "ok":
                    break
            assert rig.wait(lambda now: now["state"] == "ok"), rig.recording.summary()
        final = rig.recording.stop()
        exact(final)
        assert not final["dropped"]
        the_log_says_the_same(final, *places)


def test_stopping_with_nowhere_to_write_ends_in_time_and_counts_what_is_lost(tmp_path):
    with tmpfs(tmp_path / "disk", "5m") as disk:
        with Rig(disk / "log", generate=1000, segment_mib=4, memory_mib=8) as rig:
            for _ in range(8):
                rig.pump(1000, settle=False)
                time.sleep(0.05)
            assert rig.wait(lambda now: now["state"] == "degraded"), rig.recording.summary()
            began = time.monotonic()
            final = rig.end(1.0)
            assert time.monotonic() - began < 10
        exact(final)
        assert final["dropped"]["device"] > 0
        packets = [one for one in records(disk / "log", payloads=False) if one[2] == PACKET]
        assert len(packets) == final["durable"]


@contextlib.contextmanager
def frozen(where: Path):
    """Every write to the file system waits, as for a device that does not answer any more."""
    run("fsfreeze", "-f", str(where))
    try:
        yield
    finally:
        subprocess.run(["fsfreeze", "-u", str(where)], check=True)


@contextlib.contextmanager
def small_disk(tmp_path: Path, mib: int):
    """ext4 on a loop device, mounted."""
    with loop_device(tmp_path / "backing", mib) as device:
        run("mkfs.ext4", "-q", "-F", device)
        where = tmp_path / "mounted"
        where.mkdir()
        run("mount", device, str(where))
        try:
            yield where
        finally:
            subprocess.run(["umount", "-l", str(where)], check=False)


@pytest.mark.parametrize("engine", ["auto", "threads"])
def test_a_disk_that_hangs_is_left_and_holds_up_neither_packets_nor_the_end(tmp_path, engine):
    with small_disk(tmp_path, 128) as disk, tmpfs(tmp_path / "other", "100m") as other:
        places = [disk / "log", other / "log"]
        with Rig(*places, generate=1000, segment_mib=4, memory_mib=32, engine=engine,
                 hang_s=0.7) as rig:
            while rig.recording.summary()["segment"] != 0:
                time.sleep(0.01)
            with frozen(disk):
                began = time.monotonic()
                rig.pump(3000, settle=False)
                assert time.monotonic() - began < 2, "the worker waited"
                assert rig.wait(lambda now: now["state"] == "degraded"), rig.recording.summary()
                assert "no answer" in " ".join(rig.recording.summary()["reasons"])
                assert rig.wait(lambda now: now["in_memory"] == 0), rig.recording.summary()
                rig.pump(3000)
                assert rig.recording.summary()["stuck_bytes"] > 0
                began = time.monotonic()
                final = rig.end()
                assert time.monotonic() - began < 15
        exact(final)
        assert not final["dropped"], "the other directory took everything"
        the_log_says_the_same(final, *places)


def test_a_disk_that_fails_with_input_output_errors_is_left_for_the_other(tmp_path):
    """The loop device shrinks under its file system: writes beyond its end are EIO."""
    with small_disk(tmp_path, 64) as disk, tmpfs(tmp_path / "other", "100m") as other:
        device = run("findmnt", "-n", "-o", "SOURCE", str(disk))
        places = [disk / "log", other / "log"]
        with Rig(*places, generate=1000, segment_mib=4, memory_mib=16) as rig:
            rig.pump(500)
            kept = rig.recording.summary()["durable"]
            os.truncate(tmp_path / "backing", 1 << 20)
            run("losetup", "-c", device)
            for _ in range(8):
                rig.pump(1000)  # all of it becomes durable, elsewhere
            reasons = " ".join(rig.recording.summary()["reasons"])
            assert "Input/output error" in reasons or "Read-only" in reasons
        final = rig.recording.stop()
        exact(final)
        assert not final["dropped"] and final["durable"] > kept
