"""A DPDK port: the Attachment whose packets come from a DPDK device instead of an interface.

Owns the order of life of such a port: device plugged in, rules compiled, memory made and handed to
DPDK, device started, queues opened; and back. There is no kernel behind it: packets that no rule
consumes are counted as passed or dropped, and end here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from appliance.attachment import Attachment, PortSpec, Umem
from appliance.dataplane import dpdk
from appliance.dpdk.device import Device
from appliance.errors import ConfigError, HostError
from appliance.plan import BURST, ETHERNET_BYTES, size_queue
from appliance.steering import Rule
from appliance.steering.native import NativeSteering

# In front of the packet's headroom: mempool object, mbuf (cython_ext/include/oc_dpdk.h).
MBUF_BYTES = 320


def attachment_of(spec: PortSpec) -> type[Attachment]:
    """Which kind of Attachment opens this port."""
    return DpdkAttachment if spec.backend == "dpdk" else Attachment


class DpdkAttachment(Attachment):
    """As Attachment. `spec.device` names the device; one that is plugged in may be given."""

    LOST_ON_THE_WAY: tuple[str, ...] = ("rx_ring_full",)
    steering: NativeSteering | None  # type: ignore[assignment]

    def _open(
        self,
        rules: Sequence[Rule] | None,
        keep_management: bool,
        no_socket: str,
        umems: Sequence[Umem] | None,
    ) -> None:
        spec = self.spec
        self._said: dict[str, Any] = {"link": "down"}
        self.device = spec.plugged or Device(spec.device, spec.netns)
        if rules is not None:
            self.steering = NativeSteering(rules, keep_management=keep_management)
        numbers = self.device.numbers(spec.queues)
        node = self.device.facts().numa_node if spec.numa == "auto" else int(spec.numa)
        for number in numbers:
            self.plans.append(
                size_queue(
                    self.name, number, spec.frames, spec.frame_bytes, self.device.posted, node
                )
            )
        self._check_mtu()
        self._check_frames()
        self._make_queues(self._umems(umems, len(numbers)))
        self.device.start(
            self.queues, mtu=spec.mtu, jumbo=spec.jumbo, promiscuous=spec.promiscuous
        )
        if self.steering is not None:
            for queue in self.queues:
                self.steering.add_queue(queue)
        self._reasons.append("no kernel behind a DPDK port: what no rule consumes ends here")
        if spec.jumbo and not self.device.sends_chains:
            self._reasons.append(f"{self.device.driver} sends packets of one frame only")

    def _check_mtu(self) -> None:
        longest = (self.spec.mtu or self.device.mtu) + ETHERNET_BYTES
        room = self.spec.frame_bytes - MBUF_BYTES - self.device.headroom
        if longest > room and not self.spec.jumbo:
            raise ConfigError(
                f"{self.name}: MTU {longest - ETHERNET_BYTES} + {ETHERNET_BYTES} > {room} bytes "
                f"of a frame: jumbo = true, a larger frame, or a smaller MTU"
            )

    def _check_frames(self) -> None:
        """A driver that keeps all frames for itself leaves none to receive with."""
        need = self.device.posted_at_once + BURST
        for plan in self.plans:
            if plan.fill_target < need:
                raise ConfigError(
                    f"frames: {plan.frames}: {self.device.driver} keeps "
                    f"{self.device.posted_at_once} posted: at least {2 * need}"
                )

    def _make_queues(self, umems: Sequence[Umem]) -> None:
        library = dpdk()
        for place, (plan, umem) in enumerate(zip(self.plans, umems, strict=True)):
            frames = self._frames(plan, umem)
            try:
                umem.pool = umem.pool or library.Pool(frames)
                queue = library.DpdkQueue(
                    frames,
                    umem.pool,
                    self.device,
                    place,
                    plan.rx_ring,
                    plan.tx_ring,
                    plan.fill_ring,
                    plan.fill_target,
                    self.spec.jumbo,
                )
            except OSError as error:
                raise HostError(f"{self.name}: {error.strerror or error}") from None
            queue.never_sleep(self.spec.poll == "busy")
            self.queues.append(queue)
            umem.first = umem.first or queue

    # -------------------------------------------------------------------------------- start, stop

    def start(self) -> None:
        """From here on packets are taken from the device."""
        if self.steering is not None:
            for queue in self.queues:
                queue.open()

    def stop(self) -> None:
        """No more packets are taken; what was taken is still handed on, and sending goes on."""
        if hasattr(self, "device"):
            self._granted()  # the last word: a closed device says nothing any more
        for queue in self.queues:
            queue.shut()

    def close(self) -> None:
        """Takes everything down; the device first, then its memory."""
        super().close()
        if hasattr(self, "device"):
            self.device.close()

    # --------------------------------------------------------------------------------- figures

    def link(self) -> str:
        return str(self._granted()["link"])

    def _granted(self) -> dict[str, Any]:
        """What the device says of itself; once it is closed, what it said last."""
        if not self.device.closed:
            self._said = {"link": self.device.link(), **self.device.settings()}
        return self._said

    def info(self) -> dict[str, Any]:
        if self._last is not None:
            return dict(self._last[0])
        return {
            **super().info(),
            "device": self.spec.device,
            "driver": self.device.driver,
            **self._granted(),
            "native_rules": self.steering.program["native"] if self.steering else 0,
        }


__all__ = ["DpdkAttachment", "attachment_of"]
