"""`openclaw mem plan`: the arithmetic as a person sees it, and its exit status."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from appliance.cli.mem import command

CONFIG = """
[memory]
frames_per_queue = {frames}
[[port]]
name = "in0"
backend = "loop"
queues = [0, 1]
[[rule]]
port = "in0"
match = "udp"
action = "consume"
consumers = ["taps"]
[[consumer]]
name = "taps"
kind = "share"
policy = "reliable"
quota_frames = {quota}
"""


@pytest.fixture
def plan(tmp_path):
    def run(frames, quota, *words):
        path = tmp_path / "appliance.toml"
        path.write_text(CONFIG.format(frames=frames, quota=quota))
        return CliRunner().invoke(command, ["plan", "--config", str(path), *words])

    return run


def test_a_plan_names_frames_rings_and_arenas(plan):
    done = plan(8192, 1024, "--json")
    made = json.loads(done.stdout)
    assert done.exit_code == 0 and made["ok"]
    assert made["frames"]["total"] == 2 * 8192 == made["frames"]["rx"] + made["frames"]["tx"]
    assert set(made["rings"]) == {"in0/0", "in0/1"}
    assert made["arenas"]["bytes"] == 64 << 20


def test_a_plan_that_would_stall_says_why_with_the_arithmetic_and_exits_1(plan):
    done = plan(1024, 4096, "--json")
    made = json.loads(done.stdout)
    assert done.exit_code == 1 and not made["ok"]
    assert "quota 4096" in made["reasons"][0] and "raise memory.frames_per_queue" in (
        made["reasons"][0]
    )
    assert plan(1024, 4096).exit_code == 1
    assert "it would stall" in plan(1024, 4096).output
