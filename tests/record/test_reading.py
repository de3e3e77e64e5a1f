"""Reading a log: columns, views, seeking, filters; live ones, several readers, recycling."""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import appliance
from appliance import record
from appliance.dataplane import log_scan, log_writer
from appliance.errors import ConfigError, LogDamaged, PortError
from appliance.record.select import parse_flow, parse_time
from tests.record.images import BASE_NS

SEED = random.SystemRandom().randrange(1 << 32)


def frame(number: int, size: int = 80, sport: int = 1000, dport: int = 53) -> bytes:
    """A UDP packet, 10.0.0.1 to 10.0.0.2."""
    head = bytes(12) + b"\x08\x00" + bytes.fromhex("4500") + (size - 14).to_bytes(2, "big")
    head += bytes.fromhex("0000000040110000") + bytes([10, 0, 0, 1, 10, 0, 0, 2])
    head += sport.to_bytes(2, "big") + dport.to_bytes(2, "big")
    return (head + bytes(4) + number.to_bytes(8, "big")).ljust(size, b"\0")


@pytest.fixture
def log(tmp_path):
    """Ten segments, 20,000 packets of 1 us each; every other from port 1."""
    with log_writer.LogWriter(tmp_path, segment_bytes=1 << 18, preallocate=False,
                              ports=[(0, "in0", "va", 1, 0), (1, "in1", "vb", 1, 0)]) as writer:
        for number in range(20_000):
            writer.append(frame(number, dport=53 if number % 5 else 54), BASE_NS + number * 1000,
                          port=number % 2, queue=number % 4, rule=number % 3)
    return tmp_path


def all_seqs(log) -> list[int]:
    return [seq for batch in log for seq in batch.seqs.tolist()]


def test_batches_have_columns_and_records_are_views(log):
    count = 0
    with appliance.open_log(log) as reader:
        for batch in reader:
            assert batch.seqs.dtype == np.uint64 and (np.diff(batch.seqs) == 1).all()
            assert (batch.lengths == 80).all() and (batch.originals == 80).all()
            assert (batch.ports == (batch.seqs - 1) % 2).all()
            assert (batch.queues == (batch.seqs - 1) % 4).all()
            assert (batch.rule_ids == (batch.seqs - 1) % 3).all()
            one = batch[-1]
            view = memoryview(one)
            assert view.readonly and len(view) == len(one) == 80
            assert view[42:50] == (one.seq - 1).to_bytes(8, "big")
            assert one.timestamp_ns == BASE_NS + (one.seq - 1) * 1000
            start = int(batch.offsets[0])
            assert batch.data[start:start + 80] == memoryview(batch[0])
            with pytest.raises(IndexError):
                batch[len(batch)]
            for kind in (type(batch), type(one)):
                with pytest.raises(TypeError, match="comes from"):
                    kind()
            count += len(batch)
    assert count == 20_000 and reader.state == "clean"


def test_a_view_outlives_its_log_and_the_file(log):
    with appliance.open_log(log) as reader:
        batch = next(iter(reader))
    view = memoryview(batch[5])
    del batch, reader
    gc.collect()
    for path in log.glob("*.oclog"):
        path.unlink()
    assert view[42:50] == (5).to_bytes(8, "big")


def test_a_closed_reader_leaves_neither_map_nor_descriptor(log):
    def open_things():
        with open("/proc/self/maps") as file:
            return len(os.listdir("/proc/self/fd")), sum(".oclog" in line for line in file)

    gc.collect()
    before = open_things()
    for _ in range(3):
        with appliance.open_log(log) as reader:
            all_seqs(reader)
            reader.seek(seq=7)
            next(iter(reader))
    del reader
    gc.collect()
    assert open_things() == before


def test_seeking_by_number_goes_to_every_record(log):
    rng = random.Random(SEED)
    with appliance.open_log(log) as reader:
        for seq in [1, 2, 20_000, *(rng.randrange(1, 20_001) for _ in range(60))]:
            reader.seek(seq=seq)
            assert int(next(iter(reader)).seqs[0]) == seq, f"seed {SEED}"
        reader.seek(seq=20_001)
        assert all_seqs(reader) == [] and reader.state == "clean"
        reader.seek(seq=0)
        assert len(all_seqs(reader)) == 20_000


def test_an_index_that_lies_leads_nowhere_wrong(log):
    """The seal's entries with other offsets and a payload checksum that is right again."""
    path = min(log.glob("*.oclog"))
    data = bytearray(path.read_bytes())
    seal = int.from_bytes(data[-16:-8], "little")
    rng = random.Random(SEED)
    for at in range(seal + 48 + 72, len(data) - 32 - 40, 40):
        offset = rng.choice([8, 4096, 8192, 1 << 40, (1 << 64) - 4096, (1 << 64) - 8, 12_345])
        data[at + 8:at + 16] = offset.to_bytes(8, "little")
    payload = log_scan.checksum(bytes(data[seal + 48:]))
    data[seal + 4:seal + 8] = payload.to_bytes(4, "little")
    path.write_bytes(data)
    for seq in (1, 2, 700, 1500, 1900):
        with appliance.open_log(log) as reader:
            reader.seek(seq=seq)
            assert int(next(iter(reader)).seqs[0]) == seq, f"seed {SEED}"
    assert record.verify(record.Store(log))["state"] == "damaged"


def test_seeking_by_time_finds_what_is_not_earlier_also_out_of_order(tmp_path):
    rng = random.Random(SEED)
    times = [BASE_NS + number * 1000 + rng.randrange(-200_000, 200_000) for number in range(6000)]
    with log_writer.LogWriter(tmp_path, segment_bytes=1 << 18, preallocate=False) as writer:
        for number, ns in enumerate(times):
            writer.append(frame(number), ns)
    for _ in range(40):
        low = BASE_NS + rng.randrange(-10**6, 7 * 10**6)
        high = low + rng.randrange(3 * 10**6)
        with appliance.open_log(tmp_path, start=low, end=high) as reader:
            expected = [n + 1 for n, ns in enumerate(times) if low <= ns <= high]
            assert all_seqs(reader) == expected, f"seed {SEED}, {low} to {high}"


def test_only_losses_of_the_wanted_time_are_told(tmp_path):
    with log_writer.LogWriter(tmp_path, segment_bytes=1 << 18) as writer:
        for number in range(10):
            writer.append(frame(number), BASE_NS + number * 10)
            writer.gap(BASE_NS + number * 10 + 2, BASE_NS + number * 10 + 4, {"device": number})
    with appliance.open_log(tmp_path, start=BASE_NS + 23, end=BASE_NS + 52) as reader:
        assert all_seqs(reader) == [7, 9, 11]
        assert [gap["packets"] for gap in reader.gaps] == [2, 3, 4, 5]


def test_filters_select_what_tcpdump_would_and_conversations_both_ways(tmp_path):
    with log_writer.LogWriter(tmp_path, segment_bytes=1 << 20) as writer:
        for number in range(3000):
            there = number % 2
            ends = (1000, 53) if there else (53, 1000)
            writer.append(frame(number, 60 + number % 40, *ends), BASE_NS + number)
        back = bytearray(frame(1, 80, 53, 1000))
        back[26:34] = back[30:34] + back[26:30]
        writer.append(back, BASE_NS)
    with appliance.open_log(tmp_path, match="udp dst port 53 and less 70") as reader:
        assert all_seqs(reader) == [n + 1 for n in range(3000) if n % 2 and 60 + n % 40 <= 70]
    with appliance.open_log(tmp_path, flow="udp 10.0.0.1:1000 10.0.0.2:53") as reader:
        assert all_seqs(reader) == [*range(2, 3001, 2), 3001]
    with appliance.open_log(tmp_path, flow="tcp 10.0.0.1:1000 10.0.0.2:53") as reader:
        assert all_seqs(reader) == [] and reader.state == "clean"


def test_times_and_flows_are_read_as_people_write_them():
    assert parse_time("1700000000.25") == 1_700_000_000_250_000_000
    assert parse_time("2023-11-14T22:13:20.000000001+00:00") == 1_700_000_000_000_000_001
    assert parse_time("2023-11-14T22:13:20Z") == 1_700_000_000_000_000_000
    assert parse_time("-1.5s", now_ns=10**10) == 8_500_000_000
    assert parse_flow("udp [fe80::1]:53 [fe80::2]:4000").two_port == 4000
    assert parse_flow("icmp 10.0.0.1 10.0.0.2").one_port == -1
    for text in ("yesterday", "", "12:00 o'clock"):
        with pytest.raises(ConfigError, match="seconds since 1970"):
            parse_time(text)
    for text in ("", "udp", "udp 1.2.3.4:1 ::1:2", "udp 1.2.3.4:1 1.2.3.5:70000",
                 "x 1.1.1.1 2.2.2.2", "udp 1.2.3.4 1.2.3.5"):
        with pytest.raises(ConfigError, match="flow"):
            parse_flow(text)


def test_reading_stops_with_an_error_before_the_first_record_that_does_not_hold(log):
    path = sorted(log.glob("*.oclog"))[2]
    with appliance.open_log(log) as reader:
        expected = log_scan.SegmentMap(path, os.path.getsize(path)).header["first_seq"]
    with open(path, "r+b") as file:
        file.seek(8192)
        file.write(b"\xff")
    found = []
    with appliance.open_log(log) as reader, pytest.raises(LogDamaged, match="segment 2"):
        for batch in reader:
            found += batch.seqs.tolist()
    assert found == list(range(1, len(found) + 1)) and expected <= len(found) + 1
    assert reader.state == "damaged"
    with appliance.open_log(log) as reader:  # behind the damage everything can still be read
        reader.seek(seq=15_000)
        assert all_seqs(reader) == list(range(15_000, 20_001))


def test_a_missing_segment_is_damage(log):
    sorted(log.glob("*.oclog"))[4].unlink()
    told = record.verify(record.Store(log))
    assert told["state"] == "damaged" and "missing, with segment 4" in told["cause"]
    with appliance.open_log(log) as reader, pytest.raises(LogDamaged):
        all_seqs(reader)


def test_a_segment_that_is_prepared_but_not_begun_is_none(log):
    """Ahead of need, in front (a crash while recycling) and in the middle (a failed device)."""
    files = sorted(log.glob("*.oclog"))
    files[0].unlink()
    for index in (0, len(files), len(files) + 1):
        (log / log_writer.segment_name(index)).write_bytes(bytes(1 << 18))
    for path in reversed(files[5:]):  # make room for an index that was never begun
        os.rename(path, log / log_writer.segment_name(int(path.name[:12]) + 10))
    told = record.verify(record.Store(log))
    assert told["state"] == "damaged" and "another index" in told["cause"]
    for path in files[5:]:
        os.rename(log / log_writer.segment_name(int(path.name[:12]) + 10), path)
    (log / log_writer.segment_name(len(files) + 1)).write_bytes(bytes(1 << 18))
    told = record.verify(record.Store(log))
    assert told["state"] == "clean" and told["segments"] == len(files) - 1
    with appliance.open_log(log) as reader:
        assert all_seqs(reader)[-1] == 20_000 and reader.state == "clean"
    assert record.recover(record.Store(log))["cut_bytes"] == 0
    with open(files[4], "r+b") as file:  # a header that was lost is another thing
        file.write(bytes(4096))
    told = record.verify(record.Store(log))
    assert told["state"] == "damaged" and "header" in told["cause"]
    with appliance.open_log(log) as reader, pytest.raises(LogDamaged, match="header"):
        all_seqs(reader)


def test_segments_of_two_logs_do_not_mix(log, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    with log_writer.LogWriter(other, segment_bytes=1 << 18, preallocate=False) as writer:
        for number in range(9000):
            writer.append(frame(number), number)
    os.replace(other / "000000000003.oclog", log / "000000000003.oclog")
    told = record.verify(record.Store(log))
    assert told["state"] == "damaged" and "another log" in told["cause"]


def test_two_readers_follow_a_log_that_is_being_written_and_see_the_same(tmp_path):
    writer = log_writer.LogWriter(tmp_path, segment_bytes=1 << 18)
    found: dict[int, list[int]] = {0: [], 1: []}
    problems: list[BaseException] = []

    def follow(name: int) -> None:
        try:
            with appliance.open_log(tmp_path, follow=True) as reader:
                for batch in reader.batches(max_records=100 + name):
                    found[name] += batch.seqs.tolist()
                    assert all(memoryview(r)[42:50] == (r.seq - 1).to_bytes(8, "big")
                               for r in batch)
        except BaseException as error:
            problems.append(error)

    readers = [threading.Thread(target=follow, args=(name,)) for name in found]
    for thread in readers:
        thread.start()
    for number in range(8000):
        writer.append(frame(number), BASE_NS + number)
        if number % 97 == 0:
            writer.commit(sync=False)
            time.sleep(0.001)
    writer.close()
    for thread in readers:
        thread.join(60)
    assert not problems and found[0] == found[1] == list(range(1, 8001))


def test_a_reader_waits_with_empty_batches_and_sees_no_byte_that_is_not_published(tmp_path):
    writer = log_writer.LogWriter(tmp_path, segment_bytes=1 << 18)
    writer.append(frame(0), 1)
    with appliance.open_log(tmp_path, follow=True) as reader:
        batches = reader.batches(timeout_ms=20)
        assert len(next(batches)) == 0
        writer.commit(sync=False)
        assert next(b for b in batches if len(b)).seqs.tolist() == [1]
        told = record.verify(record.Store(tmp_path))
        assert told["state"] == "clean" and told["live"] and told["records"] == 1
        with pytest.raises(PortError, match="a recorder is at work"):
            record.recover(record.Store(tmp_path))
        writer.close()
        assert [len(b) for b in batches if len(b)] == [] and reader.state == "clean"


def test_a_reader_that_is_overtaken_goes_on_with_what_is_there(tmp_path):
    writer = log_writer.LogWriter(tmp_path, segment_bytes=1 << 18)
    with appliance.open_log(tmp_path, follow=True) as reader:
        batches = reader.batches(max_records=10)
        seen = 0
        for number in range(9000):
            writer.append(frame(number), BASE_NS + number)
            if number == 50:
                writer.commit(sync=False)
                seen += len(next(b for b in batches if len(b)))
        writer.commit()
        for path in sorted(tmp_path.glob("*.oclog"))[:3]:
            path.unlink()  # recycled; the reader keeps the one that it maps
        oldest = int(min(tmp_path.glob("*.oclog")).name.split(".")[0])
        first = record.open_log(tmp_path)
        first_seq = int(next(iter(first)).seqs[0])
        writer.close()
        rest = [seq for batch in batches for seq in batch.seqs.tolist()]
        seen += len(rest)
        assert oldest == 3 and rest[-1] == 9000 and first_seq in rest
        assert seen + reader.overrun == 9000 and reader.overrun > 0


def test_a_recorder_cannot_take_a_segment_that_is_read_and_a_reader_not_one_that_is_taken(log):
    import fcntl

    path = min(log.glob("*.oclog"))
    with appliance.open_log(log) as reader, open(path, "r+b") as file:
        batch = next(iter(reader))
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        reader.close()
        del batch
        gc.collect()
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with appliance.open_log(log) as second:  # as if it had been recycled
            assert int(next(iter(second)).seqs[0]) > 1


def test_what_was_published_survives_kill_9(tmp_path):
    """A process that is killed between two packets: everything committed is there, and clean."""
    code = ("import sys, time\n"
            "from appliance.dataplane import log_writer\n"
            f"w = log_writer.LogWriter({str(tmp_path)!r}, segment_bytes=1 << 18)\n"
            "for n in range(10**9):\n"
            "    w.append(n.to_bytes(8, 'big') * 40, 1000 + n)\n"
            "    if n % 50 == 49: print(w.commit(), flush=True)\n")
    for turn in range(3):
        for path in tmp_path.iterdir():
            path.unlink()
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert child.stdout is not None
        durable = 0
        for line in child.stdout:
            durable = int(line)
            if durable > 2000 + 331 * turn:
                break
        os.kill(child.pid, signal.SIGKILL)
        rest = child.stdout.read().split()
        child.wait()
        durable = max([durable, *map(int, rest)])
        told = record.verify(record.Store(tmp_path))
        # The kernel ends a killed process's write between two pages: torn, beyond what was durable.
        assert told["state"] in ("clean", "torn") and not told["live"], told
        assert told["last_seq"] >= told["durable_seq"] >= durable and not told["missing"], told
        with appliance.open_log(tmp_path) as reader:
            for batch in reader:
                assert all(bytes(r) == (r.seq - 1).to_bytes(8, "big") * 40 for r in batch)


def lay_slots(device, paths, slots: int):
    """The layout of a block device in a plain file, without a state page."""
    with open(device, "wb") as file:
        for slot, path in enumerate(paths):
            file.seek(log_scan.DEVICE_FIRST + slot * (1 << 18))
            file.write(path.read_bytes())
        file.truncate(log_scan.DEVICE_FIRST + slots * (1 << 18))
    return device


@pytest.fixture
def segments(tmp_path):
    """The files of a log of 5,000 packets."""
    with log_writer.LogWriter(tmp_path / "log", segment_bytes=1 << 18) as writer:
        for number in range(5000):
            writer.append(frame(number), BASE_NS + number)
    return sorted((tmp_path / "log").glob("*.oclog"))


def test_slots_of_a_device_are_read_like_files_and_recovered_in_place(tmp_path, segments):
    device = lay_slots(tmp_path / "device", segments[2:] + segments[:2], len(segments) + 1)
    with appliance.open_log(device) as reader:
        assert all_seqs(reader) == list(range(1, 5001)) and reader.state == "clean"
    with open(device, "r+b") as file:  # the end of the last one is torn
        at = log_scan.DEVICE_FIRST + (len(segments) - 3) * (1 << 18)
        file.seek(at + segments[-1].stat().st_size - 8192)
        file.write(bytes(8192))
    told = record.recover(record.Store(device))
    assert told["state"] == "torn" and told["cut_bytes"] > 0
    assert record.verify(record.Store(device))["state"] == "clean"
    assert record.recover(record.Store(device))["cut_bytes"] == 0


@pytest.mark.root
def test_a_block_device_is_read_and_recovered(tmp_path, segments):
    image = lay_slots(tmp_path / "image", segments, len(segments))
    done = subprocess.run(["losetup", "-f", "--show", image], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"probe losetup: {done.stderr.strip()}")
    device = done.stdout.strip()
    try:
        with appliance.open_log(device) as reader:
            assert all_seqs(reader) == list(range(1, 5001)) and reader.state == "clean"
        at = log_scan.DEVICE_FIRST + (len(segments) - 1) * (1 << 18)
        with open(device, "r+b") as file:
            file.seek(at + segments[-1].stat().st_size - 9000)
            file.write(bytes(9000))
        assert record.recover(record.Store(device))["state"] == "torn"
        told = record.verify(record.Store(device))
        assert told["state"] == "clean" and 4900 < told["last_seq"] < 5001
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


def test_a_log_over_two_devices_is_one(tmp_path, segments):
    devices = [lay_slots(tmp_path / "one", segments[::2], 5),
               lay_slots(tmp_path / "two", segments[1::2], 5)]
    with appliance.open_log(devices) as reader:
        assert all_seqs(reader) == list(range(1, 5001)) and reader.state == "clean"
    assert record.verify(record.Store(devices[0]))["state"] == "damaged"
    with pytest.raises(ConfigError, match="all directories or all devices"):
        record.Store([devices[0], tmp_path / "log"])


def test_a_directory_that_is_none_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="cannot open log"):
        appliance.open_log(tmp_path / "absent")
    (tmp_path / "file").write_bytes(bytes(5000))
    with pytest.raises(ConfigError, match="holds no log"):
        next(iter(appliance.open_log(tmp_path / "file")))
