"""The numbers of one queue, and of queues that share memory: frames, rings, arenas.

Owns the sums. One UMEM for each queue of a port, or for the queues that forwarding joins:

    frames_per_queue = tx frames (a quarter) + rx frames
    rx frames       >= hardware ring + RX ring + one burst in hand + what consumers may hold
    FILL target      = hardware ring + RX ring, so that neither runs dry while the other fills

Whether that suffices is in stalls.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from appliance.config import Config

# 2,048 descriptors are 2 ms at 1 million packets a second, about as long as a worker that has lost
# its core is away. More only adds to the cache that a full ring walks through.
RING_MAX = 16384
RING_MIN = 64
BURST = 64  # packets that a worker has in hand at once
TX_SHARE = 4  # one frame of four is for sending: RX and TX never share a free list

XDP_HEADROOM = 256  # XDP_PACKET_HEADROOM: the kernel keeps it free in every chunk
ETHERNET_BYTES = 14 + 4  # header and one VLAN tag, which the MTU does not count
LEDGER_BYTES = 16  # per frame, in an arena of its own
HUGEPAGE = 2 << 20


@dataclass(frozen=True)
class PortFacts:
    """What the arithmetic needs to know of an interface."""

    queues: int = 1
    hardware_ring: int = 0
    mtu: int = 1500
    numa_node: int | None = None


@dataclass(frozen=True)
class QueuePlan:
    """The numbers of one queue and its UMEM."""

    port: str
    queue: int
    frames: int
    frame_bytes: int
    rx_frames: int
    tx_frames: int
    rx_ring: int
    tx_ring: int
    fill_ring: int
    fill_target: int
    spare_frames: int  # left for consumers after rings and burst
    arena_bytes: int
    ledger_bytes: int
    numa_node: int | None


@dataclass(frozen=True)
class UmemPlan:
    """One memory, registered once: of a queue, or of those that forwarding joins."""

    queues: str
    frames: int
    tx_frames: int
    frame_bytes: int

    @property
    def hugepages(self) -> int:
        return -(-self.frames * self.frame_bytes // HUGEPAGE)

    @property
    def bytes(self) -> int:
        return self.hugepages * HUGEPAGE


def packet_bytes_max(frame_bytes: int) -> int:
    """The longest packet that one frame holds."""
    return frame_bytes - XDP_HEADROOM


def plan_queue(port: str, number: int, config: Config, facts: PortFacts) -> QueuePlan:
    """The numbers of one queue."""
    memory = config.memory
    node = facts.numa_node if memory.numa == "auto" else memory.numa
    return size_queue(
        port, number, memory.frames_per_queue, memory.frame_bytes, facts.hardware_ring, node
    )


def size_queue(
    port: str, number: int, frames: int, frame_bytes: int, hardware_ring: int, node: int | None
) -> QueuePlan:
    """The numbers of one queue from the frames that it is given; also for ports without a file."""
    tx_frames = frames // TX_SHARE
    rx_frames = frames - tx_frames
    # A third each for FILL, the RX ring and the consumers, unless there is plenty.
    rx_ring = _ring(rx_frames // 3)
    wanted = hardware_ring + rx_ring
    fill_ring = power_of_two_at_least(max(wanted, 2 * rx_ring))
    used = wanted + BURST
    arena = -(-frames * frame_bytes // HUGEPAGE) * HUGEPAGE
    return QueuePlan(
        port=port,
        queue=number,
        frames=frames,
        frame_bytes=frame_bytes,
        rx_frames=rx_frames,
        tx_frames=tx_frames,
        rx_ring=rx_ring,
        tx_ring=_ring(tx_frames),
        fill_ring=fill_ring,
        fill_target=min(wanted, rx_frames),
        spare_frames=rx_frames - used,
        arena_bytes=arena,
        ledger_bytes=frames * LEDGER_BYTES,
        numa_node=node,
    )


def shared_frames(plans: Sequence[QueuePlan]) -> tuple[int, int]:
    """(frames, of these for sending) of the memory of several queues: what each had alone, raised.

    Received frames that are sent on stand in TX rings, up to full ones when the other side is slow
    or down. FILL must not starve for it, so there have to be frames for all rings at once.
    """
    sending = sum(plan.tx_frames for plan in plans)
    receiving = sum(plan.fill_target + plan.tx_ring + BURST for plan in plans)
    return max(sum(plan.frames for plan in plans), receiving + sending), sending


def _ring(frames: int) -> int:
    return max(RING_MIN, min(RING_MAX, 1 << max(frames, 1).bit_length() - 1))


def power_of_two_at_least(number: int) -> int:
    return 1 << max(number - 1, 1).bit_length()
