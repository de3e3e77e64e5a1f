"""The packet parser for Python and for the data plane: xdp/openclaw_parse.h, compiled once more.

Owns nothing but the translation: one packet into a ParsedPacket, many into a numpy table of
PACKET_DTYPE without an object per packet. It decides nothing about a packet and raises only for
arguments that do not fit each other; whatever bytes a packet holds, there is a result.
"""

from typing import NamedTuple

import numpy as np

cdef extern from "openclaw_parse.h":
    enum:
        OC_PKT_TRUNCATED, OC_PKT_BOGUS, OC_PKT_TOO_DEEP, OC_PKT_FRAGMENT, OC_PKT_FIRST_FRAGMENT
        OC_PKT_IP_OPTIONS, OC_PKT_EXT_HEADERS
        OC_LAYER_NONE, OC_LAYER_LINK, OC_LAYER_NETWORK, OC_LAYER_TRANSPORT
        OC_MGMT_ARP, OC_MGMT_ND, OC_MGMT_DHCP, OC_MGMT_SSH

LAYER_NONE, LAYER_LINK, LAYER_NETWORK, LAYER_TRANSPORT = (
    OC_LAYER_NONE, OC_LAYER_LINK, OC_LAYER_NETWORK, OC_LAYER_TRANSPORT)
TRUNCATED, BOGUS, TOO_DEEP = OC_PKT_TRUNCATED, OC_PKT_BOGUS, OC_PKT_TOO_DEEP
FRAGMENT, FIRST_FRAGMENT = OC_PKT_FRAGMENT, OC_PKT_FIRST_FRAGMENT
IP_OPTIONS, EXT_HEADERS = OC_PKT_IP_OPTIONS, OC_PKT_EXT_HEADERS
MGMT_ARP, MGMT_ND, MGMT_DHCP, MGMT_SSH = OC_MGMT_ARP, OC_MGMT_ND, OC_MGMT_DHCP, OC_MGMT_SSH

# struct oc_packet, field by field; the assertion below keeps the two from drifting apart.
PACKET_DTYPE = np.dtype([
    ("l3_offset", "u2"), ("l4_offset", "u2"), ("payload_offset", "u2"), ("eth_type", "u2"),
    ("vlan", "u2", (3,)), ("vlan_count", "u1"), ("mpls_count", "u1"), ("ip_version", "u1"),
    ("ip_proto", "u1"), ("icmp_type", "u1"), ("has_ports", "u1"),
    ("sport", "u2"), ("dport", "u2"), ("flags", "u2")])
assert PACKET_DTYPE.itemsize == sizeof(oc_packet)


class ParsedPacket(NamedTuple):
    """Where the headers of one packet begin and what they say. None: the packet has none."""

    layer: int                  # LAYER_*: the highest layer that begins inside the packet
    eth_type: int
    vlan: tuple[int, ...]       # tag control information, outermost first; the id is & 0xfff
    mpls_labels: int
    ip_version: int | None
    ip_proto: int | None
    l3_offset: int | None
    l4_offset: int | None
    payload_offset: int | None
    icmp_type: int | None
    sport: int | None
    dport: int | None
    flags: int                  # TRUNCATED | BOGUS | ...
    management: int             # MGMT_* or 0


cdef void parse_frames(const uint8_t *base, const uint64_t *offsets, const uint32_t *lengths,
                       size_t count, oc_packet *out) noexcept nogil:
    cdef size_t i
    cdef const uint8_t *start
    for i in range(count):
        start = base + offsets[i]
        oc_parse(start, start + lengths[i], &out[i])


def parse(packet):
    """One packet, any object with the buffer protocol."""
    cdef const uint8_t[::1] view = packet
    cdef oc_packet p
    cdef uint8_t nothing = 0
    cdef const uint8_t *start = &view[0] if view.shape[0] else &nothing
    cdef int layer = oc_parse(start, start + view.shape[0], &p)
    cdef bint is_icmp = p.l4_offset and p.ip_proto == (1 if p.ip_version == 4 else 58)
    return ParsedPacket(
        layer, p.eth_type, tuple([p.vlan[i] for i in range(p.vlan_count)]), p.mpls_count,
        p.ip_version or None, p.ip_proto if p.ip_version else None,
        p.l3_offset or None, p.l4_offset or None, p.payload_offset or None,
        p.icmp_type if is_icmp else None,
        p.sport if p.has_ports else None, p.dport if p.has_ports else None,
        p.flags, oc_management(&p))


def parse_many(data, const uint64_t[::1] offsets, const uint32_t[::1] lengths):
    """Packets that lie in one buffer, as a table (numpy, PACKET_DTYPE). The GIL is released."""
    cdef const uint8_t[::1] view = data
    cdef size_t count = offsets.shape[0], i
    cdef uint64_t total = view.shape[0]
    if lengths.shape[0] != offsets.shape[0]:
        raise ValueError(f"{count} offsets and {lengths.shape[0]} lengths")
    for i in range(count):
        if offsets[i] > total or lengths[i] > total - offsets[i]:
            raise ValueError(f"packet {i} lies outside of the buffer of {total} bytes")
    table = np.empty(count, PACKET_DTYPE)
    cdef uint8_t[::1] rows = table.view(np.uint8)
    cdef uint8_t nothing = 0
    cdef const uint8_t *base = &view[0] if total else &nothing
    if count:
        with nogil:
            parse_frames(base, &offsets[0], &lengths[0], count, <oc_packet *>&rows[0])
    return table


def management(table):
    """MGMT_* or 0 for each row of a table of parse_many."""
    cdef const uint8_t[::1] rows = np.ascontiguousarray(table, PACKET_DTYPE).view(np.uint8)
    result = np.zeros(len(table), np.uint8)
    cdef uint8_t[::1] out = result
    cdef Py_ssize_t i
    for i in range(out.shape[0]):
        out[i] = oc_management(<const oc_packet *>&rows[i * sizeof(oc_packet)])
    return result
