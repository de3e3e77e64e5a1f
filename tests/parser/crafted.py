"""Packets built together with what must be found in them, for the parser's random tests.

Owns the strategies (hypothesis) and the sums of header lengths; nothing here parses. A Crafted
packet carries the fields of ParsedPacket that its builder knows.
"""

import struct
from dataclasses import dataclass, field

from hypothesis import strategies as st

TPIDS = (0x8100, 0x88A8, 0x9100)
TCP, UDP, SCTP, ICMP, ICMPV6 = 6, 17, 132, 1, 58
HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION = 0, 43, 44, 51, 60
CHAIN_MAX = 6        # OC_EXT_HEADERS_MAX
PORT = st.integers(0, 65535)


@dataclass
class Crafted:
    """Bytes so far and what is known of them."""

    packet: bytes = b""
    expect: dict = field(default_factory=dict)


def tcp(sport, dport, options):
    header = struct.pack("!HHIIBBHHH", sport, dport, 1, 0, (5 + options) << 4, 2, 8192, 0, 0)
    return header + b"\x01" * (4 * options)


def udp(sport, dport, data):
    return struct.pack("!HHHH", sport, dport, 8 + len(data), 0)


def sctp(sport, dport):
    return struct.pack("!HHII", sport, dport, 7, 0)


@st.composite
def transports(draw, version):
    """(protocol, bytes, expected fields relative to the transport header)"""
    kind = draw(st.sampled_from([TCP, UDP, SCTP, ICMP if version == 4 else ICMPV6]))
    sport, dport = draw(PORT), draw(PORT)
    data = draw(st.binary(max_size=40))
    if kind in (ICMP, ICMPV6):
        icmp_type = draw(st.integers(0, 255))
        head = 8 if kind == ICMP else 4
        body = bytes([icmp_type, 0, 0, 0]) + bytes(head - 4) + data
        return kind, body, {"icmp_type": icmp_type, "head": head}
    options = draw(st.integers(0, 10))
    header = {TCP: tcp(sport, dport, options), UDP: udp(sport, dport, data),
              SCTP: sctp(sport, dport)}[kind]
    return kind, header + data, {"sport": sport, "dport": dport, "head": len(header)}


@st.composite
def ipv4(draw):
    options = draw(st.integers(0, 10))
    offset = draw(st.sampled_from([0, 0, 0, 1, 185, 8191]))
    more = draw(st.sampled_from([0, 0, 1]))
    kind, body, inner = draw(transports(4))
    header = struct.pack(
        "!BBHHHBBH4s4s", 0x45 + options, 0, 20 + 4 * options + len(body), 9,
        more << 13 | offset, 64, kind, 0, bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2]))
    expect = {"ip_version": 4, "ip_proto": kind, "options": options > 0, "extensions": False,
              "fragment": bool(offset or more), "first_fragment": bool(more and not offset)}
    ends = 20 + 4 * options
    return header + b"\x01" * (4 * options) + body, ends, None if offset else inner, expect


def extension(kind, following, size, offset, more):
    if kind == FRAGMENT:
        return struct.pack("!BBHI", following, 0, offset << 3 | more, 5)
    if kind == AUTHENTICATION:                       # 12 bytes and more, in steps of 4
        return struct.pack("!BBHII", following, 1 + size, 0, 1, 1) + bytes(4 * size)
    if kind == ROUTING:                              # whole addresses, as scapy wants them
        return bytes([following, 2 * size, 253, 0, 0, 0, 0, 0]) + bytes(16 * size)
    filler = 6 + 8 * size                            # PadN fills hop-by-hop and destination
    return bytes([following, size, 1, filler - 2]) + bytes(filler - 2)


@st.composite
def ipv6(draw):
    chain = draw(st.lists(
        st.sampled_from([HOP_BY_HOP, ROUTING, AUTHENTICATION, DESTINATION]), max_size=CHAIN_MAX))
    offset, more = 0, 0
    if draw(st.booleans()) and len(chain) < CHAIN_MAX:
        chain.append(FRAGMENT)
        offset = draw(st.sampled_from([0, 0, 1, 180]))
        more = draw(st.integers(0, 1))
    kind, body, inner = draw(transports(6))
    types, headers = [*chain, kind], b""
    for here, following in zip(chain, types[1:], strict=True):
        headers += extension(here, following, draw(st.integers(0, 5)), offset, more)
    fixed = struct.pack("!IHBB16s16s", 6 << 28, len(headers) + len(body), types[0], 64,
                        bytes(15) + b"\x01", bytes(15) + b"\x02")
    expect = {"ip_version": 6, "ip_proto": kind, "options": False, "extensions": bool(chain),
              "fragment": bool(offset or more), "first_fragment": bool(more and not offset)}
    ends = 40 + len(headers)
    return fixed + headers + body, ends, None if offset else inner, expect


@st.composite
def frames(draw):
    """A whole Ethernet frame with every combination of tags, labels and network header."""
    packet, ends, inner, expect = draw(st.one_of(ipv4(), ipv6()))
    eth_type = 0x0800 if expect["ip_version"] == 4 else 0x86DD
    tags = draw(st.lists(st.tuples(st.sampled_from(TPIDS), st.integers(0, 65535)), max_size=3))
    labels = draw(st.lists(st.integers(16, (1 << 20) - 1), max_size=8))
    if labels:
        eth_type = draw(st.sampled_from([0x8847, 0x8848]))
    types = [tpid for tpid, _ in tags] + [eth_type]
    frame = bytes.fromhex("020000000001020000000002") + struct.pack("!H", types[0])
    for (_, tci), following in zip(tags, types[1:], strict=True):
        frame += struct.pack("!HH", tci, following)
    for number, label in enumerate(labels, 1):
        frame += struct.pack("!I", label << 12 | (number == len(labels)) << 8 | 64)
    start = len(frame)
    padding = bytes(draw(st.integers(0, 20)))        # never to be taken for a header
    expect |= {"eth_type": eth_type, "vlan": tuple(tci for _, tci in tags),
               "mpls_labels": len(labels), "l3_offset": start, "l4_offset": None, "sport": None,
               "dport": None, "icmp_type": None, "payload_offset": start + ends}
    if inner is not None:
        expect |= {"l4_offset": start + ends, **inner}
        expect["payload_offset"] = start + ends + expect.pop("head")
    return Crafted(frame + packet + padding, expect)
