"""What would stall: each refusal is one line with the numbers that it is made of.

Pure. Owns the conditions, and the words for somebody who has to change one figure. A queue has one
refusal at a time, the gravest; the mid tier names the first kind of user that does not fit.

    frames of a queue     FILL, bursts in hand, quotas, what waits to be sent on
    frames of a memory    what the kernel registers at once, hugepages
    packets               fragments of one packet, the MTU
    mid tier              magazines, copies of held packets, record blocks
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from appliance.config import Config, ConsumerConfig, PortConfig
from appliance.limits import FRAMES_PER_QUEUE_MAX
from appliance.plan.sizes import (
    BURST,
    ETHERNET_BYTES,
    XDP_HEADROOM,
    PortFacts,
    QueuePlan,
    UmemPlan,
    packet_bytes_max,
    power_of_two_at_least,
    size_queue,
)

FRAGMENTS_MAX = 18  # FRAGS_MAX of cython_ext/queue.pxd: what the kernel hands over as one packet
FRAGMENTS_IN_HAND = 4  # per packet of a burst, on average: cython_ext/lending.pyx, take_block
UMEM_FRAMES_MAX = 1 << 22  # of cython_ext/frames.pyx: 16 GiB of 4,096-byte frames
ARENA = 2 << 20  # of the mid tier, and of one class each
MAGAZINES = 256 << 10  # two batches of 128 KiB: what a cache keeps of a class (slab_tier.pyx)
BLOCK = 64 << 10  # of a recording
LANE_BLOCKS = 2  # one is filled while the one before it goes to the writer
WRITES = 8  # in flight, of each directory
MEMORY_MIB = 64  # of a recording consumer, where its model has no such key
SENDING = ("reflect", "forward")


def found(
    config: Config,
    facts: Mapping[str, PortFacts],
    queues: Sequence[QueuePlan],
    umems: Sequence[UmemPlan],
    hugepages_free: int | None,
) -> list[str]:
    """All refusals; none: it can run."""
    refused: list[str] = []
    for port in config.ports:
        known = facts.get(port.name, PortFacts())
        refused += _numbers(port, known)
        for made in queues:
            if made.port == port.name:
                refused += _queue(config, port, known, made)
        if port.backend == "afxdp":
            refused += _packets(port, known, config.memory.frame_bytes)
    refused += _memories(umems)
    if config.memory.hugepages == "require" and hugepages_free is not None:
        refused += _hugepages(config, umems, hugepages_free)
    refused += _mid_tier(config, len(queues), queues)
    return refused


def lent(config: Config, port: str, policy: str = "reliable") -> list[ConsumerConfig]:
    """The consumers that may hold frames of a port.

    Inline consumers (count, drop, reflect, forward, record) give back within the burst. Lossy ones
    lose what they hold when frames run out, so nothing has to be kept for them.
    """
    names = {name for rule in config.rules_of(port) for name in rule.consumers}
    return [
        consumer
        for consumer in config.consumers
        if consumer.name in names
        and consumer.kind == "share"
        and consumer.effective_policy == policy
    ]


# ----------------------------------------------------------------------------------- one queue


def _numbers(port: PortConfig, facts: PortFacts) -> Iterator[str]:
    if port.queues == "all" or port.backend != "afxdp":
        return
    beyond = [number for number in port.queues if number >= facts.queues]
    if beyond:
        yield (
            f"{port.name}: queue {beyond[0]} of an interface with {facts.queues} "
            f"(0..{facts.queues - 1})"
        )


def _queue(
    config: Config, port: PortConfig, facts: PortFacts, made: QueuePlan
) -> Iterator[str]:
    """The gravest of what one queue has too few frames for."""
    name = f"{made.port}/{made.queue}"
    have, hardware, ring = made.rx_frames, facts.hardware_ring, made.rx_ring
    burst = BURST * (FRAGMENTS_IN_HAND if port.jumbo else 1)
    in_hand = f"burst {burst}" + (f" ({BURST} x {FRAGMENTS_IN_HAND} fragments)" * port.jumbo)
    rings = f"hardware ring {hardware} + RX ring {ring}"
    consumers = lent(config, port.name)
    held = sum(consumer.quota_frames for consumer in consumers)
    waiting = made.tx_ring if _sends(config, port.name) else 0
    if hardware + ring > have:
        yield (
            f"{name}: FILL holds {made.fill_target} < {hardware + ring} = {rings}: "
            f"{_more_frames(made, hardware, burst)}"
        )
        return
    for consumer in consumers:
        if consumer.quota_frames >= have - burst:
            yield (
                f"{name}: no frame is left for FILL: {have} rx frames - {in_hand} - quota "
                f'{consumer.quota_frames} of "{consumer.name}" = '
                f"{have - burst - consumer.quota_frames}: "
                f"{_more_frames(made, hardware, burst + held)} or lower quota_frames"
            )
            return
    needed = hardware + ring + burst + held
    if needed > have:
        yield (
            f"{name}: {have} rx frames < {needed} = {rings} + {in_hand} + quotas {held}: "
            f"{_more_frames(made, hardware, burst + held)} or lower the quotas"
        )
    elif held and needed + waiting > have:
        yield (
            f"{name}: {have} rx frames < {needed + waiting} = {rings} + {in_hand} + quotas {held} "
            f"+ TX ring {waiting}, where received frames wait to be sent on: "
            f"{_more_frames(made, hardware, burst + held, True)} or lower the quotas"
        )


def _sends(config: Config, port: str) -> bool:
    names = {name for rule in config.rules_of(port) for name in rule.consumers}
    return any(config.consumer(name).kind in SENDING for name in names)


def _more_frames(made: QueuePlan, hardware: int, rest: int, waiting: bool = False) -> str:
    """The advice; rings grow with the frames, so it is tried out rather than computed."""
    frames = made.frames
    while frames < FRAMES_PER_QUEUE_MAX:
        frames = power_of_two_at_least(frames + 1)
        more = size_queue(made.port, made.queue, frames, made.frame_bytes, hardware, None)
        needed = hardware + more.rx_ring + rest + (more.tx_ring if waiting else 0)
        if needed <= more.rx_frames:
            return f"raise memory.frames_per_queue to {frames}"
    return f"no memory.frames_per_queue up to {FRAMES_PER_QUEUE_MAX} is enough: lower them"


def _packets(port: PortConfig, facts: PortFacts, frame_bytes: int) -> Iterator[str]:
    """Packets that could never be received."""
    longest = facts.mtu + ETHERNET_BYTES
    room = packet_bytes_max(frame_bytes)
    pieces = -(-longest // room)
    if not port.jumbo and pieces > 1:
        yield (
            f"{port.name}: MTU {facts.mtu} + {ETHERNET_BYTES} > {room} = frame {frame_bytes} - "
            f"headroom {XDP_HEADROOM}: set jumbo = true, a larger frame, or a smaller MTU"
        )
    elif pieces > FRAGMENTS_MAX:
        yield (
            f"{port.name}: MTU {facts.mtu} + {ETHERNET_BYTES} = {pieces} fragments of {room} bytes "
            f"> {FRAGMENTS_MAX}, the most of one packet: set memory.frame_bytes = 4096, or an MTU "
            f"of at most {FRAGMENTS_MAX * room - ETHERNET_BYTES}"
        )


# -------------------------------------------------------------------------------- whole memories


def _memories(umems: Sequence[UmemPlan]) -> Iterator[str]:
    for umem in umems:
        if umem.frames > UMEM_FRAMES_MAX:
            yield (
                f"{umem.queues}: {umem.frames} frames > {UMEM_FRAMES_MAX}, the most of one memory, "
                f"which forwarding makes of these queues: lower memory.frames_per_queue"
            )


def _hugepages(config: Config, umems: Sequence[UmemPlan], free: int) -> Iterator[str]:
    """`require` reserves the ports' memory whole, and proves one arena of the mid tier."""
    ports = sum(umem.hugepages for umem in umems)
    proof = 1 if config.memory.mid_cap_mib else 0
    if ports + proof > free:
        grown = config.memory.mid_cap_mib * (1 << 20) // ARENA
        yield (
            f"hugepages = require: {free} free < {ports + proof} = {ports} of the ports + {proof} "
            f"of the mid tier (which may grow to {grown}): "
            f"echo $(($(cat /proc/sys/vm/nr_hugepages) + {ports + grown - free})) "
            f"> /proc/sys/vm/nr_hugepages"
        )


def _mid_tier(config: Config, workers: int, queues: Sequence[QueuePlan]) -> Iterator[str]:
    """The first kind of user that does not fit, with what the kinds before it need."""
    cap = config.memory.mid_cap_mib << 20
    copied = {consumer.name: consumer for port in config.ports
              for consumer in lent(config, port.name)}
    named = {name for rule in config.rules for name in rule.consumers}
    recorders = [one for one in config.consumers if one.kind == "record" and one.name in named]
    classes = bool(copied) + bool(recorders)
    if not classes:
        return
    # Every worker may keep that much of every class to itself; one more cache for what is not one.
    parts = [(classes * _arenas((workers + 1) * MAGAZINES),
              f"in magazines ({workers} workers + 1, {classes} sizes)")]
    if copied:
        frames = sum(consumer.quota_frames for consumer in copied.values())
        parts.append((_arenas(frames * config.memory.frame_bytes),
                      f"of copies (quotas {frames} x {config.memory.frame_bytes} bytes)"))
    for recorder in recorders:
        yield from _blocks(config, recorder, queues)
        parts.append((_memory_of(recorder), f'of "{recorder.name}"'))
    total = sum(nbytes for nbytes, _ in parts)
    for most in range(1, len(parts) + 1):
        needed = sum(nbytes for nbytes, _ in parts[:most])
        if needed > cap:
            sums = " + ".join(f"{nbytes >> 20} MiB {what}" for nbytes, what in parts[:most])
            yield (
                f"mid tier: memory.mid_cap_mib {cap >> 20} < {needed >> 20} MiB = {sums}: "
                f"raise memory.mid_cap_mib to {total >> 20}"
            )
            return


def _blocks(
    config: Config, recorder: ConsumerConfig, queues: Sequence[QueuePlan]
) -> Iterator[str]:
    """With fewer blocks, every block is being filled or written and none is left to go on with."""
    ports = {rule.port for rule in config.rules if recorder.name in rule.consumers}
    lanes = sum(1 for made in queues if made.port in ports)
    writes = WRITES * max(1, len(recorder.directories))
    have, needed = _memory_of(recorder) // BLOCK, lanes * LANE_BLOCKS + writes
    if have < needed:
        yield (
            f'consumer "{recorder.name}": {have} blocks of {BLOCK >> 10} KiB in '
            f"{_memory_of(recorder) >> 20} MiB < {needed} = {lanes} queues x {LANE_BLOCKS} + "
            f"{writes} writes in flight: raise memory_mib to {-(-needed * BLOCK >> 20)}"
        )


def _memory_of(recorder: ConsumerConfig) -> int:
    return int(getattr(recorder, "memory_mib", MEMORY_MIB)) << 20


def _arenas(nbytes: int) -> int:
    """In whole arenas."""
    return -(-nbytes // ARENA) * ARENA
