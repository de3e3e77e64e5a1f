"""Figures and the page: arithmetic that decides who looks better, so each way round is tried."""

import pytest

from appliance.bench import figures, page
from appliance.bench.figures import OURS, Case, Sample

RATE = Case("rx", "packets/s", True)
DELAY = Case("p99", "ns", False)


def samples(case, ours, peer, **more):
    def runs(values):
        return [Sample({case.name: value}, **more) for value in values]

    return {OURS: runs(ours), "peer": runs(peer)}


def test_a_ratio_above_one_means_that_ours_is_better_whichever_way_the_unit_runs():
    rate = figures.result(RATE, samples(RATE, [200.0], [100.0]), {})
    delay = figures.result(DELAY, samples(DELAY, [100.0], [200.0]), {})
    assert rate["ratio"]["peer"]["median"] == delay["ratio"]["peer"]["median"] == 2.0
    lost = figures.result(DELAY, samples(DELAY, [200.0], [100.0]), {})
    assert lost["ratio"]["peer"]["median"] == 0.5


def test_ratios_are_taken_pair_by_pair_and_not_of_the_medians():
    # The machine was twice as fast in the second run, for both of them.
    result = figures.result(RATE, samples(RATE, [100.0, 200.0, 90.0], [100.0, 200.0, 100.0]), {})
    assert result["ratio"]["peer"] == {"min": 0.9, "median": 1.0, "max": 1.0}


def test_a_run_without_a_single_packet_has_no_ratio_and_does_not_end_the_benchmark():
    result = figures.result(RATE, samples(RATE, [5.0], [0.0]), {})
    assert result["ratio"] == {} and result["peers"]["peer"]["median"] == 0


def test_drops_are_summed_over_the_runs_and_cpu_time_has_its_spread():
    result = figures.result(
        RATE, samples(RATE, [1.0, 1.0], [1.0, 1.0], drops={"ring": 2, "none": 0},
                      cpu_ns_per_packet=50.0, per_packet={"syscalls_per_packet": 0.5}), {})
    assert result["drops"] == {"ours": {"ring": 4}, "peer": {"ring": 4}}
    assert result["cpu_ns_per_packet"]["ours"] == {"min": 50, "median": 50, "max": 50}
    assert result["per_packet"]["peer"] == {"syscalls_per_packet": 0.5}


@pytest.mark.parametrize("share, expected", [(0.5, 50), (0.99, 99), (0.999, 100), (1.0, 100)])
def test_percentiles_of_values_and_of_a_histogram_agree(share, expected):
    values = list(range(1, 101))
    assert figures.percentile(values, share) == expected
    assert figures.histogram_percentile([0] + [1] * 100, list(range(101)), share) == expected


def test_percentiles_of_nothing_are_zero():
    assert figures.percentile([], 0.5) == 0
    assert figures.histogram_percentile([0, 0], [1, 2], 0.5) == 0


def report(**more):
    result = figures.result(RATE, samples(RATE, [90.0], [100.0]),
                            {OURS: "openclaw bench rx", "peer": "peer --fast | tee"})
    machine = {"cpu": "A", "cores": 2, "virtual": True, "cpu_mhz_measured": 4000,
               "cpu_mhz_cpuinfo": 2600.0, "memory_mib": 1, "load_before": [0.0, 0.0, 0.0]}
    return {"name": "rx", "machine": machine, "kernel": "6.18", "versions": {"peer": "1"},
            "results": [result], "absent": {}, **more}


def test_the_page_keeps_a_lost_comparison_and_the_exact_commands():
    text = page.markdown([report()])
    assert "| rx | peer | packets/s | 100 | 100 | 100 | 0.90, 0.90, 0.90 |" in text
    assert "openclaw bench rx\npeer --fast | tee\n" in text
    assert "4000 MHz measured" in text and "6.18" in text


def test_the_page_names_a_peer_that_is_not_installed():
    text = page.markdown([report(absent={"testpmd": "apt install dpdk-dev"})])
    assert "testpmd is not installed (`apt install dpdk-dev`)" in text
