"""Replays a capture through AF_XDP: paced, in order, on one queue of an interface that exists.

Owns the waiting and the counting: pacing.py says what is due when, the port sends it. Nothing is
received, and the interface stays as it is. A packet that no Ethernet interface can send is skipped
and counted; one that only this interface cannot send (its MTU) is refused before the first leaves.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from appliance import limits
from appliance.capture import Capture, ethernet_only
from appliance.errors import HostError, PortError
from appliance.net import InterfaceInfo, inside, interface, link_statistics
from appliance.pacing import Burst, Schedule
from appliance.plan import ETHERNET_BYTES
from appliance.port import Port, open_port

ETHERNET_HEADER = 14
VLAN_TYPES = (0x8100, 0x88A8)
FRAME_BYTES = 4096
FRAMES = 4096  # a quarter sends: the TX ring has 1,024 descriptors
# A burst that starts this much after its time is late. Waking a sleeper takes up to 0.1 ms on a
# quiet machine, and more is lost time that the receiver can see.
LATE_NS = 1_000_000
# veth has a ring of 256 packets and drops silently. Its completions come back when the other end
# has taken the packet out of that ring, so no more than this may be under way.
VETH_WINDOW = 192
NAP_S = 0.02  # between two looks at the stop flag
SPIN_NS = 60_000  # the last stretch is waited out awake: Linux's timer slack is 50 us
STUCK_S = 5.0
SHOW_NS = 50_000_000


class Stop:
    """Set `requested` from a signal handler: the replay ends after the burst at hand."""

    requested = False


@dataclass
class Replayed:
    """What was sent."""

    sent: int = 0
    bytes: int = 0
    bursts: int = 0
    late_bursts: int = 0
    elapsed_s: float = 0.0
    interrupted: bool = False
    skipped: dict[str, int] = field(default_factory=dict)


def replay(
    capture: Capture,
    interface_name: str,
    *,
    netns: str | None = None,
    queue: int = 0,
    rate: float | None = None,
    speed: float | None = None,
    loop: int = 1,
    stop: Stop | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Sends the packets of the capture; returns the figures.

    ConfigError for bad numbers or a capture that is not Ethernet, HostError for an interface that
    is absent, down, without carrier or with too small an MTU, PortError when it stops sending.
    """
    ethernet_only(capture)
    facts = interface(interface_name, netns)
    _check_link(facts)
    chosen, skipped = _sendable(capture)
    _check_mtu(facts, chosen)
    schedule = Schedule(chosen.timestamps_ns, rate=rate, speed=speed, loop=loop)
    longest = int(chosen.lengths.max()) if len(chosen) else 0
    dropped_before = link_statistics(interface_name, netns)["tx_dropped"]
    with open_port(
        interface_name, netns=netns, queues=[queue], transmit_only=True, frames=FRAMES,
        frame_bytes=FRAME_BYTES, jumbo=longest > FRAME_BYTES,
    ) as port:
        window = VETH_WINDOW if facts.driver == "veth" else FRAMES // 4
        sender = _Sender(port, chosen, window, stop or Stop(), progress)
        done = sender.run(schedule)
    rounds = done.sent // len(chosen) if len(chosen) else loop
    done.skipped = {reason: count * max(1, rounds) for reason, count in skipped.items()}
    dropped = link_statistics(interface_name, netns)["tx_dropped"] - dropped_before
    return _figures(done, port, dropped)


def _figures(done: Replayed, port: Port, dropped: int) -> dict[str, Any]:
    return {
        "ports": [port.stats()],
        "sent": done.sent,
        "bytes": done.bytes,
        "skipped": done.skipped,
        "drops": {"link": dropped} if dropped else {},
        "elapsed_s": done.elapsed_s,
        "pps": round(done.sent / done.elapsed_s) if done.elapsed_s else 0,
        "bursts": done.bursts,
        "late_bursts": done.late_bursts,
        "interrupted": done.interrupted,
        "frames": port.ledger(),
    }


# ------------------------------------------------------------------------------ before the start


def _check_link(facts: InterfaceInfo) -> None:
    where = " ".join(inside(facts.netns, "ip"))
    if not facts.up:
        raise HostError(f"{facts.name} is down", fix=f"{where} link set {facts.name} up")
    if not facts.carrier:
        raise HostError(
            f"{facts.name} has no carrier: what it sends is dropped",
            fix="bring up the other end, or plug it in",
        )


def _sendable(capture: Capture) -> tuple[Capture, dict[str, int]]:
    """The packets that an Ethernet interface can send at all, and how many cannot be, by reason."""
    lengths = np.asarray(capture.lengths, np.uint32)
    short = lengths < ETHERNET_HEADER
    long = lengths > limits.MTU_MAX + ETHERNET_HEADER
    rows = np.flatnonzero(~(short | long))
    skipped = {
        "shorter_than_ethernet_header": int(short.sum()),
        "longer_than_link": int(long.sum()),
    }
    chosen = Capture(
        capture.data,
        np.ascontiguousarray(capture.offsets[rows], np.uint64),
        np.ascontiguousarray(lengths[rows]),
        capture.wire_lengths[rows],
        capture.timestamps_ns[rows],
        capture.link_type,
        capture.link_type_name,
        capture.truncated,
        capture.name,
    )
    return chosen, {reason: count for reason, count in skipped.items() if count}


def _check_mtu(facts: InterfaceInfo, chosen: Capture) -> None:
    """The kernel would drop a packet over the MTU without a word; a VLAN tag does not count."""
    room = np.full(len(chosen), facts.mtu + ETHERNET_HEADER)
    if len(chosen):
        data = np.frombuffer(chosen.data, np.uint8)
        kind = data[chosen.offsets + np.uint64(12)].astype(int) << 8
        kind |= data[chosen.offsets + np.uint64(13)]
        room[np.isin(kind, VLAN_TYPES)] = facts.mtu + ETHERNET_BYTES
    excess = chosen.lengths.astype(np.int64) - room
    if len(excess) and excess.max() > 0:
        where = " ".join(inside(facts.netns, "ip"))
        raise HostError(
            f"{facts.name}: MTU {facts.mtu} is too small for {int((excess > 0).sum())} packets of "
            f"{chosen.name}, up to {int(chosen.lengths.max())} bytes",
            fix=f"{where} link set {facts.name} mtu {facts.mtu + int(excess.max())}, on both ends",
        )


# -------------------------------------------------------------------------------------- sending


class _Sender:
    """Follows a schedule."""

    def __init__(self, port: Port, packets: Capture, window: int, stop: Stop,
                 progress: Callable[[int], None]) -> None:
        self._port, self._packets, self._window = port, packets, window
        self._stop, self._progress = stop, progress
        self._shown_ns = 0
        self._done = Replayed()
        # Bytes of the first n packets, so that a burst is counted by one subtraction.
        self._before = np.concatenate(([0], np.cumsum(packets.lengths.astype(np.int64))))

    def run(self, schedule: Schedule) -> Replayed:
        done = self._done
        start = time.monotonic_ns()
        for burst in schedule:
            if not self._wait(start + burst.due_ns):
                break
            done.bursts += 1
            done.late_bursts += time.monotonic_ns() - start - burst.due_ns > LATE_NS and (
                burst.due_ns > 0
            )
            if not self._send(burst):
                break
        if not self._port.flush(1000 * STUCK_S):
            raise PortError(f"{self._name}: {self._port.outstanding} frames do not leave")
        done.elapsed_s = (time.monotonic_ns() - start) / 1e9
        done.interrupted = self._stop.requested
        self._progress(done.sent)
        return done

    @property
    def _name(self) -> str:
        return str(self._port.info["interface"])

    def _wait(self, due_ns: int) -> bool:
        """Until the burst is due; False when we are to stop."""
        while not self._stop.requested:
            now = time.monotonic_ns()
            left = due_ns - now
            if left <= 0:
                self._show(now)
                return True
            if left > SPIN_NS:
                self._show(now)
                time.sleep(min((left - SPIN_NS) / 1e9, NAP_S))
        return False

    def _send(self, burst: Burst) -> bool:
        """The whole burst, as the port takes it; False when we are to stop."""
        packets, done = self._packets, self._done
        at, moved_at = burst.start, time.monotonic()
        while at < burst.stop:
            room = self._window - self._port.outstanding
            count = 0
            if room > 0:
                count = self._port.send_packed(packets.data, packets.offsets, packets.lengths, at,
                                               min(burst.stop, at + room))
            if count:
                done.sent += count
                done.bytes += int(self._before[at + count] - self._before[at])
                at += count
                moved_at = time.monotonic()
                continue
            if self._stop.requested:
                return False
            self._port.flush(1)  # raises what the kernel has to say
            if time.monotonic() - moved_at > STUCK_S:
                raise PortError(f"{self._name}: sends nothing since {STUCK_S:.0f} s")
        return True

    def _show(self, now_ns: int) -> None:
        if now_ns - self._shown_ns > SHOW_NS:
            self._shown_ns = now_ns
            self._progress(self._done.sent)
