"""The parser over random frames whose builder knows the answer, and over hand-made awkward ones."""

import os
import struct

from hypothesis import given, settings

from appliance.dataplane import parser
from tests.parser import crafted
from tests.parser.scapy_decoder import decode

FLAGS = {
    "options": parser.IP_OPTIONS, "fragment": parser.FRAGMENT,
    "first_fragment": parser.FIRST_FRAGMENT, "extensions": parser.EXT_HEADERS,
}
EXAMPLES = 20_000 if os.environ.get("OPENCLAW_FULL") else 400
MACS = bytes.fromhex("020000000001020000000002")


def found(packet, names):
    parsed = parser.parse(packet)
    named = {name: bool(parsed.flags & bit) for name, bit in FLAGS.items()}
    return {name: named.get(name, getattr(parsed, name, None)) for name in names}


def ipv4(proto, body, *, ihl=5, total=None, fragment=0, version=4):
    size = 20 + len(body) if total is None else total
    return MACS + b"\x08\x00" + struct.pack(
        "!BBHHHBBH8s", version << 4 | ihl, 0, size, 0, fragment, 64, proto, 0, bytes(8)) + body


def ipv6(following, body, *, length=None):
    size = len(body) if length is None else length
    return MACS + b"\x86\xdd" + struct.pack("!IHBB32s", 6 << 28, size, following, 64,
                                            bytes(32)) + body


@settings(max_examples=EXAMPLES, deadline=None, print_blob=True)
@given(crafted.frames())
def test_every_combination_of_tags_labels_options_and_extensions_is_parsed_as_it_was_built(frame):
    assert found(frame.packet, frame.expect) == frame.expect
    assert not parser.parse(frame.packet).flags & (
        parser.TRUNCATED | parser.BOGUS | parser.TOO_DEEP)


@settings(max_examples=EXAMPLES, deadline=None, print_blob=True)
@given(crafted.frames())
def test_scapy_finds_the_same_in_crafted_frames(frame):
    theirs = decode(frame.packet)
    if frame.expect["ip_proto"] in (crafted.ICMP, crafted.ICMPV6):
        for name in ("icmp_type", "payload_offset"):  # it wants well-formed bodies, these are not
            theirs.pop(name)
    assert found(frame.packet, theirs) == theirs


@settings(max_examples=EXAMPLES, deadline=None, print_blob=True)
@given(crafted.frames())
def test_a_crafted_frame_cut_anywhere_shows_its_own_ports_or_none(frame):
    for size in range(len(frame.packet)):
        cut = parser.parse(frame.packet[:size])
        there = frame.expect["l4_offset"] is not None and (
            size >= frame.expect["l4_offset"] + 4 and frame.expect["sport"] is not None)
        assert cut.sport == (frame.expect["sport"] if there else None)
        assert cut.dport == (frame.expect["dport"] if there else None)


def test_a_header_length_below_five_words_is_bogus_and_has_no_ports():
    for ihl in range(5):
        parsed = parser.parse(ipv4(6, crafted.tcp(22, 22, 0), ihl=ihl))
        assert parsed.flags & parser.BOGUS and parsed.sport is None and parsed.l4_offset is None


def test_padding_behind_the_ip_length_is_not_taken_for_a_transport_header():
    parsed = parser.parse(ipv4(6, crafted.tcp(22, 22, 0), total=20))
    assert parsed.sport is None and parsed.l4_offset is None and not parsed.flags
    parsed = parser.parse(ipv4(6, crafted.tcp(22, 22, 0), total=23))
    assert parsed.sport is None and parsed.flags == parser.BOGUS
    parsed = parser.parse(ipv6(17, crafted.udp(546, 547, b""), length=0))
    assert parsed.sport is None and not parsed.flags


def test_an_ipv4_length_of_zero_reaches_to_the_end_of_the_frame():
    parsed = parser.parse(ipv4(6, crafted.tcp(5, 6, 0), total=0))
    assert (parsed.sport, parsed.dport, parsed.flags) == (5, 6, 0)


def test_a_jumbogram_behind_hop_by_hop_reaches_to_the_end_of_the_frame():
    hop_by_hop = bytes([17, 0, 0xC2, 4, 0, 1, 0, 0])
    parsed = parser.parse(ipv6(0, hop_by_hop + crafted.udp(5, 6, b""), length=0))
    assert (parsed.sport, parsed.dport, parsed.flags) == (5, 6, parser.EXT_HEADERS)


def test_a_later_fragment_has_no_ports_though_its_data_look_like_some():
    for offset in (1, 185, 8191):
        parsed = parser.parse(ipv4(17, crafted.udp(67, 68, b""), fragment=offset))
        assert parsed.sport is None and parsed.l4_offset is None
        assert parsed.payload_offset == 34 and parsed.flags == parser.FRAGMENT
        assert parsed.management == 0


def test_an_atomic_fragment_is_none_and_keeps_its_ports():
    parsed = parser.parse(ipv6(44, bytes([17, 0, 0, 0, 0, 0, 0, 9]) + crafted.udp(1, 2, b"")))
    assert (parsed.sport, parsed.dport, parsed.flags) == (1, 2, parser.EXT_HEADERS)


def test_an_unknown_extension_header_ends_the_chain_without_ports():
    mobility, shim6, experimental = 135, 140, 253
    for unknown in (mobility, shim6, experimental):
        parsed = parser.parse(ipv6(60, bytes([unknown, 0, 1, 4, 0, 0, 0, 0])
                                   + bytes([6, 0]) + bytes(6) + crafted.tcp(22, 22, 0)))
        assert parsed.sport is None and parsed.ip_proto == unknown


def test_more_headers_than_the_limit_stop_without_ports():
    six = b"".join(bytes([60, 0, 1, 4, 0, 0, 0, 0]) for _ in range(6))
    seventh = bytes([6, 0, 1, 4, 0, 0, 0, 0])
    parsed = parser.parse(ipv6(60, six + seventh + crafted.tcp(22, 22, 0)))
    assert parsed.sport is None and parsed.flags & parser.TOO_DEEP
    tags = struct.pack("!HHHHHHHH", 0x8100, 1, 0x8100, 2, 0x8100, 3, 0x8100, 4)
    parsed = parser.parse(MACS + tags + ipv4(6, crafted.tcp(1, 2, 0))[12:])
    assert parsed.vlan == (1, 2, 3) and parsed.flags == parser.TOO_DEEP and parsed.layer == 2
    labels = b"".join(struct.pack("!I", n << 12 | (n == 9) << 8) for n in range(1, 10))
    parsed = parser.parse(MACS + b"\x88\x47" + labels + ipv4(6, crafted.tcp(1, 2, 0))[14:])
    assert parsed.mpls_labels == 8 and parsed.flags == parser.TOO_DEEP and parsed.sport is None


def test_a_pseudowire_below_mpls_is_not_guessed_to_be_ip():
    label = struct.pack("!I", 16 << 12 | 1 << 8 | 64)
    parsed = parser.parse(MACS + b"\x88\x47" + label + bytes(4) + ipv4(6, crafted.tcp(1, 2, 0)))
    assert parsed.mpls_labels == 1 and parsed.l3_offset is None and parsed.ip_version is None


def test_an_802_3_length_is_no_network_layer():
    parsed = parser.parse(MACS + b"\x00\x26\x42\x42\x03" + bytes(35))
    assert parsed.eth_type == 0x26 and parsed.layer == parser.LAYER_LINK and not parsed.flags
