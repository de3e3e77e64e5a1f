"""A port attached to its interface: memory, sockets, steering, and the settings that go with them.

Owns the order of life of one port: everything is checked and reserved before the program is
attached, and the program is detached before anything is taken away. Who then runs the queues, a
worker or a Python loop, is not its matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from appliance.dataplane import Frames, LoopQueue, Queue, XskQueue
from appliance.errors import ConfigError, HostError, PortError
from appliance.net import InterfaceInfo, Pause, Settings, in_netns, inside, interface, pause_of
from appliance.net.zerocopy import verdict
from appliance.plan import ETHERNET_BYTES, QueuePlan, packet_bytes_max, size_queue
from appliance.refusal import refused
from appliance.spec import PortSpec, Umem
from appliance.steering import Rule, Steering

KERNEL_DROPS = ("rx_dropped", "rx_ring_full")
OWN_DROPS = ("too_many_fragments", "bad_descriptors")


class Attachment:
    """An open port. `start()` lets packets in; `stop()` shuts the door; `close()` takes all down.

    With `rules` None the port only sends: no program is attached. `umems` gives for each queue the
    memory that it uses; without it every queue has its own.
    """

    # Which of the kernel's drops come after the rules, and so between `consumed` and us
    LOST_ON_THE_WAY: tuple[str, ...] = KERNEL_DROPS

    def __init__(
        self,
        spec: PortSpec,
        rules: Sequence[Rule] | None,
        *,
        keep_management: bool = True,
        no_socket: str = "pass",
        umems: Sequence[Umem] | None = None,
    ) -> None:
        self.spec = spec
        self.name = spec.name or spec.interface
        self.queues: list[Queue] = []
        self.plans: list[QueuePlan] = []
        self.steering: Steering | None = None
        self.settings: Settings | None = None
        self.attach_mode: str | None = None
        self.facts: InterfaceInfo | None = None
        self._pause: Pause | None = None
        self._reasons: list[str] = []
        self._last: tuple[dict[str, Any], dict[str, Any]] | None = None
        try:
            self._open(rules, keep_management, no_socket, umems)
        except BaseException:
            self.close()
            raise

    # ------------------------------------------------------------------------------------- open

    def _open(
        self,
        rules: Sequence[Rule] | None,
        keep_management: bool,
        no_socket: str,
        umems: Sequence[Umem] | None,
    ) -> None:
        if self.spec.backend == "loop":
            self._open_loop(umems)
            return
        if rules is not None:
            # Compiled first: a rule that cannot be is found before anything is touched.
            self.steering = Steering(
                rules,
                jumbo=self.spec.jumbo,
                keep_management=keep_management,
                no_socket=no_socket,
            )
        self.facts = interface(self.spec.interface, self.spec.netns)
        self._check()
        self._open_afxdp(umems)

    def _queue_numbers(self) -> list[int]:
        if self.facts is None:
            return [0] if isinstance(self.spec.queues, str) else list(self.spec.queues)
        there = self.facts.queues.rx
        if isinstance(self.spec.queues, str):
            if self.spec.queues != "all":
                raise ConfigError(f"queues: {self.spec.queues!r}: all, or a list of numbers")
            return list(range(there))
        numbers = list(self.spec.queues)
        for number in numbers:
            if not isinstance(number, int) or not 0 <= number < there:
                raise ConfigError(
                    f"queues: {number}: {self.spec.interface} has {there} (0..{there - 1})"
                )
        return numbers

    def _check(self) -> None:
        assert self.facts is not None
        if not self.facts.up:
            where = " ".join(inside(self.spec.netns, "ip"))
            raise HostError(
                f"{self.spec.interface} is down", fix=f"{where} link set {self.spec.interface} up"
            )
        longest = self.facts.mtu + ETHERNET_BYTES
        room = packet_bytes_max(self.spec.frame_bytes)
        if self.steering is not None and longest > room and not self.spec.jumbo:
            raise ConfigError(
                f"{self.spec.interface}: MTU {self.facts.mtu} + {ETHERNET_BYTES} > {room} bytes of "
                f"a frame: jumbo = true, or a smaller MTU"
            )

    def _umems(self, given: Sequence[Umem] | None, queues: int) -> Sequence[Umem]:
        if given is not None and len(given) != queues:
            raise ConfigError(f"queues: {self.name} has {queues}, and memory for {len(given)}")
        return given if given is not None else [Umem() for _ in range(queues)]

    def _frames(self, plan: QueuePlan, umem: Umem) -> Frames:
        """The memory of this queue, made now if it is the first on it."""
        if umem.frames is None:
            umem.frames = self._new_frames(plan, *umem.size)
        return umem.frames

    def _new_frames(self, plan: QueuePlan, frames: int, tx_frames: int) -> Frames:
        node = plan.numa_node if plan.numa_node is not None else -1
        frames, tx_frames = frames or plan.frames, tx_frames or plan.tx_frames
        try:
            return Frames(frames, plan.frame_bytes, tx_frames, self.spec.hugepages, node)
        except MemoryError as error:
            pages = -(-frames * plan.frame_bytes // (2 << 20)) * len(self._queue_numbers())
            raise HostError(
                f"memory for {self.name}: {error}",
                fix=f"echo {pages} > /proc/sys/vm/nr_hugepages",
            ) from None

    def _open_loop(self, umems: Sequence[Umem] | None) -> None:
        numbers = self._queue_numbers()
        for number, umem in zip(numbers, self._umems(umems, len(numbers)), strict=True):
            plan = size_queue(self.name, number, self.spec.frames, self.spec.frame_bytes, 0, None)
            self.plans.append(plan)
            rings = (plan.rx_ring, plan.tx_ring, plan.fill_ring, plan.fill_target)
            frames = self._frames(plan, umem)
            self.queues.append(LoopQueue(frames, number, *rings, self.spec.jumbo))

    def _mode(self) -> str:
        if self.spec.mode != "auto":
            return self.spec.mode
        assert self.facts is not None
        said = verdict(self.facts.driver)
        if not said.good:
            self._reasons.append(f"copy mode: {said.reason}")
        return "auto" if said.good else "copy"

    def _open_afxdp(self, umems: Sequence[Umem] | None) -> None:
        assert self.facts is not None
        mode = self._mode()
        node = self.facts.numa_node if self.spec.numa == "auto" else int(self.spec.numa)
        numbers = self._queue_numbers()
        memory = self._umems(umems, len(numbers))
        hardware_ring = self.facts.rings.rx
        for number in numbers:
            self.plans.append(
                size_queue(
                    self.name, number, self.spec.frames, self.spec.frame_bytes, hardware_ring, node
                )
            )
        if self.spec.poll != "irq" or self.spec.pause:
            self.settings = Settings(self.spec.interface, self.spec.netns)
            self.settings.of_port(self.spec.poll, self.spec.pause)
        self._pause = pause_of(self.spec.interface, self.spec.netns)
        in_netns(self.spec.netns, self._open_sockets, mode, memory)

    def _open_sockets(self, mode: str, umems: Sequence[Umem]) -> None:
        assert self.facts is not None
        for plan, umem in zip(self.plans, umems, strict=True):
            frames = self._frames(plan, umem)
            try:
                queue = XskQueue(
                    frames,
                    self.facts.ifindex,
                    plan.queue,
                    plan.rx_ring,
                    plan.tx_ring,
                    plan.fill_ring,
                    plan.fill_target,
                    mode,
                    self.spec.jumbo,
                    umem.first,
                )
            except OSError as error:
                raise refused(self.spec, mode, error) from None
            self.queues.append(queue)
            umem.first = umem.first or queue
            if self.spec.poll != "irq":
                try:
                    queue.busy_poll(self.spec.poll == "busy")
                except OSError as error:
                    raise PortError(f"{self.name}: {error.strerror or error}") from None
            if self.steering is not None:
                self.steering.set_socket(plan.queue, queue.fd)

    # -------------------------------------------------------------------------------- start, stop

    def start(self) -> None:
        """Attaches the program: from here on packets arrive."""
        if self.steering is not None:
            assert self.facts is not None
            self.attach_mode = in_netns(
                self.spec.netns, self.steering.attach, self.facts.ifindex, self.spec.attach
            )

    def stop(self) -> None:
        """Detaches the program: the kernel gets every packet again. The queues stay open."""
        if self.steering is not None:
            self.steering.detach()

    def close(self) -> None:
        """Takes everything down, in order; what was changed at the interface is restored."""
        self.stop()
        for queue in self.queues:
            queue.close()
        if self.queues and self._last is None:
            self._last = (self.info(), self.statistics())
        self.queues = []
        if self.steering is not None:
            self.steering.close()
        if self.settings is not None:
            self.settings.restore()
            self.settings = None

    # --------------------------------------------------------------------------------- figures

    @property
    def zero_copy(self) -> bool:
        return bool(self.queues) and all(queue.zero_copy for queue in self.queues)

    def info(self) -> dict[str, Any]:
        """What was granted, in the words of the statistics."""
        if self._last is not None:
            return dict(self._last[0])
        first = self.queues[0].frames.arena
        return {
            "name": self.name,
            "interface": self.spec.interface,
            "backend": self.spec.backend,
            "attach_mode": self.attach_mode,
            "zero_copy": self.zero_copy,
            "queues": [plan.queue for plan in self.plans],
            "poll": self.spec.poll,
            "jumbo": self.spec.jumbo,
            # Of the NIC: without it, withholding FILL drops. None: the driver has none.
            "pause": None if self._pause is None else {"rx": self._pause.rx, "tx": self._pause.tx},
            "frame_bytes": self.spec.frame_bytes,
            "backing": first.backing,
            "numa_node": first.numa_node if first.numa_node >= 0 else None,
            "reasons": [*self._reasons, *([first.reason] if first.reason else [])],
        }

    def statistics(self) -> dict[str, Any]:
        """The entry of "ports", and the drops that this port can name. After close, the last."""
        if self._last is not None:
            return self._last[1]
        kernel: dict[str, int] = {}
        own: dict[str, int] = {}
        for queue in self.queues:
            for name, count in queue.kernel_statistics().items():
                kernel[name] = kernel.get(name, 0) + count
            for name, count in queue.statistics().items():
                own[name] = own.get(name, 0) + count
        drops = {name: {**kernel, **own}[name] for name in (*KERNEL_DROPS, *OWN_DROPS)}
        lost = {name: drops[name] for name in (*self.LOST_ON_THE_WAY, *OWN_DROPS)}
        steering: dict[str, Any] = (
            self.steering.counters()
            if self.steering is not None
            else {"seen": 0, "consumed": 0, "passed": 0, "dropped": 0, "by_rule": {}, "drops": {}}
        )
        for name, count in steering.pop("drops").items():
            drops[name] = drops.get(name, 0) + count
        port = {
            **{key: value for key, value in self.info().items() if key != "reasons"},
            **{name: own[name] for name in ("rx_frames", "rx_bytes", "tx_frames", "tx_bytes")},
            "starved": own["starved"],
            "wakeups": own["wakeups"],
            "kernel": kernel,
            "lost": lost,  # on the way to us: consumed = rx_frames + the sum of these
            # Received all the same, as rule 0: a worker then drops them as no_consumer.
            "invalid_metadata": own["invalid_metadata"],
        }
        return {
            "port": port,
            "steering": steering,
            "drops": {name: count for name, count in drops.items() if count},
        }


__all__ = ["Attachment", "PortSpec", "Umem"]
