"""From a configuration and the facts of its interfaces to frames, rings, arenas: pure arithmetic.

Owns the sums, and the reasons printed with them; it touches no host, so a plan can be shown before
anything is done. It is not the allocator: who allocates takes these numbers. One UMEM for each
queue of a port:

    frames_per_queue = tx frames (a quarter) + rx frames
    rx frames       >= hardware ring + RX ring + one burst in hand + what consumers may hold
    FILL target      = hardware ring + RX ring, so that neither runs dry while the other fills
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from appliance.config import Config, PortConfig

# 2,048 descriptors are 2 ms at 1 million packets a second, about as long as a worker that has lost
# its core is away. More only adds to the cache that a full ring walks through.
RING_MAX = 2048
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
class Plan:
    """The whole plan. `ok` is False when running it would stall; the reasons say why."""

    queues: tuple[QueuePlan, ...]
    reasons: tuple[str, ...] = ()
    refused: tuple[str, ...] = field(default=())

    @property
    def ok(self) -> bool:
        return not self.refused

    def as_dict(self) -> dict[str, object]:
        """As `openclaw mem plan --json` prints it."""
        arena = sum(queue.arena_bytes for queue in self.queues)
        ledger = sum(queue.ledger_bytes for queue in self.queues)
        return {
            "ok": self.ok,
            "frames": {
                "total": sum(queue.frames for queue in self.queues),
                "rx": sum(queue.rx_frames for queue in self.queues),
                "tx": sum(queue.tx_frames for queue in self.queues),
                "spare": sum(queue.spare_frames for queue in self.queues),
            },
            "rings": {f"{queue.port}/{queue.queue}": _rings(queue) for queue in self.queues},
            "arenas": {
                "bytes": arena,
                "ledger_bytes": ledger,
                "hugepages_2m": sum(-(-queue.arena_bytes // HUGEPAGE) for queue in self.queues),
                "per_queue": [asdict(queue) for queue in self.queues],
            },
            "reasons": [*self.refused, *self.reasons],
        }


def _rings(queue: QueuePlan) -> dict[str, int]:
    names = ("rx_ring", "tx_ring", "fill_ring", "fill_target")
    return {name: getattr(queue, name) for name in names}


def packet_bytes_max(frame_bytes: int) -> int:
    """The longest packet that one frame holds."""
    return frame_bytes - XDP_HEADROOM


def plan(config: Config, facts: Mapping[str, PortFacts] | None = None) -> Plan:
    """The plan of the whole configuration. A port without facts is planned with assumed ones."""
    known = facts or {}
    queues: list[QueuePlan] = []
    reasons: list[str] = []
    refused: list[str] = []
    for port in config.ports:
        found = known.get(port.name)
        if found is None and port.backend == "afxdp":
            reasons.append(
                f"{port.name}: interface not asked; assumed 1 queue, no hardware ring, MTU 1500"
            )
        found = found or PortFacts()
        held = held_frames(config, port.name)
        for number in _queue_numbers(port, found, refused):
            made = plan_queue(port.name, number, config, found)
            queues.append(made)
            if made.spare_frames < held:
                refused.append(_too_few(made, found, held))
        if not port.jumbo and port.backend == "afxdp":
            _check_mtu(port, found, config.memory.frame_bytes, refused)
    total = sum(queue.arena_bytes for queue in queues)
    reasons.append(f"{len(queues)} UMEM, {total >> 20} MiB, registered at full size: none can grow")
    return Plan(tuple(queues), tuple(reasons), tuple(refused))


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
    fill_ring = _power_of_two_at_least(max(wanted, 2 * rx_ring))
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


def held_frames(config: Config, port: str) -> int:
    """Frames that the consumers of a port may hold at once: the quotas of those that are lent to.

    Inline consumers (count, drop, reflect, forward, record) give back within the burst.
    """
    names = {name for rule in config.rules_of(port) for name in rule.consumers}
    return sum(
        consumer.quota_frames
        for consumer in config.consumers
        if consumer.name in names
        and consumer.kind == "share"
        and consumer.effective_policy == "reliable"
    )


def _queue_numbers(port: PortConfig, facts: PortFacts, refused: list[str]) -> list[int]:
    if port.queues == "all":
        return list(range(facts.queues))
    numbers = list(port.queues)
    beyond = [number for number in numbers if number >= facts.queues]
    if beyond and port.backend == "afxdp":
        refused.append(
            f"{port.name}: queue {beyond[0]} of an interface with {facts.queues} "
            f"(0..{facts.queues - 1})"
        )
    return numbers


def _too_few(made: QueuePlan, facts: PortFacts, held: int) -> str:
    needed = facts.hardware_ring + made.rx_ring + BURST + held
    return (
        f"{made.port}/{made.queue}: {made.rx_frames} rx frames < {needed} = "
        f"hardware ring {facts.hardware_ring} + RX ring {made.rx_ring} + burst {BURST} + "
        f"quotas {held}: raise memory.frames_per_queue to "
        f"{_power_of_two_at_least(-(-needed * TX_SHARE // (TX_SHARE - 1)))} or lower the quotas"
    )


def _check_mtu(port: PortConfig, facts: PortFacts, frame_bytes: int, refused: list[str]) -> None:
    longest = facts.mtu + ETHERNET_BYTES
    room = packet_bytes_max(frame_bytes)
    if longest > room:
        refused.append(
            f"{port.name}: MTU {facts.mtu} + {ETHERNET_BYTES} > {room} = frame {frame_bytes} - "
            f"headroom {XDP_HEADROOM}: set jumbo = true, a larger frame, or a smaller MTU"
        )


def _ring(frames: int) -> int:
    return max(RING_MIN, min(RING_MAX, 1 << max(frames, 1).bit_length() - 1))


def _power_of_two_at_least(number: int) -> int:
    return 1 << max(number - 1, 1).bit_length()
