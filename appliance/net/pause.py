"""Ethernet pause: does a full interface send pause frames, and heed those that arrive?

Owns the ethtool netlink messages PAUSE_GET and PAUSE_SET (pyroute2 has none for them), one question
at a time. Drivers without pause (veth and everything virtual) answer None. What was changed is
remembered and taken back by settings.py.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Any

from pyroute2.netlink import NLA_F_NESTED, NLM_F_ACK, NLM_F_REQUEST, genlmsg, nla
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic import GenericNetlinkSocket

from appliance.errors import HostError
from appliance.net.namespace import in_netns

# linux/ethtool_netlink.h
_PAUSE_GET, _PAUSE_SET = 21, 22
_FLAG_STATS = 4
_NOT_THERE = (errno.EOPNOTSUPP, errno.ENODEV, errno.ENOENT)


class _Header(nla):
    nla_flags = NLA_F_NESTED  # without it the kernel refuses the message
    nla_map = (
        ("ETHTOOL_A_HEADER_UNSPEC", "none"),
        ("ETHTOOL_A_HEADER_DEV_INDEX", "uint32"),
        ("ETHTOOL_A_HEADER_DEV_NAME", "asciiz"),
        ("ETHTOOL_A_HEADER_FLAGS", "uint32"),
    )


class PauseMessage(genlmsg):
    """The attributes of both messages and of the answer."""

    nla_map = (
        ("ETHTOOL_A_PAUSE_UNSPEC", "none"),
        ("ETHTOOL_A_PAUSE_HEADER", "pauseheader"),
        ("ETHTOOL_A_PAUSE_AUTONEG", "uint8"),
        ("ETHTOOL_A_PAUSE_RX", "uint8"),
        ("ETHTOOL_A_PAUSE_TX", "uint8"),
        ("ETHTOOL_A_PAUSE_STATS", "pausestats"),
    )
    pauseheader = _Header  # `header` and `stats` are words of pyroute2 itself

    class pausestats(nla):
        nla_map = (
            ("ETHTOOL_A_PAUSE_STAT_UNSPEC", "none"),
            ("ETHTOOL_A_PAUSE_STAT_PAD", "none"),
            ("ETHTOOL_A_PAUSE_STAT_TX_FRAMES", "uint64"),
            ("ETHTOOL_A_PAUSE_STAT_RX_FRAMES", "uint64"),
        )


@dataclass(frozen=True)
class Pause:
    """As the driver says. Frame counts are None where it does not count them."""

    autoneg: bool
    rx: bool  # pause frames that arrive are heeded
    tx: bool  # pause frames are sent when the hardware ring is full
    rx_frames: int | None = None
    tx_frames: int | None = None

    def bits(self) -> int:
        """autoneg, rx and tx as one number, for the journal."""
        return self.autoneg | self.rx << 1 | self.tx << 2

    @classmethod
    def of_bits(cls, bits: int) -> Pause:
        return cls(bool(bits & 1), bool(bits & 2), bool(bits & 4))

    def words(self) -> str:
        counted = "" if self.tx_frames is None else f"; {self.tx_frames} sent, {self.rx_frames} got"
        return (f"rx {'on' if self.rx else 'off'}, tx {'on' if self.tx else 'off'}, autoneg "
                f"{'on' if self.autoneg else 'off'}{counted}")


def pause_of(interface: str, netns: str | None = None) -> Pause | None:
    """The pause settings of an interface; None where the driver has none."""
    return in_netns(netns, read, interface)


def read(interface: str) -> Pause | None:
    """In the namespace of this thread."""
    request = PauseMessage()
    request["cmd"], request["version"] = _PAUSE_GET, 1
    request["attrs"] = [("ETHTOOL_A_PAUSE_HEADER", _header(interface, _FLAG_STATS))]
    answers = _ask(request, NLM_F_REQUEST)
    return None if answers is None else answer(answers[0])


def answer(message: Any) -> Pause:
    """What the kernel's message says."""
    stats = message.get_attr("ETHTOOL_A_PAUSE_STATS")

    def counted(name: str) -> int | None:
        return stats.get_attr(f"ETHTOOL_A_PAUSE_STAT_{name}_FRAMES") if stats else None

    return Pause(
        bool(message.get_attr("ETHTOOL_A_PAUSE_AUTONEG")),
        bool(message.get_attr("ETHTOOL_A_PAUSE_RX")),
        bool(message.get_attr("ETHTOOL_A_PAUSE_TX")),
        counted("RX"),
        counted("TX"),
    )


def write(interface: str, wanted: Pause) -> None:
    """Sets all three; HostError where the driver has none or refuses."""
    request = PauseMessage()
    request["cmd"], request["version"] = _PAUSE_SET, 1
    request["attrs"] = [
        ("ETHTOOL_A_PAUSE_HEADER", _header(interface, 0)),
        ("ETHTOOL_A_PAUSE_AUTONEG", int(wanted.autoneg)),
        ("ETHTOOL_A_PAUSE_RX", int(wanted.rx)),
        ("ETHTOOL_A_PAUSE_TX", int(wanted.tx)),
    ]
    try:
        done = _ask(request, NLM_F_REQUEST | NLM_F_ACK)
    except OSError as error:
        raise HostError(f"{interface}: pause: {error.strerror}", fix="run as root (sudo)") from None
    if done is None:
        raise refused(interface)


def refused(interface: str) -> HostError:
    return HostError(f"{interface}: the driver has no Ethernet pause",
                     fix='pause = "" in its [[port]] table')


def _header(interface: str, flags: int) -> dict[str, Any]:
    attributes: list[tuple[str, Any]] = [("ETHTOOL_A_HEADER_DEV_NAME", interface)]
    if flags:
        attributes.append(("ETHTOOL_A_HEADER_FLAGS", flags))
    return {"attrs": attributes}


def _ask(request: PauseMessage, flags: int) -> tuple[Any, ...] | None:
    """The kernel's answers; None where the driver, or the kernel, does not know it."""
    handle = GenericNetlinkSocket()
    try:
        handle.bind("ethtool", PauseMessage)
        return tuple(handle.nlm_request(request, msg_type=handle.prid, msg_flags=flags))
    except NetlinkError as error:
        if error.code in _NOT_THERE:
            return None
        raise OSError(error.code, str(error)) from None
    finally:
        handle.close()
