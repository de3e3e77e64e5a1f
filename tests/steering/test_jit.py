"""Filters as machine code say what libpcap's interpreter says: of every expression that we compare
steering with, of random expressions, and of random programs of any instructions there are."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from appliance.capture import read_capture
from appliance.dataplane import NativeFilter, pcap
from tests.conftest import ethernet_captures
from tests.steering.expressions import EXPRESSIONS

FULL = os.environ.get("OPENCLAW_FULL") == "1"

ATOMS = (
    "tcp port {port}", "udp dst port {port}", "portrange {port}-65000", "host 10.{byte}.0.1",
    "src net 10.{byte}.0.0/16", "ip6 host fe80::{byte:x}", "ip6 net 2001:db8:{byte:x}::/48",
    "vlan {byte}", "ip proto {byte}", "ether host 02:00:00:00:00:{byte:02x}", "arp", "icmp",
    "ip multicast", "ether[{byte} : 1] > {port} % 256", "ip[8] & {bits} != 0", "mpls",
    "ip6[6] & {bits} = 0", "len > {port}", "tcp[13] & {bits} != 0", "greater {byte}",
    "ether[12:2] & {mask} = {mask}",
)  # fmt: skip
LOADS = (0x20, 0x28, 0x30, 0x40, 0x48, 0x50, 0x80, 0x00, 0x60)
LOADS_X = (0x01, 0x81, 0x61, 0xB1)
ARITHMETIC = tuple(
    0x04 | operation | source for source in (0, 8)
    for operation in (0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0x90, 0xA0)
)  # fmt: skip
JUMPS = tuple(0x05 | comparison | source for source in (0, 8)
              for comparison in (0x10, 0x20, 0x30, 0x40))  # fmt: skip
OTHERS = (0x02, 0x03, 0x07, 0x87, 0x84, 0x05)
NUMBERS = (0, 1, 2, 7, 12, 14, 31, 32, 60, 127, 128, 255, 1500, 0x7FFFFF00, 0x7FFFFFFF, 0x80000000,
           0xFFFFFFFC, 0xFFFFFFFF)  # fmt: skip


@pytest.fixture
def chance():
    seed = random.randrange(1 << 32)
    print("seed", seed)
    return random.Random(seed)


def random_filter(chance, depth=3):
    if depth == 0 or chance.random() < 0.3:
        return chance.choice(ATOMS).format(
            port=chance.choice((22, 53, 80, 443, 1024, chance.randrange(65000))),
            byte=chance.randrange(256), bits=chance.choice((1, 2, 0x12, 0x7F, 0x80, 0xFF)),
            mask=chance.choice((0x0800, 0x8000, 0x00FF)),
        )  # fmt: skip
    left, right = random_filter(chance, depth - 1), random_filter(chance, depth - 1)
    return chance.choice((f"({left}) and ({right})", f"({left}) or ({right})", f"not ({left})"))


def random_packet(chance):
    """Headers that filters look at; some of the bytes and the length changed."""
    made = bytearray(bytes.fromhex(chance.choice((
        "0200000000010200000000020800450000320000400040111111" "0a0500010a000002003500500012abcd",
        "0200000000010200000000020800460000320000200040061111" "0a0500010a000002010203040050"
        "00160000000000000000501200000000",
        "02000000000102000000000286dd600000000020" "0640fe800000000000000000000000000005"
        "20010db80005000000000000000000010050001600000000000000005012000000000000",
        "0200000000010200000000028100000508004500002800000000" "40010000" "0a0500010a0000020800",
        "ffffffffffff020000000001080600010800060400010200000000010a0500010000000000000a000002",
    ))))  # fmt: skip
    made += bytes(chance.randrange(256) for _ in range(chance.choice((0, 20, 300))))
    for _ in range(chance.randrange(4)):
        made[chance.randrange(len(made))] = chance.randrange(256)
    return bytes(made[: chance.randrange(len(made) + 1)] if chance.random() < 0.3 else made)


def random_program(chance, length):
    """Instructions that the kernel of libpcap takes, in an order that no compiler would give."""
    # libpcap's interpreter leaves scratch words as they were on the stack: each is set first.
    code = [(0x02, 0, 0, k) for k in range(16)]
    total = 16 + length
    for pc in range(16, total):
        left = total - pc  # instructions after this one, the last ret included
        opcode = chance.choice(chance.choice((LOADS, LOADS, LOADS_X, ARITHMETIC, JUMPS, OTHERS)))
        jt = jf = 0
        k = chance.choice((chance.choice(NUMBERS), chance.randrange(80), chance.randrange(80)))
        if opcode in (0x02, 0x03, 0x60, 0x61):
            k = chance.randrange(16)
        elif opcode in (0x34, 0x94):
            k = k or 3
        elif opcode in (0x64, 0x74):
            k %= 32  # more means nothing to libpcap, whose compiler refuses it
        elif opcode == 0x05:
            k = chance.randrange(left)
        elif opcode in JUMPS:
            jt, jf = (chance.randrange(min(left, 256)) for _ in range(2))
        code.append((opcode, jt, jf, k))
    return [*code, chance.choice(((0x06, 0, 0, 1), (0x16, 0, 0, 0)))]


def compare(program, packets) -> int:
    """How many match; all must be seen alike."""
    oracle, ours = pcap.Filter(program), NativeFilter(program)
    found = [oracle.match(packet) for packet in packets]
    assert [ours.match(packet) for packet in packets] == found, program
    return sum(found)


def test_this_cpu_has_a_compiler_or_the_interpreter_is_used():
    made = NativeFilter("udp port 53")
    assert made.native == (os.uname().machine == "x86_64") == bool(made.code)


def test_code_is_executable_and_never_writable():
    filters = [NativeFilter(f"udp port {port}") for port in range(1, 50)]
    if not filters[0].native:
        pytest.skip(f"probe jit: no compiler for {os.uname().machine}")
    flags = {line.split()[1] for line in Path("/proc/self/maps").read_text().splitlines()}
    assert "r-xp" in flags and not any("w" in flag and "x" in flag for flag in flags), flags


@pytest.mark.parametrize("text", [text for text, _ in EXPRESSIONS])
def test_every_expression_selects_what_libpcap_selects(captures, text):
    files = ethernet_captures()
    for path in files if FULL else files[::12]:
        compare(text, list(read_capture(path))[:500])


def test_random_expressions_over_random_packets(chance):
    packets = [random_packet(chance) for _ in range(200)]
    tried = matched = 0
    for _ in range(5000 if FULL else 200):
        text = random_filter(chance)
        try:
            code = pcap.compile_filter(text)
        except ValueError:
            continue  # libpcap refuses what can never match
        tried += 1
        matched += compare(code, packets)
    assert tried > 100 and matched > 100


def test_random_programs_of_every_instruction(chance):
    packets = [random_packet(chance) for _ in range(30)]
    matched = sum(
        compare(random_program(chance, chance.randrange(1, 60)), packets)
        for _ in range(60_000 if FULL else 2000)
    )
    assert matched > 1000


def test_a_filter_of_the_longest_jumps():
    """4,096 instructions: jumps over 128 bytes and over 32 KiB of code."""
    body = [(0x30, 0, 0, 0), *[(0x15, 0, 0, n % 256) for n in range(4091)]]
    far = [(0x05, 0, 0, len(body)), *body, (0x06, 0, 0, 0), (0x06, 0, 0, 1)]
    far[0] = (0x05, 0, 0, len(far) - 2)
    assert compare(far, [b"", b"\0" * 60]) == 2
    near = [(0x30, 0, 0, 0), *[(0x15, 255, 0, 7)] * 1, *[(0x07, 0, 0, 0)] * 255, (0x06, 0, 0, 0),
            (0x06, 0, 0, 9)]  # fmt: skip
    near[1] = (0x15, 255, 254, 7)
    assert compare(near, [b"\7" * 60]) == 0
