"""One DPDK device: plugged in, asked, started, unplugged, in the network namespace that it needs.

Owns the words for what DPDK refuses, and the knowledge about single drivers that ethdev does not
tell. Queues, memory and rules are attachment.py's.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from appliance.dataplane import dpdk
from appliance.dpdk import strays
from appliance.errors import ConfigError, HostError, PortError
from appliance.limits import QUEUES_MAX
from appliance.net import in_netns
from appliance.plan import XDP_HEADROOM, PortFacts

PCI = re.compile(r"(?:[0-9a-fA-F]{4,8}:)?[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7](?:,.*)?")
IFF_PROMISC = 0x100
RETRY_S = 2.0  # as XskQueue waits for a queue
# net_af_xdp takes so many frames at once for its fill ring, and as many again as it is told
# (ETH_AF_XDP_DFLT_NUM_DESCS): without them the queue cannot be set up.
POSTED = {"net_af_xdp": 2048}
# Software devices that take any number of queues: a port that asks for all gets one.
ANY_NUMBER = ("net_null", "net_ring")
# These send packets of several segments without saying so (22.11).
SEND_CHAINS = ("net_null", "net_pcap", "net_ring")
# What a driver opens is told from what was open before, so no two may start or close at once. The
# same thread may, though: a port that is collected closes in the middle of whatever was going on.
_one_at_a_time = threading.RLock()


def is_pci(device: str) -> bool:
    """Whether a device string names a PCI device; all others are DPDK's virtual ones."""
    return PCI.fullmatch(device) is not None


def check(device: str) -> None:
    """ConfigError for what is neither a PCI address nor a virtual network device."""
    if not is_pci(device) and not re.fullmatch(r"net_[a-z0-9_]*[0-9](?:,\S*)?", device):
        raise ConfigError(
            f"device: {device!r}: a PCI address such as 0000:03:00.0, or a virtual device with its "
            f"number and arguments such as net_null0 or net_af_xdp0,iface=eth1"
        )


class Device:
    """`Device("net_null0,size=64", netns=None)`: plugged in until close()."""

    def __init__(self, device: str, netns: str | None = None) -> None:
        check(device)
        self.words = device
        self.netns = netns
        self._opened: set[strays.Stray] = set()
        library = dpdk()
        pci = is_pci(device)
        try:
            library.eal.start(pci=pci)
        except OSError as error:
            if library.eal.started() is not None:
                raise PortError(error.strerror) from None
            fix = "echo 64 > /proc/sys/vm/nr_hugepages" if pci else ""
            raise HostError(str(error.strerror or error), fix=fix) from None
        self._plug()

    def _plug(self) -> None:
        try:
            self._device = in_netns(self.netns, dpdk().Device, _with_domain(self.words))
        except ValueError as error:
            raise ConfigError(f"device: {error}") from None
        except OSError as error:
            raise PortError(error.strerror or str(error)) from None

    # ------------------------------------------------------------------------------- what it is

    @property
    def name(self) -> str:
        return str(self._device.name)

    @property
    def driver(self) -> str:
        return str(self._device.driver)

    @property
    def pci(self) -> bool:
        return bool(self._device.pci)

    @property
    def mtu(self) -> int:
        return int(self._device.mtu)

    @property
    def headroom(self) -> int:
        """What the driver keeps in front of a packet beyond DPDK's own."""
        return XDP_HEADROOM if self.driver == "net_af_xdp" else 0

    @property
    def posted_at_once(self) -> int:
        """Frames without which a queue cannot be set up; most drivers make do with fewer."""
        return POSTED.get(self.driver, 0)

    @property
    def posted(self) -> int:
        """Frames that the driver keeps for receiving, on each queue; software keeps none."""
        return int(self._device.descriptors[0]) if self.pci else self.posted_at_once

    @property
    def queues(self) -> int:
        """How many there are. A software device that takes any number has one."""
        most = int(self._device.queues_max)
        return most if 1 <= most <= QUEUES_MAX and self.driver not in ANY_NUMBER else 1

    @property
    def sends_chains(self) -> bool:
        """Whether a packet that spans several frames can be sent."""
        return bool(self._device.sends_chains) or self.driver in SEND_CHAINS

    def facts(self) -> PortFacts:
        """What the arithmetic of memory needs to know."""
        node = self._device.numa_node
        return PortFacts(self.queues, self.posted, self.mtu, node if node >= 0 else None)

    def numbers(self, wanted: str | Sequence[int]) -> list[int]:
        """The queue numbers of a port. A device has as many as it is started with: 0 to n - 1."""
        if isinstance(wanted, str):
            if wanted != "all":
                raise ConfigError(f"queues: {wanted!r}: all, or a list of numbers")
            return list(range(self.queues))
        numbers = list(wanted)
        most = int(self._device.queues_max)
        if numbers != list(range(len(numbers))) or len(numbers) > most:
            raise ConfigError(
                f"queues: {numbers}: {self.name} has {most}, and a DPDK device is started with "
                f"queues 0 to n - 1"
            )
        return numbers

    @property
    def closed(self) -> bool:
        return bool(self._device.closed)

    def link(self) -> str:
        return str(self._device.link())

    def settings(self) -> dict[str, Any]:
        """Offloads, RSS, promiscuous and MTU, read back."""
        return dict(self._device.settings())

    def statistics(self) -> dict[str, int]:
        """DPDK's own counters; after close, the last."""
        return dict(self._device.statistics())

    # ------------------------------------------------------------------------------ start and stop

    def start(self, queues: list[Any], *, mtu: int | None, jumbo: bool, promiscuous: bool) -> None:
        """Queues with frames in FILL; afterwards packets arrive at the device."""

        def start() -> None:
            wanted = promiscuous and not _is_promiscuous(self.words)
            self._device.start(
                queues, mtu=mtu, jumbo=jumbo, promiscuous=wanted, chains=self.sends_chains
            )

        deadline = time.monotonic() + RETRY_S
        while True:
            try:
                with _one_at_a_time:
                    before = strays.found()
                    try:
                        return in_netns(self.netns, start)
                    finally:
                        self._opened |= strays.found() - before
            except OSError as error:
                if self.driver not in POSTED or time.monotonic() > deadline:
                    raise PortError(error.strerror or str(error)) from None
            # The kernel frees the queue of a closed socket after a while, and until then answers
            # EBUSY. A driver that failed cannot try again: it is plugged in anew.
            self.close()
            time.sleep(0.02)
            for queue in queues:
                queue.rewind()
            self._plug()

    def close(self) -> None:
        """Stops and unplugs it. Its queues have nothing of the driver's any more."""
        if self._device.closed:
            return
        with _one_at_a_time:
            before = strays.found()
            in_netns(self.netns, self._device.close)
            after = strays.found()
            strays.close((after - before) | (after & self._opened))
            self._opened.clear()


def _is_promiscuous(device: str) -> bool:
    """Whether the interface of a device is so already: then it must stay so."""
    found = re.search(r",iface=([^,]+)", device)
    try:
        flags = Path(f"/sys/class/net/{found[1]}/flags").read_text() if found else "0"
    except OSError:
        return False
    return bool(int(flags, 16) & IFF_PROMISC)


def _with_domain(device: str) -> str:
    """DPDK names PCI devices with their domain: 03:00.0 is 0000:03:00.0."""
    return f"0000:{device}" if is_pci(device) and device.split(",")[0].count(":") == 1 else device
