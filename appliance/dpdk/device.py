"""One DPDK device: plugged in, asked, started, unplugged, in the network namespace that it needs.

Owns the words for what DPDK refuses, and the knowledge about single drivers that ethdev does not
tell. Queues, memory and rules are attachment.py's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from appliance.dataplane import dpdk
from appliance.errors import ConfigError, HostError, PortError
from appliance.limits import QUEUES_MAX
from appliance.net import in_netns
from appliance.plan import XDP_HEADROOM, PortFacts

PCI = re.compile(r"(?:[0-9a-fA-F]{4,8}:)?[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7](?:,.*)?")
# net_af_xdp takes so many frames at once for its fill ring, and as many again as it is told
# (ETH_AF_XDP_DFLT_NUM_DESCS): without them the queue cannot be set up.
POSTED = {"net_af_xdp": 2048}


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
        library = dpdk()
        pci = is_pci(device)
        try:
            library.eal.start(pci=pci)
        except OSError as error:
            fix = "echo 64 > /proc/sys/vm/nr_hugepages" if pci else ""
            raise HostError(str(error.strerror or error), fix=fix) from None
        try:
            self._device = in_netns(netns, library.Device, _with_domain(device))
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
        """Frames that the driver keeps for receiving, on each queue."""
        return max(POSTED.get(self.driver, 0), int(self._device.descriptors[0]))

    @property
    def queues(self) -> int:
        """How many there are. A software device that takes any number has one."""
        most = int(self._device.queues_max)
        return most if 1 <= most <= QUEUES_MAX else 1

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

    def link(self) -> str:
        return str(self._device.link())

    def settings(self) -> dict[str, Any]:
        """Offloads, RSS, promiscuous and MTU, read back."""
        return dict(in_netns(self.netns, self._device.settings))

    def statistics(self) -> dict[str, int]:
        """DPDK's own counters; after close, the last."""
        return dict(self._device.statistics())

    # ------------------------------------------------------------------------------ start and stop

    def start(self, queues: list[Any], *, mtu: int | None, jumbo: bool, promiscuous: bool) -> None:
        """Queues with frames in FILL; afterwards packets arrive at the device."""

        def start() -> None:
            self._device.start(queues, mtu=mtu, jumbo=jumbo, promiscuous=promiscuous)

        try:
            in_netns(self.netns, start)
        except OSError as error:
            raise PortError(error.strerror or str(error)) from None

    def close(self) -> None:
        """Stops and unplugs it. Its queues have nothing of the driver's any more."""
        if not self._device.closed:
            in_netns(self.netns, self._device.close)


def _with_domain(device: str) -> str:
    """DPDK names PCI devices with their domain: 03:00.0 is 0000:03:00.0."""
    return f"0000:{device}" if is_pci(device) and device.split(",")[0].count(":") == 1 else device
