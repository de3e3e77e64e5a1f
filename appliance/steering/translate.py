"""Classic BPF to C: one filter becomes straight-line code with the meaning of libpcap's bpf_filter.

Pure functions on lists of (code, jt, jf, k). What comes out is built of fixed text and of numbers
from the bytecode, never of the filter's own text, so no expression can write C. The macros that
the code calls (bounds checks, byte order, jumbo packets) are xdp/steer_load.h's. It does not know
rules, maps or libpcap.
"""

from __future__ import annotations

from collections.abc import Sequence

from appliance.errors import ConfigError
from appliance.limits import FILTER_INSTRUCTIONS_MAX

Instruction = tuple[int, int, int, int]

# Opcodes of classic BPF: <linux/filter.h>, <pcap/bpf.h>.
LD, LDX, ST, STX, ALU, JMP, RET, MISC = range(8)
IMM, ABS, IND, MEM, LEN, MSH = 0x00, 0x20, 0x40, 0x60, 0x80, 0xA0
SIZES = {0x00: 4, 0x08: 2, 0x10: 1}
JA, JEQ, JGT, JGE, JSET = 0x00, 0x10, 0x20, 0x30, 0x40
COMPARISONS = {JEQ: "A == {}", JGT: "A > {}", JGE: "A >= {}", JSET: "A & {}"}
ARITHMETIC = {
    0x00: "A += {};", 0x10: "A -= {};", 0x20: "A *= {};", 0x40: "A |= {};", 0x50: "A &= {};",
    0xA0: "A ^= {};", 0x60: "OC_LSH({});", 0x70: "OC_RSH({});",
    0x30: "OC_DIV({}, {no});", 0x90: "OC_MOD({}, {no});",
}  # fmt: skip
NEG = 0x80
FROM_X = 0x08
RET_A = 0x10
TXA = 0x80
SCRATCH_WORDS = 16

# The last byte that a load can reach: the verifier's MAX_PACKET_OFF and bpf_xdp_load_bytes agree.
PACKET_OFFSET_MAX = 0xFFFF


def target(pc: int, instruction: Instruction) -> tuple[int, int]:
    """Where a jump leads: (taken, not taken). `ja` is signed: protochain jumps backward."""
    code, jt, jf, k = instruction
    if code & 0xF0 == JA:
        there = pc + 1 + (k - (1 << 32) if k & 0x80000000 else k)
        return there, there
    return pc + 1 + jt, pc + 1 + jf


def translate(instructions: Sequence[Instruction], prefix: str, hit: str) -> str:
    """The C text of one filter.

    `prefix` makes its labels unique: it falls out at label `<prefix>_no`, which the caller places,
    and runs the statement `hit` when the packet matches. ConfigError when the filter is no valid
    classic BPF or is too long.
    """
    return _Translation(instructions, prefix, hit).text()


class _Translation:
    """One filter under translation; the fields are what its lines need to know of the whole."""

    def __init__(self, instructions: Sequence[Instruction], prefix: str, hit: str) -> None:
        if not 0 < len(instructions) <= FILTER_INSTRUCTIONS_MAX:
            raise ConfigError(
                f"the filter compiles to {len(instructions)} instructions; "
                f"allowed are 1 to {FILTER_INSTRUCTIONS_MAX}"
            )
        self.instructions = instructions
        self.prefix = prefix
        self.no = f"{prefix}_no"
        self.hit = hit
        self.targets: set[int] = set()
        self.words: set[int] = set()
        self.loops = False
        self._survey()

    def _survey(self) -> None:
        """Checks every jump and scratch word, and notes which labels and variables are needed."""
        for pc, instruction in enumerate(self.instructions):
            code, _, _, k = instruction
            kind = code & 7
            if kind == JMP:
                for there in target(pc, instruction):
                    if not 0 <= there < len(self.instructions):
                        raise ConfigError(f"filter instruction {pc} jumps out of the filter")
                    if there != pc + 1:
                        self.targets.add(there)
                    self.loops |= there <= pc
            if code in (ST, STX, LD | MEM, LDX | MEM):
                if k >= SCRATCH_WORDS:
                    raise ConfigError(f"filter instruction {pc} uses scratch word {k} of 16")
                self.words.add(k)
        if self.instructions[-1][0] & 7 != RET:
            raise ConfigError("the filter does not end with ret")

    def text(self) -> str:
        lines = ["{"]
        lines += [f"unsigned int {self.prefix}_m{k} = 0;" for k in sorted(self.words)]
        if self.loops:
            lines.append("unsigned int chain = 0;")
        for pc, instruction in enumerate(self.instructions):
            if pc in self.targets:
                lines.append(f"{self.prefix}_{pc}:;")
            lines.append(self._statement(pc, instruction))
        lines += ["}", f"{self.no}:;"]
        return "\n".join(lines) + "\n"

    def _statement(self, pc: int, instruction: Instruction) -> str:
        code, _, _, k = instruction
        kind = code & 7
        if kind == LD:
            return self._load(pc, code, k)
        if kind == LDX:
            return self._load_x(pc, code, k)
        if code == ST:
            return f"{self.prefix}_m{k} = A;"
        if code == STX:
            return f"{self.prefix}_m{k} = X;"
        if kind == ALU:
            return self._arithmetic(pc, code, k)
        if kind == JMP:
            return self._jump(pc, instruction)
        if kind == RET:
            return self._return(code, k)
        if kind == MISC:
            return "A = X;" if code & 0xF8 == TXA else "X = A;"
        raise _unknown(pc, code)

    def _load(self, pc: int, code: int, k: int) -> str:
        mode, size = code & 0xE0, SIZES.get(code & 0x18)
        if mode == IMM:
            return f"A = {k}u;"
        if mode == MEM:
            return f"A = {self.prefix}_m{k};"
        if mode == LEN:
            return "A = len;"
        if mode in (ABS, IND) and size:
            # Beyond what a packet can hold, as the constants of Linux's own extensions are
            # (`ifindex`): no match, which is what libpcap's interpreter says of them.
            if k + size > PACKET_OFFSET_MAX:
                return f"goto {self.no};"
            return f"OC_{'ABS' if mode == ABS else 'IND'}({size}, {k}u, {self.no});"
        raise _unknown(pc, code)

    def _load_x(self, pc: int, code: int, k: int) -> str:
        mode = code & 0xE0
        if mode == IMM:
            return f"X = {k}u;"
        if mode == MEM:
            return f"X = {self.prefix}_m{k};"
        if mode == LEN:
            return "X = len;"
        if mode == MSH:
            if k + 1 > PACKET_OFFSET_MAX:
                return f"goto {self.no};"
            return f"OC_MSH({k}u, {self.no});"
        raise _unknown(pc, code)

    def _arithmetic(self, pc: int, code: int, k: int) -> str:
        if code == ALU | NEG:
            return "A = -A;"
        form = ARITHMETIC.get(code & 0xF0)
        if form is None:
            raise _unknown(pc, code)
        return form.format("X" if code & FROM_X else f"{k}u", no=self.no)

    def _jump(self, pc: int, instruction: Instruction) -> str:
        code, _, _, k = instruction
        taken, otherwise = target(pc, instruction)
        if code & 0xF0 == JA:
            return self._go(pc, taken)
        comparison = COMPARISONS.get(code & 0xF0)
        if comparison is None:
            raise _unknown(pc, code)
        condition = comparison.format("X" if code & FROM_X else f"{k}u")
        return f"if ({condition}) {self._go(pc, taken)} else {self._go(pc, otherwise)}"

    def _go(self, pc: int, there: int) -> str:
        if there == pc + 1:
            return "{ }"
        if there <= pc:
            return f"{{ OC_BACK({self.prefix}_{there}, {self.no}); }}"
        return f"{{ goto {self.prefix}_{there}; }}"

    def _return(self, code: int, k: int) -> str:
        if code & 0x18 == RET_A:
            return f"if (A) {{ {self.hit} }} goto {self.no};"
        return f"{{ {self.hit} }}" if k else f"goto {self.no};"


def _unknown(pc: int, code: int) -> ConfigError:
    return ConfigError(f"filter instruction {pc} has the unknown code {code:#x}")
