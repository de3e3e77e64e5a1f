"""Runs inside the guest: numbered frames out of one NIC, and into AF_XDP at the other.

    numbered.py send INTERFACE COUNTER COUNT       by a packet socket; at most 128 are under way
    numbered.py receive INTERFACE COUNT PROGRESS   zero-copy; every byte of every frame is compared

COUNTER is a file with the number that has arrived: PROGRESS, or a statistic of the interface.
QEMU's hub keeps ten thousand packets for a receiver that is behind and then drops, and two NICs of
one guest have no other flow control, hence the window over what has arrived.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
from pathlib import Path

WINDOW = 128
STUCK_S = 120
BODY = bytes(range(256)) * 2
LENGTH = 14 + 20 + 8 + 4 + len(BODY)


def frame(number: int) -> bytes:
    payload = struct.pack(">I", number) + BODY
    udp = struct.pack(">HHHH", 4789, 4789, 8 + len(payload), 0) + payload
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0,
                     bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2]))
    return b"\xff" * 6 + b"\x02" + b"\0" * 5 + b"\x08\0" + ip + udp


def send(interface: str, counter: str, count: int) -> None:
    arrived = Path(counter)
    first = int(arrived.read_text())
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind((interface, 0))
        for number in range(count):
            raw.send(frame(number))
            if number % 32:
                continue
            until = time.monotonic() + STUCK_S
            while number - (int(arrived.read_text()) - first) > WINDOW:
                if time.monotonic() > until:
                    sys.exit(f"stuck after {number} frames")
                time.sleep(0.002)


def receive(interface: str, count: int, progress: str) -> None:
    import numpy as np

    import appliance

    pattern = np.frombuffer(frame(0), np.uint8)
    same = np.ones(LENGTH, bool)
    same[42:46] = False
    seen = np.zeros(count, np.uint8)
    file = os.open(progress, os.O_CREAT | os.O_RDWR, 0o644)
    os.pwrite(file, b"%12d" % 0, 0)  # one length, so that no reader sees half of a number
    with appliance.open_port(interface, match="udp port 4789", mode="zerocopy",
                             frames=2048) as port:
        print(f"ready zero_copy={port.info['zero_copy']}", flush=True)
        until = time.monotonic() + 1200
        for batch in port.recv():
            if len(batch):
                assert (batch.lengths == LENGTH).all(), batch.lengths
                heads = batch.head(LENGTH)
                assert (heads[:, same] == pattern[same]).all()
                numbers = heads[:, 42:46].copy().view(">u4").ravel()
                np.add.at(seen, numbers, 1)
                os.pwrite(file, b"%12d" % seen.sum(), 0)
            if seen.all() or time.monotonic() > until:
                break
        drops = port.drops()
    print(f"once={int((seen == 1).sum())} twice={int((seen > 1).sum())} drops={drops}", flush=True)
    sys.exit(0 if (seen == 1).all() else 1)


if __name__ == "__main__":
    if sys.argv[1] == "send":
        send(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        receive(sys.argv[2], int(sys.argv[3]), sys.argv[4])
