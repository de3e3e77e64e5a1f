"""The plan of a whole configuration: its queues, its memories, what it would stall on.

Owns the order of the plan and its shape as `openclaw mem plan` prints it. The sums are in sizes.py,
the refusals in stalls.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from appliance.config import Config
from appliance.plan import stalls
from appliance.plan.joins import joined, queues_of
from appliance.plan.sizes import (
    LEDGER_BYTES,
    PortFacts,
    QueuePlan,
    UmemPlan,
    plan_queue,
    shared_frames,
)


@dataclass(frozen=True)
class Plan:
    """The whole plan. `ok` is False when running it would stall; the reasons say why."""

    queues: tuple[QueuePlan, ...]
    umems: tuple[UmemPlan, ...]
    reasons: tuple[str, ...] = ()
    refused: tuple[str, ...] = field(default=())

    @property
    def ok(self) -> bool:
        return not self.refused

    @property
    def hugepages(self) -> int:
        """Of 2 MiB, for the memory of all ports."""
        return sum(umem.hugepages for umem in self.umems)

    def as_dict(self) -> dict[str, object]:
        """As `openclaw mem plan --json` prints it."""
        arena = sum(umem.bytes for umem in self.umems)
        ledger = sum(umem.frames * LEDGER_BYTES for umem in self.umems)
        return {
            "ok": self.ok,
            "frames": {
                "total": sum(umem.frames for umem in self.umems),
                "rx": sum(umem.frames - umem.tx_frames for umem in self.umems),
                "tx": sum(umem.tx_frames for umem in self.umems),
                "spare": sum(queue.spare_frames for queue in self.queues),
            },
            "rings": {f"{queue.port}/{queue.queue}": _rings(queue) for queue in self.queues},
            "arenas": {
                "bytes": arena,
                "ledger_bytes": ledger,
                "hugepages_2m": self.hugepages,
                "per_queue": [asdict(queue) for queue in self.queues],
            },
            "reasons": [*self.refused, *self.reasons],
        }


def _rings(queue: QueuePlan) -> dict[str, int]:
    names = ("rx_ring", "tx_ring", "fill_ring", "fill_target")
    return {name: getattr(queue, name) for name in names}


def plan(
    config: Config,
    facts: Mapping[str, PortFacts] | None = None,
    hugepages_free: int | None = None,
) -> Plan:
    """The plan of the whole configuration. A port without facts is planned with assumed ones.

    hugepages_free (of 2 MiB) matters to hugepages = "require"; None: not asked.
    """
    known = facts or {}
    reasons = [
        f"{port.name}: interface not asked; assumed 1 queue, no hardware ring, MTU 1500"
        for port in config.ports
        if port.name not in known and port.backend == "afxdp"
    ]
    numbers = queues_of(config, known)
    queues = tuple(
        plan_queue(port.name, number, config, known.get(port.name, PortFacts()))
        for port in config.ports
        for number in numbers[port.name]
    )
    by_lane = {(made.port, made.queue): made for made in queues}
    umems = []
    for lanes in joined(config, numbers):
        plans = [by_lane[lane.port, lane.queue] for lane in lanes]
        names = ", ".join(f"{one.port}/{one.queue}" for one in plans)
        umems.append(UmemPlan(names, *shared_frames(plans), config.memory.frame_bytes))
        asked = sum(one.frames for one in plans)
        if umems[-1].frames > asked:
            reasons.append(
                f"{names}: {asked} frames raised to {umems[-1].frames}, so that all RX, FILL and "
                f"TX rings can be full at once"
            )
    refused = stalls.found(config, known, queues, umems, hugepages_free)
    total = sum(umem.bytes for umem in umems)
    reasons.append(f"{len(umems)} UMEM, {total >> 20} MiB, registered at full size: none can grow")
    return Plan(queues, tuple(umems), tuple(reasons), tuple(refused))
