"""Steering of one port: its rules as a running program, and what it counted.

Owns the socket map, the shed threshold, the programs with their counters, and the link. Interfaces
and sockets are the caller's. Order of life: make it (compiles and loads), set the sockets, attach;
then swap as often as needed; detach, clear the sockets, close. Any thread may call any method.
"""

from __future__ import annotations

import collections
import struct
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from appliance.dataplane import bpf
from appliance.errors import ConfigError, PortError
from appliance.limits import PRIORITY_MAX, QUEUES_MAX
from appliance.steering import rules as ruleset
from appliance.steering.attach import attach
from appliance.steering.loader import (
    DROP_REASONS,
    DROPS_MAX,
    Loaded,
    SharedMaps,
    account,
    kernel_errors,
)
from appliance.steering.program import Options
from appliance.steering.rules import Rule

# A packet that met the old program may still be counting when the new one is in place. One poll of
# a driver lasts milliseconds; after this long the old counters stand still and can be folded in.
SETTLED_S = 1.0


class Steering:
    """The rules of one port, compiled, loaded, and attachable."""

    def __init__(
        self,
        rules: Sequence[Rule],
        *,
        jumbo: bool = False,
        keep_management: bool = True,
        no_socket: str = "pass",
    ) -> None:
        if no_socket not in ("pass", "drop"):
            raise ConfigError(f"no_socket: {no_socket!r}: pass or drop")
        numbered = ruleset.number(rules)
        self._options = Options(jumbo, False, keep_management, no_socket)
        self._lock = threading.RLock()
        self._swapping = threading.Lock()
        self._link: bpf.Link | None = None
        self._closed = False
        self._retired: list[tuple[float, Loaded]] = []
        self._folded: collections.Counter[str] = collections.Counter()
        self._shared = SharedMaps()
        try:
            self._current = Loaded(numbered, self._options, self._shared)
        except BaseException:
            self._shared.close()
            raise

    # ------------------------------------------------------------------------------- the running
    @property
    def rules(self) -> list[tuple[int, Rule]]:
        """The rules in force with their ids, in the order in which they are tried."""
        return [(rule.id, rule.rule) for rule in self._current.rules]

    @property
    def program(self) -> dict[str, int]:
        """The kernel's id of the running program, its instructions, and the verifier's work."""
        with self._lock:
            return self._alive().program.info

    @property
    def sockets(self) -> bpf.Map:
        return self._shared.sockets

    def set_socket(self, queue: int, fd: int) -> None:
        """From now on what the rules consume on this queue goes to the AF_XDP socket `fd`."""
        self._queue(queue)
        with self._lock, kernel_errors(f"the socket of queue {queue} cannot be set"):
            self._alive()
            self._shared.sockets[queue] = struct.pack("=i", fd)

    def clear_socket(self, queue: int) -> None:
        """Consumed packets of this queue go the way of `no_socket`. No socket there: nothing."""
        self._queue(queue)
        with self._lock:
            self._alive()
            try:
                del self._shared.sockets[queue]
            except FileNotFoundError:
                return
            except OSError as error:
                raise PortError(f"the socket of queue {queue} stays: {error.strerror}") from error

    def set_shed(self, threshold: int | None) -> None:
        """Drops, before any copy, what rules with a priority above `threshold` would consume.

        None: sheds nothing. Priority 0 is never shed.
        """
        if threshold is not None and not 0 <= threshold <= PRIORITY_MAX:
            raise ConfigError(f"shed: {threshold!r}: a priority from 0 to {PRIORITY_MAX}, or None")
        with self._lock, kernel_errors("the shed threshold cannot be set"):
            self._alive()
            self._shared.shed[0] = struct.pack("=I", 0 if threshold is None else threshold + 1)

    # -------------------------------------------------------------------------- attach and swap
    def attach(self, ifindex: int, mode: str = "auto") -> str:
        """Attaches inside the caller's network namespace; returns native or generic."""
        with self._lock:
            current = self._alive()
            if self._link is not None:
                raise PortError("the steering program is attached already")
            self._link, granted = attach(current.program, ifindex, mode)
            return granted

    def swap(
        self,
        rules: Sequence[Rule],
        publish: Callable[[list[tuple[int, Rule]]], None] | None = None,
    ) -> None:
        """Replaces the rules atomically: each packet meets the old ones or the new ones.

        Rules that stay as they are keep their ids. When anything fails, the old rules run on.
        `publish` is called with the new rules and their ids before any packet can meet them.
        """
        with self._swapping:  # one at a time; the lock is free while compiling takes its time
            before = self._alive()
            fresh = Loaded(ruleset.number(rules, before.rules), self._options, self._shared)
            try:
                if publish is not None:
                    publish([(rule.id, rule.rule) for rule in fresh.rules])
                with self._lock:
                    self._alive()
                    if self._link is not None:
                        with kernel_errors("the steering program cannot be replaced"):
                            self._link.update(fresh.program)
                    self._current = fresh
                    before.program.close()
                    self._retired.append((time.monotonic(), before))
                    self._fold()
            except BaseException:
                fresh.close()
                raise

    def detach(self) -> None:
        """Takes the program off the interface; nothing happens when it is off."""
        with self._lock:
            if self._link is not None:
                self._link.close()
                self._link = None

    def close(self) -> None:
        """Detaches and releases all maps and programs. A second close does nothing."""
        with self._lock:
            self.detach()
            if self._closed:
                return
            self._closed = True
            for _, old in self._retired:
                old.close()
            self._retired.clear()
            self._current.close()
            self._shared.close()

    def __enter__(self) -> Steering:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------------------------ counts
    def counters(self) -> dict[str, Any]:
        """Packets since the start, over all swaps. seen = consumed + passed + dropped."""
        with self._lock:
            current = self._alive()
            self._fold()
            total = collections.Counter(self._folded)
            for _, old in self._retired:
                total.update(tally(old))
            total.update(tally(current))
            for rule in current.rules:
                total.setdefault(f"rule {rule.id}", 0)
        return account(total)

    def _fold(self) -> None:
        """Adds what retired programs counted to the sum, once they stand still."""
        now = time.monotonic()
        waiting = []
        for since, old in self._retired:
            if now - since < SETTLED_S:
                waiting.append((since, old))
                continue
            self._folded.update(tally(old))
            old.close()
        self._retired = waiting

    def _alive(self) -> Loaded:
        if self._closed:
            raise PortError("steering is closed")
        return self._current

    @staticmethod
    def _queue(queue: int) -> None:
        if not 0 <= queue < QUEUES_MAX:
            raise ConfigError(f"queue: {queue!r}: a number from 0 to {QUEUES_MAX - 1}")


def tally(loaded: Loaded) -> dict[str, int]:
    """One program's counters under names that add up across programs."""
    words = loaded.read()
    result = dict(zip(("seen", "consumed", "passed", "management"), words[:4], strict=True))
    for number, reason in DROP_REASONS.items():
        result[f"drop {reason}"] = words[4 + number]
    for slot, rule in enumerate(loaded.rules):
        result[f"rule {rule.id}"] = words[4 + DROPS_MAX + slot]
    return result
