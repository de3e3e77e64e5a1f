"""The recording consumers of an engine: made, started before packets arrive, stopped after them.

Owns which recordings there are and their place in the statistics. What a recording does is
appliance/record's; the copying into blocks is the workers'.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from appliance.config import Config, ConsumerConfig
from appliance.dataplane import Spool
from appliance.engine.build import Layout
from appliance.engine.tiers import Tiers
from appliance.errors import ConfigError
from appliance.limits import RECORD_PORTS_MAX
from appliance.memory import EventLog, MidTier
from appliance.record.recording import Recording
from appliance.record.settings import LogPort, Settings


def check(config: Config) -> None:
    """What a recording needs, refused where it is not: a mid tier, and few enough ports."""
    for index, consumer in enumerate(config.consumers):
        if consumer.kind != "record":
            continue
        if not config.memory.mid_cap_mib:
            raise ConfigError(f'consumer[{index}]: "{consumer.name}" keeps its packets in the mid '
                              "tier: memory.mid_cap_mib: 0: more than 0")
        if len(config.ports) > RECORD_PORTS_MAX:
            raise ConfigError(f'consumer[{index}]: "{consumer.name}": {len(config.ports)} ports: '
                              f"at most {RECORD_PORTS_MAX} where one records")
        room = consumer.segment_mib * len(consumer.directories)
        if consumer.limit_mib and consumer.limit_mib < 3 * room:
            raise ConfigError(
                f"consumer[{index}].limit_mib: {consumer.limit_mib}: 0, or at least {3 * room}: "
                f"in each directory the live segment, the next and a finished one of "
                f"{consumer.segment_mib} MiB")


def keep_arguments(request: dict[str, Any]) -> tuple[str | None, float, str]:
    """(consumer or None, seconds, expression) of a request that came from outside."""
    consumer, last, match = (request.get(key) for key in ("consumer", "last_s", "match"))
    if consumer is not None and not isinstance(consumer, str):
        raise ConfigError(f"consumer: {consumer!r}: a name")
    if isinstance(last, bool) or not isinstance(last, (int, float)):
        raise ConfigError(f"last_s: {last!r}: a number of seconds")
    if not isinstance(match or "", str):
        raise ConfigError(f"match: {match!r}: a pcap filter expression")
    return consumer, float(last), match or ""


def settings_of(consumer: ConsumerConfig) -> Settings:
    names = ("segment_mib", "limit_mib", "max_age_s", "commit_ms", "commit_kib", "memory_mib",
             "snap_bytes", "flow_bytes", "window_s")
    return Settings(consumer.directories, **{name: getattr(consumer, name) for name in names})


class Recorders:
    """`Recorders(...)`, spool() for each worker, start(); stop() when all workers have stopped."""

    def __init__(
        self, config: Config, layout: Layout, tier: MidTier | None, events: EventLog, tiers: Tiers
    ) -> None:
        self._started: list[Recording] = []
        ports = [
            LogPort(layout.port_number(port.name), port.name, port.interface or port.name)
            for port in config.ports
        ]
        self._made: dict[str, Recording] = {}
        for consumer in config.consumers:
            named = {rule.port for rule in config.rules if consumer.name in rule.consumers}
            if consumer.kind != "record":
                continue
            assert tier is not None  # check() has seen to it
            made = Recording(settings_of(consumer), tier, ports, consumer.name, events)
            self._made[consumer.name] = made
            tiers.watch("persistent", f"recorder {consumer.name}", made, named)

    def spool(self, name: str) -> Spool:
        return self._made[name].spool()

    def start(self) -> None:
        for made in self._made.values():
            made.start()
            self._started.append(made)

    def stop(self) -> None:
        """Each writes what it holds, for a bounded time, and seals its log."""
        while self._started:
            self._started.pop().stop()

    def keep(self, name: str | None, last_s: float, match: str) -> dict[str, Any]:
        """Writes what is in a window to its log; of the only recording that has one, unless named.
        """
        found = [made for made in self._made.values()
                 if made.settings.window_s and name in (None, made.name)]
        if len(found) != 1:
            known = ", ".join(made.name for made in self._made.values() if made.settings.window_s)
            raise ConfigError(f"consumer: {name or 'several'}: one of those with window_s: "
                              f"{known or 'there is none'}")
        return found[0].keep(last_s, match)

    @staticmethod
    def figures(
        recorders: Recorders | None, entries: list[dict[str, Any]], drops: Counter[str]
    ) -> dict[str, Any]:
        """`memory.persistent`; the entries of recording consumers get their account, and `drops`
        what was lost."""
        made = recorders._made if recorders is not None else {}
        found = {name: recording.summary() for name, recording in made.items()}
        for entry in entries:
            record = found.get(entry["name"])
            if record is None:
                continue
            entry["record"] = record
            entry["dropped"] = sum(record["dropped"].values())
            for reason, count in record["dropped"].items():
                drops[f"record_{reason}"] += count
        reasons = [line for record in found.values() for line in record["reasons"]]
        return {
            "bytes": sum(record["durable_bytes"] for record in found.values()),
            "in_memory": sum(record["in_memory"] for record in found.values()),
            "devices": [one for record in found.values() for one in record["devices"]],
            "state": "degraded" if reasons else "ok",
            "reasons": reasons,
        }
