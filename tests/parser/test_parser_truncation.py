"""Every different packet of the captures, cut at every length: a cut packet invents nothing.

That no byte behind the cut is read is shown by tests/fuzz under ASan; here the whole packet lies
behind the cut, so that a byte read too far would show as a port that must not be there yet.
"""

import numpy as np

from appliance.capture import read_capture
from appliance.dataplane import parser

ETHERNET = 1
HEADERS_MAX = 512       # no shared capture has its ports further in; lengths beyond change nothing
TRANSPORTS = (6, 17, 132)


def cut_everywhere(packet):
    """The parser's table for the first 0, 1, 2 ... bytes of the packet."""
    count = min(len(packet), HEADERS_MAX) + 1
    lengths = np.arange(count, dtype=np.uint32)
    if len(packet) >= count:
        lengths = np.append(lengths, np.uint32(len(packet)))
    return lengths, parser.parse_many(packet, np.zeros(len(lengths), np.uint64), lengths)


def faults(packet) -> list[str]:
    lengths, table = cut_everywhere(packet)
    whole = table[-1]
    ported = table["has_ports"] != 0
    found = []
    if ported.any():
        first = lengths[ported][0]
        if not whole["has_ports"] or first != whole["l4_offset"] + 4 or not ported[first:].all():
            found.append("ports are there before their bytes, or go away again")
        if (table["sport"][ported] != whole["sport"]).any() or (
                table["dport"][ported] != whole["dport"]).any():
            found.append("other ports than those of the whole packet")
    elif whole["has_ports"]:
        found.append("the whole packet has ports and no cut of it")
    if table["sport"][~ported].any() or table["dport"][~ported].any():
        found.append("ports without has_ports")
    for field in ("l3_offset", "l4_offset", "payload_offset"):
        said = table[field] != 0
        if (table[field][said] != whole[field]).any():
            found.append(f"another {field} than that of the whole packet")
        if (table[field] > lengths).any():
            found.append(f"{field} beyond the cut")
    if whole["has_ports"] and whole["ip_proto"] not in TRANSPORTS:
        found.append("ports of a protocol that has none")
    return found


def test_a_packet_cut_at_any_length_shows_the_ports_of_the_whole_one_or_none(captures):
    seen, bad, with_ports = set(), [], 0
    for path in sorted(captures.rglob("*.pcap*")):
        capture = read_capture(path)
        if capture.link_type != ETHERNET:
            continue
        for index, view in enumerate(capture):
            packet = bytes(view)
            if packet in seen:
                continue
            seen.add(packet)
            with_ports += parser.parse(packet).sport is not None
            bad += [f"{path.name} packet {index + 1}: {text}" for text in faults(packet)]
    assert not bad, "\n".join(bad[:20])
    assert with_ports > 100, "the captures hold no packets with ports: nothing was cut"
