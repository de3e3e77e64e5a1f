"""Packets that know who they are, and the loop that moves them from one port to another.

Each packet carries its sequence number and content that depends on every position, so that a lost,
doubled, swapped or torn one shows. `pump` keeps what is under way below what veth can hold.
"""

from __future__ import annotations

import time

ETHER_TYPE = b"\x88\xb5"  # for local experiments: no rule names it, no host answers it
IN_FLIGHT = 128  # veth's ring holds 256 and drops silently what does not fit


def packet(sequence: int, size: int = 64) -> bytes:
    """An Ethernet frame of `size` bytes with its number at offset 14."""
    head = bytes.fromhex("020000000002020000000001") + ETHER_TYPE + sequence.to_bytes(4, "big")
    body = bytes((sequence + place * 7) & 0xFF for place in range(min(size, 512) - len(head)))
    return (head + body).ljust(size, bytes([sequence & 0xFF]))[:size]


def sequence(data) -> int:
    return int.from_bytes(bytes(data)[14:18], "big")


def pump(tx, rx, packets, *, queue=0, max_frames=64, seconds=20.0):
    """Sends all packets and receives until nothing comes: [(queue_id, bytes)] in order."""
    received, sent, quiet = [], 0, 0
    limit = time.monotonic() + seconds
    batches = rx.recv(max_frames=max_frames, timeout_ms=100)
    while time.monotonic() < limit and quiet < 2:
        if sent < len(packets):
            window = max(0, IN_FLIGHT - tx.outstanding)
            sent += tx.send(packets[sent : sent + min(window, 32)], queue)
        else:
            tx.flush(0)
        batch = next(batches)
        received += [(batch.queue_id, bytes(frame)) for frame in batch]
        quiet = quiet + 1 if sent == len(packets) and len(batch) == 0 else 0
    batch.release()
    assert sent == len(packets), f"only {sent} of {len(packets)} could be queued"
    return received


def ledger_adds_up(port) -> dict[str, int]:
    """The sum of all states is the number of frames, now."""
    ledger = port.ledger()
    states = ("free", "cached", "fill", "rx", "leased", "tx", "completion")
    assert sum(ledger[state] for state in states) == ledger["total"], ledger
    return ledger
