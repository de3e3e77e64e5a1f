"""What an interface is: one question to the kernel, one frozen answer.

Owns reading only; nothing here changes an interface. Works in any namespace by name.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from appliance.errors import HostError
from appliance.net import ethtool
from appliance.net.ethtool import Channels, HardwareRings
from appliance.net.namespace import in_netns

# XDP_ATTACHED_* of linux/if_link.h, by number and by the names that pyroute2 gives them
_XDP_MODES = {
    None: None, 0: None, 1: "native", 2: "generic", 3: "offload", 4: "several",
    "xdp": "native", "xdpgeneric": "generic", "xdpoffload": "offload", "xdpmulti": "several",
}


@dataclass(frozen=True)
class InterfaceInfo:
    """An interface as it is at this moment."""

    name: str
    netns: str | None
    ifindex: int
    kind: str | None  # veth, bridge, ... ; None for hardware
    driver: str | None
    mac: str
    mtu: int
    up: bool
    carrier: bool
    queues: Channels
    rings: HardwareRings
    numa_node: int | None
    xdp_mode: str | None  # of the program attached now, whoever owns it
    xdp_prog_id: int | None
    offloads: dict[str, bool | None] = field(default_factory=dict)


@contextlib.contextmanager
def netlink() -> Iterator[IPRoute]:
    """A netlink socket of the namespace that this thread is in, closed in any case."""
    route = IPRoute()
    try:
        yield route
    finally:
        route.close()


def link_message(route: IPRoute, name: str) -> Any:
    """The kernel's whole answer about one link, or HostError."""
    try:
        for message in route.link("get", ifname=name):
            return message
    except NetlinkError as error:
        if error.code not in (19, 34):  # ENODEV; ERANGE for a name that no link can have
            raise
    raise HostError(
        f"no interface {name}",
        fix="ip link show (in a namespace: nsenter --net=/run/netns/NAME ip link show)",
    )


def interface(name: str, netns: str | None = None) -> InterfaceInfo:
    """Everything about the interface `name` of the namespace, or HostError if there is none."""
    return in_netns(netns, _interface, name, netns or None)


def _interface(name: str, netns: str | None) -> InterfaceInfo:
    with netlink() as route:
        message = link_message(route, name)
    xdp = message.get_attr("IFLA_XDP")
    information = message.get_attr("IFLA_LINKINFO")
    mode = _XDP_MODES.get(xdp and xdp.get_attr("IFLA_XDP_ATTACHED"), "unknown")
    name = message.get_attr("IFLA_IFNAME")
    return InterfaceInfo(
        name=name,
        netns=netns,
        ifindex=message["index"],
        kind=information.get_attr("IFLA_INFO_KIND") if information else None,
        driver=ethtool.driver(name),
        mac=message.get_attr("IFLA_ADDRESS") or "",
        mtu=message.get_attr("IFLA_MTU"),
        up=bool(message["flags"] & 1),
        carrier=bool(message.get_attr("IFLA_CARRIER")),
        queues=_queues(name, message),
        rings=ethtool.hardware_rings(name) or HardwareRings(0, 0, 0, 0),
        numa_node=_numa_node(name),
        xdp_mode=mode,
        xdp_prog_id=(xdp.get_attr("IFLA_XDP_PROG_ID") if xdp and mode else None),
        offloads={key: ethtool.offload(name, key) for key in ethtool.OFFLOADS},
    )


def _queues(name: str, message: Any) -> Channels:
    """The queues in use, which are what AF_XDP can bind to.

    sysfs shows the real number for every driver; ethtool knows the maximum, but many virtual
    drivers do not answer it; netlink shows what was allocated, which can be more than is used.
    """
    said = ethtool.channels(name)
    rx = tx = 0
    with contextlib.suppress(OSError):
        entries = os.listdir(f"/sys/class/net/{name}/queues")
        rx = sum(entry.startswith("rx-") for entry in entries)
        tx = sum(entry.startswith("tx-") for entry in entries)
    rx = rx or (said.rx if said else 0) or message.get_attr("IFLA_NUM_RX_QUEUES") or 1
    tx = tx or (said.tx if said else 0) or message.get_attr("IFLA_NUM_TX_QUEUES") or 1
    most = (said.rx_max, said.tx_max) if said else (0, 0)
    return Channels(rx, tx, max(rx, most[0]), max(tx, most[1]))


def _numa_node(name: str) -> int | None:
    try:
        node = int(Path(f"/sys/class/net/{name}/device/numa_node").read_text())
    except (OSError, ValueError):
        return None
    return node if node >= 0 else None


def link_statistics(name: str, netns: str | None = None) -> dict[str, int]:
    """The kernel's 64-bit counters of the interface (packets, bytes, dropped, errors, ...)."""

    def read() -> dict[str, int]:
        with netlink() as route:
            message = link_message(route, name)
        return {key: int(value) for key, value in message.get_attr("IFLA_STATS64").items()}

    return in_netns(netns, read)


def interfaces(netns: str | None = None) -> list[str]:
    """The names of all interfaces of the namespace."""

    def read() -> list[str]:
        with netlink() as route:
            return [message.get_attr("IFLA_IFNAME") for message in route.get_links()]

    return in_netns(netns, read)
