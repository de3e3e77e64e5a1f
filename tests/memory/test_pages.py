"""Which pages, and where: the hugepage ladder is a figure everywhere, nodes are read back.

What the kernel gave is asked of /proc/self/numa_maps, not of what we asked for.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.config import parse
from appliance.dataplane import Frames
from appliance.engine.engine import Engine
from appliance.engine.metrics import Collector
from appliance.errors import ConfigError
from appliance.memory import MidTier
from tests.engine.test_tiers import ONE
from tests.probes import hugepages_free

NODES = sorted(int(path.name[4:]) for path in Path("/sys/devices/system/node").glob("node[0-9]*")
               if path.name[4:].isdigit())


def pages_of(address: int) -> dict[int, int]:
    """Node -> pages of the mapping that holds the address."""
    found: list[str] = []
    for line in Path("/proc/self/numa_maps").read_text().splitlines():
        words = line.split()
        if int(words[0], 16) > address:
            break
        found = words
    return {int(key[1:]): int(count) for word in found if "=" in word
            for key, count in [word.split("=", 1)] if key[0] == "N" and key[1:].isdigit()}


needs_numa_maps = pytest.mark.skipif(
    not Path("/proc/self/numa_maps").exists(), reason="probe numa_maps: this kernel has none"
)


@needs_numa_maps
@pytest.mark.parametrize("node", NODES or [0])
def test_memory_that_was_asked_for_on_a_node_is_there(node):
    """On one node it is there in any case; then only the reading back is tried."""
    frames = Frames(1024, 4096, 256, "off", node, True)
    assert frames.arena.numa_node == node
    assert set(pages_of(frames.arena.address)) == {node}
    assert sum(pages_of(frames.arena.address).values()) >= 1024
    tier = MidTier(4, "off", numa=node, strict_numa=True)
    with tier.alloc(65536) as slab:
        assert set(pages_of(slab.address)) == {node}
        assert {one["node"] for one in tier.explain()["arenas"]} == {node}


@needs_numa_maps
@pytest.mark.skipif(len(NODES) < 2, reason="probe numa: one node")
def test_of_several_nodes_each_gets_what_was_asked_for_there():
    tiers = [MidTier(4, "off", numa=node, strict_numa=True) for node in NODES]
    slabs = [tier.alloc(65536) for tier in tiers]
    assert [set(pages_of(slab.address)) for slab in slabs] == [{node} for node in NODES]
    both = MidTier(8, "off", numa=NODES, strict_numa=True)
    with both.alloc(64) as slab:
        assert set(pages_of(slab.address)) <= set(NODES)


def test_without_free_hugepages_it_runs_on_small_pages_and_says_so_everywhere():
    if hugepages_free():
        pytest.skip("probe hugepages: some are free")
    with Engine(parse(ONE.format(cap=4))) as engine:
        engine.mid.alloc(64).release()
        stats, page = engine.statistics(), engine.explain()
        metrics = {metric.name: metric for metric in
                   Collector(engine.statistics, engine.rules).collect()}
    for said in (stats, stats["memory"], stats["memory"]["mid"], page):
        assert said["state"] == "degraded", said
    assert stats["memory"]["backing"] in ("4k", "thp")
    assert stats["memory"]["mid"]["backing"] in ("4k", "thp")
    words = "; ".join(stats["reasons"])
    assert "2 hugepages of 2 MiB are not free" in words
    assert "mid tier: 1 arenas found no free hugepage" in words
    assert set(page["reasons"]) >= set(stats["memory"]["reasons"])
    assert page["arenas"][0]["backing"] == stats["memory"]["backing"]
    assert metrics["openclaw_degraded"].samples[0].value == 1
    given = {sample.labels["tier"]: sample.labels["pages"]
             for sample in metrics["openclaw_memory_backing"].samples if sample.value}
    assert given == {"fast": stats["memory"]["backing"], "mid": stats["memory"]["mid"]["backing"]}


def test_a_page_of_one_gib_that_is_not_free_is_a_reason_and_the_next_rung_is_taken():
    text = ONE.format(cap=4).replace("[memory]", '[memory]\nhugepages = "1G"')
    with Engine(parse(text)) as engine:
        memory = engine.statistics()["memory"]
    if memory["backing"] == "1G":
        assert not any("1 GiB" in reason for reason in memory["reasons"])
    else:
        assert any("hugepages of 1 GiB are not free" in why for why in memory["reasons"])
        assert memory["state"] == "degraded"


def test_the_mid_tier_can_be_on_nodes_of_its_own():
    node = NODES[0] if NODES else 0
    for mid in (str(node), f"[{node}]"):
        text = ONE.format(cap=4).replace("[memory]", f"[memory]\nmid_numa = {mid}")
        with Engine(parse(text)) as engine, engine.mid.alloc(64):
            assert {one["node"] for one in engine.explain()["mid"]["arenas"]} == {node}
    for wrong in ("[]", "[0, 0]", '"here"', "-1"):
        with pytest.raises(ConfigError, match=r"memory\.mid_numa"):
            parse(ONE.format(cap=4).replace("[memory]", f"[memory]\nmid_numa = {wrong}"))
