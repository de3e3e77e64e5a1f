"""The program means what libpcap's interpreter means: random filters over random packets.

Two sources of filters: classic BPF instruction by instruction, which reaches what no expression
does (shifts by a register, division by a loaded zero, every scratch word), and expressions from a
grammar. hypothesis prints the failing example and its seed.
"""

from __future__ import annotations

import os
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.dataplane import pcap
from tests.steering import packets as frames
from tests.steering.running import programs, run

pytestmark = [pytest.mark.root, pytest.mark.slow]

FULL = os.environ.get("OPENCLAW_FULL") == "1"
ROUNDS = settings(
    max_examples=40 if FULL else 6,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)

word = st.one_of(
    st.integers(0, 80),
    st.sampled_from([0x800, 0x806, 0x86DD, 0x8100, 0x8847, 0xFFFF, 0x10000, 1 << 31]),
    st.integers(0, (1 << 32) - 1),
)
far = st.sampled_from([0xFFF0, 0xFFFE, 1 << 31])
near = st.one_of(st.integers(0, 70), st.integers(0, 300), far)
small = st.integers(0, 31)


@st.composite
def classic(draw) -> list[tuple[int, int, int, int]]:
    """A valid classic BPF program: jumps forward, scratch words below 16, a ret at the end."""
    length = draw(st.integers(1, 24))
    code = []
    for pc in range(length):
        left = length - pc  # instructions behind this one, the final ret included
        kind = draw(st.integers(0, 9))
        if kind <= 2:
            mode, size = draw(st.sampled_from([0x20, 0x40])), draw(st.sampled_from([0, 8, 16]))
            code.append((mode | size, 0, 0, draw(near)))
        elif kind == 3:
            code.append((draw(st.sampled_from([0x00, 0x80, 0x01, 0x81])), 0, 0, draw(word)))
        elif kind == 4:
            code.append((0xB1, 0, 0, draw(near)))
        elif kind == 5:
            choice = draw(st.sampled_from([0x60, 0x61, 0x02, 0x03]))
            code.append((choice, 0, 0, draw(st.integers(0, 15))))
        elif kind == 6:
            operation = draw(st.sampled_from([0, 0x10, 0x20, 0x40, 0x50, 0x80, 0xA0]))
            from_x = draw(st.sampled_from([0, 8])) if operation != 0x80 else 0
            code.append((0x04 | operation | from_x, 0, 0, draw(word)))
        elif kind == 7:
            operation = draw(st.sampled_from([0x30, 0x90, 0x60, 0x70]))
            from_x = draw(st.sampled_from([0, 8]))
            # Constants as libpcap generates them: no shift by 32 or more, no division by zero.
            k = draw(small if operation in (0x60, 0x70) else st.integers(1, (1 << 32) - 1))
            code.append((0x04 | operation | from_x, 0, 0, k))
        elif kind == 8:
            code.append((draw(st.sampled_from([0x07, 0x87])), 0, 0, 0))
        else:
            operation = draw(st.sampled_from([0x10, 0x20, 0x30, 0x40]))
            jump = st.integers(0, min(left - 1, 255))
            from_x = draw(st.sampled_from([0, 8]))
            code.append((0x05 | operation | from_x, draw(jump), draw(jump), draw(word)))
    # Scratch words are read as zero by us and are undefined in libpcap: write all that are read.
    used = sorted({k for opcode, _, _, k in code if opcode in (0x60, 0x61)})
    opening = [(0x00, 0, 0, draw(word)) for _ in used[:1]] + [(0x02, 0, 0, k) for k in used]
    ending = draw(st.sampled_from([(0x06, 0, 0, 1), (0x16, 0, 0, 0), (0x06, 0, 0, 0)]))
    return [*opening, *code, ending]


PROTOCOLS = ["ip", "ip6", "tcp", "udp", "arp", "icmp", "icmp6", "vlan", "mpls", "vlan 5"]
comparison = st.sampled_from(["=", "!=", "<", ">", "<=", ">="])
layer = st.sampled_from(["ether", "ip", "ip6", "tcp", "udp", "icmp", "arp"])
size = st.sampled_from(["", ":1", ":2", ":4"])


@st.composite
def number(draw, depth: int = 2) -> str:
    """An arithmetic term over bytes of the packet."""
    choice = draw(st.integers(0, 5 if depth else 2))
    if choice == 0:
        return str(draw(st.integers(0, 70000)))
    if choice == 1:
        return "len"
    if choice == 2:
        return f"{draw(layer)}[{draw(st.integers(0, 60))}{draw(size)}]"
    if choice == 3:
        inner = draw(number(depth - 1))
        return f"{draw(layer)}[{inner}{draw(size)}]"
    left, right = draw(number(depth - 1)), draw(number(depth - 1))
    return f"({left} {draw(st.sampled_from('+-*/%&|^'))} {right})"


@st.composite
def expression(draw, depth: int = 3) -> str:
    choice = draw(st.integers(0, 9 if depth else 6))
    if choice == 0:
        return draw(st.sampled_from(PROTOCOLS))
    if choice == 1:
        return f"{draw(st.sampled_from(['', 'src ', 'dst ']))}port {draw(st.integers(0, 65535))}"
    if choice == 2:
        low = draw(st.integers(0, 65535))
        return f"portrange {low}-{draw(st.integers(low, 65535))}"
    if choice == 3:
        return f"host 10.0.0.{draw(st.integers(0, 255))}"
    if choice == 4:
        return f"ip6 protochain {draw(st.sampled_from([6, 17, 58, 44]))}"
    if choice <= 6:
        return f"{draw(number())} {draw(comparison)} {draw(number())}"
    if choice == 7:
        return f"not ({draw(expression(depth - 1))})"
    word = draw(st.sampled_from(["and", "or"]))
    return f"({draw(expression(depth - 1))}) {word} ({draw(expression(depth - 1))})"


@st.composite
def packet(draw) -> bytes:
    """A real frame with some bytes changed and its end cut, or random bytes; 14 at least."""
    known = [*frames.MANAGEMENT.values(), *frames.ORDINARY.values()]
    base = draw(st.one_of(st.sampled_from(known), st.binary(min_size=14, max_size=200)))
    tagged = base[:12] + b"\x81\0\0\5" + base[12:]
    labelled = base[:12] + struct.pack("!HI", 0x8847, 0x140) + base[14:]
    base = draw(st.sampled_from([base, tagged, labelled]))
    changed = bytearray(base)
    change = st.tuples(st.integers(0, 199), st.integers(0, 255))
    for place, value in draw(st.lists(change, max_size=4)):
        changed[place % len(changed)] = value
    return bytes(changed[: max(14, draw(st.integers(14, 250)))])


def agree(filters, packets, jumbo):
    wires = [len(one) + extra * 7 for extra, one in enumerate(packets)]
    with programs(filters, jumbo=jumbo) as loaded:
        for code, one in zip(filters, loaded, strict=True):
            reference = pcap.Filter(code)
            expected = [reference.match(p, w) for p, w in zip(packets, wires, strict=True)]
            assert run(one, packets, wires) == expected, code


@ROUNDS
@given(
    st.lists(classic(), min_size=20, max_size=40),
    st.lists(packet(), min_size=8, max_size=16),
    st.booleans(),
)
def test_any_classic_bpf_means_in_the_program_what_it_means_in_libpcap(filters, packets, jumbo):
    agree(filters, packets, jumbo)


@ROUNDS
@given(
    st.lists(expression(), min_size=20, max_size=40),
    st.lists(packet(), min_size=8, max_size=16),
    st.booleans(),
)
def test_any_expression_means_in_the_program_what_it_means_in_libpcap(texts, packets, jumbo):
    filters = []
    for text in texts:
        try:
            filters.append(pcap.compile_filter(text))
        except ValueError:
            continue  # libpcap refuses what can never match, as `arp[0] = 1 and ip6[3] = 0`
    if filters:
        agree(filters, packets, jumbo)


@pytest.mark.parametrize("jumbo", [False, True])
def test_loads_at_the_very_end_of_a_packet_match_and_one_byte_further_they_do_not(jumbo):
    packet_ = bytes(range(14, 74))
    filters, expected = [], []
    for size_code, size_bytes in ((0x00, 4), (0x08, 2), (0x10, 1)):
        for k in range(50, 64):
            for mode, opening in ((0x20, []), (0x40, [(0x01, 0, 0, 7)])):
                at = k - 7 if opening else k
                filters.append([*opening, (mode | size_code, 0, 0, at), (0x06, 0, 0, 1)])
                expected.append(k + size_bytes <= len(packet_))
    with programs(filters, jumbo=jumbo) as loaded:
        assert [run(one, [packet_], [60])[0] for one in loaded] == expected


def test_a_load_beyond_the_linear_part_reads_the_fragment():
    long = bytes(14) + bytes((i * 7) & 0xFF for i in range(9000))
    places = (0, 120, 126, 128, 3000, 3502, 3504, 3510, 3511, 3512, 4090, 7600, 9010)
    texts = [f"ether[{k}:4] = {int.from_bytes(long[k : k + 4], 'big')}" for k in places]
    texts += [text.replace("ether[", "ether[len - len + ") for text in texts]
    filters = [pcap.compile_filter(text) for text in texts]
    filters.append([(0x20, 0, 0, 9011), (0x06, 0, 0, 1)])  # its last byte is not there
    with programs(filters, jumbo=True) as loaded:
        answers = [run(one, [long], [len(long)])[0] for one in loaded]
    assert answers == [True] * (len(filters) - 1) + [False]


def test_a_protochain_is_followed_through_sixty_headers_and_ends_there():
    """OC_CHAIN_MAX is 64 jumps back; tcpdump goes on for ever, which no program in a NIC may."""
    code = pcap.compile_filter("ip6 protochain 17")

    def chain(count):
        hops = b"".join(bytes([60 if i < count - 1 else 17]) + bytes(7) for i in range(count))
        return frames.ipv6(60, hops + frames.udp(1, 2))

    with programs([code]) as loaded:
        assert run(loaded[0], [chain(1), chain(60), chain(70)], [100, 600, 700]) == [
            True, True, False]  # fmt: skip
    assert pcap.Filter(code).match(chain(70))
