"""The report that writes itself when memory runs out; the summary that the exception carries."""

from __future__ import annotations

import json
import stat
import time

import pytest

import appliance
from appliance.config import parse
from appliance.engine import places
from appliance.engine.engine import Engine
from appliance.errors import ConfigError, MemoryExhausted
from appliance.memory import EventLog, MidTier, Reporter, reporter
from tests.dataplane.wire import packet
from tests.engine.support import wait_for
from tests.engine.test_tiers import ONE


def configured(path):
    return parse(ONE.format(cap=2).replace("[memory]", f'[memory]\nreport = "{path}"'))


def exhaust(tier):
    with pytest.raises(MemoryExhausted) as caught:
        tier.alloc_bulk(65536, 33)
    return caught.value


def test_when_the_mid_tier_runs_out_the_page_is_written_once_a_minute_and_is_an_event(tmp_path):
    path = tmp_path / "state" / "memory.json"
    with Engine(configured(path)) as engine:
        with engine.mid.alloc(4096):
            exhaust(engine.mid)
            assert wait_for(path.exists)
        page = json.loads(path.read_text())
        assert page["why"].startswith("mid tier: refused ") and page["mid"]["cap_mib"] == 2
        assert {"arenas", "frames", "consumers", "events", "governor", "time", "pid"} <= set(page)
        assert [one["bytes"] for one in page["mid"]["classes"] if one["used"]] == [4096]
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        [event] = [e for e in engine.explain()["events"] if e["culprit"] == reporter.CULPRIT]
        assert event["action"] == "wrote a report" and str(path) in event["why"]
        before = path.stat().st_ino
        exhaust(engine.mid)
        time.sleep(0.1)
        assert path.stat().st_ino == before and engine._reporter.written == 1
    assert list(path.parent.iterdir()) == [path]


def test_a_report_that_cannot_be_written_is_an_event_and_nothing_else(tmp_path):
    (tmp_path / "file").write_text("in the way")
    events = EventLog()
    made = Reporter(str(tmp_path / "file" / "report"), dict, events)
    made.start()
    made.ran_out("frames")
    assert wait_for(lambda: events.total == 1)
    [event] = events.listed()
    assert event["action"] == "could not write a report" and "report: " in event["why"]
    made.stop()
    assert made.written == 0


def test_the_report_is_beside_the_control_socket_unless_configured():
    assert reporter.beside("/run/openclaw/control.sock") == "/run/openclaw/control.memory.json"
    config = parse(ONE.format(cap=2))
    assert places.report(config) == reporter.beside(config.control.socket)
    assert places.report(configured("")) == ""
    with pytest.raises(ConfigError, match=r"memory\.report"):
        configured("relative/path")


def test_the_exception_of_a_full_mid_tier_says_who_has_what():
    tier = MidTier(2)
    with tier.alloc(1000):
        error = exhaust(tier)
        assert error.summary.startswith("used by class: ") and error.summary in str(error)
        assert "at its cap of 2 MiB" in str(error)


@pytest.mark.parametrize("policy", ["strict", "lossy", "reliable"])
def test_the_exception_of_a_used_up_quota_says_what_this_program_holds(policy):
    with appliance.open_port("loop", backend="loop", frames=1024, quota_frames=2, policy=policy,
                             mid_cap_mib=2) as port:
        port.send([packet(n, 700) for n in range(3)])
        batch = next(port.recv(timeout_ms=0))
        views = [memoryview(frame) for frame in (batch[0], batch[1])]
        hoard = []
        if policy == "reliable":
            port._holding._spill(1)  # makes the tier
            with pytest.raises(MemoryExhausted):
                while True:
                    hoard.append(port._holding.tier.alloc(65536))
        with pytest.raises(MemoryExhausted) as caught:
            batch[2].hold()
        assert caught.value.summary.startswith("held 2 (2 looked at), oldest ")
        assert str(caught.value).count("\n") == 0
        for view in views:
            view.release()
