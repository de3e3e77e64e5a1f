"""Real captures through XDP into the log: what the log holds is what was sent, per queue in order.

The short form takes a dozen captures that together have every shape; OPENCLAW_FULL=1 takes all.
"""

from __future__ import annotations

import os
import subprocess

import pytest

import appliance
from appliance import demo, record
from appliance.capture import read_capture
from appliance.demo.rig import ONE_BUFFER
from appliance.demo.traffic import prepare
from tests.conftest import ethernet_captures
from tests.demo.test_every_capture import readable

pytestmark = pytest.mark.root

FULL = os.environ.get("OPENCLAW_FULL") == "1"
SHORT = 12


def chosen():
    """All, or evenly spread ones and the one with the longest packets."""
    paths = ethernet_captures()
    if FULL or len(paths) <= SHORT:
        return paths
    step = len(paths) // SHORT
    return paths[::step][:SHORT]


def expected_by_queue(captures, longest: int) -> dict[int, list[bytes]]:
    """What the rules consume of each capture, from the files and offline verdicts alone."""
    out: dict[int, list[bytes]] = {0: [], 1: []}
    for capture in captures:
        traffic = prepare(capture, longest=longest, queues=demo.QUEUES, repeat=1,
                          longest_reason="longer_than_link")
        data = bytes(traffic.expected)
        for number, lane in enumerate(traffic.lanes):
            out[number] += [
                data[at : at + size]
                for at, size in zip(lane.expected_offsets.tolist(),
                                    lane.expected_lengths.tolist(), strict=True)
            ]
    return out


def test_every_capture_is_recorded_packet_for_packet(captures, tmp_path):
    read = [made for path in chosen() if (made := readable(path)) is not None]
    if not read:
        pytest.skip(f"no Ethernet captures below {captures}")
    found = demo.run(read, keep=str(tmp_path))
    assert found["faults"] == []
    account = found["consumers"][1]["record"]
    assert account["durable"] == account["packets"] == found["received"] > 100
    longest = max(max(int(one.lengths.max()) for one in read if len(one)), 1514)
    if found["skipped"].get("longer_than_frame"):
        longest = ONE_BUFFER
    wanted = expected_by_queue(read, longest)
    got: dict[int, list[bytes]] = {0: [], 1: []}
    last = {0: 0, 1: 0}
    with appliance.open_log(str(tmp_path)) as log:
        for batch in log:
            for one, queue, when, length in zip(
                batch, batch.queues.tolist(), batch.timestamps_ns.tolist(),
                batch.originals.tolist(), strict=True,
            ):
                got[queue].append(bytes(memoryview(one)))
                assert length == len(got[queue][-1])
                assert when >= last[queue], "time goes back within a queue"
                last[queue] = when
    for queue in got:
        assert len(got[queue]) == len(wanted[queue])
        assert got[queue] == wanted[queue]
    assert record.verify(record.Store(str(tmp_path)))["state"] == "clean"


@pytest.mark.skipif(not FULL, reason="OPENCLAW_FULL=1 runs the command for each capture")
@pytest.mark.parametrize("path", ethernet_captures() if FULL else [], ids=lambda path: path.name)
def test_the_command_leaves_a_recording_that_other_tools_read(path, tmp_path):
    from tests.engine.support import COMMAND

    if readable(path) is None:
        pytest.skip("mixes interfaces")
    ran = subprocess.run(
        [COMMAND, "demo", "--pcap", path, "--keep", str(tmp_path / "log"), "--json"],
        capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr
    out = tmp_path / "out.pcapng"
    subprocess.run([COMMAND, "log", "export", str(tmp_path / "log"), "--pcapng", str(out)],
                   check=True, capture_output=True, timeout=600)
    with appliance.open_log(str(tmp_path / "log")) as log:
        count = sum(len(batch) for batch in log)
    if count:
        assert len(read_capture(str(out))) == count
