"""The rules of the running appliance: listed, and replaced without losing a packet.

Owns what the workers know of rules. Order of a swap, port by port: the workers learn the new rules
beside the old ones, then the program is replaced. Packets that the old program marked are still
under way then, so the old routes stay: at least until the next swap, and at least SETTLED_S.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from appliance.attachment import Attachment
from appliance.config import Config
from appliance.config.load import from_mapping
from appliance.engine import check
from appliance.engine.crew import Crew
from appliance.steering import Rule

Numbered = tuple[int, Rule]

SETTLED_S = 2.0  # longer than a packet can wait in a ring while its worker is without a core


class Rules:
    """The rules of all ports, as the programs and the workers have them."""

    def __init__(self, config: Config, ports: Mapping[str, Attachment], crew: Crew) -> None:
        self.config = config
        self._ports = ports
        self._crew = crew
        self._former: dict[str, list[tuple[float, list[Numbered]]]] = {name: [] for name in ports}

    def of(self, port: str) -> list[Numbered]:
        """The rules in force. A loop port runs no program: its packets all carry id 1."""
        steering = self._ports[port].steering
        if steering is not None:
            return steering.rules
        consuming = [Rule.of(entry) for entry in self.config.rules_of(port) if entry.consumers]
        return [(1, rule) for rule in consuming[:1]]

    def publish_all(self) -> None:
        """Before the start: the workers learn the rules that the programs were made with."""
        for port in self._ports:
            self._crew.publish(port, self.of(port))

    def listed(self) -> list[dict[str, Any]]:
        """As `rules list` shows them."""
        entries = []
        for port, attachment in self._ports.items():
            steering = attachment.steering
            counts = steering.counters()["by_rule"] if steering is not None else {}
            for number, rule in self.of(port):
                entries.append(
                    {
                        "id": number,
                        "port": port,
                        "match": rule.match,
                        "action": rule.action,
                        "sample": rule.sample,
                        "priority": rule.priority,
                        "consumers": list(rule.consumers),
                        "packets": counts.get(str(number), 0),
                    }
                )
        return entries

    def swap(self, tables: object) -> Config:
        """The configuration with these rules, in force. On an error everything is as before."""
        fresh = self._with(tables)
        before = self.config
        done: list[str] = []
        try:
            for port in self._ports:
                if fresh.rules_of(port) != before.rules_of(port):
                    done.append(port)
                    self.config = fresh
                    self._swap_port(port, fresh)
        except BaseException:
            self.config = before
            for port in done[:-1]:  # the last one failed, and so has kept its rules
                self._swap_port(port, before)
            raise
        self.config = fresh
        return fresh

    def _with(self, tables: object) -> Config:
        """The running configuration with other rules, checked as if it came from a file."""
        data = self.config.model_dump(by_alias=True, exclude_none=True, exclude_unset=True)
        data["rule"] = tables
        fresh = from_mapping(data)
        check.configuration(fresh)
        # Every rule must be one that the workers can carry, before the first program is touched.
        for port in self._ports:
            rules = [(0, Rule.of(entry)) for entry in fresh.rules_of(port)]
            for group in self._crew.layout.groups:
                self._crew.routes(group, port, rules)
        return fresh

    def _swap_port(self, port: str, config: Config) -> None:
        steering = self._ports[port].steering
        old = self.of(port)

        def publish(new: list[Numbered]) -> None:
            now = time.monotonic()
            kept = [entry for entry in self._former[port] if now - entry[0] < SETTLED_S]
            self._former[port] = [*kept, (now, old)]
            known = {number: rule for _, rules in self._former[port] for number, rule in rules}
            self._crew.publish(port, {**known, **dict(new)}.items())

        if steering is None:
            self._crew.publish(port, self.of(port))
        else:
            steering.swap([Rule.of(entry) for entry in config.rules_of(port)], publish)
