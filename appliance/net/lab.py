"""A lab: two fresh network namespaces joined by a veth pair, ready for XDP and AF_XDP.

Owns the namespaces it makes, and their removal in every case: end of the context, exception,
interrupt, SIGTERM, and (through the journal) kill -9. It attaches no program: a veth whose other
end redirects or reflects into it needs one of its own (steering.peer), or GRO.

    oc-NAME-a [ veth-a 10.111.0.1 fd00:6f63::1 ]====[ veth-b 10.111.0.2 fd00:6f63::2 ] oc-NAME-b

What is switched off, on both ends, and why:
    tx-checksum  a packet of the stack would arrive with a partial checksum that only the same
                 kernel can read; this takes TSO with it, so no packet is larger than the MTU
    vlan         a tag that travels beside the packet is invisible to XDP; it belongs into the bytes
    gro, lro     generic XDP runs behind them and would see packets that nobody sent
    IPv6         router solicitations, MLD reports and duplicate address detection are packets
                 that nobody counted; `ipv6=True` keeps it, for those who want fd00
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from pyroute2.netlink.exceptions import NetlinkError

from appliance import limits
from appliance.errors import ConfigError, HostError
from appliance.net import ethtool, namespace, settings
from appliance.net.interface import interface, interfaces, netlink
from appliance.net.journal import Change, Journal
from appliance.net.namespace import in_netns

_PREFIX = "oc-"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")


class Side(NamedTuple):
    """One end of the pair. The first two fields are what open_port asks for."""

    netns: str
    interface: str
    ipv4: str
    ipv6: str


def _sides(name: str) -> tuple[Side, Side]:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"lab name: {name!r}: 1..32 letters, digits, _ -")
    return (
        Side(f"{_PREFIX}{name}-a", "veth-a", "10.111.0.1", "fd00:6f63::1"),
        Side(f"{_PREFIX}{name}-b", "veth-b", "10.111.0.2", "fd00:6f63::2"),
    )


class Lab:
    """A pair that exists, as .a and .b. `Lab.temporary()` gives one that removes itself."""

    def __init__(
        self, name: str, queues: int, mtu: int, *, journal: Journal | None = None
    ) -> None:
        self.name = name
        self.queues = queues
        self.mtu = mtu
        self.a, self.b = _sides(name)
        self._changes = [Change("namespace", side.netns) for side in (self.a, self.b)]
        self._journal = journal  # None: it outlives this process
        self._previous: Any = None

    @classmethod
    def temporary(
        cls,
        queues: int = 2,
        mtu: int = 1500,
        *,
        ipv6: bool = False,
        gro: bool = False,
        using: Journal | None = None,
    ) -> Lab:
        """A lab with a random name that ends with its context, and with this process at last."""
        journal = using or settings.journal()
        settings.recover(journal)
        name = f"{os.getpid()}-{secrets.token_hex(3)}"
        return up(name, queues, mtu, ipv6=ipv6, gro=gro, journal=journal)

    def down(self) -> None:
        """Removes both namespaces and all that is in them. Harmless when repeated."""
        _remove(self.a, self.b)
        if self._journal is not None:
            for change in self._changes:
                self._journal.forget(change)

    def __enter__(self) -> Lab:
        in_main = threading.current_thread() is threading.main_thread()
        if in_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            self._previous = signal.signal(signal.SIGTERM, _terminate)
        return self

    def __exit__(self, *_: object) -> None:
        self.down()
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
            self._previous = None


def _terminate(_number: int, _frame: FrameType | None) -> None:
    """SIGTERM's own default would end the process without removing anything."""
    raise SystemExit(128 + signal.SIGTERM)


def up(
    name: str,
    queues: int = 2,
    mtu: int = 1500,
    *,
    ipv6: bool = False,
    gro: bool = False,
    journal: Journal | None = None,
) -> Lab:
    """Makes the lab `name`, complete or not at all. With a journal it ends with this process."""
    if not 1 <= queues <= limits.LAB_QUEUES_MAX:
        raise ConfigError(f"queues: {queues}: 1..{limits.LAB_QUEUES_MAX}")
    if not 68 <= mtu <= limits.MTU_MAX or (ipv6 and mtu < 1280):
        raise ConfigError(f"mtu: {mtu}: {1280 if ipv6 else 68}..{limits.MTU_MAX}")
    lab = Lab(name, queues, mtu, journal=journal)
    taken = {lab.a.netns, lab.b.netns} & set(namespace.namespaces())
    if taken:
        raise HostError(f"lab {name} exists already", fix=f"openclaw lab down {name}")
    try:
        for side, change in zip((lab.a, lab.b), lab._changes, strict=True):
            if journal is not None:
                journal.remember(change)
            namespace.create(side.netns)
            in_netns(side.netns, _prepare, ipv6)
        in_netns(lab.a.netns, _make_pair, lab)
        for side in (lab.a, lab.b):
            in_netns(side.netns, _bring_up, side, ipv6, gro)
    except BaseException:
        lab.down()
        raise
    return lab


def down(name: str) -> None:
    """Removes the lab `name`, whoever made it. HostError if there is none."""
    sides = _sides(name)
    if not {side.netns for side in sides} & set(namespace.namespaces()):
        raise HostError(f"no lab {name}", fix=f"openclaw lab up {name}")
    _remove(*sides)


def labs() -> list[str]:
    """The names of the labs that exist, also of half-made ones."""
    found = {
        match[1]
        for entry in namespace.namespaces()
        if (match := re.fullmatch(re.escape(_PREFIX) + r"(.+)-[ab]", entry))
    }
    return sorted(name for name in found if _NAME.fullmatch(name))


def find(name: str) -> Lab:
    """The lab `name` as it exists now."""
    sides = _sides(name)
    if not {side.netns for side in sides} <= set(namespace.namespaces()):
        raise HostError(f"no lab {name}", fix=f"openclaw lab up {name}")
    info = interface(sides[0].interface, sides[0].netns)
    return Lab(name, info.queues.rx, info.mtu)


def _prepare(ipv6: bool) -> None:
    """Before there is a link: a link that comes up speaks IPv6 at once."""
    root = Path("/proc/sys/net/ipv6/conf")
    if not root.is_dir():
        return
    for scope in ("all", "default"):
        values = {"disable_ipv6": int(not ipv6), "accept_ra": 0, "router_solicitations": 0,
                  "accept_dad": 0, "dad_transmits": 0, "addr_gen_mode": 1}
        for key, value in values.items():
            with contextlib.suppress(FileNotFoundError):
                (root / scope / key).write_text(str(value))


def _make_pair(lab: Lab) -> None:
    """Both ends are made with all queues and the MTU at once, straight into their namespaces.

    XDP asks for as many RX queues as the peer has TX queues, and raising the MTU with a program
    attached is refused, so neither can wait.
    """
    size = {"num_tx_queues": lab.queues, "num_rx_queues": lab.queues, "mtu": lab.mtu}
    peer = {"ifname": lab.b.interface, "net_ns_fd": lab.b.netns, **size}
    with netlink() as route:
        try:
            route.link("add", ifname=lab.a.interface, kind="veth", peer=peer, **size)
        except NetlinkError as error:
            raise HostError(
                f"cannot make a veth pair: {os.strerror(error.code)}", fix="modprobe veth"
            ) from None


def _bring_up(side: Side, ipv6: bool, gro: bool) -> None:
    for name in ("tx-checksum", "tx-vlan-insert", "rx-vlan-strip", "lro"):
        ethtool.set_offload(side.interface, name, False)
    ethtool.set_offload(side.interface, "gro", gro)
    with netlink() as route:
        index = route.link_lookup(ifname=side.interface)[0]
        route.addr("add", index=index, address=side.ipv4, prefixlen=24)
        if ipv6:
            route.addr("add", index=index, address=side.ipv6, prefixlen=64, flags=0x02)  # no DAD
        route.link("set", index=1, state="up")
        route.link("set", index=index, state="up")


def _remove(*sides: Side) -> None:
    """The link first: the kernel takes namespaces apart later, and with them what a test counts."""
    for side in sides:
        with contextlib.suppress(HostError, NetlinkError):
            if side.interface in interfaces(side.netns):
                in_netns(side.netns, _delete_link, side.interface)
    for side in sides:
        namespace.delete(side.netns)


def _delete_link(name: str) -> None:
    with netlink() as route:
        for index in route.link_lookup(ifname=name):
            route.link("del", index=index)
