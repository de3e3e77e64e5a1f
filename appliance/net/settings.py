"""Changes to interfaces that are taken back: at the end, on an error, and after a crash.

Owns what a journal entry means. Each change is in the journal before it is made, so a process that
dies at any instruction leaves enough behind for the next start (`recover`) to put things right.
"""

from __future__ import annotations

import contextlib
import errno
from pathlib import Path

from appliance.errors import HostError
from appliance.net import ethtool, namespace, pause
from appliance.net.interface import interface as read_interface
from appliance.net.journal import Change, Journal
from appliance.net.namespace import in_netns

# Documentation/networking/napi.rst, "IRQ mitigation": with these two, interrupts stay off while
# the application polls; the timer is the safety net when it does not.
POLL_DEFER_HARD_IRQS = 2
# The kernel's own example is 200 us. Tried on veth (ring of 256) with an AF_XDP sender and profile
# busy, two runs each on a busy 2-core VM, medians of the sender's core time per packet:
#   200 us   64 bytes 1,255 ns, 89 % delivered   1,514 bytes 3,118 ns
#    50 us            1,194 ns, all                          1,587 ns
#    20 us            1,710 ns, 99 %                         2,113 ns
POLL_FLUSH_TIMEOUT_NS = 50_000

_DEVICE_KEYS = ("napi_defer_hard_irqs", "gro_flush_timeout")

_journal: Journal | None = None


def journal() -> Journal:
    """The journal of this process."""
    global _journal
    if _journal is None:
        _journal = Journal()
    return _journal


class Settings:
    """What we changed at one interface. Use as a context, or call restore()."""

    def __init__(
        self, interface: str, netns: str | None = None, *, using: Journal | None = None
    ) -> None:
        self.interface = interface
        self.netns = netns or ""
        self._ifindex = read_interface(interface, netns).ifindex
        self._journal = using or journal()
        self._changes: list[Change] = []

    def offload(self, name: str, on: bool) -> bool:
        """Switches an offload of ethtool.OFFLOADS. False where the interface cannot."""
        before = in_netns(self.netns, ethtool.offload, self.interface, name)
        if before is None or before is on:
            return before is on
        self._remember("offload", name, int(before))
        return in_netns(self.netns, ethtool.set_offload, self.interface, name, on)

    def of_port(self, poll: str, wanted_pause: str) -> None:
        """What a port with these settings needs; "irq" and "" need nothing."""
        if poll != "irq":
            self.polling()
        if wanted_pause:
            self.pause(wanted_pause == "on")

    def pause(self, on: bool) -> None:
        """Ethernet pause in both directions; autonegotiation stays as it is."""
        before = in_netns(self.netns, pause.read, self.interface)
        if before is None:
            raise pause.refused(self.interface)
        if before.rx is on and before.tx is on:
            return
        self._remember("pause", "pause", before.bits())
        wanted = pause.Pause(before.autoneg, on, on)
        in_netns(self.netns, pause.write, self.interface, wanted)

    def device(self, key: str, value: int) -> None:
        """Writes /sys/class/net/INTERFACE/KEY, for the keys that polling needs."""
        if key not in _DEVICE_KEYS:
            raise ValueError(f"no device setting {key!r}")
        before = in_netns(self.netns, _read_device, self.interface, key)
        if before == value:
            return
        self._remember("device", key, before)
        in_netns(self.netns, _write_device, self.interface, key, value)

    def polling(self) -> None:
        """What the polling profiles defer and busy need of the device."""
        self.device("napi_defer_hard_irqs", POLL_DEFER_HARD_IRQS)
        self.device("gro_flush_timeout", POLL_FLUSH_TIMEOUT_NS)

    @property
    def changed(self) -> dict[str, int]:
        """What was changed, with the value it had before."""
        return {change.key: change.old for change in reversed(self._changes)}

    def restore(self) -> list[str]:
        """Takes back every change, newest first; returns a line for each that could not be."""
        failed = []
        while self._changes:
            change = self._changes.pop()
            problem = undo(change)
            if problem:
                failed.append(problem)
            self._journal.forget(change)
        return failed

    def _remember(self, kind: str, key: str, old: int) -> None:
        change = Change(kind, self.netns, self.interface, self._ifindex, key, old)
        self._journal.remember(change)
        self._changes.append(change)

    def __enter__(self) -> Settings:
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()


def recover(using: Journal | None = None) -> list[str]:
    """Undoes what dead processes left behind. Returns a line for each thing that was undone."""
    done = []
    with (using or journal()).abandoned() as pending:
        for change in list(pending):
            problem = undo(change)
            what = change.key or change.netns
            done.append(problem or f"restored {what} {change.interface}".rstrip())
            pending.remove(change)  # a second attempt would fail the same way
    return done


def undo(change: Change) -> str | None:
    """Takes back one change; a line of explanation if it could not be."""
    try:
        if change.kind == "namespace":
            namespace.delete(change.netns)
            return None
        if read_interface(change.interface, change.netns).ifindex != change.ifindex:
            return None
        if change.kind == "offload":
            in_netns(change.netns, ethtool.set_offload, change.interface, change.key,
                     bool(change.old))
        elif change.kind == "pause":
            in_netns(change.netns, pause.write, change.interface, pause.Pause.of_bits(change.old))
        elif change.kind == "device" and change.key in _DEVICE_KEYS:
            in_netns(change.netns, _write_device, change.interface, change.key, change.old)
    except HostError:
        return None  # the namespace or the interface is gone, and the setting with it
    except OSError as error:
        return f"{change.interface}: {change.key} is not restored to {change.old}: {error.strerror}"
    return None


def _read_device(interface: str, key: str) -> int:
    try:
        return int(Path(f"/sys/class/net/{interface}/{key}").read_text())
    except FileNotFoundError:
        raise HostError(f"this kernel has no {key}", fix="use poll = irq") from None


def _write_device(interface: str, key: str, value: int) -> None:
    try:
        Path(f"/sys/class/net/{interface}/{key}").write_text(str(value))
    except OSError as error:
        with contextlib.suppress(KeyError):
            name = errno.errorcode[error.errno or 0]
            raise HostError(f"{interface}: {key}: {name}", fix="run as root (sudo)") from None
        raise
