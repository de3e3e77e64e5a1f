"""Rules in user space decide as the steering program does in the kernel, packet by packet.

The oracle is `rules test`: the real XDP program under BPF_PROG_TEST_RUN. Lengths on the wire are
those of the capture: a device never delivers a packet cut short. Single filters: test_jit.py.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import random

import numpy as np
import pytest

from appliance.capture import read_capture, write_pcap
from appliance.dataplane import Decisions
from appliance.steering import Rule, decide
from appliance.steering import rules as ruleset
from appliance.steering.native import _compile
from appliance.steering.offline import ETHERNET_HEADER, RUN_MAX
from tests.conftest import ethernet_captures
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


def by_us(rules, capture, keep_management=True):
    decisions = Decisions(_compile(numbered(rules)), keep_management)
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
def test_a_whole_rule_set_decides_as_the_program_in_the_kernel(captures):
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
        found, counts = by_us(rules, capture)
        wanted = decide(rules, capture)
        packets += len(found)
        assert (found >> 2).tolist() == wanted.rule_ids.tolist(), path
        assert (found & 3).tolist() == wanted.verdicts.tolist(), path
        assert counts["seen"] == len(found)
        assert counts["seen"] == sum(
            counts[name] for name in ("consumed", "passed", "drop rule", "drop shed")
        )
    assert packets > 100


def test_packets_of_any_length_are_decided(tmp_path):
    packets = [bytes(size) for size in (0, 1, 13, 14, 15, 60, 9000)]
    write_pcap(tmp_path / "made.pcap", packets, range(1, 8), None)
    capture = read_capture(tmp_path / "made.pcap")
    found, counts = by_us([Rule("len > 14", "consume")], capture)
    assert (found & 3).tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert counts["passed"] == 4
