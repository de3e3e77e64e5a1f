"""`openclaw log`: exit statuses, one object with --json, one line for errors, streams."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from appliance.dataplane import log_writer
from tests.record.images import BASE_NS
from tests.record.test_reading import frame

OPENCLAW = [sys.executable, "-m", "appliance.cli.main", "log"]
REPORT = {"segments", "records", "bytes", "state", "first_seq", "last_seq", "durable_seq", "gaps",
          "cause"}


def log(*words, **options):
    command = [*OPENCLAW, *map(str, words)]
    return subprocess.run(command, capture_output=True, timeout=120, **options)


def one_line(done, status: int) -> str:
    assert done.returncode == status, done.stderr
    [line] = done.stderr.decode().splitlines()
    assert line.startswith("openclaw: ") and not done.stdout
    return line


@pytest.fixture
def directory(tmp_path):
    """Three segments of 3,000 packets and one gap."""
    with log_writer.LogWriter(tmp_path / "log", segment_bytes=1 << 18, preallocate=False,
                              ports=[(0, "in0", "veth-b", 1, 0)]) as writer:
        for number in range(3000):
            writer.append(frame(number, 100), BASE_NS + number * 10**6)
        writer.gap(BASE_NS, BASE_NS + 5, {"record_no_memory": 12}, port=0)
    return tmp_path / "log"


def test_verify_says_what_the_contract_names(directory):
    done = log("verify", directory, "--json")
    told = json.loads(done.stdout)
    assert done.returncode == 0 and set(told) >= REPORT and told["state"] == "clean"
    assert (told["records"], told["last_seq"], told["durable_seq"]) == (3001, 3001, 3001)
    [gap] = told["gaps"]
    assert gap["packets"] == 12 and gap["reasons"] == {"record_no_memory": 12}


def test_a_torn_log_is_recovered_once_and_a_damaged_one_is_refused(directory):
    last = max(directory.glob("*.oclog"))
    with open(last, "r+b") as file:
        file.truncate(last.stat().st_size - 9000)
    told = json.loads(log("verify", directory, "--json").stdout)
    assert told["state"] == "torn" and told["cause"]
    done = log("recover", directory, "--json")
    told = json.loads(done.stdout)
    assert done.returncode == 0 and told["state"] == "torn" and told["cut_bytes"] > 0
    again = json.loads(log("recover", directory, "--json").stdout)
    assert again["state"] == "clean" and again["cut_bytes"] == 0
    assert again["records"] == told["records"]

    first = min(directory.glob("*.oclog"))
    with open(first, "r+b") as file:
        file.seek(20_000)
        file.write(b"\xff\xff\xff")
    before = first.read_bytes()
    for verb in ("verify", "recover"):
        done = log(verb, directory)
        assert done.returncode == 1 and b"damaged" in done.stdout, done
    done = log("export", directory, "--pcapng", directory.parent / "part.pcapng")
    assert "segment 0" in one_line(done, 1)
    assert first.read_bytes() == before


def test_a_log_that_is_being_recorded_is_verified_but_not_recovered(tmp_path):
    writer = log_writer.LogWriter(tmp_path / "log", segment_bytes=1 << 18)
    writer.append(frame(1), BASE_NS)
    writer.commit()
    assert json.loads(log("verify", tmp_path / "log", "--json").stdout)["live"]
    assert "a recorder is at work" in one_line(log("recover", tmp_path / "log"), 1)
    with pytest.raises(BlockingIOError):
        log_writer.LogWriter(tmp_path / "log", segment_bytes=1 << 18)
    writer.close()
    assert log("recover", tmp_path / "log").returncode == 0


def test_ls_lists_segments_with_their_times(directory):
    done = log("ls", directory, "--json")
    told = json.loads(done.stdout)
    assert [s["state"] for s in told["segments"]] == ["sealed"] * len(told["segments"])
    assert sum(s["records"] for s in told["segments"]) == 3001
    assert told["segments"][0]["from_ns"] == BASE_NS and not told["live"]
    assert told["ports"][0]["interface"] == "veth-b"
    assert b"2023-11-1" in log("ls", directory).stdout


def test_export_streams_to_standard_output_by_time_and_filter(directory, tmp_path):
    start = BASE_NS // 10**9
    done = log("export", directory, "--from", start + 1, "--to", f"{start + 1}.5",
               "--match", "udp port 53")
    assert done.returncode == 0 and b"501 packets" in done.stderr
    if shutil.which("tcpdump"):
        shown = subprocess.run(["tcpdump", "-nn", "-q", "-r", "-"], input=done.stdout,
                               capture_output=True, timeout=60)
        assert len(shown.stdout.splitlines()) == 501, shown.stderr
    done = log("export", directory, "--flow", "udp 10.0.0.1:1000 10.0.0.2:53", "--json",
               "--pcapng", tmp_path / "flow.pcapng")
    told = json.loads(done.stdout)
    assert told["packets"] == 3000 and told["lost"] == 12
    assert (tmp_path / "flow.pcapng").stat().st_size == told["bytes"]


def test_a_pipe_that_is_closed_early_is_no_error_of_ours(directory):
    command = " ".join([*OPENCLAW, "export", str(directory)]) + " | head -c 100 | wc -c"
    done = subprocess.run(["bash", "-c", command], capture_output=True, timeout=120)
    assert done.stdout.strip() == b"100" and b"Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize("words, named", [
    (["verify", "/nonexistent"], "/nonexistent"),
    (["verify"], "DIR"),
    (["export", "DIR", "--from", "yesterday"], "--from"),
    (["export", "DIR", "--match", "foo bar"], "match"),
    (["export", "DIR", "--flow", "tcp 1.2.3.4"], "flow"),
    (["export", "DIR", "--json"], "--pcapng"),
    (["export", "DIR", "--pcapng", "/nonexistent/x"], "/nonexistent/x"),
    (["rewind", "DIR"], "rewind"),
])
def test_bad_usage_is_one_line_and_status_2(directory, words, named):
    done = log(*[directory if word == "DIR" else word for word in words])
    lines = done.stderr.decode().splitlines()
    assert done.returncode == 2 and len(lines) == 1 and named in lines[0], done.stderr


def test_an_empty_directory_is_no_log(tmp_path):
    assert "holds no log" in one_line(log("verify", tmp_path), 2)
