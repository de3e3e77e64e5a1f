"""The load: packets without pause into one end of a veth pair, from one core.

    Pump     our own AF_XDP sender, as any program would send: an skb per packet (`--load afxdp`)
    Blast    the kernel's generator with live frames: no skb, no system call per packet, four times
             as fast (`--load kernel`, Linux 5.18 or later)
    Trickle  single UDP datagrams at a steady rate, for latency

On veth the receiving side's kernel work (XDP program, copy into the UMEM) runs on the core that
sends: what it spends there is part of every figure of CPU per packet, and bounds every rate.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import numpy as np

from appliance.bench import host
from appliance.dataplane import bpf, gauge
from appliance.errors import HostError
from appliance.net import in_netns, interface
from appliance.net.lab import Side
from appliance.port import open_port

SETTLE_S = 0.25  # from the first packet to the first reading: page pools and caches are filled
UDP_PORT = 4789
ROUND = 256  # packets that Pump queues with one call: eight of the kernel's own rounds of 32
HEADERS = 42  # Ethernet, IPv4, UDP


def packet(size: int) -> bytes:
    """A UDP packet of `size` bytes, with a right IPv4 checksum and none of UDP's."""
    if size < HEADERS:
        raise ValueError(f"size: {size}: at least {HEADERS}")
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, size - 14, 0, 0, 64, 17, 0,
                     socket.inet_aton("10.111.0.1"), socket.inet_aton("10.111.0.2"))
    total = sum(struct.unpack("!10H", ip))
    total = (total & 0xFFFF) + (total >> 16)
    total = ~(total + (total >> 16)) & 0xFFFF
    ip = ip[:10] + struct.pack("!H", total) + ip[12:]
    udp = struct.pack("!HHHH", 1024, UDP_PORT, size - 34, 0)
    ethernet = bytes.fromhex("020000000002020000000001 0800")
    return ethernet + ip + udp + bytes(size - HEADERS)


def redirect_program(ifindex: int) -> bpf.Program:
    """`return bpf_redirect(ifindex, 0)`: four instructions, so no compiler is asked."""
    form = struct.Struct("=BBhi")
    r1, r2 = 1, 2
    mov, call, leave = 0xB7, 0x85, 0x95
    bpf_func_redirect = 23
    code = (form.pack(mov, r1, 0, ifindex) + form.pack(mov, r2, 0, 0)
            + form.pack(call, 0, 0, bpf_func_redirect) + form.pack(leave, 0, 0, 0))
    return bpf.Program("oc_load", code)


class _Thread:
    """A thread pinned to a core (the load's), inside the namespace of one side. A context."""

    def __init__(self, side: Side, core: int | None = None) -> None:
        self.side = side
        self.core = host.cores()[0] if core is None else core
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="bench load", daemon=True)

    def _run(self) -> None:
        try:
            in_netns(self.side.netns, self._pinned)
        except BaseException as error:
            self.error = error

    def _pinned(self) -> None:
        os.sched_setaffinity(0, {self.core})
        self.send()

    def send(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.stop()
        self._thread.join()
        if self.error is not None and error is None:
            raise self.error


class Blast(_Thread):
    """As fast as one core goes, until the end of the context. `sent` is what it has offered."""

    def __init__(self, side: Side, size: int) -> None:
        super().__init__(side)
        self.program = redirect_program(interface(side.interface, side.netns).ifindex)
        self._generator = gauge.Generator(self.program.fd, packet(size))

    @property
    def sent(self) -> int:
        return self._generator.sent

    def send(self) -> None:
        try:
            self._generator.run()
        except OSError as error:
            fix = "Linux 5.18 or later, as root"
            raise HostError(f"no load: {error.strerror}", fix=fix) from None

    def stop(self) -> None:
        self._generator.stop()

    def __exit__(self, *what: object) -> None:
        try:
            super().__exit__(*what)  # type: ignore[arg-type]
        finally:
            self.program.close()


class Pump(_Thread):
    """Our AF_XDP sender, without pause until the end of the context: one buffer, again and again.

    Back-pressure comes from the socket: a packet is queued when a frame has completed.
    """

    def __init__(
        self, side: Side, size: int, *, core: int | None = None, poll: str = "irq"
    ) -> None:
        super().__init__(side, core)
        self.port = open_port(side.interface, netns=side.netns, queues=[0], poll=poll,
                              transmit_only=True)
        self._data = packet(size) * ROUND
        self._offsets = np.arange(ROUND, dtype=np.uint64) * np.uint64(size)
        self._lengths = np.full(ROUND, size, np.uint32)
        self._stopped = False
        self.sent = 0

    def send(self) -> None:
        send, data, offsets, lengths = (
            self.port.send_packed, self._data, self._offsets, self._lengths
        )
        while not self._stopped:
            done = 0
            while done < ROUND and not self._stopped:
                done += send(data, offsets, lengths, done, ROUND)
            self.sent += done

    def calls(self) -> int:
        """System calls that made the kernel send."""
        return int(self.port.stats()["wakeups"])

    def stop(self) -> None:
        self._stopped = True

    def __exit__(self, *what: object) -> None:
        try:
            super().__exit__(*what)  # type: ignore[arg-type]
        finally:
            self.port.close()


LOADS: dict[str, Callable[[Side, int], Pump | Blast]] = {"afxdp": Pump, "kernel": Blast}


class Trickle(_Thread):
    """`rate` datagrams a second to the other side, one at a time, each at its own moment."""

    def __init__(self, side: Side, to: str, rate: int, size: int = 64) -> None:
        super().__init__(side)
        self.to, self.rate, self.size = to, rate, size
        self.sent = 0
        self._stopped = False

    def send(self) -> None:
        data = bytes(max(0, self.size - HEADERS))
        step = 1_000_000_000 // self.rate
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
            out.connect((self.to, UDP_PORT))
            due = time.monotonic_ns()
            while not self._stopped:
                while (now := time.monotonic_ns()) < due:
                    if self._stopped:
                        return
                # A port that nobody listens on answers with ICMP, which connect() turns into this.
                with contextlib.suppress(ConnectionRefusedError):
                    out.send(data)
                self.sent += 1
                due = max(due + step, now - 10 * step)

    def stop(self) -> None:
        self._stopped = True
