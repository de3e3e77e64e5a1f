"""Frames for tests of steering, written by hand so that no decoder of ours is asked."""

from __future__ import annotations

import struct

MACS = bytes.fromhex("020000000001 020000000002")


def ethernet(kind: int, payload: bytes) -> bytes:
    return (MACS + struct.pack("!H", kind) + payload).ljust(60, b"\0")


def ipv4(protocol: int, payload: bytes, source="10.0.0.1", target="10.0.0.2") -> bytes:
    addresses = bytes(map(int, source.split("."))) + bytes(map(int, target.split(".")))
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0)
    return ethernet(0x0800, head + addresses + payload)


def ipv6(next_header: int, payload: bytes) -> bytes:
    head = struct.pack("!IHBB", 6 << 28, len(payload), next_header, 255)
    return ethernet(0x86DD, head + b"\xfe\x80" + bytes(13) + b"\1" + b"\xff\2" + bytes(13) + b"\1"
                    + payload)  # fmt: skip


def udp(source: int, target: int, data: bytes = b"data") -> bytes:
    return struct.pack("!HHHH", source, target, 8 + len(data), 0) + data


def tcp(source: int, target: int) -> bytes:
    return struct.pack("!HHIIBBHHH", source, target, 1, 0, 0x50, 2, 1024, 0, 0)


ARP_FRAME = ethernet(0x0806, bytes.fromhex("0001080006040001") + bytes(20))
ND_FRAME = ipv6(58, b"\x87\0\0\0" + bytes(20))
ECHO6_FRAME = ipv6(58, b"\x80\0\0\0" + bytes(20))
DHCP_FRAME = ipv4(17, udp(68, 67))
DHCP6_FRAME = ipv6(17, udp(546, 547))
SSH_FRAME = ipv4(6, tcp(40000, 22))
UDP_FRAME = ipv4(17, udp(5000, 4789))
TCP_FRAME = ipv4(6, tcp(40000, 443))
MANAGEMENT = {
    "ARP": ARP_FRAME, "ND": ND_FRAME, "DHCP": DHCP_FRAME, "DHCPv6": DHCP6_FRAME,
    "SSH": SSH_FRAME,
}  # fmt: skip
ORDINARY = {"UDP": UDP_FRAME, "TCP": TCP_FRAME, "ICMPv6 echo": ECHO6_FRAME}
