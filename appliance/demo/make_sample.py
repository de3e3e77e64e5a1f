"""Makes sample.pcap, the capture that the demo replays when it is given none.

A minute of a small office behind a provider's edge, invented and the same at every run: name
lookups, web sessions with handshake and close over IPv4, IPv6, VLAN, QinQ and MPLS, a fragmented
transfer, a tunnel, pings, and the management traffic that stays with the kernel. Checksums are
right. Addresses are those reserved for documentation. It is no test of odd packets.

usage: python -m appliance.demo.make_sample [FILE]
"""

from __future__ import annotations

import random
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

SEED = 20260117
START_NS = 1_700_000_000 * 10**9
PAYLOAD_MAX = 1400  # of a TCP segment: with IPv6, TCP and two tags or labels within 1,514 bytes

MAC = {name: bytes([2, 0, 0, 0, 0, number]) for number, name in enumerate("abcdefgh", 1)}
GATEWAY = MAC["h"]
IP = {name: bytes([192, 0, 2, number]) for number, name in enumerate("abcdefgh", 1)}
WEB, RESOLVER = bytes([198, 51, 100, 80]), bytes([203, 0, 113, 53])
IP6 = {name: bytes.fromhex("20010db8") + bytes(11) + bytes([n]) for n, name in enumerate("abcd", 1)}
WEB6 = bytes.fromhex("20010db8ffff0000000000000000") + b"\0\x50"


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def segment(protocol: int, source: bytes, target: bytes, body: bytes, at: int) -> bytes:
    """The body with its checksum, over the pseudo header, put in at `at`."""
    pseudo = source + target + struct.pack("!II", len(body), protocol)
    value = checksum(pseudo + body) or 0xFFFF
    return body[:at] + struct.pack("!H", value) + body[at + 2 :]


def udp(source: bytes, target: bytes, sport: int, dport: int, data: bytes) -> bytes:
    body = struct.pack("!HHHH", sport, dport, 8 + len(data), 0) + data
    return segment(17, source, target, body, 6)


def ip(source: bytes, target: bytes, protocol: int, body: bytes, *, ident: int = 0,
       fragment: int = 0x4000, hops: int = 64) -> bytes:
    """IPv4 or IPv6, by the length of the addresses."""
    if len(source) == 16:
        return struct.pack("!IHBB", 6 << 28, len(body), protocol, hops) + source + target + body
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(body), ident, fragment, hops, protocol, 0,
                       source, target)
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + body


def ethernet(source: bytes, target: bytes, packet: bytes, kind: int = 0) -> bytes:
    kind = kind or (0x0800 if packet[0] >> 4 == 4 else 0x86DD)
    return (target + source + struct.pack("!H", kind) + packet).ljust(60, b"\0")


def tagged(frame: bytes, *tags: tuple[int, int]) -> bytes:
    """With VLAN tags, outermost first."""
    return frame[:12] + b"".join(struct.pack("!HH", *tag) for tag in tags) + frame[12:]


def labelled(frame: bytes, *labels: int) -> bytes:
    stack = b"".join(struct.pack("!I", label << 12 | (place == len(labels) - 1) << 8 | 62)
                     for place, label in enumerate(labels))
    return frame[:12] + b"\x88\x47" + stack + frame[14:]


class Office:
    """The generator with its own random numbers."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.port = 49152

    def session(self, who: str, source: bytes, target: bytes, dport: int, request: bytes,
                answer: bytes) -> Iterator[bytes]:
        """A whole TCP connection: handshake, request, answer in segments, close."""
        self.port += 1
        port = self.port
        near, far = self.random.getrandbits(32), self.random.getrandbits(32)

        def tcp(up: bool, flags: int, data: bytes = b"") -> bytes:
            nonlocal near, far
            ports = (port, dport) if up else (dport, port)
            numbers = (near, far) if up else (far, near)
            ends = (source, target) if up else (target, source)
            ack = numbers[1] if flags & 0x10 else 0
            body = struct.pack("!HHIIBBHHH", *ports, numbers[0], ack, 5 << 4, flags, 64240, 0, 0)
            moved = len(data) + bool(flags & 0x03)
            near, far = ((near + moved) % 2**32, far) if up else (near, (far + moved) % 2**32)
            packet = ip(*ends, 6, segment(6, *ends, body + data, 16))
            macs = (MAC[who], GATEWAY) if up else (GATEWAY, MAC[who])
            return ethernet(*macs, packet)

        yield from (tcp(True, 0x02), tcp(False, 0x12), tcp(True, 0x10))
        yield tcp(True, 0x18, request)
        yield tcp(False, 0x10)
        for start in range(0, len(answer), PAYLOAD_MAX):
            yield tcp(False, 0x18, answer[start : start + PAYLOAD_MAX])
            yield tcp(True, 0x10)
        yield from (tcp(True, 0x11), tcp(False, 0x11), tcp(True, 0x10))

    def web(self, who: str, size: int, six: bool = False) -> Iterator[bytes]:
        ends = (IP6[who], WEB6) if six else (IP[who], WEB)
        request = f"GET /{self.random.randrange(10**6)} HTTP/1.1\r\nHost: www.example\r\n\r\n"
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode()
        return self.session(who, *ends, 80, request.encode(), head + self.random.randbytes(size))

    def lookup(self, who: str, name: str) -> Iterator[bytes]:
        """A DNS question and its answer."""
        self.port += 1
        port = self.port
        number = self.random.getrandbits(16)
        labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0"
        question = labels + struct.pack("!HH", 1, 1)
        ask = struct.pack("!HHHHHH", number, 0x0100, 1, 0, 0, 0) + question
        answer = struct.pack("!HHHHHH", number, 0x8180, 1, 1, 0, 0) + question
        answer += struct.pack("!HHHIH4s", 0xC00C, 1, 1, 300, 4, WEB)
        me = IP[who]
        yield ethernet(MAC[who], GATEWAY, ip(me, RESOLVER, 17, udp(me, RESOLVER, port, 53, ask)))
        back = udp(RESOLVER, me, 53, port, answer)
        yield ethernet(GATEWAY, MAC[who], ip(RESOLVER, me, 17, back))

    def ping(self, who: str, count: int) -> Iterator[bytes]:
        for number in range(count):
            for kind in (8, 0):
                body = struct.pack("!BBHHH", kind, 0, 0, 77, number) + bytes(range(48))
                body = body[:2] + struct.pack("!H", checksum(body)) + body[4:]
                ends, macs = (IP[who], WEB), (MAC[who], GATEWAY)
                if kind == 0:
                    ends, macs = ends[::-1], macs[::-1]
                yield ethernet(*macs, ip(*ends, 1, body))

    def transfer(self, who: str, size: int) -> Iterator[bytes]:
        """One UDP datagram over IPv4 and one over IPv6, each in fragments."""
        data = self.random.randbytes(size)
        whole = udp(IP[who], WEB, 6000, 6001, data)
        for start in range(0, len(whole), 1480):
            more = 0x2000 if start + 1480 < len(whole) else 0
            part = ip(IP[who], WEB, 17, whole[start : start + 1480], ident=99,
                      fragment=more | start // 8)
            yield ethernet(MAC[who], GATEWAY, part)
        whole = udp(IP6[who], WEB6, 6000, 6001, data)
        for start in range(0, len(whole), 1448):
            more = int(start + 1448 < len(whole))
            head = struct.pack("!BBHI", 17, 0, start | more, 99)
            part = ip(IP6[who], WEB6, 44, head + whole[start : start + 1448])
            yield ethernet(MAC[who], GATEWAY, part)

    def management(self) -> Iterator[bytes]:
        """What stays with the kernel: ARP, DHCP, neighbour discovery, SSH."""
        for kind, (sender, wanted) in ((1, "ah"), (2, "ha")):
            arp = struct.pack("!HHBBH", 1, 0x0800, 6, 4, kind) + MAC[sender] + IP[sender]
            arp += (bytes(6) if kind == 1 else MAC[wanted]) + IP[wanted]
            yield ethernet(MAC[sender], b"\xff" * 6 if kind == 1 else MAC[wanted], arp, 0x0806)
        discover = bytes([1, 1, 6, 0]) + self.random.randbytes(4) + bytes(20) + MAC["d"]
        discover += bytes(202)
        discover += bytes.fromhex("63825363350101ff")
        asked = udp(bytes(4), b"\xff" * 4, 68, 67, discover)
        yield ethernet(MAC["d"], b"\xff" * 6, ip(bytes(4), b"\xff" * 4, 17, asked))
        group = bytes.fromhex("ff0200000000000000000001ff000002")
        solicit = segment(58, IP6["a"], group, bytes([135, 0, 0, 0]) + bytes(4) + IP6["b"], 2)
        target = b"\x33\x33\xff\0\0\x02"
        yield ethernet(MAC["a"], target, ip(IP6["a"], group, 58, solicit, hops=255))
        yield from self.session("b", IP["b"], IP["h"], 22, b"SSH-2.0-OpenSSH_9.2\r\n",
                                b"SSH-2.0-OpenSSH_9.7\r\n")

    def tunnel(self, who: str) -> Iterator[bytes]:
        """A session inside VXLAN."""
        for inner in self.session(who, IP["e"], IP["f"], 443, self.random.randbytes(200),
                                  self.random.randbytes(500)):
            data = bytes.fromhex("0800000000002a00") + inner
            outer = udp(IP[who], IP["g"], 51000, 4789, data)
            yield ethernet(MAC[who], MAC["g"], ip(IP[who], IP["g"], 17, outer))

    def frames(self) -> list[bytes]:
        """Everything, the conversations woven into each other; each keeps its own order."""
        talks = [
            self.management(),
            self.lookup("a", "www.example"), self.lookup("b", "mail.example"),
            self.lookup("c", "ftp.example"), self.web("a", 6000), self.web("b", 900),
            self.web("c", 3500, six=True), self.web("d", 400, six=True), self.ping("a", 4),
            (tagged(frame, (0x8100, 100)) for frame in self.web("e", 3000)),
            (tagged(frame, (0x88A8, 200), (0x8100, 30)) for frame in self.web("f", 1800)),
            (tagged(frame, (0x8100, 53)) for frame in self.lookup("e", "vlan.example")),
            (labelled(frame, 16003) for frame in self.web("g", 2500)),
            (labelled(frame, 16003, 24001) for frame in self.web("d", 1200, six=True)),
            self.transfer("a", 4000), self.tunnel("c"),
        ]
        woven = []
        while talks:
            talk = self.random.choice(talks)
            frame = next(talk, None)
            if frame is None:
                talks.remove(talk)
            else:
                woven.append(frame)
        return woven


def pcap(seed: int = SEED) -> bytes:
    """The whole file, with nanosecond timestamps."""
    office = Office(seed)
    out = struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 262144, 1)
    time_ns = START_NS
    for frame in office.frames():
        time_ns += office.random.randrange(50_000, 600_000_000)
        out += struct.pack("<IIII", time_ns // 10**9, time_ns % 10**9, len(frame), len(frame))
        out += frame
    return out


if __name__ == "__main__":
    named = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("sample.pcap")
    named.write_bytes(pcap())
