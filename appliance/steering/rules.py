"""Rules: what a user writes, checked, compiled to classic BPF, and numbered.

Owns the type Rule, the check of its fields, and the question which management protocols a filter
names. It does not know C, maps or interfaces. Every fault is a ConfigError of one line.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from appliance.errors import ConfigError
from appliance.limits import PRIORITY_MAX, RULE_ID_MAX, RULES_MAX, SAMPLE_MAX
from appliance.steering import translate
from appliance.steering.filters import compile_match

ACTIONS = ("consume", "pass", "drop", "sample")  # the order is OC_ACTION_* of xdp/steer.bpf.c

# Management classes: OC_MGMT_* of xdp/openclaw_parse.h.
ARP, ND, DHCP, SSH = 1, 2, 4, 8
# Which comparison names a protocol: (bytes loaded, number) -> class. ARP by EtherType, ND by ICMPv6
# type, DHCP and SSH by port. `tcp` or `icmp6` alone name nothing.
NAMES = {
    (2, 0x0806): ARP,
    **{(1, kind): ND for kind in range(133, 138)},
    **{(2, port): DHCP for port in (67, 68, 546, 547)},
    (2, 22): SSH,
}


@dataclass(frozen=True)
class Rule:
    """One rule as the configuration has it. `match` empty means every packet."""

    match: str
    action: str
    sample: int = 1
    priority: int = 10
    consumers: tuple[str, ...] = ()

    @classmethod
    def of(cls, entry: Any) -> Rule:
        """From a [[rule]] table of the configuration. `sample` counts with action sample only."""
        every = (entry.sample or 1) if entry.action == "sample" else 1
        return cls(entry.match, entry.action, every, entry.priority, tuple(entry.consumers))


@dataclass(frozen=True)
class Numbered:
    """A rule with its id, its classic BPF, and the management classes that it names."""

    id: int
    rule: Rule
    code: tuple[translate.Instruction, ...]
    names: int


_ids = itertools.count(1)


def next_id() -> int:
    """A rule id that this process has not used before (next() on a count is atomic)."""
    number = next(_ids)
    if number > RULE_ID_MAX:
        raise ConfigError(f"rule ids are used up ({RULE_ID_MAX}); start the process anew")
    return number


def number(rules: Sequence[Rule], before: Sequence[Numbered] = (), ids=None) -> list[Numbered]:
    """The rules checked, compiled and numbered. Rules unchanged since `before` keep their ids.

    `ids` replaces the process-wide numbering; offline verdicts count from 1 in every call.
    """
    if not rules:
        raise ConfigError("no rule: a port without rules is refused; write at least one")
    if len(rules) > RULES_MAX:
        raise ConfigError(f"{len(rules)} rules: at most {RULES_MAX} per port")
    known: dict[Rule, list[Numbered]] = {}
    for old in before:
        known.setdefault(old.rule, []).append(old)
    ids = ids or next_id
    result = []
    for place, rule in enumerate(rules):
        check(rule, place)
        if known.get(rule):
            result.append(known[rule].pop(0))
            continue
        code = compile_match(rule.match, f"rule[{place}].match")
        result.append(Numbered(ids(), rule, tuple(code), named(code)))
    return result


def check(rule: Rule, place: int) -> None:
    """The fields of one rule; what its match says is compile_match's to judge."""
    where = f"rule[{place}]"
    if not isinstance(rule.match, str):
        raise ConfigError(f"{where}.match: {rule.match!r}: a pcap filter expression is text")
    if not isinstance(rule.consumers, tuple):
        raise ConfigError(f"{where}.consumers: {rule.consumers!r}: a tuple of names")
    if rule.action not in ACTIONS:
        raise ConfigError(f"{where}.action: {rule.action!r}: one of {', '.join(ACTIONS)}")
    for field, value, low, high in (
        ("sample", rule.sample, 1, SAMPLE_MAX),
        ("priority", rule.priority, 0, PRIORITY_MAX),
    ):
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ConfigError(f"{where}.{field}: {value!r}: a whole number from {low} to {high}")


def named(code: Sequence[translate.Instruction]) -> int:
    """The management classes that a filter names.

    It names one when it compares (jeq) a field just loaded, unmasked and of the right width, with
    the protocol's number. Loads that can reach a comparison are followed through forward jumps.
    """
    result = 0
    reaching: list[set[int]] = [set() for _ in range(len(code) + 1)]
    for pc, instruction in enumerate(code):
        opcode, _, _, k = instruction
        kind, widths = opcode & 7, reaching[pc]
        if kind == translate.LD:
            loads = opcode & 0xE0 in (translate.ABS, translate.IND)
            widths = {translate.SIZES.get(opcode & 0x18, 0)} if loads else set()
        elif kind == translate.ALU or (kind == translate.MISC and opcode & 0xF8 == translate.TXA):
            widths = set()
        if kind == translate.JMP:
            if opcode == translate.JMP | translate.JEQ:
                for width in widths:
                    result |= NAMES.get((width, k), 0)
            for there in translate.target(pc, instruction):
                if pc < there < len(code):
                    reaching[there] |= widths
        elif kind != translate.RET:
            reaching[pc + 1] |= widths
    return result
