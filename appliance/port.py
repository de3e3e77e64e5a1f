"""A port in a Python program: `open_port`, and the Port that it gives.

The packet loop in a few lines:

    with appliance.open_port("eth1", match="udp port 53") as port:
        for batch in port.recv():
            for frame in batch:
                print(len(frame), memoryview(frame)[:14].hex())

A Port owns one Attachment (memory, sockets, steering) and one Endpoint (the compiled loop). All the
work is theirs; here are the words, the order of stop, and errors that are this package's own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import Any

from appliance.asynchronous import OwnPort, batches
from appliance.attachment import Attachment, PortSpec
from appliance.dataplane import Batch, Endpoint, Frame
from appliance.dpdk import attachment_of
from appliance.errors import ConfigError, PortError
from appliance.holding import CULPRIT, Holding
from appliance.memory import history, report
from appliance.steering import Rule


def open_port(
    interface: str = "",
    match: str | None = None,
    *,
    rules: Sequence[Rule] | None = None,
    queues: str | Sequence[int] = "all",
    netns: str | None = None,
    frame_bytes: int = 4096,
    frames: int = 8192,
    mode: str = "auto",
    attach: str = "auto",
    poll: str = "irq",
    jumbo: bool = False,
    pause: str = "",
    quota_frames: int = 1024,
    policy: str = "reliable",
    max_hold_ms: int | None = None,
    mid_cap_mib: int = 64,
    hugepages: str = "auto",
    backend: str = "afxdp",
    device: str = "",
    promiscuous: bool = True,
    mtu: int | None = None,
    no_socket: str = "pass",
    transmit_only: bool = False,
) -> Port:
    """Opens an interface for zero-copy receiving and sending; use it as a context.

    match         pcap filter expression; what it selects is consumed, the rest goes to the kernel.
                  "" is everything. ARP, ND, DHCP and SSH stay with the kernel unless it names them.
    rules         instead of match: `appliance.Rule` objects, first match wins.
    queues        "all", or a list of queue numbers.
    netns         name of a network namespace (as in `ip netns`).
    frame_bytes   2048 or 4096. `frames` of them for each queue: a quarter sends, the rest receives.
    mode          "auto" (zero-copy where driver and kernel are known good), "copy", "zerocopy".
    attach        "auto" (native, else generic), "native", "generic".
    poll          "irq", "defer" (interrupts deferred while we look) or "busy" (never sleeps).
    jumbo         packets that span several frames, up to 64 KiB (Linux 6.6 or later).
    pause         "on" or "off": Ethernet pause, set while the port is open; "" leaves it as it is.
    quota_frames  how many frames the program may hold or view past their batch.
    policy        what happens to a hold beyond the quota: "reliable" copies the packet to the mid
                  tier (at most mid_cap_mib, taken when it is first needed), "lossy" ends the oldest
                  hold that nobody looks at, "strict" raises MemoryExhausted.
    max_hold_ms   holds that are older are copied out (reliable) or end (lossy) when recv() goes on,
                  or at sweep(); frames with a live view stay.
    backend       "afxdp"; "dpdk": a DPDK device; "loop": in memory, what is sent comes back.
    device        with backend dpdk instead of the interface: "0000:03:00.0", "net_null0",
                  "net_af_xdp0,iface=eth1"; with promiscuous and mtu, which DPDK then sets.
    no_socket     "pass" or "drop": what happens to consumed packets when the port is gone.
    transmit_only no program is attached and nothing is received; match is not needed.

    Raises ConfigError (bad argument), HostError (the host lacks something), PortError (refused).
    """
    spec = PortSpec(
        interface or device.split(",")[0], netns=netns, backend=backend, queues=queues, mode=mode,
        attach=attach, poll=poll, jumbo=jumbo, pause=pause, frames=frames,
        frame_bytes=frame_bytes, hugepages=hugepages, device=device, promiscuous=promiscuous,
        mtu=mtu,
    )  # fmt: skip
    if rules is None and match is not None:
        rules = [Rule(match=match, action="consume")]
    if rules is None and not transmit_only and backend != "loop":
        raise ConfigError("match: none: a port without a rule would hide its traffic ('' is all)")
    holding = Holding(quota_frames, policy, max_hold_ms, mid_cap_mib)
    attachment = attachment_of(spec)(spec, None if transmit_only else rules, no_socket=no_socket)
    try:
        return Port(attachment, holding)
    except BaseException:
        attachment.close()
        raise


class Port:
    """An open port. Close it, or use it as a context: nothing of it stays behind."""

    def __init__(self, attachment: Attachment, holding: Holding) -> None:
        self._attachment = attachment
        self._holding = holding
        self._endpoint = Endpoint(attachment.queues, holding.quota_frames)
        holding.rule(self._endpoint)
        attachment.start()

    # ------------------------------------------------------------------------------- packets

    def recv(self, max_frames: int = 64, timeout_ms: float | None = 100) -> Iterator[Batch]:
        """An endless iterator of batches; a timeout gives an empty one, closing the port ends it.

        A batch lives until the loop asks for the next. The GIL is not held while waiting.
        """
        try:
            return self._endpoint.recv(max_frames, timeout_ms)
        except ValueError as error:
            raise ConfigError(str(error)) from None

    def batches(self, max_frames: int = 64) -> AsyncIterator[Batch]:
        """The same for asyncio: batches that are never empty, until the port closes."""
        return batches(OwnPort(self._endpoint, max_frames), max_frames)

    def __aiter__(self) -> AsyncIterator[Batch]:
        return self.batches()

    def send(self, packets: Iterable[Any], queue: int = 0) -> int:
        """Queues packets; returns how many, which is less than given when TX is full: flush().

        bytes-like packets are copied into TX frames. A received Frame is moved without a copy and
        is stale afterwards. PortError for a packet that can never be sent.
        """
        try:
            return self._endpoint.send(packets, queue)
        except (ValueError, OSError) as error:
            raise PortError(f"{self._attachment.name}: {_words(error)}") from None

    def send_packed(
        self, data: Any, offsets: Any, lengths: Any, start: int, stop: int, queue: int = 0
    ) -> int:
        """Queues packets start..stop-1 of one buffer (uint64 offsets, uint32 lengths, in bytes).

        No Python object per packet, no GIL. Returns how many were queued.
        """
        try:
            return self._endpoint.send_packed(data, offsets, lengths, start, stop, queue)
        except (ValueError, OSError) as error:
            raise PortError(f"{self._attachment.name}: {_words(error)}") from None

    def flush(self, timeout_ms: float = 1000) -> bool:
        """Waits until everything queued has left; False if it had not by then."""
        try:
            return self._endpoint.flush(timeout_ms)
        except OSError as error:
            raise PortError(f"{self._attachment.name}: {_words(error)}") from None

    # ------------------------------------------------------------------------------- figures

    @property
    def info(self) -> dict[str, Any]:
        """What was granted: attach_mode, zero_copy, queues, backing, and the reasons."""
        return self._attachment.info()

    @property
    def packet_bytes_max(self) -> int:
        """The longest packet that can be sent."""
        return self._endpoint.longest

    @property
    def outstanding(self) -> int:
        """Frames queued for sending that the kernel has not given back."""
        return self._endpoint.outstanding()

    @property
    def held(self) -> int:
        """Frames held or viewed past their batch: what counts against quota_frames."""
        return self._endpoint.pinned

    def stats(self) -> dict[str, Any]:
        """This port's entry of "ports" in the statistics."""
        return self._attachment.statistics()["port"]

    def steering(self) -> dict[str, Any]:
        """What the program saw, consumed, passed and dropped, and by which rule."""
        return self._attachment.statistics()["steering"]

    def drops(self) -> dict[str, int]:
        """Lost packets by reason; reasons that are zero are left out."""
        return self._attachment.statistics()["drops"]

    def ledger(self) -> dict[str, int]:
        """Frames by state; their sum is `total` at all times. `leaked` is proved at close."""
        return self._endpoint.ledger()

    # --------------------------------------------------------------------------------- memory

    def sweep(self) -> int:
        """Ends or copies out the holds past max_hold_ms now; how many. recv() does it by itself."""
        return int(self._endpoint.sweep())

    def memory(self) -> dict[str, Any]:
        """The holds: held, viewed, copies, the oldest; and how many were copied out or dropped."""
        return self._endpoint.holds()

    def explain(self) -> dict[str, Any]:
        """Who holds what now, and what was done about it: the page of `mem explain`."""
        return report.page(
            [(f"{self._attachment.name}/{queue.queue_id}", queue.frames)
             for queue in self._attachment.queues],
            [{"name": CULPRIT, **self.memory()}],
            self._holding.tier,
            self._holding.events.listed(),
        )

    def keep_history(self, on: bool) -> None:
        """Notes the last 16 operations of each frame from now on: who, when, which. Or no more.

        It is for finding who lost a frame: while it is on, each operation takes a lock.
        """
        for queue in self._attachment.queues:
            queue.frames.keep_history(on)
        if self._holding.tier is not None:
            self._holding.tier.keep_history(on)

    def history(self, frame: Frame | int, queue: int = 0) -> dict[str, Any]:
        """What was done with a frame, or with the frame of that number (of the n-th queue)."""
        number = frame if isinstance(frame, int) else frame.number
        queues = self._attachment.queues
        if not 0 <= queue < len(queues):
            raise ConfigError(f"queue: {queue}: 0 to {len(queues) - 1}")
        return history.of_frame(queues[queue].frames, number)

    # ---------------------------------------------------------------------------------- rules

    @property
    def rules(self) -> list[tuple[int, Rule]]:
        """The rules in force with their ids, in order."""
        steering = self._attachment.steering
        return list(steering.rules) if steering is not None else []

    def swap_rules(self, rules: Sequence[Rule]) -> None:
        """Replaces all rules atomically, without losing a packet."""
        if self._attachment.steering is None:
            raise PortError(f"{self._attachment.name}: a port without steering has no rules")
        self._attachment.steering.swap(rules)

    # ----------------------------------------------------------------------------------- stop

    @property
    def closed(self) -> bool:
        return self._endpoint.closed

    def close(self) -> None:
        """Detaches the program, closes the sockets, proves the ledger, gives everything back."""
        if self._endpoint.closed:
            return
        self._attachment.stop()
        self._endpoint.close()
        self._attachment.close()

    def __enter__(self) -> Port:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_endpoint"):
            self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"queues {self.info['queues']}"
        return f"<Port {self._attachment.name}, {state}>"


def _words(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


__all__ = ["Batch", "Frame", "Port", "open_port"]
