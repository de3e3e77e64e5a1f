"""Makes the captures of this folder: small, our own, and the same at every run.

They serve where no real captures are at hand. mixed.pcap holds one of each kind that the parser
and the steering rules know, and UDP of sizes from the smallest frame to 1,514 bytes; its
checksums are right. interfaces.pcapng comes from two interfaces with different clocks.

usage: generate.py [DIRECTORY]
"""

import struct
import sys
from pathlib import Path

MAC_A, MAC_B = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
IP_A, IP_B = bytes([192, 0, 2, 1]), bytes([192, 0, 2, 2])                 # RFC 5737
IP6_A = bytes.fromhex("20010db8000000000000000000000001")                 # RFC 3849
IP6_B = bytes.fromhex("20010db8000000000000000000000002")
START_NS = 1_700_000_000 * 10**9
FRAME_MIN, FRAME_MAX = 60, 1514


def checksum(data):
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def with_checksum(protocol, source, target, segment, at):
    pseudo = source + target + struct.pack("!II", len(segment), protocol)
    value = checksum(pseudo + segment) or 0xFFFF
    return segment[:at] + struct.pack("!H", value) + segment[at + 2:]


def udp(source, target, sport, dport, data):
    return with_checksum(
        17, source, target, struct.pack("!HHHH", sport, dport, 8 + len(data), 0) + data, 6)


def tcp(source, target, sport, dport, data, flags=0x18):
    header = struct.pack("!HHIIBBHHH", sport, dport, 1000, 2000, 5 << 4, flags, 64240, 0, 0)
    return with_checksum(6, source, target, header + data, 16)


def icmp6(kind, body):
    return with_checksum(58, IP6_A, IP6_B, bytes([kind, 0, 0, 0]) + body, 2)


def ethernet(eth_type, body, target=MAC_B):
    return (target + MAC_A + struct.pack("!H", eth_type) + body).ljust(FRAME_MIN, b"\0")


def ipv4(proto, body, *, options=b"", fragment=0, ident=7):
    header = struct.pack("!BBHHHBBH4s4s", 0x45 + len(options) // 4, 0,
                         20 + len(options) + len(body), ident, fragment, 64, proto, 0, IP_A, IP_B)
    header += options
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + body


def ipv6(following, body, hops=64):
    return struct.pack("!IHBB", 6 << 28, len(body), following, hops) + IP6_A + IP6_B + body


def tag(frame, tpid, vlan):
    return frame[:12] + struct.pack("!HH", tpid, vlan) + frame[12:]


def mpls(packet, *labels):
    stack = b"".join(struct.pack("!I", label << 12 | (i == len(labels) - 1) << 8 | 64)
                     for i, label in enumerate(labels))
    return ethernet(0x8847, stack + packet)


def management():
    arp = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + MAC_A + IP_A + bytes(6) + IP_B
    yield ethernet(0x0806, arp, target=b"\xff" * 6)
    yield ethernet(0x86DD, ipv6(58, icmp6(135, bytes(4) + IP6_B), hops=255))
    yield ethernet(0x86DD, ipv6(58, icmp6(136, b"\x60\0\0\0" + IP6_B), hops=255))
    yield ethernet(0x0800, ipv4(17, udp(IP_A, IP_B, 68, 67, b"\x01\x01\x06" + bytes(241))))
    yield ethernet(0x0800, ipv4(6, tcp(IP_A, IP_B, 50000, 22, b"", flags=2)))


def kinds():
    """One of each shape."""
    query = udp(IP_A, IP_B, 40000, 53, bytes.fromhex("000101000001000000000000026f63000001 0001"))
    web = tcp(IP_A, IP_B, 40001, 80, b"GET / HTTP/1.1\r\nHost: example.net\r\n\r\n")
    yield from management()
    yield ethernet(0x0800, ipv4(17, query))
    yield ethernet(0x0800, ipv4(6, web))
    yield ethernet(0x0800, ipv4(1, struct.pack("!BBHHH", 8, 0, 0xF7FB, 1, 3)))
    yield ethernet(0x0800, ipv4(17, query, options=bytes.fromhex("94040000")))
    yield tag(ethernet(0x0800, ipv4(6, web)), 0x8100, 100)
    yield tag(tag(ethernet(0x0800, ipv4(17, query)), 0x8100, 100), 0x88A8, 200)
    yield tag(tag(tag(ethernet(0x0800, ipv4(17, query)), 0x8100, 1), 0x8100, 2), 0x9100, 3)
    yield mpls(ipv4(6, web), 16)
    yield mpls(ipv6(17, udp(IP6_A, IP6_B, 7, 9, b"v6 below mpls")), 16, 17, 18)
    whole = udp(IP_A, IP_B, 40002, 4789, bytes(range(256)) * 8)
    yield ethernet(0x0800, ipv4(17, whole[:1400], fragment=0x2000, ident=99))
    yield ethernet(0x0800, ipv4(17, whole[1400:], fragment=175, ident=99))
    yield ethernet(0x86DD, ipv6(6, tcp(IP6_A, IP6_B, 40003, 443, b"hello")))
    six = udp(IP6_A, IP6_B, 40004, 53, b"behind extension headers")
    padn = bytes.fromhex("010400000000")
    yield ethernet(0x86DD, ipv6(0, bytes([60, 0]) + padn + bytes([17, 0]) + padn + six))
    yield ethernet(0x86DD, ipv6(44, struct.pack("!BBHI", 17, 0, 1, 5) + six[:16]))
    yield ethernet(0x86DD, ipv6(44, struct.pack("!BBHI", 17, 0, 2 << 3, 5) + six[16:]))
    yield ethernet(0x86DD, ipv6(59, b""))
    yield ethernet(0x88CC, bytes.fromhex("0207040200000000010403000001060200780000"))


def sizes():
    """UDP in frames from the smallest to the largest, in steps that miss no alignment."""
    for number, size in enumerate(range(FRAME_MIN, FRAME_MAX + 1, 27)):
        data = bytes((number + i) % 251 for i in range(size - 42))
        yield ethernet(0x0800, ipv4(17, udp(IP_A, IP_B, 1024 + number, 9000, data)))


def pcap(frames):
    out = struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 262144, 1)
    for number, frame in enumerate(frames):
        time_ns = START_NS + number * 1_000_001            # 1 ms and 1 ns apart
        out += struct.pack("<IIII", time_ns // 10**9, time_ns % 10**9, len(frame), len(frame))
        out += frame
    return out


def block(kind, body):
    body += bytes(-len(body) % 4)
    return struct.pack("<II", kind, len(body) + 12) + body + struct.pack("<I", len(body) + 12)


def interface(resolution, link_type=1, snaplen=262144):
    options = struct.pack("<HHBxxxHH", 9, 1, resolution, 0, 0)
    return block(1, struct.pack("<HHI", link_type, 0, snaplen) + options)


def enhanced_packet(interface_id, ticks, frame):
    head = struct.pack("<IIIII", interface_id, ticks >> 32, ticks & 0xFFFFFFFF, len(frame),
                       len(frame))
    return block(6, head + frame)


def pcapng(frames):
    """Interface 0 counts microseconds, interface 1 nanoseconds."""
    out = block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1))
    out += interface(6) + interface(9)
    for number, frame in enumerate(frames):
        time_ns = START_NS + number * 1_000_000
        out += enhanced_packet(number % 2, time_ns if number % 2 else time_ns // 1000, frame)
    return out


def files():
    return {"mixed.pcap": pcap([*kinds(), *sizes()]), "interfaces.pcapng": pcapng(kinds())}


if __name__ == "__main__":
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    for name, content in files().items():
        (directory / name).write_bytes(content)
