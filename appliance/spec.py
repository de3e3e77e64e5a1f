"""What to open a port with: its fields, checked, and the memory that its queues use.

Owns the allowed values of single fields; whether the host can do it is seen when it is opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from appliance import limits
from appliance.dataplane import Frames, Queue
from appliance.errors import ConfigError


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
    pause: str = ""  # on, off; empty: as it is
    device: str = ""  # backend dpdk: what to plug in
    promiscuous: bool = True  # backend dpdk
    mtu: int | None = None  # backend dpdk: None leaves it as it is
    plugged: Any = None  # backend dpdk: that device, if it is plugged in already

    def __post_init__(self) -> None:
        if not isinstance(self.queues, str) and len(set(self.queues)) != max(len(self.queues), 1):
            raise ConfigError(f"queues: {list(self.queues)}: at least one, each once")
        for field, value, allowed in (
            ("backend", self.backend, ("afxdp", "dpdk", "loop")),
            ("mode", self.mode, ("auto", "copy", "zerocopy")),
            ("attach", self.attach, ("auto", "native", "generic")),
            ("poll", self.poll, ("irq", "defer", "busy")),
            ("pause", self.pause, ("", "on", "off")),
            ("hugepages", self.hugepages, ("auto", "require", "off", "1G")),
            ("frame_bytes", self.frame_bytes, limits.FRAME_BYTES),
        ):
            if value not in allowed:
                words = ", ".join(str(word) for word in allowed)
                raise ConfigError(f"{field}: {value!r}: one of {words}")
        if self.backend == "dpdk" and not self.device:
            raise ConfigError("device: missing: a DPDK device such as net_null0 or 0000:01:00.0")
        if self.backend != "dpdk" and self.device:
            raise ConfigError(f"device: {self.device!r}: only with backend dpdk")
        if self.backend == "dpdk" and self.poll == "defer":
            raise ConfigError("poll: 'defer': irq (naps) or busy with backend dpdk")
        if not limits.FRAMES_PER_PORT_MIN <= self.frames <= limits.FRAMES_PER_QUEUE_MAX:
            low, high = limits.FRAMES_PER_PORT_MIN, limits.FRAMES_PER_QUEUE_MAX
            raise ConfigError(f"frames: {self.frames}: {low}..{high}")


class Umem:
    """The memory of one queue, or of several that share it: forwarding without a copy needs that.

    The first queue that opens on it makes and registers it, with `frames` of which `tx_frames`
    send; without numbers, those of that queue's plan.
    """

    def __init__(self, frames: int = 0, tx_frames: int = 0) -> None:
        self.size = (frames, tx_frames)
        self.frames: Frames | None = None
        self.first: Queue | None = None
        self.pool: Any = None  # backend dpdk: the same memory as DPDK's mempool
