"""Which queues share memory, because what one receives another sends.

Pure, from the configuration alone. A consumer that forwards sends the received frame itself: both
queues have to lie on one UMEM. A packet of queue i goes out on queue i of the target, modulo the
target's queues; whatever is connected so, in however many steps, is one set of lanes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from appliance.config import Config
from appliance.plan.sizes import PortFacts


@dataclass(frozen=True)
class Lane:
    """A queue of a port. `place` counts the port's queues; `queue` is the interface's number."""

    port: str
    place: int
    queue: int


def queues_of(config: Config, facts: Mapping[str, PortFacts]) -> dict[str, tuple[int, ...]]:
    """By port: the queue numbers in use. Ports without facts have one queue."""
    return {
        port.name: tuple(range(facts.get(port.name, PortFacts()).queues))
        if port.queues == "all"
        else tuple(port.queues)
        for port in config.ports
    }


def joined(config: Config, queues: Mapping[str, tuple[int, ...]]) -> list[tuple[Lane, ...]]:
    """The queues that forwarding connects, as sets of lanes; alone where it does not."""
    lanes = [
        Lane(port.name, place, number)
        for port in config.ports
        for place, number in enumerate(queues[port.name])
    ]
    root = {(lane.port, lane.place): (lane.port, lane.place) for lane in lanes}

    def find(key: tuple[str, int]) -> tuple[str, int]:
        while root[key] != key:
            key = root[key]
        return key

    for rule in config.rules:
        for name in rule.consumers:
            to = config.consumer(name).to
            if to is None:
                continue
            for place in range(len(queues[rule.port])):
                root[find((to, place % len(queues[to])))] = find((rule.port, place))
    sets: dict[tuple[str, int], list[Lane]] = {}
    for lane in lanes:
        sets.setdefault(find((lane.port, lane.place)), []).append(lane)
    return [tuple(found) for found in sets.values()]
