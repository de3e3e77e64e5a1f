"""Bytecode to a program in the kernel: makes its maps, puts their descriptors in, loads it.

Owns one Loaded: a program with the counters that only it writes. Sockets and shed threshold belong
to the port and are handed in. Attaching is attach.py's matter.
"""

from __future__ import annotations

import errno
import struct
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from appliance.dataplane import bpf
from appliance.errors import ConfigError, HostError, OpenClawError, PortError
from appliance.limits import QUEUES_MAX, RULES_MAX
from appliance.steering import compiler, program
from appliance.steering.rules import Numbered

# OC_MAP_* and struct oc_counters of xdp/openclaw_abi.h; tests/steering/test_abi.py compares.
MAP_SOCKETS, MAP_COUNTERS, MAP_SHED, MAP_IDS = 1, 2, 3, 4
DROPS_MAX = 64
COUNTER_WORDS = 4 + DROPS_MAX + RULES_MAX
COUNTER_BYTES = 8 * COUNTER_WORDS + 64 + 128
# Reasons that the program itself gives; the kernel's and the consumers' are counted elsewhere.
DROP_REASONS = {1: "rule", 2: "no_metadata", 3: "no_socket", 4: "shed"}

# A jump of BPF reaches 32,767 instructions, and LLVM 14 wraps a longer one around without a word.
# In a program of this size none can be longer.
INSTRUCTIONS_MAX = 32_767
LOAD_IMM64 = 0x18
PSEUDO_MAP_FD = 1


class SharedMaps:
    """What outlives a swap of rules: the sockets of the queues, and the shed threshold."""

    def __init__(self) -> None:
        with kernel_errors("BPF maps cannot be made"):
            self.sockets = bpf.Map(bpf.XSKMAP, "oc_sockets", 4, QUEUES_MAX)
            self.shed = bpf.Map(bpf.ARRAY, "oc_shed", 4, 1)

    def close(self) -> None:
        self.sockets.close()
        self.shed.close()


class Loaded:
    """One program in the kernel, with its rules and its own counters."""

    def __init__(
        self, rules: Sequence[Numbered], options: program.Options, shared: SharedMaps
    ) -> None:
        self.rules = list(rules)
        self.options = options
        text = program.source(self.rules, options)
        code = compiler.compile_functions(text, [program.FUNCTION])[program.FUNCTION]
        with kernel_errors("the maps of the program cannot be made"):
            self.counters = bpf.Map(bpf.PERCPU_ARRAY, "oc_counters", COUNTER_BYTES, 1)
            ids = bpf.Map(bpf.ARRAY, "oc_rule_ids", 4 * RULES_MAX, 1)
            places = [rule.id for rule in self.rules] + [0] * (RULES_MAX - len(self.rules))
            ids[0] = struct.pack(f"={RULES_MAX}I", *places)
        maps = {
            MAP_SOCKETS: shared.sockets,
            MAP_COUNTERS: self.counters,
            MAP_SHED: shared.shed,
            MAP_IDS: ids,
        }
        try:
            self.program = load("oc_steer", code, maps, frags=options.jumbo)
        except BaseException:
            self.counters.close()
            raise
        finally:
            ids.close()  # the program holds it

    def read(self) -> list[int]:
        """The counter words, summed over CPUs: seen, consumed, passed, management, drops, rules."""
        form = f"={COUNTER_WORDS}Q"
        copies = [struct.unpack_from(form, value) for value in self.counters[0]]
        return [sum(column) for column in zip(*copies, strict=True)]

    def close(self) -> None:
        self.program.close()
        self.counters.close()


def load(
    name: str, code: bytes, maps: Mapping[int, bpf.Map], *, frags: bool = False
) -> bpf.Program:
    """Puts the maps' descriptors into the bytecode and loads it.

    The verifier's refusal is a PortError with the last line of its log; all of it is in `log`.
    """
    if len(code) // 8 > INSTRUCTIONS_MAX:
        raise ConfigError(
            f"rules: too large for one program ({len(code) // 8} instructions of "
            f"{INSTRUCTIONS_MAX}); write fewer or shorter ones"
        )
    linked = link(code, {number: made.fd for number, made in maps.items()})
    with kernel_errors("the XDP program cannot be loaded"):
        return bpf.Program(name, linked, frags=frags)


def link(code: bytes, descriptors: Mapping[int, int]) -> bytes:
    """The bytecode with map numbers replaced by descriptors."""
    result = bytearray(code)
    place = 0
    while place < len(result):
        opcode, registers = result[place], result[place + 1]
        source = registers >> 4 if sys.byteorder == "little" else registers & 0xF
        if opcode == LOAD_IMM64 and source == PSEUDO_MAP_FD:
            (number,) = struct.unpack_from("=i", result, place + 4)
            if number not in descriptors:
                raise HostError(f"the compiler left map number {number} in the bytecode")
            struct.pack_into("=i", result, place + 4, descriptors[number])
        place += 16 if opcode == LOAD_IMM64 else 8
    return bytes(result)


class kernel_errors:
    """A gate: what the kernel says inside becomes one of our exceptions, with `what` in front."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, OSError):
            return
        if error.errno == errno.EPERM:
            fix = "run as root, or with CAP_BPF and CAP_NET_ADMIN"
            raise HostError(f"{self.what}: not permitted", fix=fix) from error
        if isinstance(error, bpf.VerifierError):
            raise _refused(self.what, error) from error
        raise PortError(f"{self.what}: {error.strerror}") from error


def _refused(what: str, error: bpf.VerifierError) -> OpenClawError:
    # The log ends with statistics ("processed 12 insns ..."); the reason stands before them.
    lines = [line for line in error.log.splitlines() if line and not line.startswith("processed ")]
    refused = PortError(f"{what}: {lines[-1] if lines else error.strerror}")
    refused.log = error.log  # type: ignore[attr-defined]
    return refused


def account(total: Mapping[str, int]) -> dict[str, Any]:
    """The statistics' "steering" of counters by name, as `tally` has them; missing ones are 0."""
    drops = {name: total.get(f"drop {name}", 0) for name in DROP_REASONS.values()}
    by_rule = {key[5:]: n for key, n in total.items() if key.startswith("rule ")}
    return {
        **{name: total.get(name, 0) for name in ("seen", "consumed", "passed")},
        "dropped": sum(drops.values()),
        "management": total.get("management", 0),
        "by_rule": dict(sorted(by_rule.items(), key=lambda item: int(item[0]))),
        "drops": drops,
    }
