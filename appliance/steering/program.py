"""The C text of a steering program: the template of xdp/ with the rules put in.

Pure: numbered rules and options in, text out. Only numbers get into the text; the expressions that
users write do not, not even as comments. Compiling is compiler.py's matter.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import xdp
from appliance.errors import ConfigError
from appliance.limits import RULE_SET_INSTRUCTIONS_MAX
from appliance.steering.rules import ACTIONS, Numbered
from appliance.steering.translate import translate

XDP_DIRECTORY = Path(xdp.__file__).resolve().parent
FUNCTION = "oc_steer"
MARK = "/* RULES:"

# BPF jumps reach 32,767 instructions. A match must leave a set of rules that is longer than that,
# so it hops from group to group: a group ends after this many classic instructions (each becomes
# at most some 20), or after this many rules.
GROUP_INSTRUCTIONS = 512
GROUP_RULES = 16


@dataclass(frozen=True)
class Options:
    """How the program behaves, apart from its rules. See the head of xdp/steer.bpf.c."""

    jumbo: bool = False
    offline: bool = False
    keep_management: bool = True
    no_socket: str = "pass"


def source(rules: Sequence[Numbered], options: Options) -> str:
    """The whole text, ready for the compiler. Ids are not in it: equal rules give equal text."""
    total = sum(len(rule.code) for rule in rules)
    if total > RULE_SET_INSTRUCTIONS_MAX:
        raise ConfigError(
            f"rules: too large for one program (filters of {total} instructions together, at most "
            f"{RULE_SET_INSTRUCTIONS_MAX}); write fewer or shorter ones"
        )
    named_any = 0
    for rule in rules:
        named_any |= rule.names
    defines = {
        "OC_JUMBO": options.jumbo,
        "OC_OFFLINE": options.offline,
        "OC_KEEP_MANAGEMENT": options.keep_management,
        "OC_NAMED_ANY": named_any,
        "OC_NO_SOCKET_DROP": options.no_socket == "drop",
    }
    head = "".join(f"#define {name} {int(value)}u\n" for name, value in defines.items())
    before, _, after = _template().partition(MARK)
    return head + before + generated(rules) + MARK + after


def generated(rules: Sequence[Numbered]) -> str:
    """The rules as C, in groups."""
    lines: list[str] = []
    group = instructions = members = 0
    for slot, rule in enumerate(rules):
        action, prefix = ACTIONS.index(rule.rule.action), f"r{slot}"
        hit = (
            f"hit = OC_HIT({action}u, {rule.rule.priority}u, {slot}u); "
            f"every = {rule.rule.sample}u; goto group_{group};"
        )
        lines.append(f"OC_RULE({rule.names}u, {prefix}_no);")
        lines.append(translate(rule.code, prefix, hit))
        instructions += len(rule.code)
        members += 1
        last = slot == len(rules) - 1
        if last or instructions >= GROUP_INSTRUCTIONS or members >= GROUP_RULES:
            lines.append(f"group_{group}:;")
            if not last:
                lines.append(f"OC_OPAQUE(hit); if (hit) goto group_{group + 1};")
            group, instructions, members = group + 1, 0, 0
    return "\n".join(lines) + "\n"


@functools.cache
def _template() -> str:
    return (XDP_DIRECTORY / "steer.bpf.c").read_text(encoding="ascii")
