"""Configurations that would stall, each by its name, and the arithmetic that refuses it.

Every one is the smallest change of one that runs; that one is planned beside it.
"""

from __future__ import annotations

import re

import pytest
from click.testing import CliRunner

from appliance import config
from appliance.cli.mem import command
from appliance.plan import PortFacts, plan

SHARE = 'kind = "share", policy = "reliable", quota_frames = '


def text(frames=8192, memory="", port="", consumers=('{name = "c", kind = "count"}',), to=False):
    names = ", ".join(f'"{name}"' for name in re.findall(r'name = "(\w+)"', " ".join(consumers)))
    more = '{port = "out0", match = "", action = "pass"}' if to else ""
    out = '{name = "out0", interface = "veth-o", queues = "all"}' if to else ""
    return f"""
memory = {{frames_per_queue = {frames}{memory}}}
port = [{{name = "in0", interface = "veth-i"{port}}}, {out}]
rule = [{{port = "in0", match = "", action = "consume", consumers = [{names}]}}, {more}]
consumer = [{", ".join(consumers)}]
"""


def one(words):
    return (f'{{name = "c", {words}}}',)


# name: (what runs, what stalls, facts of in0, free hugepages, what the line must say)
TEN = {
    "FILL below hardware ring plus RX ring": (
        text(8192), text(1024), PortFacts(hardware_ring=1024), None,
        "in0/0: FILL holds 768 < 1280 = hardware ring 1024 + RX ring 256: "
        "raise memory.frames_per_queue to 4096",
    ),
    "one quota that leaves FILL nothing": (
        text(consumers=one(SHARE + "1024")), text(consumers=one(SHARE + "6100")), PortFacts(),
        None,
        "in0/0: no frame is left for FILL: 6144 rx frames - burst 64 - quota 6100 of \"c\" = -20: "
        "raise memory.frames_per_queue to 16384 or lower quota_frames",
    ),
    "quotas that add up to more than the rings leave": (
        text(consumers=(f'{{name = "a", {SHARE}2000}}', f'{{name = "b", {SHARE}2000}}')),
        text(consumers=(f'{{name = "a", {SHARE}2000}}', f'{{name = "b", {SHARE}2100}}')),
        PortFacts(), None,
        "6144 rx frames < 6212 = hardware ring 0 + RX ring 2048 + burst 64 + quotas 4100",
    ),
    "received frames that wait to be sent on": (
        text(consumers=(f'{{name = "a", {SHARE}1900}}', '{name = "r", kind = "reflect"}')),
        text(consumers=(f'{{name = "a", {SHARE}2000}}', '{name = "r", kind = "reflect"}')),
        PortFacts(), None,
        "6144 rx frames < 6160 = hardware ring 0 + RX ring 2048 + burst 64 + quotas 2000 + "
        "TX ring 2048, where received frames wait to be sent on",
    ),
    "jumbo fragments in hand": (
        text(1024, port=", jumbo = false"), text(1024, port=", jumbo = true"),
        PortFacts(hardware_ring=300), None,
        "768 rx frames < 812 = hardware ring 300 + RX ring 256 + burst 256 (64 x 4 fragments)",
    ),
    "a jumbo packet of more fragments than the kernel hands over": (
        text(port=", jumbo = true"), text(port=", jumbo = true", memory=", frame_bytes = 2048"),
        PortFacts(mtu=65535), None,
        "in0: MTU 65535 + 18 = 37 fragments of 1792 bytes > 18, the most of one packet",
    ),
    "joined memory beyond what is registered at once": (
        text(1 << 20, to=True, port=", queues = [0, 1]"),
        text(1 << 20, to=True, port=", queues = [0, 1, 2, 3]",
             consumers=one('kind = "forward", to = "out0"')),
        PortFacts(queues=4), None,
        "in0/0, in0/1, in0/2, in0/3, out0/0: 5242880 frames > 4194304",
    ),
    "magazines that keep the whole mid tier": (
        text(consumers=one(SHARE + "100"), memory=", mid_cap_mib = 4"),
        text(consumers=one(SHARE + "100"), memory=", mid_cap_mib = 0"), PortFacts(), None,
        "mid tier: memory.mid_cap_mib 0 < 2 MiB = 2 MiB in magazines (1 workers + 1, 1 sizes)",
    ),
    "copies of a held quota beyond the mid tier": (
        text(consumers=one(SHARE + "2048"), memory=", mid_cap_mib = 10"),
        text(consumers=one(SHARE + "2048"), memory=", mid_cap_mib = 8"), PortFacts(), None,
        "mid tier: memory.mid_cap_mib 8 < 10 MiB = 2 MiB in magazines (1 workers + 1, 1 sizes) + "
        "8 MiB of copies (quotas 2048 x 4096 bytes): raise memory.mid_cap_mib to 10",
    ),
    "record blocks beyond the mid tier": (
        text(consumers=one('kind = "record", directory = "/r"'), memory=", mid_cap_mib = 66"),
        text(consumers=one('kind = "record", directory = "/r"'), memory=", mid_cap_mib = 64"),
        PortFacts(), None,
        "mid tier: memory.mid_cap_mib 64 < 66 MiB = 2 MiB in magazines (1 workers + 1, 1 sizes) + "
        "64 MiB of \"c\"",
    ),
    "hugepages that are not there and are required": (
        text(memory=', hugepages = "auto"'), text(memory=', hugepages = "require"'), PortFacts(),
        16,
        "hugepages = require: 16 free < 17 = 16 of the ports + 1 of the mid tier (which may grow "
        "to 128): echo $(($(cat /proc/sys/vm/nr_hugepages) + 128)) > /proc/sys/vm/nr_hugepages",
    ),
}


@pytest.mark.parametrize("name", TEN)
def test_what_would_stall_is_refused_with_the_arithmetic(name):
    runs, stalls, facts, hugepages, words = TEN[name]
    known = {"in0": facts, "out0": PortFacts()}
    # What runs with one queue beside it: the same facts, but for the joined memories.
    assert plan(config.parse(runs), known, hugepages).refused == ()
    [line] = plan(config.parse(stalls), known, hugepages).refused
    assert words in line and "\n" not in line
    assert re.search(r"raise|lower|set|echo", line), "says what to change"


def test_there_are_ten_and_each_says_something_else():
    assert len(TEN) >= 10
    assert len({words.split(":")[-1] + words for *_, words in TEN.values()}) == len(TEN)


def test_what_is_raised_to_is_enough():
    """Whoever follows the line's advice is not sent on to another figure."""
    for runs, stalls, facts, hugepages, _ in TEN.values():
        known = {"in0": facts, "out0": PortFacts()}
        [line] = plan(config.parse(stalls), known, hugepages).refused
        for key in ("frames_per_queue", "mid_cap_mib"):
            advice = re.search(rf"raise memory\.{key} to (\d+)", line)
            if advice:
                better = re.sub(rf"{key} = \d+", f"{key} = {advice[1]}", stalls)
                assert plan(config.parse(better), known, hugepages).ok, line
        assert runs != stalls


def test_frames_are_raised_where_that_is_enough_and_the_plan_says_so():
    made = plan(config.parse(text()), {"in0": PortFacts(hardware_ring=2048)})
    assert made.ok
    assert "in0/0: 8192 frames raised to 8256, so that all RX" in made.reasons[0]
    assert made.as_dict()["frames"]["total"] == 8256


def test_mem_plan_exits_1_with_the_line(tmp_path):
    path = tmp_path / "stalls.toml"
    path.write_text(TEN["copies of a held quota beyond the mid tier"][1])
    done = CliRunner().invoke(command, ["plan", "--config", str(path)])
    assert done.exit_code == 1 and "memory.mid_cap_mib 8" in done.output
