"""Verdicts without an interface: the real program over a capture, by BPF_PROG_TEST_RUN.

Owns the offline variant of the program: it returns rule and verdict instead of acting, and takes
the wire length from the capture, so that `len` means in a truncated capture what tcpdump means.

What the kernel cannot run is decided by libpcap's interpreter, with the same rules in the same
order: packets under 14 bytes (no Ethernet header; no wire carries them) and those over 65,535.
There no management guard applies, and a rule with action sample passes them. Sampling counts on
one CPU.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from appliance.capture import Capture, ethernet_only
from appliance.dataplane import pcap
from appliance.steering import rules as ruleset
from appliance.steering.loader import Loaded, SharedMaps, kernel_errors
from appliance.steering.program import Options
from appliance.steering.rules import Numbered, Rule

VERDICTS = ("pass", "consume", "drop")  # OC_VERDICT_* of xdp/openclaw_abi.h
VERDICT_BITS = 2
PASS, CONSUME, DROP = range(3)
ETHERNET_HEADER = 14  # the kernel runs nothing shorter
RUN_MAX = 65_535  # a load in the program reaches no further
# A test run's first buffer holds a page less headroom (256), shared info (320) and our metadata
# (8): 3,512 bytes with 4 KiB pages. What is longer needs the program that takes fragments.
LINEAR_MAX = 3_500


@dataclass(frozen=True)
class Verdicts:
    """One entry per packet of the capture, in its order. Rule 0: no rule decided."""

    rule_ids: np.ndarray
    verdicts: np.ndarray  # indices into VERDICTS

    def __len__(self) -> int:
        return len(self.rule_ids)

    def pairs(self) -> list[tuple[int, str]]:
        named = [VERDICTS[verdict] for verdict in self.verdicts.tolist()]
        return list(zip(self.rule_ids.tolist(), named, strict=True))


def verdicts(
    rules: Sequence[Rule], capture: Capture, *, keep_management: bool = True
) -> list[tuple[int, str]]:
    """(rule id, "consume" | "pass" | "drop") for each packet; rules are numbered from 1."""
    return decide(rules, capture, keep_management=keep_management).pairs()


def matches(expression: str, capture: Capture) -> np.ndarray:
    """Which packets an expression selects, as booleans: what tcpdump selects with it."""
    rule = Rule(expression, "consume")
    return decide([rule], capture, keep_management=False).rule_ids == 1


def decide(
    rules: Sequence[Rule], capture: Capture, *, keep_management: bool = True
) -> Verdicts:
    """The same as verdicts(), as columns."""
    count = itertools.count(1)
    numbered = ruleset.number(rules, ids=lambda: next(count))
    ethernet_only(capture)
    lengths = np.asarray(capture.lengths, dtype=np.uint32)
    results = np.zeros(len(lengths), dtype=np.uint32)
    runs = (lengths >= ETHERNET_HEADER) & (lengths <= RUN_MAX)
    # Even when no packet runs, the rules must be such that a program can be made of them.
    jumbo = bool(runs.any()) and int(lengths[runs].max()) > LINEAR_MAX
    options = Options(jumbo, True, keep_management)
    shared = SharedMaps()
    try:
        loaded = Loaded(numbered, options, shared)
        try:
            _run(loaded, capture, runs, results)
        finally:
            loaded.close()
    finally:
        shared.close()
    for index in np.flatnonzero(~runs).tolist():
        results[index] = _interpret(numbered, capture, index)
    return Verdicts(results >> VERDICT_BITS, results & ((1 << VERDICT_BITS) - 1))


def _run(loaded: Loaded, capture: Capture, runs: np.ndarray, results: np.ndarray) -> None:
    chosen = np.zeros(int(runs.sum()), dtype=np.uint32)
    offsets, lengths, wires = (
        np.ascontiguousarray(np.asarray(column)[runs].astype(kind))
        for column, kind in (
            (capture.offsets, np.uint64),
            (capture.lengths, np.uint32),
            (capture.wire_lengths, np.uint32),
        )
    )
    with one_cpu(), kernel_errors("the kernel does not run the program over this capture"):
        loaded.program.test_run_many(memoryview(capture.data), offsets, lengths, wires, chosen)
    results[runs] = chosen


def _interpret(rules: Sequence[Numbered], capture: Capture, index: int) -> int:
    packet, wire = capture.packet(index), int(capture.wire_lengths[index])
    actions = {"consume": CONSUME, "pass": PASS, "drop": DROP, "sample": PASS}
    for rule in rules:
        if pcap.Filter(rule.code).match(packet, wire):
            return rule.id << VERDICT_BITS | actions[rule.rule.action]
    return PASS


@contextlib.contextmanager
def one_cpu() -> Iterator[None]:
    """Keeps this thread on one CPU: sampling counts per CPU, and the order must be the file's."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)
