"""What the demo sends, and what has to come of it, decided before the first packet leaves.

Owns the choice of the TX queue for each packet (by flow, as a NIC's receive hashing does), the
verdicts (the offline program, over the bytes that will be on the wire) and the list of packets that
no wire carries. Pure columns: it opens no port and sends nothing.

Packets that are skipped, and why no AF_XDP socket on a veth can send them:
    shorter_than_ethernet_header  under 14 bytes: there are no addresses to send from or to. Drivers
                                  pull the header first and drop what has none (veth: tx_dropped).
    longer_than_link              over the largest MTU of a veth (65,535) plus the Ethernet header:
                                  the kernel does not forward it. TSO made it, no wire carried it.
    longer_than_frame             only where the kernel has no multi-buffer AF_XDP (before Linux
                                  6.6): it does not fit the one buffer that a packet may have there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from appliance.capture import Capture, ethernet_only
from appliance.dataplane import parser
from appliance.steering import Rule, Verdicts, decide

ETHERNET_HEADER = 14
# Every packet is consumed by the first rule that fits, so that the table shows what the capture
# holds. None names ARP, ND, DHCP or SSH: those stay with the kernel (see steering/rules.py).
RULES = (
    Rule("port 53 or (vlan and port 53)", "consume"),
    Rule("tcp", "consume"),
    Rule("udp", "consume"),
    Rule("ip or ip6", "consume"),
    Rule("", "consume"),
)
CONSUME = 1  # index into steering.offline.VERDICTS
# A short capture is written several times into the columns, so that one call sends a whole burst.
COLUMN_PACKETS = 2048


@dataclass(frozen=True)
class Lane:
    """The packets of one TX queue, in order. veth hands its TX queue n to the peer's RX queue n.

    Columns hold one pass over the capture or several whole ones; `packets` and `arriving` count
    one pass. `arrived[i]` is how many of the first i packets of the columns the rules consume.
    """

    packets: int
    arriving: int
    offsets: np.ndarray
    lengths: np.ndarray
    arrived: np.ndarray
    expected_offsets: np.ndarray
    expected_lengths: np.ndarray
    expected_rules: np.ndarray  # places in the list of rules, from 1

    def arriving_of(self, sent: int) -> int:
        """How many of the first `sent` packets, over all passes, the rules consume."""
        if not self.packets:
            return 0
        passes, rest = divmod(sent, self.packets)
        return passes * self.arriving + int(self.arrived[rest])


@dataclass(frozen=True)
class Traffic:
    """One capture, ready to be sent `repeat` times."""

    name: str
    packets: int  # in the file
    repeat: int
    data: memoryview  # what is sent
    expected: memoryview  # what has to arrive: the same, but in a test of the check itself
    lanes: tuple[Lane, ...]
    skipped: dict[str, int]
    truncated: str | None

    @property
    def sendable(self) -> int:
        """Packets that will be sent, over all passes."""
        return self.repeat * sum(lane.packets for lane in self.lanes)


def prepare(capture: Capture, *, longest: int, queues: int, repeat: int = 1,
            longest_reason: str = "longer_than_link", rules: tuple[Rule, ...] = RULES) -> Traffic:
    """The traffic of a capture on a link that carries packets of up to `longest` bytes."""
    ethernet_only(capture)
    lengths = np.asarray(capture.lengths, np.uint32)
    short, long = lengths < ETHERNET_HEADER, lengths > longest
    keep = np.flatnonzero(~(short | long))
    chosen = _part(capture, keep)
    decided = decide(rules, chosen)
    queue = flow_queues(chosen, queues)
    skipped = {"shorter_than_ethernet_header": int(short.sum()), longest_reason: int(long.sum())}
    return Traffic(
        name=capture.name,
        packets=len(capture),
        repeat=repeat,
        data=capture.data,
        expected=capture.data,
        lanes=tuple(_lane(chosen, decided, queue == number, repeat) for number in range(queues)),
        skipped={reason: count * repeat for reason, count in skipped.items() if count},
        truncated=capture.truncated,
    )


def _part(capture: Capture, rows: np.ndarray) -> Capture:
    """These packets of the capture. On the wire a packet is as long as what was captured of it."""
    lengths = capture.lengths[rows]
    return Capture(capture.data, capture.offsets[rows], lengths, lengths,
                   capture.timestamps_ns[rows], capture.link_type, capture.link_type_name,
                   name=capture.name)


def _lane(chosen: Capture, decided: Verdicts, mine: np.ndarray, repeat: int) -> Lane:
    rows = np.flatnonzero(mine)
    consumed = decided.verdicts[rows] == CONSUME
    arriving = int(consumed.sum())
    copies = min(repeat, max(1, COLUMN_PACKETS // max(1, len(rows))))
    rows = np.tile(rows, copies)
    consumed = np.tile(consumed, copies)
    arrive = rows[consumed]
    return Lane(
        packets=len(rows) // copies,
        arriving=arriving,
        offsets=np.ascontiguousarray(chosen.offsets[rows], np.uint64),
        lengths=np.ascontiguousarray(chosen.lengths[rows], np.uint32),
        arrived=np.concatenate(([0], np.cumsum(consumed))),
        expected_offsets=np.ascontiguousarray(chosen.offsets[arrive], np.uint64),
        expected_lengths=np.ascontiguousarray(chosen.lengths[arrive], np.uint32),
        expected_rules=np.ascontiguousarray(decided.rule_ids[arrive], np.uint32),
    )


def flow_queues(capture: Capture, queues: int) -> np.ndarray:
    """The queue of each packet: both directions of a flow on one, so that its order is kept.

    A hash over addresses and ports, symmetric because they are folded by exclusive or. Packets
    without IP are told apart by their MAC addresses.
    """
    count = len(capture)
    if not count:
        return np.zeros(0, np.int64)
    offsets = np.asarray(capture.offsets, np.uint64)
    lengths = np.asarray(capture.lengths, np.uint32)
    table = parser.parse_many(capture.data, offsets, lengths)
    data = np.frombuffer(capture.data, np.uint8)
    l3 = table["l3_offset"].astype(np.uint64)
    v4 = (table["ip_version"] == 4) & (l3 + 20 <= lengths)
    v6 = (table["ip_version"] == 6) & (l3 + 40 <= lengths)
    key = np.where(table["has_ports"] > 0, table["sport"] ^ table["dport"], 0).astype(np.uint64)
    for rows, start, width in (
        (np.flatnonzero(v4), offsets + l3 + np.uint64(12), 8),
        (np.flatnonzero(v6), offsets + l3 + np.uint64(8), 32),
        (np.flatnonzero(~v4 & ~v6), offsets, 12),
    ):
        for byte in range(width):
            place = np.uint64(8 * (byte % (width // 2) % 6))
            key[rows] ^= data[start[rows] + np.uint64(byte)].astype(np.uint64) << place
    mixed = key * np.uint64(0x9E3779B97F4A7C15)  # Fibonacci hashing: the high bits are well mixed
    return ((mixed >> np.uint64(32)) % np.uint64(queues)).astype(np.int64)
