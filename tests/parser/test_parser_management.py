"""What counts as management traffic, and what does not though it looks like it."""

import struct

import numpy as np
import pytest

from appliance.dataplane import parser
from tests.parser import crafted
from tests.parser.test_parser_crafted import MACS, ipv4, ipv6


def tagged(frame):
    return frame[:12] + b"\x81\x00\x00\x07" + frame[12:]


def udp(sport, dport):
    return crafted.udp(sport, dport, b"")


def tcp(sport, dport):
    return crafted.tcp(sport, dport, 0)


ARP = MACS + b"\x08\x06" + bytes.fromhex("0001080006040001") + bytes(20)
MANAGEMENT = {
    "arp": (ARP, parser.MGMT_ARP),
    "router_solicitation": (ipv6(58, bytes([133]) + bytes(7)), parser.MGMT_ND),
    "redirect": (ipv6(58, bytes([137]) + bytes(7)), parser.MGMT_ND),
    "dhcp_request": (ipv4(17, udp(68, 67)), parser.MGMT_DHCP),
    "dhcp_reply": (ipv4(17, udp(67, 68)), parser.MGMT_DHCP),
    "dhcp_relayed": (ipv4(17, udp(67, 67)), parser.MGMT_DHCP),
    "dhcpv6": (ipv6(17, udp(546, 547)), parser.MGMT_DHCP),
    "ssh_to_us": (ipv4(6, tcp(40000, 22)), parser.MGMT_SSH),
    "ssh_from_a_server": (ipv6(6, tcp(22, 40000)), parser.MGMT_SSH),
}
OTHER = {
    "reverse_arp": MACS + b"\x80\x35" + bytes(28),
    "echo_request_v6": ipv6(58, bytes([128]) + bytes(7)),
    "below_nd": ipv6(58, bytes([132]) + bytes(7)),
    "above_nd": ipv6(58, bytes([138]) + bytes(7)),
    "icmpv6_number_in_ipv4": ipv4(58, bytes([135]) + bytes(7)),
    "dhcp_ports_over_tcp": ipv4(6, tcp(67, 68)),
    "dhcp_ports_over_ipv6": ipv6(17, udp(67, 68)),
    "dhcpv6_ports_over_ipv4": ipv4(17, udp(546, 547)),
    "ssh_port_over_udp": ipv4(17, udp(22, 22)),
    "ssh_behind_the_ip_length": ipv4(6, tcp(22, 22), total=20),
    "http": ipv4(6, tcp(40000, 80)),
    "nothing": b"",
    "short": MACS,
}


@pytest.mark.parametrize("name", MANAGEMENT)
def test_management_traffic_is_recognised_with_and_without_a_vlan_tag(name):
    frame, kind = MANAGEMENT[name]
    assert parser.parse(frame).management == kind
    assert parser.parse(tagged(frame)).management == kind


@pytest.mark.parametrize("name", OTHER)
def test_what_only_looks_like_management_traffic_is_not_kept(name):
    assert parser.parse(OTHER[name]).management == 0


def test_a_table_of_packets_gives_the_same_answers_as_packet_by_packet():
    frames = [frame for frame, _ in MANAGEMENT.values()] + list(OTHER.values())
    lengths = np.array([len(frame) for frame in frames], np.uint32)
    offsets = (np.cumsum(lengths) - lengths).astype(np.uint64)
    table = parser.parse_many(b"".join(frames), offsets, lengths)
    assert parser.management(table).tolist() == [parser.parse(f).management for f in frames]
    assert [int(row["sport"]) for row in table] == [parser.parse(f).sport or 0 for f in frames]


def test_a_packet_outside_of_the_buffer_is_refused():
    for offset, length in ((0, 11), (10, 1), (11, 0), (2**64 - 1, 2)):
        with pytest.raises(ValueError, match="outside"):
            parser.parse_many(bytes(10), np.array([offset], np.uint64),
                              np.array([length], np.uint32))
    assert len(parser.parse_many(b"", np.array([], np.uint64), np.array([], np.uint32))) == 0
    assert struct.calcsize("13H") == parser.PACKET_DTYPE.itemsize
