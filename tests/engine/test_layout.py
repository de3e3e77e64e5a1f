"""The pure parts of the engine: who shares memory, which core, do the accounts add up, rates."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from appliance import limits
from appliance.config import parse
from appliance.dataplane import Frames, LoopQueue, Worker
from appliance.engine import accounts, build, cpus
from appliance.engine.rates import rates
from appliance.engine.statistics import percentiles
from appliance.errors import ConfigError
from appliance.plan import BURST, PortFacts
from tests.engine.support import consumer_table, rule_table


def port(name: str, **more) -> str:
    lines = [f'{key} = "{value}"' for key, value in more.items()]
    return "\n".join(["[[port]]", f'name = "{name}"', f'interface = "if-{name}"', *lines, ""])


def over(name: str, to: str) -> str:
    return consumer_table(name, "forward", to=to)


def names(layout) -> list[list[str]]:
    return [[f"{lane.port}/{lane.queue}" for lane in group.lanes] for group in layout.groups]


COUNT = consumer_table("c", "count")


def test_queues_that_forward_nowhere_have_memory_and_worker_of_their_own():
    config = parse(port("a") + port("b") + COUNT + rule_table("a", "", consumers=["c"])
                   + rule_table("b", "", consumers=["c"]))
    layout = build.layout(config, {"a": PortFacts(2), "b": PortFacts(1)})
    assert names(layout) == [["a/0"], ["a/1"], ["b/0"]]
    assert layout.group_of("a", 1) == (1, 0)
    assert {group.frames for group in layout.groups} == {8192}


def test_forwarding_joins_the_same_queue_numbers_of_both_ports():
    config = parse(port("a") + port("b") + over("f", "b") + COUNT
                   + rule_table("a", "", consumers=["f"]) + rule_table("b", "", consumers=["c"]))
    layout = build.layout(config, {"a": PortFacts(2), "b": PortFacts(2)})
    assert names(layout) == [["a/0", "b/0"], ["a/1", "b/1"]]
    group = layout.groups[1]
    assert [group.instances[n] for n in layout.route(group, group.lanes[0], ["c", "f"])] == [
        build.Instance("c", "count"), build.Instance("f", "forward", 1)]


def test_forwarding_to_a_port_with_fewer_queues_wraps_around():
    config = parse(port("a") + port("b") + over("f", "b") + COUNT
                   + rule_table("a", "", consumers=["f"]) + rule_table("b", "", consumers=["c"]))
    layout = build.layout(config, {"a": PortFacts(4), "b": PortFacts(2)})
    assert names(layout) == [["a/0", "a/2", "b/0"], ["a/1", "a/3", "b/1"]]


def test_a_chain_of_forwards_is_one_memory_with_a_target_for_each_lane():
    config = parse(port("a") + port("b") + port("c") + over("ab", "b") + over("bc", "c")
                   + over("ca", "a") + rule_table("a", "", consumers=["ab"])
                   + rule_table("b", "", consumers=["bc"]) + rule_table("c", "", consumers=["ca"]))
    layout = build.layout(config, {"a": PortFacts(2), "b": PortFacts(1), "c": PortFacts(2)})
    assert names(layout) == [["a/0", "a/1", "b/0", "c/0", "c/1"]]
    group = layout.groups[0]
    for lane in group.lanes:
        name = {"a": "ab", "b": "bc", "c": "ca"}[lane.port]
        (number,) = layout.route(group, lane, [name])
        target = group.lanes[group.instances[number].target]
        assert target.port == config.consumer(name).to
        assert target.place == lane.place % len(layout.queues[target.port])


def test_shared_memory_holds_all_rings_full_at_once():
    for ring in (0, 512, 4096):
        config = parse(port("a") + port("b") + over("f", "b") + COUNT
                       + rule_table("a", "", consumers=["f"])
                       + rule_table("b", "", consumers=["c"]))
        facts = {"a": PortFacts(1, ring), "b": PortFacts(1, ring)}
        (group,) = build.layout(config, facts).groups
        plans = [build.plan_queue(name, 0, config, facts[name]) for name in "ab"]
        needed = sum(plan.fill_target + plan.tx_ring + BURST for plan in plans)
        assert group.frames - group.tx_frames >= needed
        assert group.frames >= 2 * 8192


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (port("a") + port("b", jumbo="x").replace('"x"', "true"), "jumbo must be the same"),
        (port("a", poll="busy") + port("b"), "poll must be the same"),
        (port("a", mode="copy") + port("b", mode="zerocopy"), "both copy or both zerocopy"),
    ],
)
def test_ports_that_share_memory_have_to_be_alike(text, words):
    config = parse(text + over("f", "b") + COUNT + rule_table("a", "", consumers=["f"])
                   + rule_table("b", "", consumers=["c"]))
    with pytest.raises(ConfigError, match=words):
        build.layout(config)


def test_more_queues_than_a_worker_takes_are_refused_by_name():
    config = parse(port("a") + port("b") + over("f", "b") + COUNT
                   + rule_table("a", "", consumers=["f"]) + rule_table("b", "", consumers=["c"]))
    with pytest.raises(ConfigError, match=r"joins 9 queues.*at most 8"):
        build.layout(config, {"a": PortFacts(8), "b": PortFacts(1)})
    assert len(build.layout(config, {"a": PortFacts(7), "b": PortFacts(1)}).groups) == 1


def test_the_limits_are_those_of_the_compiled_worker():
    frames = Frames(1024)
    queues = [LoopQueue(frames, n, 64, 64, 64) for n in range(limits.WORKER_QUEUES_MAX + 1)]
    count = ("count", -1)
    Worker(queues[:-1], [count] * limits.WORKER_CONSUMERS_MAX)
    with pytest.raises(ValueError):
        Worker(queues, [count])
    with pytest.raises(ValueError):
        Worker(queues[:1], [count] * (limits.WORKER_CONSUMERS_MAX + 1))
    worker = Worker(queues[:1], [count] * 20)
    worker.set_routes(0, {1: list(range(limits.RULE_CONSUMERS_MAX))})
    with pytest.raises(ValueError):
        worker.set_routes(0, {1: list(range(limits.RULE_CONSUMERS_MAX + 1))})


def test_workers_go_to_cores_near_their_memory_and_spread_over_them():
    node_of = {0: 0, 1: 0, 2: 1, 3: 1}
    assert cpus.choose([None, None, None], [0, 1], {}) == [0, 1, 0]
    assert cpus.choose([1, 1, 1, 0], [0, 1, 2, 3], node_of) == [2, 3, 2, 0]
    assert cpus.choose([1], [0], node_of) == [0]  # nothing near is allowed
    assert cpus.choose([0, None], [0, 2], node_of) == [0, 2]


def test_the_topology_is_read_from_the_kernels_lists(tmp_path):
    for node, text in ((0, "0-2,8\n"), (1, "3\n"), (2, "\n")):
        (tmp_path / f"node{node}").mkdir()
        (tmp_path / f"node{node}" / "cpulist").write_text(text)
    assert cpus.topology(tmp_path) == {0: 0, 1: 0, 2: 0, 8: 0, 3: 1}
    assert cpus.topology(tmp_path / "none") == {}


EVEN = {
    "frames": {"total": 10, "free": 4, "cached": 0, "fill": 5, "rx": 0, "leased": 1, "tx": 0,
               "completion": 0, "leaked": 0},
    "ports": [{"name": "a", "backend": "afxdp", "rx_frames": 90,
               "lost": {"rx_dropped": 7, "rx_ring_full": 3},
               "steering": {"seen": 111, "consumed": 100, "passed": 10, "dropped": 1}}],
}


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("frames", "leaked"), 1, "1 frames leaked"),
        (("frames", "free"), 3, "9 frames in all states, of 10"),
        (("ports", 0, "rx_frames"), 91, "a: 100 packets given to the sockets, 101 arrived"),
        (("ports", 0, "steering", "seen"), 112, "112 packets seen, 111 decided"),
    ],
)
def test_an_account_that_does_not_add_up_is_named(path, value, words):
    assert accounts.problems(EVEN) == []
    odd = copy.deepcopy(EVEN)
    at = odd
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    assert any(words in line for line in accounts.problems(odd))


def test_percentiles_of_a_histogram_are_bounds_and_never_exceed_the_largest():
    counts = np.zeros(1024, np.uint64)
    assert percentiles(counts, 0) == {"p50": 0, "p99": 0, "p999": 0}
    counts[5] = 98
    counts[10] = 1
    counts[15] = 1
    assert percentiles(counts, 15) == {"p50": 5, "p99": 10, "p999": 15}
    counts[:] = 0
    counts[40] = 1
    assert percentiles(counts, 25)["p50"] == 25


def test_rates_are_differences_over_time_and_begin_anew_with_a_new_appliance():
    def stats(uptime, count, pid=1):
        return {"pid": pid, "uptime_s": uptime, "state": "ok", "reasons": [], "frames": {},
                "events": [], "latency_ns": {}, "drops": {"rx_dropped": count // 10},
                "ports": [{"name": "a", "link": "up", "rx_frames": count, "rx_bytes": 100 * count,
                           "tx_frames": 0}],
                "steering": {"by_rule": {"1": count}},
                "consumers": [{"name": "c", "kind": "count", "frames": count, "dropped": 0}]}

    rules = [{"id": 1, "port": "a", "action": "consume", "match": ""}]
    found = rates(stats(10.0, 1000), stats(12.0, 3000), rules)
    assert found["ports"][0]["rx_pps"] == found["rules"][0]["pps"] == 1000
    assert found["ports"][0]["rx_bps"] == 800_000
    assert found["consumers"][0]["pps"] == 1000 and found["drops"][0]["pps"] == 100
    fresh = rates(stats(10.0, 1000, pid=1), stats(2.0, 500, pid=2), rules)
    assert fresh["ports"][0]["rx_pps"] == 250
