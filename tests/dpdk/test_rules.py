"""The rules of a DPDK port decide as the steering program does, packet by packet.

The oracle is `rules test`: the real XDP program under BPF_PROG_TEST_RUN; for single filters
libpcap's interpreter. Lengths on the wire are those of the capture: a DPDK device never delivers a
packet cut short.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import random

import numpy as np
import pytest

from appliance.capture import read_capture, write_pcap
from appliance.dataplane import pcap
from appliance.steering import Rule, decide
from appliance.steering import rules as ruleset
from appliance.steering.native import VERIFIER_STEPS_MAX, _compile, _steps, runs_natively
from appliance.steering.offline import ETHERNET_HEADER, RUN_MAX
from tests.conftest import capture_files, ethernet_captures
from tests.steering.expressions import EXPRESSIONS

FULL = os.environ.get("OPENCLAW_FULL") == "1"
ACTIONS = ("consume", "pass", "drop", "sample")


def numbered(rules):
    count = itertools.count(1)
    return ruleset.number(rules, ids=lambda: next(count))


def whole(path):
    """A capture whose packets are as long as they are in the file, and such as XDP can run."""
    made = read_capture(path)
    fits = (made.lengths >= ETHERNET_HEADER) & (made.lengths <= RUN_MAX)
    return dataclasses.replace(
        made,
        **{
            field.name: np.asarray(getattr(made, field.name))[fits]
            for field in dataclasses.fields(made)
            if isinstance(getattr(made, field.name), np.ndarray)
            and len(getattr(made, field.name)) == len(fits)
            and field.name != "data"
        }
        | {"wire_lengths": np.asarray(made.lengths)[fits]},
    )


def by_dpdk(library, rules, capture, keep_management=True):
    decisions = library.rules.Decisions(_compile(numbered(rules)), keep_management)
    results = np.zeros(len(capture.lengths), np.uint32)
    decisions.decide_many(
        memoryview(capture.data),
        np.ascontiguousarray(capture.offsets, np.uint64),
        np.ascontiguousarray(capture.lengths, np.uint32),
        results,
    )
    return results, decisions.counters()


def some_captures(count):
    files = ethernet_captures()
    return files if FULL else files[:: max(1, len(files) // count)]


@pytest.mark.root
def test_a_whole_rule_set_decides_as_the_program_in_the_kernel(library, captures):
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    texts = [text for text, _ in EXPRESSIONS if text]
    chance.shuffle(texts)
    # The narrow ones in front, so that every rule gets its packets; sampling counts must agree too.
    rules = [
        Rule(text, ACTIONS[place % 4], sample=3 if ACTIONS[place % 4] == "sample" else 1)
        for place, text in enumerate(sorted(texts, key=len, reverse=True)[:24])
    ]
    packets = 0
    for path in some_captures(12):
        capture = whole(path)
        if not len(capture.lengths):
            continue
        found, counts = by_dpdk(library, rules, capture)
        wanted = decide(rules, capture)
        packets += len(found)
        assert (found >> 2).tolist() == wanted.rule_ids.tolist(), path
        assert (found & 3).tolist() == wanted.verdicts.tolist(), path
        assert counts["seen"] == len(found)
        assert counts["seen"] == sum(
            counts[name] for name in ("consumed", "passed", "drop rule", "drop shed")
        )
    assert packets > 100


@pytest.mark.parametrize("text", [text for text, _ in EXPRESSIONS])
def test_every_filter_selects_what_libpcap_selects(library, captures, text):
    oracle = pcap.Filter(pcap.compile_filter(text))
    compared = 0
    for path in some_captures(24):
        capture = whole(path)
        found, _ = by_dpdk(library, [Rule(text, "consume")], capture, keep_management=False)
        wanted = [oracle.match(capture.packet(index)) for index in range(len(found))]
        assert (found == (1 << 2 | 1)).tolist() == wanted, (path, text)
        compared += len(found)
    assert compared or not capture_files()


def test_usual_filters_become_machine_code(library):
    rules = [Rule(text, "consume") for text in ("udp port 53", "host 10.0.0.1", "vlan and tcp", "")]
    filters = _compile(numbered(rules))
    if not any(filters.natives):
        pytest.skip("probe rte_bpf: DPDK compiles no BPF for this CPU")
    assert filters.natives == [True] * 4


def test_filters_that_would_mean_something_else_are_interpreted():
    loops = pcap.compile_filter("ip6 protochain 17")
    shifts = pcap.compile_filter("ip[0] << ip[1] = 8")
    far = pcap.compile_filter("ether[ether[0] - 200:1] = 1")
    assert not any(map(runs_natively, (loops, shifts, far)))


def test_a_filter_whose_paths_multiply_never_reaches_the_verifier(library):
    """Six IPv6 addresses keep rte_bpf_load() busy for minutes; here they are found in no time."""
    text = " or ".join(f"ip6 host 2001:db8::{number}" for number in range(1, 13))
    code = pcap.compile_filter(text)
    assert _steps(code) > VERIFIER_STEPS_MAX
    filters = _compile(numbered([Rule(text, "consume")]))
    assert filters.natives == [False]


def test_packets_of_any_length_are_decided(library, tmp_path):
    packets = [bytes(size) for size in (0, 1, 13, 14, 15, 60, 9000)]
    write_pcap(tmp_path / "made.pcap", packets, range(1, 8), None)
    capture = read_capture(tmp_path / "made.pcap")
    found, counts = by_dpdk(library, [Rule("len > 14", "consume")], capture)
    assert (found & 3).tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert counts["passed"] == 4
