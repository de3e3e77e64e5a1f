"""The demo's bench: two namespaces, a veth pair, one AF_XDP port at each end.

Owns their order of life and the one account of what the link and the two ports did. What is sent
and how it is checked is not its matter (traffic.py, exchange.py).

    netns a                                netns b
    sender (AF_XDP TX, no program) ===== veth ===== steering (XDP) -> receiver (AF_XDP RX)
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any

from appliance import limits
from appliance.demo.traffic import ETHERNET_HEADER
from appliance.errors import HostError
from appliance.net import Lab, link_statistics
from appliance.port import Port, open_port
from appliance.steering import Rule

MTU_USUAL = 1500
# A packet of more is given to XDP in several buffers: a page less headroom (256), the kernel's
# shared info (320) and the Ethernet header, rounded down. veth refuses a longer MTU to a program
# that does not know several buffers.
ONE_BUFFER = 3500
# A quarter of them sends, and one window of exchange.py is what is under way: 192 packets.
SENDER_FRAMES = 1024
# 3,072 receive: FILL, a full RX ring and the batch in hand each have their third.
RECEIVER_FRAMES = 4096
SETTLED_S = 0.5  # a poll handles 64 packets, well under 1 ms, unless its CPU is taken away


class Rig:
    """Use as a context. `close()` gives the figures; leaving the context removes everything."""

    def __init__(self, rules: Sequence[Rule], longest: int, queues: int = 2) -> None:
        self.reasons: list[str] = []
        self.longest_reason = "longer_than_link"
        self._last: dict[str, Any] | None = None
        self._stack = contextlib.ExitStack()
        wanted = min(max(longest, MTU_USUAL + ETHERNET_HEADER), limits.MTU_MAX + ETHERNET_HEADER)
        try:
            self._open(rules, wanted, queues, jumbo=wanted > ONE_BUFFER)
        except HostError as error:
            self._stack.close()
            if wanted <= ONE_BUFFER:
                raise
            # Refused only for its length, or for everything? The second attempt tells.
            self._open(rules, ONE_BUFFER, queues, jumbo=False)
            self.longest_reason = "longer_than_frame"
            self.reasons.append(f"packets over {ONE_BUFFER} bytes are skipped: {error}")

    def _open(self, rules: Sequence[Rule], longest: int, queues: int, *, jumbo: bool) -> None:
        self._stack = contextlib.ExitStack()
        try:
            lab = Lab.temporary(queues=queues, mtu=longest - ETHERNET_HEADER)
            self.lab = self._stack.enter_context(lab)
            self.receiver = self._enter(
                open_port(lab.b.interface, rules=rules, netns=lab.b.netns, jumbo=jumbo,
                          frames=RECEIVER_FRAMES)
            )
            self.sender = self._enter(
                open_port(lab.a.interface, netns=lab.a.netns, jumbo=jumbo, frames=SENDER_FRAMES,
                          transmit_only=True)
            )
        except BaseException:
            self._stack.close()
            raise
        self.longest = min(longest, self.sender.packet_bytes_max)
        self.reasons += [why for why in self.receiver.info["reasons"] if why not in self.reasons]
        self._before = self._link()

    def _enter(self, port: Port) -> Port:
        return self._stack.enter_context(port)

    def _link(self) -> tuple[int, int]:
        """What veth lost at its entry, and what came out at the other end, program or not.

        rx_dropped of the other end would not do: it counts packets of the AF_XDP socket and of the
        stack again, which have their own reasons.
        """
        a, b = (link_statistics(side.interface, side.netns) for side in (self.lab.a, self.lab.b))
        return a["tx_dropped"], b["rx_packets"]

    def _lost(self, seen: int) -> int:
        """Packets that the link lost before XDP saw them.

        veth counts a poll's packets at the end of the poll, when the last of them may have been
        received already: until it caught up with the program, it is asked again.
        """
        until = time.monotonic() + SETTLED_S
        while True:
            now = self._link()
            lost, out = (value - then for value, then in zip(now, self._before, strict=True))
            if out >= seen or time.monotonic() > until:
                return lost + out - seen
            time.sleep(0.005)

    def figures(self) -> dict[str, Any]:
        """Everything counted since the start: ports, steering, drops by reason, frames."""
        if self._last is not None:
            return self._last
        steering = self.receiver.steering()
        drops = dict(self.receiver.drops())
        lost = self._lost(steering["seen"])
        if lost:
            drops["link"] = drops.get("link", 0) + lost
        return {
            "ports": [self.sender.stats(), self.receiver.stats()],
            "steering": steering,
            "drops": drops,
            "frames": self._frames(),
        }

    def _frames(self) -> dict[str, int]:
        """The ledgers of both ports as one."""
        first, second = self.sender.ledger(), self.receiver.ledger()
        return {state: first[state] + second[state] for state in first}

    def close(self) -> dict[str, Any]:
        """Stops both ports, which proves their ledgers, and returns the final figures."""
        if self._last is None:
            figures = self.figures()
            self.sender.close()
            self.receiver.close()
            figures["frames"] = self._frames()
            self._last = figures
        return self._last

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        # Memory goes with the last reference to a port, not with its close (views may be alive).
        del self.sender, self.receiver
