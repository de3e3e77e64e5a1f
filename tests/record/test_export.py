"""A recorded log as pcapng: packet for packet what was recorded, read by those who must read it.

The packets are those of the real captures, written through LogWriter; the way over the wire is
tested with the recorder. OPENCLAW_FULL=1 takes every capture instead of a dozen.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess

import numpy as np
import pytest

import appliance
from appliance import capture
from appliance.dataplane import log_writer
from appliance.errors import ConfigError, LogDamaged
from appliance.record.export import export, target
from tests.conftest import CAPTURES, ethernet_captures
from tests.record.images import BASE_NS

FULL = bool(os.environ.get("OPENCLAW_FULL"))
FILES = ethernet_captures()
CHOSEN = (FILES if FULL else FILES[:: max(1, len(FILES) // 12)]) or [CAPTURES / "none"]


def needs(tool: str) -> str:
    found = shutil.which(tool)
    if found is None:
        pytest.skip(f"probe {tool}: not installed")
    return found


def record_capture(path, directory) -> capture.Capture:
    """Its packets in a log, alternating over two ports."""
    taken = capture.read_capture(path)
    with log_writer.LogWriter(directory, segment_bytes=4 << 20, block_bytes=1 << 20,
                              preallocate=False,
                              ports=[(0, "in0", "veth-a", 1, 0), (1, "in1", "veth-b", 1, 0)],
                              ) as writer:
        for number, packet in enumerate(taken):
            wire = max(int(taken.wire_lengths[number]), len(packet))
            writer.append(packet, int(taken.timestamps_ns[number]), original=wire, port=0)
    return taken


@pytest.mark.parametrize("path", CHOSEN, ids=lambda path: str(path.relative_to(CAPTURES)))
def test_a_capture_recorded_and_exported_is_the_same_packet_for_packet(path, captures, tmp_path):
    taken = record_capture(path, tmp_path / "log")
    out = tmp_path / "out.pcapng"
    with appliance.open_log(tmp_path / "log") as log, target(str(out)) as stream:
        told = export(log, stream)
    assert told["packets"] == len(taken) and told["state"] == "clean"
    again = capture.read_capture(out)
    assert again.truncated is None and again.link_type == 1
    assert np.array_equal(again.timestamps_ns, taken.timestamps_ns)
    assert np.array_equal(again.lengths, taken.lengths)
    assert np.array_equal(again.wire_lengths, np.maximum(taken.wire_lengths, taken.lengths))
    assert bytes(again.data) == bytes(taken.data)
    for tool, words in (("tcpdump", ["-nn", "-q", "-c", "10", "-r"]), ("capinfos", ["-c"])):
        if shutil.which(tool):
            done = subprocess.run([tool, *words, out], capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stderr
            assert "truncated" not in done.stderr and "damaged" not in done.stderr, done.stderr


@pytest.fixture
def lossy(tmp_path):
    """Three packets of two ports, and what one of them lost."""
    directory = tmp_path / "log"
    with log_writer.LogWriter(directory, segment_bytes=1 << 20,
                              ports=[(0, "in0", "veth-a", 1, 0), (7, "in7", "veth-b", 1, 96)],
                              ) as writer:
        writer.append(bytes(60), BASE_NS + 1, port=0)
        writer.append(bytes(range(96)), BASE_NS + 2_000_000_003, original=1500, port=7)
        writer.gap(BASE_NS + 5, BASE_NS + 9, {"record_no_memory": 40, "device": 2}, port=7)
        writer.append(bytes(61), BASE_NS + 2_000_000_004, port=0)
    return directory


def test_tshark_reads_interfaces_nanoseconds_lengths_and_drops_from_a_pipe(lossy):
    tshark = needs("tshark")
    stream = io.BytesIO()
    with appliance.open_log(lossy) as log:
        told = export(log, stream)
    assert told["lost"] == 42
    fields = ["frame.interface_name", "frame.time_epoch", "frame.len", "frame.cap_len"]
    words = [tshark, "-r", "-", "-T", "fields", *(w for f in fields for w in ("-e", f))]
    done = subprocess.run(words, input=stream.getvalue(), capture_output=True, timeout=120)
    rows = [row.split("\t") for row in done.stdout.decode().splitlines()]
    assert done.returncode == 0, done.stderr
    assert rows == [
        ["veth-a", "1700000000.000000001", "60", "60"],
        ["veth-b", "1700000002.000000003", "1500", "96"],
        ["veth-a", "1700000002.000000004", "61", "61"]]
    complaints = [line for line in done.stderr.decode().splitlines()
                  if "Running as user" not in line and line]
    assert not complaints


def test_the_statistics_block_has_what_was_not_recorded_with_its_reasons(lossy):
    stream = io.BytesIO()
    with appliance.open_log(lossy) as log:
        export(log, stream)
    data, at, blocks = stream.getvalue(), 0, []
    while at < len(data):
        kind, size = np.frombuffer(data, "<u4", 2, at).tolist()
        assert size % 4 == 0 and np.frombuffer(data, "<u4", 1, at + size - 4)[0] == size
        blocks.append((kind, data[at + 8:at + size - 4]))
        at += size
    assert [kind for kind, _ in blocks] == [0x0A0D0D0A, 1, 6, 1, 6, 6, 5, 5] or \
        [kind for kind, _ in blocks] == [0x0A0D0D0A, 1, 1, 6, 6, 6, 5, 5]
    last = blocks[-1][1]
    assert last[:4] == (1).to_bytes(4, "little")
    assert b"not recorded: device 2, record_no_memory 40" in last
    assert b"\x05\x00\x08\x00" + (42).to_bytes(8, "little") in last  # isb_ifdrop
    assert b"\x04\x00\x08\x00" + (43).to_bytes(8, "little") in last  # isb_ifrecv


def test_what_precedes_damage_is_exported_and_said(lossy):
    path = lossy / "000000000000.oclog"
    with open(path, "r+b") as file:
        file.seek(4096 + 112 + 48 + 64 + 60)  # in the second packet
        file.write(b"\xff\xff")
    stream = io.BytesIO()
    with appliance.open_log(lossy) as log, pytest.raises(LogDamaged):
        export(log, stream)
    (lossy / "out").write_bytes(stream.getvalue())
    assert len(capture.read_capture(lossy / "out")) == 1


def test_an_output_that_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path):
    with pytest.raises(ConfigError, match="cannot write"), target(str(tmp_path / "no" / "file")):
        pass
    with pytest.raises(ConfigError, match="No space left"), target("/dev/full") as stream:
        stream.write(bytes(1 << 20))
