"""A port attached to its interface: memory, sockets, steering, and the settings that go with them.

Owns the order of life of one port (design: everything is checked and reserved before the program is
attached; the program is detached before anything is taken away) and the translation of what the
kernel refuses into one line. Who then runs the queues, a worker or a Python loop, is not its matter.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from appliance import limits
from appliance.dataplane import Frames, LoopQueue, Queue, XskQueue
from appliance.errors import ConfigError, HostError, OpenClawError, PortError
from appliance.net import InterfaceInfo, Settings, in_netns, interface
from appliance.net.zerocopy import verdict
from appliance.plan import ETHERNET_BYTES, QueuePlan, packet_bytes_max, size_queue
from appliance.steering import Rule, Steering

KERNEL_DROPS = ("rx_dropped", "rx_ring_full")


@dataclass(frozen=True)
class PortSpec:
    """What to open. Field by field the [[port]] and [memory] tables of the configuration."""

    interface: str
    name: str = ""
    netns: str | None = None
    backend: str = "afxdp"
    queues: str | Sequence[int] = "all"
    mode: str = "auto"
    attach: str = "auto"
    poll: str = "irq"
    jumbo: bool = False
    frames: int = 8192
    frame_bytes: int = 4096
    hugepages: str = "auto"
    numa: str | int = "auto"

    def __post_init__(self) -> None:
        if not isinstance(self.queues, str) and len(set(self.queues)) != max(len(self.queues), 1):
            raise ConfigError(f"queues: {list(self.queues)}: at least one, each once")
        for field, value, allowed in (
            ("backend", self.backend, ("afxdp", "loop")),
            ("mode", self.mode, ("auto", "copy", "zerocopy")),
            ("attach", self.attach, ("auto", "native", "generic")),
            ("poll", self.poll, ("irq", "defer", "busy")),
            ("hugepages", self.hugepages, ("auto", "require", "off")),
            ("frame_bytes", self.frame_bytes, limits.FRAME_BYTES),
        ):
            if value not in allowed:
                words = ", ".join(str(word) for word in allowed)
                raise ConfigError(f"{field}: {value!r}: one of {words}")
        if not limits.FRAMES_PER_PORT_MIN <= self.frames <= limits.FRAMES_PER_QUEUE_MAX:
            low, high = limits.FRAMES_PER_PORT_MIN, limits.FRAMES_PER_QUEUE_MAX
            raise ConfigError(f"frames: {self.frames}: {low}..{high}")


class Attachment:
    """An open port. `start()` lets packets in; `stop()` shuts the door; `close()` takes all down.

    With `rules` None the port only sends: no program is attached. `share` gives for each queue the
    queue of another port whose UMEM is used, which forwarding without a copy needs.
    """

    def __init__(
        self,
        spec: PortSpec,
        rules: Sequence[Rule] | None,
        *,
        keep_management: bool = True,
        no_socket: str = "pass",
        share: Sequence[Queue] | None = None,
    ) -> None:
        self.spec = spec
        self.name = spec.name or spec.interface
        self.queues: list[Queue] = []
        self.plans: list[QueuePlan] = []
        self.steering: Steering | None = None
        self.settings: Settings | None = None
        self.attach_mode: str | None = None
        self.facts: InterfaceInfo | None = None
        self._reasons: list[str] = []
        self._last: tuple[dict[str, Any], dict[str, Any]] | None = None
        try:
            if spec.backend == "loop":
                self._open_loop(share)
                return
            if rules is not None:
                # Compiled first: a rule that cannot be is found before anything is touched.
                self.steering = Steering(
                    rules,
                    jumbo=spec.jumbo,
                    keep_management=keep_management,
                    no_socket=no_socket,
                )
            self.facts = interface(spec.interface, spec.netns)
            self._check()
            self._open_afxdp(share)
        except BaseException:
            self.close()
            raise

    # ------------------------------------------------------------------------------------- open

    def _queue_numbers(self) -> list[int]:
        if self.facts is None:
            return [0] if self.spec.queues == "all" else list(self.spec.queues)
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
            where = f"ip -n {self.spec.netns}" if self.spec.netns else "ip"
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

    def _frames(self, plan: QueuePlan) -> Frames:
        node = plan.numa_node if plan.numa_node is not None else -1
        try:
            return Frames(
                plan.frames, plan.frame_bytes, plan.tx_frames, self.spec.hugepages, node
            )
        except MemoryError as error:
            pages = -(-plan.frames * plan.frame_bytes // (2 << 20)) * len(self._queue_numbers())
            raise HostError(
                f"memory for {self.name}: {error}",
                fix=f"echo {pages} > /proc/sys/vm/nr_hugepages",
            ) from None

    def _open_loop(self, share: Sequence[Queue] | None) -> None:
        for place, number in enumerate(self._queue_numbers()):
            plan = size_queue(self.name, number, self.spec.frames, self.spec.frame_bytes, 0, None)
            self.plans.append(plan)
            frames = share[place].frames if share else self._frames(plan)
            self.queues.append(
                LoopQueue(
                    frames,
                    number,
                    plan.rx_ring,
                    plan.tx_ring,
                    plan.fill_ring,
                    plan.fill_target,
                    self.spec.jumbo,
                )
            )

    def _mode(self) -> str:
        if self.spec.mode != "auto":
            return self.spec.mode
        assert self.facts is not None
        said = verdict(self.facts.driver)
        if not said.good:
            self._reasons.append(f"copy mode: {said.reason}")
        return "auto" if said.good else "copy"

    def _open_afxdp(self, share: Sequence[Queue] | None) -> None:
        assert self.facts is not None
        mode = self._mode()
        node = self.facts.numa_node if self.spec.numa == "auto" else int(self.spec.numa)
        numbers = self._queue_numbers()
        if share is not None and len(share) != len(numbers):
            raise ConfigError(
                f"forward: {self.name} has {len(numbers)} queues, the other port {len(share)}"
            )
        hardware_ring = self.facts.rings.rx
        for number in numbers:
            self.plans.append(
                size_queue(
                    self.name, number, self.spec.frames, self.spec.frame_bytes, hardware_ring, node
                )
            )
        if self.spec.poll != "irq":
            self.settings = Settings(self.spec.interface, self.spec.netns)
            self.settings.polling()
        in_netns(self.spec.netns, self._open_sockets, mode, share)

    def _open_sockets(self, mode: str, share: Sequence[Queue] | None) -> None:
        assert self.facts is not None
        for place, plan in enumerate(self.plans):
            other = share[place] if share else None
            frames = other.frames if other is not None else self._frames(plan)
            target = plan.fill_target if other is None else plan.fill_target // 2
            try:
                queue = XskQueue(
                    frames,
                    self.facts.ifindex,
                    plan.queue,
                    plan.rx_ring,
                    plan.tx_ring,
                    plan.fill_ring,
                    target,
                    mode,
                    self.spec.jumbo,
                    other,
                )
            except OSError as error:
                raise self._refused(error, mode) from None
            self.queues.append(queue)
            if self.spec.poll != "irq":
                with _as_port_error(f"{self.name}: "):
                    queue.busy_poll(self.spec.poll == "busy")
            if self.steering is not None:
                self.steering.set_socket(plan.queue, queue.fd)

    def _refused(self, error: OSError, mode: str) -> OpenClawError:
        where = self.spec.interface
        if error.errno in (errno.EPERM, errno.EACCES):
            return HostError(f"{where}: {error.strerror}", fix="run as root (sudo)")
        if error.errno == errno.EAFNOSUPPORT:
            return HostError("this kernel has no AF_XDP", fix="a kernel with CONFIG_XDP_SOCKETS=y")
        if error.errno == errno.EBUSY:
            return PortError(f"{where}: {error.strerror}: another program has this queue")
        if mode == "zerocopy" and error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
            return PortError(f"{where}: the driver refuses zero-copy: {error.strerror}")
        if self.spec.jumbo and error.errno == errno.EINVAL:
            return HostError(f"{where}: {error.strerror}", fix="jumbo needs Linux 6.6 or later")
        return PortError(f"{where}: {error.strerror}")

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
        drops = {name: kernel[name] for name in KERNEL_DROPS}
        for name in ("invalid_metadata", "too_many_fragments"):
            drops[name] = own[name]
        steering = (
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
        }
        return {
            "port": port,
            "steering": steering,
            "drops": {name: count for name, count in drops.items() if count},
        }


@contextlib.contextmanager
def _as_port_error(prefix: str):
    try:
        yield
    except OSError as error:
        raise PortError(f"{prefix}{error.strerror or error}") from None
