"""The independent decoder that the parser is compared with: scapy, kept to the layers in question.

Owns the translation of scapy's layers into the fields of ParsedPacket, and the list of things
where the two differ on purpose (DIFFERENCES, each with its reason). It computes nothing from bytes
that scapy has a field for.
"""

import logging

logging.getLogger("scapy.runtime").setLevel(logging.ERROR)

from scapy.config import conf  # noqa: E402
from scapy.contrib.mpls import MPLS  # noqa: E402
from scapy.layers.inet import ICMP, IP, TCP, UDP  # noqa: E402
from scapy.layers.inet6 import (  # noqa: E402
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    IPv6ExtHdrSegmentRouting,
    _ICMPv6,
)
from scapy.layers.ipsec import AH  # noqa: E402
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether  # noqa: E402
from scapy.layers.sctp import SCTP  # noqa: E402
from scapy.packet import NoPayload, Padding, bind_layers, split_layers  # noqa: E402

TAGS = (Dot1Q, Dot1AD)
# scapy knows the layers, but not each of them below each tag.
for below in (Ether, *TAGS):
    bind_layers(below, Dot1Q, type=0x8100)
    bind_layers(below, Dot1AD, type=0x88A8)
    bind_layers(below, Dot1Q, type=0x9100)
    bind_layers(below, IP, type=0x0800)
    bind_layers(below, IPv6, type=0x86DD)
    bind_layers(below, ARP, type=0x0806)
    bind_layers(below, MPLS, type=0x8847)
    bind_layers(below, MPLS, type=0x8848)
split_layers(AH, IP, nh=0)               # in IPv6 it is hop-by-hop
for above, number in ((TCP, 6), (UDP, 17), (SCTP, 132), (IPv6ExtHdrHopByHop, 0), (AH, 51),
                      (IPv6ExtHdrRouting, 43), (IPv6ExtHdrFragment, 44), (IPv6ExtHdrDestOpt, 60)):
    bind_layers(AH, above, nh=number)

EXTENSIONS = (IPv6ExtHdrHopByHop, IPv6ExtHdrRouting, IPv6ExtHdrSegmentRouting, IPv6ExtHdrDestOpt,
              IPv6ExtHdrFragment, AH)
TRANSPORTS = {TCP: 6, UDP: 17, SCTP: 132}


def decode(frame: bytes) -> dict:
    """What scapy finds, by the names of ParsedPacket and of FLAGS in test_parser_against_scapy."""
    found = {"vlan": (), "mpls_labels": 0, "ip_version": None, "ip_proto": None, "sport": None,
             "dport": None, "icmp_type": None, "l3_offset": None, "l4_offset": None,
             "payload_offset": None}
    if len(frame) < 14:
        return found
    layer = Ether(frame)
    offset = 14
    found["eth_type"] = layer.type if isinstance(layer, Ether) else layer.len
    if not isinstance(layer, Ether):         # scapy's Dot3: an 802.3 length
        return found
    layer = layer.payload
    while isinstance(layer, TAGS):
        tci = layer.prio << 13 | layer.dei << 12 | layer.vlan
        found["vlan"] += (tci,)
        found["eth_type"] = layer.type
        offset += 4
        layer = layer.payload
    while isinstance(layer, MPLS):
        found["mpls_labels"] += 1
        offset += 4
        layer = layer.payload
    if isinstance(layer, ARP):
        found["l3_offset"] = offset
    elif isinstance(layer, IP):
        _ipv4(layer, offset, found)
    elif isinstance(layer, IPv6):
        _ipv6(layer, offset, found)
    return found


def _ipv4(layer, offset, found):
    found.update(ip_version=4, ip_proto=layer.proto, l3_offset=offset,
                 options=layer.ihl > 5, fragment=bool(layer.frag or layer.flags.MF),
                 first_fragment=layer.frag == 0 and bool(layer.flags.MF))
    if layer.frag:
        found["payload_offset"] = offset + layer.ihl * 4
    else:
        _transport(layer.payload, offset + layer.ihl * 4, found)


def _ipv6(layer, offset, found):
    found.update(ip_version=6, ip_proto=layer.nh, l3_offset=offset, fragment=False,
                 first_fragment=False, extensions=isinstance(layer.payload, EXTENSIONS))
    offset += 40
    layer = layer.payload
    while isinstance(layer, EXTENSIONS):
        found["ip_proto"] = layer.nh
        if isinstance(layer, AH):
            offset += (layer.payloadlen + 2) * 4
        elif isinstance(layer, IPv6ExtHdrFragment):
            offset += 8
            if layer.offset or layer.m:
                found.update(fragment=True, first_fragment=layer.offset == 0)
            if layer.offset:
                found["payload_offset"] = offset
                return
        else:
            offset += (layer.len + 1) * 8
        layer = layer.payload
    _transport(layer, offset, found)


def _transport(layer, offset, found):
    if isinstance(layer, (NoPayload, Padding)):
        return
    found["l4_offset"] = offset
    for kind, number in TRANSPORTS.items():
        if isinstance(layer, kind):
            found.update(sport=layer.sport, dport=layer.dport, ip_proto=number)
    if isinstance(layer, TCP):
        found["payload_offset"] = offset + layer.dataofs * 4
    elif isinstance(layer, UDP):
        found["payload_offset"] = offset + 8
    elif isinstance(layer, SCTP):
        found["payload_offset"] = offset + 12
    elif isinstance(layer, ICMP):
        found.update(icmp_type=layer.type, payload_offset=offset + 8)
    elif isinstance(layer, _ICMPv6):
        found.update(icmp_type=layer.type, payload_offset=offset + 4)


conf.debug_dissector = False
