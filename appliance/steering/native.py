"""Steering where no kernel is: the rules of a DPDK port, run by its own queues.

Owns the compiled filters, the sum of what the queues counted, and the swap. It has the methods of
Steering that concern rules, so that engine and governor cannot tell them apart. There is nothing to
attach. Order of life: make it (compiles), add the queues, then swap as often as needed; close. Any
thread may call any method.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Sequence
from typing import Any

from appliance.dataplane import Decisions, Filters
from appliance.errors import ConfigError, PortError
from appliance.limits import PRIORITY_MAX
from appliance.steering import rules as ruleset
from appliance.steering.loader import account
from appliance.steering.rules import ACTIONS, Numbered, Rule


class NativeSteering:
    """The rules of one port, compiled for its queues."""

    def __init__(self, rules: Sequence[Rule], *, keep_management: bool = True) -> None:
        self._keep_management = keep_management
        self._lock = threading.RLock()
        self._queues: list[Any] = []
        self._threshold = 0
        self._closed = False
        self._numbered = ruleset.number(rules)
        self._filters = _compile(self._numbered)

    @property
    def rules(self) -> list[tuple[int, Rule]]:
        """The rules in force with their ids, in the order in which they are tried."""
        return [(rule.id, rule.rule) for rule in self._numbered]

    @property
    def program(self) -> dict[str, int]:
        """How many of the filters are machine code; libpcap interprets the others."""
        with self._lock:
            return {"filters": len(self._numbered), "native": sum(self._filters.natives)}

    def add_queue(self, queue: Any) -> None:
        """From now on these rules decide on this queue."""
        with self._lock:
            self._queues.append(queue)
            queue.set_rules(self._decisions(self._filters))

    def set_shed(self, threshold: int | None) -> None:
        """Drops what rules with a priority above `threshold` would consume; None sheds nothing."""
        if threshold is not None and not 0 <= threshold <= PRIORITY_MAX:
            raise ConfigError(f"shed: {threshold!r}: a priority from 0 to {PRIORITY_MAX}, or None")
        with self._lock:
            self._threshold = 0 if threshold is None else threshold + 1
            self._filters.set_shed(self._threshold)

    def swap(
        self,
        rules: Sequence[Rule],
        publish: Callable[[list[tuple[int, Rule]]], None] | None = None,
    ) -> None:
        """Replaces the rules: each burst meets the old ones or the new ones.

        Rules that stay as they are keep their ids. When anything fails, the old rules run on.
        """
        with self._lock:
            if self._closed:
                raise PortError("steering is closed")
            fresh = ruleset.number(rules, self._numbered)
            filters = _compile(fresh)
            filters.set_shed(self._threshold)
            if publish is not None:
                publish([(rule.id, rule.rule) for rule in fresh])
            for queue in self._queues:
                queue.set_rules(self._decisions(filters))
            self._numbered, self._filters = fresh, filters

    def counters(self) -> dict[str, Any]:
        """Packets since the start, over all queues and swaps. seen = consumed + passed + dropped.

        What is passed ends here: there is no kernel behind the port.
        """
        with self._lock:
            total: collections.Counter[str] = collections.Counter()
            for queue in self._queues:
                total.update(queue.counters())
            for rule in self._numbered:
                total.setdefault(f"rule {rule.id}", 0)
        return account(total)

    def detach(self) -> None:
        """There is nothing attached."""

    def close(self) -> None:
        with self._lock:
            self._closed = True

    def _decisions(self, filters: Any) -> Any:
        return Decisions(filters, self._keep_management)


def _compile(rules: Sequence[Numbered]) -> Any:
    return Filters(
        [
            (
                rule.id,
                list(rule.code),
                rule.names,
                ACTIONS.index(rule.rule.action),
                rule.rule.priority,
                rule.rule.sample,
            )
            for rule in rules
        ]
    )
