"""Recovery step by step: what it says, what it leaves alone, what a second crash does to it, and
segments that were begun after a fault."""

from __future__ import annotations

import os
import time

import pytest

import appliance
from appliance import record
from appliance.dataplane import log_writer
from appliance.errors import LogDamaged, PortError
from appliance.record.recover import act, plan
from appliance.record.verify import examine

FULL = bool(os.environ.get("OPENCLAW_FULL"))


def write(directory, first: int, last: int, *, mark: bytes = b"", seal: bool = True, **options):
    """Packets whose text is their number, ten to a write; as if killed without `seal`."""
    options.setdefault("segment_bytes", 1 << 18)
    writer = log_writer.LogWriter(directory, preallocate=False, seq=first, **options)
    for number in range(first, last + 1):
        writer.append(b"%d " % number * 20 + mark, number)
        if number % 10 == 0:
            writer.commit()
    if not seal:
        writer.commit()
    writer.close(seal=seal)
    log_writer.lower_state(directory / "state", 1 << 62)
    return writer


def verify(directory) -> dict:
    return record.verify(record.Store(directory))


def texts(directory) -> list[bytes]:
    with appliance.open_log(directory) as log:
        return [bytes(r) for batch in log for r in batch]


def test_a_log_that_was_only_killed_is_clean_and_stays_as_it_is(tmp_path):
    write(tmp_path, 1, 95, seal=False)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    told = record.recover(record.Store(tmp_path))
    assert (told["state"], told["last_seq"], told["cut_bytes"]) == ("clean", 95, 0)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_was_durable_and_is_gone_is_counted(tmp_path):
    writer = write(tmp_path, 1, 100, seal=False)
    path = tmp_path / "000000000000.oclog"
    with open(path, "r+b") as file:  # the last two writes are one page each
        file.truncate(writer.offset - 2 * 4096)
    told = verify(tmp_path)
    assert told["state"] == "torn" and told["missing"] == 20 and told["last_seq"] == 80
    assert "20 durable records are missing" in told["cause"]
    assert record.recover(record.Store(tmp_path))["cut_bytes"] == 0
    assert verify(tmp_path) | {"gaps": []} == told | {
        "state": "clean", "cause": "", "missing": 0, "durable_seq": 80, "sealed": True, "gaps": []}


def test_the_state_page_of_another_log_says_nothing(tmp_path):
    write(tmp_path / "one", 1, 50)
    write(tmp_path / "two", 1, 500)
    os.replace(tmp_path / "two" / "state", tmp_path / "one" / "state")
    assert verify(tmp_path / "one")["state"] == "clean"


def test_a_crash_between_any_two_steps_of_recovery_changes_nothing(tmp_path):
    """Three segments, a break in the first that no flush had confirmed: two segments go."""
    write(tmp_path, 1, 40, seal=False, epoch=1)
    (tmp_path / "state").unlink()
    path = tmp_path / "000000000000.oclog"
    whole = path.read_bytes()
    path.write_bytes(whole[:-4096] + b"\xff" + whole[-4095:])
    broken = path.read_bytes()
    expected = [b"%d " % n * 20 for n in range(1, 31)]
    steps = []
    examined = examine(record.Store(tmp_path))
    assert examined.verdict.state == "torn"
    cut = plan(examined)
    assert act(cut, record.Store(tmp_path)) > 0
    steps.append(path.read_bytes())
    assert texts(tmp_path) == expected
    # Killed after the seal was written, before the file was cut behind it:
    sealed = steps[0] + broken[len(steps[0]):]
    for image in (broken, sealed, steps[0]):
        path.write_bytes(image)
        record.recover(record.Store(tmp_path))
        assert texts(tmp_path) == expected and verify(tmp_path)["state"] == "clean"


def test_recovery_does_not_touch_what_is_being_read_or_damaged(tmp_path):
    write(tmp_path, 1, 300, seal=False)
    path = tmp_path / "000000000000.oclog"
    os.truncate(path, path.stat().st_size - 100)
    with appliance.open_log(tmp_path) as log:
        batch = next(iter(log))
        with pytest.raises(PortError, match="is being read"):
            record.recover(record.Store(tmp_path))
        assert bytes(batch[0]) == b"1 " * 20
    del batch, log
    assert record.recover(record.Store(tmp_path))["state"] == "torn"
    with open(path, "r+b") as file:
        file.seek(4096 + 200)
        file.write(b"\xff")
    assert record.recover(record.Store(tmp_path))["state"] == "damaged"
    with pytest.raises(LogDamaged, match="is not cut"):
        plan(examine(record.Store(tmp_path)))


def test_a_segment_begun_after_a_fault_has_its_records_anew(tmp_path):
    """The device failed when 60 were durable: 61 to 80 lie there too, and came again elsewhere."""
    write(tmp_path, 1, 80, seal=False, mark=b"old", uuid=bytes(16))
    write(tmp_path, 61, 120, mark=b"new", index=1, fresh=True, uuid=bytes(16))
    expected = ([b"%d " % n * 20 + b"old" for n in range(1, 61)]
                + [b"%d " % n * 20 + b"new" for n in range(61, 121)])
    told = verify(tmp_path)
    assert (told["state"], told["records"], told["last_seq"]) == ("clean", 120, 120)
    assert texts(tmp_path) == expected
    with open(tmp_path / "000000000000.oclog", "r+b") as file:  # behind 60 lies nobody's
        file.seek(4096 * 7)
        file.write(os.urandom(9000))
    assert verify(tmp_path)["records"] == 120 and texts(tmp_path) == expected
    with open(tmp_path / "000000000000.oclog", "r+b") as file:
        file.seek(4096 * 6 + 200)
        file.write(b"\xff")
    assert verify(tmp_path)["state"] == "damaged"


def test_a_recorder_goes_on_behind_damage_and_the_damage_stays(tmp_path):
    write(tmp_path, 1, 300)
    with open(tmp_path / "000000000000.oclog", "r+b") as file:
        file.seek(9000)
        file.write(b"\xff\xff")
    told, next_ = record.recover_to_record(record.Store(tmp_path))
    assert told["state"] == "damaged" and next_.fresh and next_.seq == 301 and next_.index == 1
    write(tmp_path, 301, 400, index=next_.index, fresh=True, uuid=bytes.fromhex(next_.uuid))
    assert verify(tmp_path)["state"] == "damaged"
    with appliance.open_log(tmp_path) as log:
        log.seek(seq=301)
        assert [r.seq for batch in log for r in batch] == list(range(301, 401))


def test_a_log_over_several_directories_is_one(tmp_path):
    write(tmp_path / "log", 1, 9000)
    files = sorted((tmp_path / "log").glob("*.oclog"))
    assert len(files) > 3
    for path in files[::2]:
        (tmp_path / "other").mkdir(exist_ok=True)
        os.rename(path, tmp_path / "other" / path.name)
    both = [tmp_path / "other", tmp_path / "log"]
    assert record.verify(record.Store(both))["records"] == 9000
    with appliance.open_log(both) as log:
        assert sum(len(batch) for batch in log) == 9000
    assert verify(tmp_path / "log")["state"] == "damaged"  # every other one is missing


def test_a_gibibyte_is_recovered_within_two_seconds(tmp_path):
    """The smoke form takes 64 MiB, and only looks at the outcome."""
    size = (1 << 30) if FULL else (64 << 20)
    with log_writer.LogWriter(tmp_path, segment_bytes=size + (1 << 20),
                              preallocate=False) as writer:
        packet, number = os.urandom(1514), 0
        while writer.offset < size - (1 << 20):
            number += 1
            writer.append(packet, number)
        writer.commit(sync=False)
        writer.close(seal=False)
    log_writer.lower_state(tmp_path / "state", 1 << 62)
    path = tmp_path / "000000000000.oclog"
    os.truncate(path, path.stat().st_size - 5000)
    started = time.perf_counter()
    told = record.recover(record.Store(tmp_path))
    took = time.perf_counter() - started
    assert told["state"] == "torn" and told["last_seq"] > number - 100
    assert not FULL or took < 2.0, f"{took:.2f} s"
