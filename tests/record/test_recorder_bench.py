"""`openclaw bench record`, as briefly as it goes: shape and accounts. Nothing asserts a speed."""

from __future__ import annotations

import shutil

import pytest

from tests.bench.test_bench import SPREAD, bench

pytestmark = pytest.mark.root


def test_it_reports_packets_loss_cpu_and_disk_of_ours_and_of_a_peer():
    peers = [name for name in ("tcpdump",) if shutil.which(name)]
    report = bench("record", "--against", ",".join(peers) or "none", "--reps", "1",
                   "--seconds", "0.3", "--size", "256")
    cases = {one["case"].split(": ")[1]: one for one in report["results"]}
    assert list(cases)[:4] == ["recorded", "lost", "process", "written"]
    assert report["results"][-1]["unit"] == "MB/s"
    for one in report["results"]:
        assert set(one["ours"]) >= SPREAD
        assert one["case"].endswith("lost") or one["ours"]["median"] > 0
    recorded = cases["recorded"]
    assert set(recorded["peers"]) == set(peers)
    assert recorded["cpu_ns_per_packet"]["ours"]["median"] > 0
    assert not cases["lost"]["higher_is_better"]
