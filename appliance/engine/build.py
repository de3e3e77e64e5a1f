"""Which queues share memory, which worker runs them, and which consumers get which rule.

Pure: a configuration and what the interfaces are in, a Layout out. A consumer that forwards sends
the received frame itself, so both queues have to lie on one UMEM, and a UMEM has one owner:

    in0/0 --forward--> out0/0      one UMEM, one worker, two lanes
    in0/1 --forward--> out0/1      another
    tap/0                          a worker of its own

A packet of queue i goes out on queue i of the target, modulo the target's queues. Whatever is
connected so, in however many steps, becomes one Group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from appliance import limits
from appliance.config import Config, ConsumerConfig
from appliance.errors import ConfigError
from appliance.plan import Lane, PortFacts, joined, plan_queue, queues_of, shared_frames

BACKENDS = ("afxdp", "dpdk", "loop")
KINDS = ("count", "drop", "reflect", "forward", "record", "share")
ENDS = ("drop", "reflect", "forward")  # after one of these the packet is not ours any more


@dataclass(frozen=True)
class Instance:
    """A consumer as one worker runs it; one that forwards exists once per queue it sends on."""

    name: str
    kind: str
    target: int = -1  # the lane that it sends on


@dataclass(frozen=True)
class Group:
    """One UMEM, with the one worker that owns it."""

    lanes: tuple[Lane, ...]
    instances: tuple[Instance, ...]
    frames: int
    tx_frames: int


@dataclass(frozen=True)
class Layout:
    """All of it, in the order of the configuration."""

    config: Config
    queues: Mapping[str, tuple[int, ...]]  # by port: the queue numbers in use
    groups: tuple[Group, ...]

    def group_of(self, port: str, place: int) -> tuple[int, int]:
        """(group, lane in it) of a port's queue."""
        for number, group in enumerate(self.groups):
            for index, lane in enumerate(group.lanes):
                if (lane.port, lane.place) == (port, place):
                    return number, index
        raise KeyError((port, place))

    def port_number(self, port: str) -> int:
        """A port's number in recordings: its place in the configuration."""
        return [one.name for one in self.config.ports].index(port)

    def route(self, group: Group, lane: Lane, consumers: Sequence[str]) -> list[int]:
        """The worker's numbers of the consumers that a rule of this lane's port names."""
        return [
            group.instances.index(self._instance(group.lanes, lane, self.config.consumer(name)))
            for name in consumers
        ]

    def _instance(
        self, lanes: Sequence[Lane], lane: Lane, consumer: ConsumerConfig
    ) -> Instance:
        if consumer.kind != "forward":
            return Instance(consumer.name, consumer.kind)
        wanted = (str(consumer.to), lane.place % len(self.queues[str(consumer.to)]))
        for index, other in enumerate(lanes):
            if (other.port, other.place) == wanted:
                return Instance(consumer.name, "forward", index)
        raise ConfigError(
            f'consumer "{consumer.name}": {lane.port} and {consumer.to} share no memory since the '
            f"start: forward between them needs a new start"
        )


def layout(config: Config, facts: Mapping[str, PortFacts] | None = None) -> Layout:
    """The layout; ConfigError for what no worker can do. Ports without facts have one queue."""
    known = facts or {}
    queues = queues_of(config, known)
    check_routes(config)
    made = Layout(config, queues, ())
    groups = []
    for lanes in joined(config, queues):
        _check_alike(config, lanes)
        if len(lanes) > limits.WORKER_QUEUES_MAX:
            names = ", ".join(f"{lane.port}/{lane.queue}" for lane in lanes)
            raise ConfigError(
                f"forward joins {len(lanes)} queues in one memory ({names}): "
                f"at most {limits.WORKER_QUEUES_MAX}"
            )
        frames, tx_frames = _size(config, known, lanes)
        groups.append(Group(lanes, _instances(made, lanes), frames, tx_frames))
    return Layout(config, queues, tuple(groups))


def check_routes(config: Config) -> None:
    """What a worker cannot do with the consumers of one rule, refused."""
    for index, rule in enumerate(config.rules):
        path = f"rule[{index}].consumers"
        if len(rule.consumers) > limits.RULE_CONSUMERS_MAX:
            raise ConfigError(
                f"{path}: {len(rule.consumers)}: at most {limits.RULE_CONSUMERS_MAX} of one rule"
            )
        ends = [name for name in rule.consumers if config.consumer(name).kind in ENDS]
        if len(ends) > 1:
            raise ConfigError(
                f"{path}: {', '.join(ends)}: a packet ends one way, "
                f"so at most one that is drop, reflect or forward"
            )


def mode_of(config: Config, group: Group, port: str) -> str:
    """The mode to open a port with: sockets on one UMEM copy all, or none does."""
    asked = {config.port(lane.port).mode for lane in group.lanes}
    if len({lane.port for lane in group.lanes}) == 1:
        return config.port(port).mode
    return next((mode for mode in ("zerocopy", "copy") if mode in asked), "auto")


def _check_alike(config: Config, lanes: Sequence[Lane]) -> None:
    """Sockets on one UMEM have its properties; the first socket decides for all."""
    ports = [config.port(name) for name in dict.fromkeys(lane.port for lane in lanes)]
    for other in ports[1:]:
        for field in ("backend", "jumbo", "poll"):
            if getattr(other, field) != getattr(ports[0], field):
                raise ConfigError(
                    f"forward: {ports[0].name} and {other.name} share memory: "
                    f"{field} must be the same for both"
                )
        if {other.mode, ports[0].mode} == {"copy", "zerocopy"}:
            raise ConfigError(
                f"forward: {ports[0].name} and {other.name} share memory: "
                f"both copy or both zerocopy"
            )


def _instances(made: Layout, lanes: Sequence[Lane]) -> tuple[Instance, ...]:
    """Every consumer that a rule of these queues may name, now or after a swap of rules."""
    found: dict[Instance, None] = {}
    for consumer in made.config.consumers:
        for lane in lanes:
            if consumer.to == lane.port:
                continue
            try:
                found[made._instance(lanes, lane, consumer)] = None
            except ConfigError:
                continue  # forwards to where this memory does not reach: no rule here names it
    shares = sum(1 for instance in found if instance.kind == "share")
    if shares > limits.WORKER_SHARES_MAX:
        raise ConfigError(f"consumer: {shares} of kind share: at most {limits.WORKER_SHARES_MAX}")
    if len(found) > limits.WORKER_CONSUMERS_MAX:
        raise ConfigError(
            f"consumer: {len(found)} for one worker (one that forwards counts for each queue): "
            f"at most {limits.WORKER_CONSUMERS_MAX}"
        )
    return tuple(found)


def _size(
    config: Config, facts: Mapping[str, PortFacts], lanes: Sequence[Lane]
) -> tuple[int, int]:
    """(frames, of these for sending) of a group's memory."""
    return shared_frames([
        plan_queue(lane.port, lane.queue, config, facts.get(lane.port, PortFacts()))
        for lane in lanes
    ])
