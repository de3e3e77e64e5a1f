"""kill -9 while it records at full rate: everything that was called durable is there.

The short form kills three times, OPENCLAW_FULL=1 a hundred times.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from appliance import record
from appliance.engine import client
from tests.engine.support import (
    Appliance,
    Traffic,
    consumer_table,
    control_table,
    port_table,
    rule_table,
    wait_for,
)
from tests.record.recorder_support import PACKET, Rig, records

FULL = os.environ.get("OPENCLAW_FULL") == "1"
ROOT = Path(__file__).resolve().parents[2]


def kill_one(directory: Path, wait_s: float, *words: str) -> None:
    """Starts the recording process, and kills it that long after its first durable packets."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.record.recorder_process", str(directory), *words],
        stdout=subprocess.PIPE, cwd=ROOT, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        time.sleep(wait_s)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_what_was_called_durable_survives_a_killed_recorder(tmp_path):
    seed = random.randrange(1 << 30)
    rng = random.Random(seed)
    print(f"seed {seed}")
    for number in range(100 if FULL else 3):
        where = tmp_path / str(number)
        kill_one(where, rng.random() * 0.4, "segment_mib=2", "memory_mib=16")
        store = record.Store(str(where))
        promised = store.state()["durable_seq"]
        assert promised > 0
        found = records(where, payloads=False)
        assert [one[10] for one in found] == list(range(1, len(found) + 1))
        assert len(found) >= promised, f"seed {seed}, kill {number}"
        assert all(one[2] == PACKET for one in found)
        report = record.recover(store)
        assert report["state"] in ("clean", "torn") and report["last_seq"] >= promised, report
        assert record.verify(store)["state"] == "clean"
        for file in where.iterdir():
            file.unlink()


def test_a_recorder_starts_again_by_itself_on_what_a_killed_one_left(tmp_path):
    last = 0
    for _ in range(3):
        kill_one(tmp_path, 0.1, "segment_mib=2", "memory_mib=16")
        promised = record.Store(str(tmp_path)).state()["durable_seq"]
        assert promised > last
        last = promised
    with Rig(tmp_path, segment_mib=2) as rig:
        rig.feed([b"the last one" * 8])
    final = rig.recording.stop()
    found = records(tmp_path, payloads=False)
    assert [one[10] for one in found] == list(range(1, final["durable_seq"] + 1))
    assert final["durable_seq"] > last
    assert record.verify(record.Store(str(tmp_path)))["state"] == "clean"


@pytest.mark.usefixtures("needs_xdp_socket", "needs_namespaces")
def test_a_killed_appliance_leaves_a_log_with_all_that_its_figures_called_durable(lab, tmp_path):
    where = tmp_path / "log"
    text = (port_table("in0", lab.b) + rule_table("in0", "udp", consumers=["keep", "c"])
            + consumer_table("keep", "record", directory=str(where), segment_mib=4)
            + consumer_table("c", "count") + control_table(tmp_path))
    with Appliance(text, tmp_path) as made:
        made.ready()
        with Traffic(lab.a):
            def durable() -> int:
                entry = client.ask(made.socket, "stats")["consumers"][0]
                return entry["record"]["durable_seq"]

            assert wait_for(lambda: durable() > 500, 20)
            promised = durable()
            made.process.send_signal(signal.SIGKILL)
            made.process.wait()
    found = records(where)
    assert len(found) >= promised
    assert [one[10] for one in found] == list(range(1, len(found) + 1))
    assert record.recover(record.Store(str(where)))["state"] in ("clean", "torn")
