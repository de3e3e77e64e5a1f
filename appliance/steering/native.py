"""Steering where no kernel is: the rules of a DPDK port, run by its own queues.

Owns the choice which filters become machine code, the sum of what the queues counted, and the swap.
It has the methods of Steering that concern rules, so that engine and governor cannot tell them
apart. There is nothing to attach. Order of life: make it (compiles), add the queues, then swap as
often as needed; close. Any thread may call any method.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Sequence
from typing import Any

from appliance.dataplane import dpdk
from appliance.errors import ConfigError, PortError
from appliance.limits import PRIORITY_MAX
from appliance.steering import rules as ruleset
from appliance.steering import translate
from appliance.steering.loader import DROP_REASONS
from appliance.steering.rules import ACTIONS, Numbered, Rule
from appliance.steering.translate import Instruction

# rte_bpf's verifier walks every path through a program and remembers none, so six IPv6 addresses
# keep it busy for ever (DPDK bug 1465). What it would do can be counted before: 100,000
# instructions are milliseconds.
VERIFIER_STEPS_MAX = 100_000

# The instructions that rte_bpf runs as libpcap does: what hosts, networks, ports and protocols
# compile to. Everything else libpcap interprets, because in DPDK 22.11 to 26.07 some of it goes
# wrong: `ldb [x + k]` and `ld [x + k]` load from A + k (rte_bpf_convert reads the bit for halfwords
# as the one for X), `jset` with a number under 128 becomes an instruction that no x86 CPU has, and
# shifts of 32 and more depend on the CPU. Both bugs were found by tests/dpdk/test_rules.py.
LOADS = frozenset((0x20, 0x28, 0x30))  # ld, ldh, ldb [k]
LOAD_HALF_X = 0x48  # ldh [x + k], and X is a header's length:
LOAD_LENGTH = 0xB1  # ldx 4 * ([k] & 0xf)
COMPARISONS = frozenset((0x15, 0x25, 0x35))  # jeq, jgt, jge #k
TEST_BITS = 0x45  # jset #k
MASK = 0x54  # and #k
RETURN = 0x06  # ret #k
JUMP = 0x05
OFFSET_MAX = 0xFFFF
TEST_BITS_MIN = 128


def runs_natively(code: Sequence[Instruction]) -> bool:
    """Whether rte_bpf takes this filter in bounded time, and runs it with libpcap's meaning."""
    for opcode, _, _, k in code:
        fine = (
            opcode in COMPARISONS
            or opcode in (MASK, RETURN, JUMP)
            or (opcode in LOADS and k <= OFFSET_MAX)
            or (opcode in (LOAD_HALF_X, LOAD_LENGTH) and k <= OFFSET_MAX)
            or (opcode == TEST_BITS and k >= TEST_BITS_MIN)
        )
        if not fine:
            return False
    return 0 < _steps(code) <= VERIFIER_STEPS_MAX


def _steps(code: Sequence[Instruction]) -> int:
    """Instructions that a verifier without memory walks; 0 for a filter that loops."""
    steps = [0] * len(code)
    for pc in range(len(code) - 1, -1, -1):
        kind = code[pc][0] & 7
        if kind == translate.RET:
            following = []
        elif kind == translate.JMP:
            following = list(dict.fromkeys(translate.target(pc, code[pc])))
        else:
            following = [pc + 1]
        if any(not pc < there < len(code) for there in following):
            return 0
        steps[pc] = min(1 + sum(steps[there] for there in following), 2 * VERIFIER_STEPS_MAX)
    return steps[0]


class NativeSteering:
    """The rules of one port, compiled for its queues."""

    def __init__(self, rules: Sequence[Rule], *, keep_management: bool = True) -> None:
        self._keep_management = keep_management
        self._lock = threading.RLock()
        self._queues: list[Any] = []
        self._threshold = 0
        self._closed = False
        self._numbered = ruleset.number(rules)
        self._filters = _compile(self._numbered)

    @property
    def rules(self) -> list[tuple[int, Rule]]:
        """The rules in force with their ids, in the order in which they are tried."""
        return [(rule.id, rule.rule) for rule in self._numbered]

    @property
    def program(self) -> dict[str, int]:
        """How many of the filters are machine code; libpcap interprets the others."""
        with self._lock:
            return {"filters": len(self._numbered), "native": sum(self._filters.natives)}

    def add_queue(self, queue: Any) -> None:
        """From now on these rules decide on this queue."""
        with self._lock:
            self._queues.append(queue)
            queue.set_rules(self._decisions(self._filters))

    def set_shed(self, threshold: int | None) -> None:
        """Drops what rules with a priority above `threshold` would consume; None sheds nothing."""
        if threshold is not None and not 0 <= threshold <= PRIORITY_MAX:
            raise ConfigError(f"shed: {threshold!r}: a priority from 0 to {PRIORITY_MAX}, or None")
        with self._lock:
            self._threshold = 0 if threshold is None else threshold + 1
            self._filters.set_shed(self._threshold)

    def swap(
        self,
        rules: Sequence[Rule],
        publish: Callable[[list[tuple[int, Rule]]], None] | None = None,
    ) -> None:
        """Replaces the rules: each burst meets the old ones or the new ones.

        Rules that stay as they are keep their ids. When anything fails, the old rules run on.
        """
        with self._lock:
            if self._closed:
                raise PortError("steering is closed")
            fresh = ruleset.number(rules, self._numbered)
            filters = _compile(fresh)
            filters.set_shed(self._threshold)
            if publish is not None:
                publish([(rule.id, rule.rule) for rule in fresh])
            for queue in self._queues:
                queue.set_rules(self._decisions(filters))
            self._numbered, self._filters = fresh, filters

    def counters(self) -> dict[str, Any]:
        """Packets since the start, over all queues and swaps. seen = consumed + passed + dropped.

        What is passed ends here: there is no kernel behind the port.
        """
        with self._lock:
            total: collections.Counter[str] = collections.Counter()
            for queue in self._queues:
                total.update(queue.counters())
            for rule in self._numbered:
                total.setdefault(f"rule {rule.id}", 0)
        drops = {name: total[f"drop {name}"] for name in DROP_REASONS.values()}
        by_rule = {key[5:]: n for key, n in total.items() if key.startswith("rule ")}
        return {
            "seen": total["seen"],
            "consumed": total["consumed"],
            "passed": total["passed"],
            "dropped": sum(drops.values()),
            "management": total["management"],
            "by_rule": dict(sorted(by_rule.items(), key=lambda item: int(item[0]))),
            "drops": drops,
        }

    def detach(self) -> None:
        """There is nothing attached."""

    def close(self) -> None:
        with self._lock:
            self._closed = True

    def _decisions(self, filters: Any) -> Any:
        return dpdk().rules.Decisions(filters, self._keep_management)


def _compile(rules: Sequence[Numbered]) -> Any:
    return dpdk().rules.Filters(
        [
            (
                rule.id,
                list(rule.code),
                rule.names,
                ACTIONS.index(rule.rule.action),
                rule.rule.priority,
                rule.rule.sample,
                runs_natively(rule.code),
            )
            for rule in rules
        ]
    )
