"""The demo on every Ethernet capture: each packet accounted for, each received one identical.

The short form replays all of them over one pair, one after the other. OPENCLAW_FULL=1 runs the
command itself for each file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from appliance import demo
from appliance.capture import read_capture
from appliance.steering import verdicts
from tests.conftest import capture_files, ethernet_captures

pytestmark = pytest.mark.root

FULL = os.environ.get("OPENCLAW_FULL") == "1"
# pcapng files whose second interface is no Ethernet or has another snapshot length: libpcap, and
# so every tool on it, refuses them.
MIXED = "mixes interfaces"


def readable(path):
    try:
        return read_capture(path)
    except Exception as error:
        if MIXED in str(error):
            return None
        raise


def holds(entry, capture):
    """What must be true of one capture's figures, from the file alone."""
    lengths = np.asarray(capture.lengths)
    sendable = int(((lengths >= 14) & (lengths <= 65_549)).sum())
    assert entry["sent"] == sendable
    assert entry["sent"] + sum(entry["skipped"].values()) == len(capture) == entry["packets"]
    dropped = sum(entry["drops"].values())
    assert entry["sent"] == entry["received"] + entry["passed"] + dropped
    assert entry["verified"] == entry["received"] and entry["mismatched"] == 0
    assert dropped == 0, f"a link that is not overrun loses nothing: {entry['drops']}"


def test_every_ethernet_capture_arrives_complete_and_unchanged(captures):
    read = [made for path in ethernet_captures() if (made := readable(path)) is not None]
    if not read:
        pytest.skip(f"no Ethernet captures below {captures}")
    found = demo.run(read)
    assert found["faults"] == []
    for entry, capture in zip(found["captures"], read, strict=True):
        holds(entry, capture)
    assert found["frames"]["leaked"] == 0
    assert found["frames"]["free"] == found["frames"]["total"]
    assert found["sent"] == found["received"] + found["steering"]["passed"] > 10_000


def test_captures_of_other_links_are_refused_with_one_line(captures):
    others = [path for path in capture_files() if path not in set(ethernet_captures())]
    if not others:
        pytest.skip(f"only Ethernet captures below {captures}")
    for path in others if FULL else others[:3]:
        ran = command(path)
        assert ran.returncode == 2, path
        assert ran.stderr.count("\n") == 1 and str(path) in ran.stderr
        assert json.loads(ran.stdout)["exit_status"] == 2


@pytest.mark.skipif(not FULL, reason="OPENCLAW_FULL=1 runs the command for each capture")
@pytest.mark.parametrize("path", ethernet_captures() if FULL else [], ids=lambda path: path.name)
def test_the_command_holds_for(path):
    capture = readable(path)
    ran = command(path)
    if capture is None:
        assert ran.returncode == 2 and ran.stderr.count("\n") == 1
        return
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    holds({**found, "passed": found["steering"]["passed"]}, capture)
    passed = [verdict for _, verdict in verdicts(demo.RULES, capture)].count("pass")
    assert found["steering"]["passed"] == passed
    assert found["frames"]["leaked"] == 0
    damaged = capture.truncated is not None
    assert ran.stderr.count("\n") == int(damaged), ran.stderr


def command(path: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "appliance.cli.main", "demo", "--json", "--pcap", str(path)]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
