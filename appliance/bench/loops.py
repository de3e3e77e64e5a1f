"""The Python loops that ours is compared with: a raw socket's recv, and Scapy's sniff.

Run as a program of its own inside the namespace, so that nothing of ours is in its process:
`python loops.py raw|scapy INTERFACE SECONDS CPU`. It says "ready", waits for a line, counts for so
many seconds, and says "counted PACKETS BYTES SECONDS DROPPED".
"""

import os
import socket
import struct
import sys
import time

ETH_P_ALL = 3
SOL_PACKET, PACKET_STATISTICS = 263, 6
LOOK_EVERY = 64  # packets between two looks at the clock


def raw(interface: str, seconds: float) -> tuple[int, int, float, int]:
    """recv() in a loop, as anyone would write it."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(ETH_P_ALL)) as sock:
        sock.bind((interface, 0))
        sock.settimeout(None)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 100_000))
        ready()
        sock.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8)  # reading resets them
        packets = size = 0
        begin = time.monotonic()
        end = begin + seconds
        receive = sock.recv
        while True:
            try:
                for _ in range(LOOK_EVERY):
                    data = receive(2048)
                    packets += 1
                    size += len(data)
            except BlockingIOError:
                pass
            now = time.monotonic()
            if now >= end:
                break
        _, dropped = struct.unpack("II", sock.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
        return packets, size, now - begin, dropped


def scapy(interface: str, seconds: float) -> tuple[int, int, float, int]:
    """sniff() with a callback that counts, storing nothing."""
    from scapy.all import conf, sniff

    packets = size = 0

    def count(packet: object) -> None:
        nonlocal packets, size
        packets += 1
        size += len(packet)  # type: ignore[arg-type]

    conf.verb = 0
    ready()
    begin = time.monotonic()
    sniff(iface=interface, prn=count, store=False, timeout=seconds)
    return packets, size, time.monotonic() - begin, 0


def ready() -> None:
    print("ready", flush=True)
    sys.stdin.readline()


def main() -> None:
    kind, interface, seconds, cpu = sys.argv[1:5]
    os.sched_setaffinity(0, {int(cpu)})
    counted = {"raw": raw, "scapy": scapy}[kind](interface, float(seconds))
    print("counted", *counted, flush=True)


if __name__ == "__main__":
    main()
