"""The engine's mid tier and the list of tiers that the governor watches."""

from __future__ import annotations

import re

import pytest

from appliance.config import parse
from appliance.engine import governor
from appliance.engine.engine import Engine
from appliance.engine.governor import MARKS, MID, PERSISTENT, Ladder, Level, State, decide
from appliance.engine.metrics import Collector
from appliance.engine.tiers import LOOK_S, TIDY_S, Tiers
from appliance.errors import ConfigError
from appliance.memory import MidTier
from tests.engine.support import wait_for

ONE = """
[memory]
frames_per_queue = 1024
mid_cap_mib = {cap}
[[port]]
name = "l0"
backend = "loop"
queues = [0]
[[rule]]
port = "l0"
match = ""
action = "consume"
consumers = ["c"]
[[consumer]]
name = "c"
kind = "count"
"""
THREE = Ladder.of([0, 1, 2])


class Disk:
    """A tier by the protocol alone: its figures are set by the test."""

    def __init__(self):
        self.answer = (0, 100, "ok", ())
        self.tidied = 0

    def pressure(self):
        return self.answer

    def tidy(self):
        self.tidied += 1


def test_the_engine_has_one_mid_tier_and_says_what_is_in_it():
    with Engine(parse(ONE.format(cap=16))) as engine:
        before = engine.statistics()["memory"]["mid"]
        assert (before["bytes"], before["used_bytes"], before["cap_bytes"]) == (0, 0, 16 << 20)
        assert engine.explain()["mid"]["classes"] == []
        held = engine.mid.alloc_bulk(65536, 3)
        mid = engine.statistics()["memory"]["mid"]
        assert mid["used_bytes"] == 3 * 65536 and mid["bytes"] == 2 << 20
        assert mid["backing"] in ("2M", "thp", "4k") and mid["state"] in ("ok", "degraded")
        page = engine.explain()["mid"]
        assert [(one["bytes"], one["used"]) for one in page["classes"]] == [(65536, 3)]
        assert [event["what"] for event in page["history"]] == ["grown"]
        names = {metric.name: metric for metric in
                 Collector(engine.statistics, engine.rules).collect()}
        assert names["openclaw_mid_used_bytes"].samples[0].value == 3 * 65536
        pages = {sample.labels["tier"]: sample.labels["pages"]
                 for sample in names["openclaw_memory_backing"].samples if sample.value}
        assert pages["mid"] == mid["backing"] and "fast" in pages
        view = memoryview(held[0])
        final = engine.stop()
    assert engine.mid is None and final["memory"]["mid"]["used_bytes"] == 3 * 65536
    view[:4] = b"mine"  # what is held outlives the appliance
    for slab in held:
        slab.release()


def test_a_cap_of_zero_is_an_appliance_without_a_mid_tier_and_one_mib_is_refused():
    with Engine(parse(ONE.format(cap=0))) as engine:
        assert engine.mid is None and engine.explain()["mid"] is None
        assert engine.statistics()["memory"]["mid"]["cap_bytes"] == 0
    with pytest.raises(ConfigError, match=re.escape("memory.mid_cap_mib")):
        parse(ONE.format(cap=1))


def test_a_filling_mid_tier_is_pressure_and_empty_arenas_go_back_when_it_is_quiet():
    with Engine(parse(ONE.format(cap=32))) as engine:
        held = engine.mid.alloc_bulk(65536, 32 * 15)  # of 16 arenas 15: past the trip

        def governed():
            return engine.statistics()["memory"]["governor"]

        assert wait_for(lambda: governed()["tiers"]["mid tier"]["used"] >= 30 << 20)
        assert wait_for(lambda: governed()["state"] == "pressure")
        assert not governed()["withheld"], \
            "a port with one priority has nothing to shed, and FILL has frames"
        assert "mid tier: 9" in governed()["reasons"][0]
        for slab in held:
            slab.release()
        assert wait_for(lambda: governed()["state"] == "ok")
        # Nobody calls tidy but the governor; magazines keep a few objects in one or two arenas.
        assert wait_for(lambda: engine.statistics()["memory"]["mid"]["bytes"] <= 12 << 20, 10)
        assert any(event["what"] == "given back" for event in engine.explain()["mid"]["history"])


def test_a_full_tier_sheds_the_ports_that_fill_it_and_never_withholds_fill():
    disk = Level("persistent", "recorder keep", 85, 100, ports=frozenset({"in0"}))
    assert governor.readings_of("in1", [disk]) == []
    [reading] = governor.readings_of("in0", [disk])
    assert reading.share == pytest.approx(0.85) and reading.share > PERSISTENT.trip
    state, now = State(), 0.0
    for _ in range(500):
        state, now = decide(THREE, state, [reading], now), now + 0.004
    assert THREE.shed_above(state.rung) == 0 and not THREE.withholds(state.rung)
    assert governor.reasons("in0", THREE, state)[0] == "in0: recorder keep: 85% full"


def test_every_mark_trips_above_where_it_clears():
    for mark in MARKS.values():
        assert 0 <= mark.clear < mark.pressure < mark.trip <= 1
    assert MID.trip < 1 and Level("mid", "m", 5, 0).share == 0.0


def test_a_degraded_tier_is_the_appliances_state_with_its_reasons():
    made = governor.summary(
        {"in0": (THREE, State())}, [Level("persistent", "disk", 0, 9, "degraded", ("disk: EIO",))]
    )
    assert made["state"] == "degraded" and made["reasons"] == ["disk: EIO"]
    assert made["tiers"]["disk"] == {
        "kind": "persistent", "used": 0, "capacity": 9, "state": "degraded"}


def test_tiers_are_asked_at_their_pace_and_tidied_only_when_it_is_quiet():
    tiers, disk, now = Tiers(), Disk(), 100.0
    tiers.watch("persistent", "disk", disk)
    tiers.look(now)
    disk.answer = (50, 100, "ok", ())
    tiers.look(now + LOOK_S / 2)
    assert tiers.levels[0].used == 0
    tiers.look(now + 2 * LOOK_S)
    assert tiers.levels[0].used == 50
    tiers.rest(now, quiet=True)
    tiers.rest(now + TIDY_S / 2, quiet=False)
    tiers.rest(now + TIDY_S, quiet=True)
    assert disk.tidied == 0
    tiers.rest(now + 2 * TIDY_S, quiet=True)
    assert disk.tidied == 1
    with pytest.raises(ValueError, match="kind"):
        tiers.watch("tape", "t", disk)


def test_a_tier_that_does_not_answer_is_degraded_and_the_others_are_still_asked():
    tiers, broken, disk = Tiers(), Disk(), Disk()
    broken.answer = None
    tiers.watch("persistent", "broken", broken)
    tiers.watch("mid", "mid", disk)
    tiers.look(0.0)
    assert [level.state for level in tiers.levels] == ["degraded", "ok"]
    assert tiers.levels[0].reasons[0].startswith("broken: does not answer")


def test_the_pressure_of_a_mid_tier_counts_arenas_in_use_and_no_empty_ones():
    tier = MidTier(8)
    assert tier.pressure() == (0, 8 << 20, "ok", ())
    with tier.alloc(100):
        assert tier.pressure()[0] == 2 << 20
    tier.slabs.trim(True)
    assert tier.pressure()[0] <= 2 << 20  # a magazine may keep it
