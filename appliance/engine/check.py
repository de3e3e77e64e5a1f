"""Everything about a configuration that can be known without opening anything.

Owns the questions of `run --check`, and those that `run` asks before it touches the host: do the
filters compile, can a worker do it, does the memory suffice. It attaches and changes nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from appliance import limits
from appliance.config import Config, refuse_unbuilt
from appliance.engine import permission, recording
from appliance.engine.build import BACKENDS, KINDS, check_routes, layout
from appliance.errors import ConfigError, HostError
from appliance.net import InterfaceInfo, interface
from appliance.plan import Plan, PortFacts, plan
from appliance.steering import Rule, rules
from appliance.steering.compiler import compile_functions
from appliance.steering.program import FUNCTION, Options, source


def configuration(config: Config) -> None:
    """What this build cannot do, and filters that are none: ConfigError with the place."""
    refuse_unbuilt(config, backends=BACKENDS, kinds=KINDS)
    check_routes(config)
    permission.known(config)
    _one_port_each(config)
    recording.check(config)
    for index, rule in enumerate(config.rules):
        rules.compile_match(rule.match, f"rule[{index}].match")


def _one_port_each(config: Config) -> None:
    """An interface runs one program, so it belongs to one port, with any number of queues."""
    owner: dict[tuple[str, str], str] = {}
    for index, port in enumerate(config.ports):
        if port.interface is None:
            continue
        other = owner.setdefault((port.netns, port.interface), port.name)
        if other != port.name:
            raise ConfigError(
                f'port[{index}].interface: "{port.interface}": '
                f'one that port "{other}" does not have'
            )


def programs(config: Config) -> None:
    """Compiles the whole program of every port, as far as that goes without the kernel."""
    for port in config.ports:
        if port.backend == "dpdk":
            continue  # no program: its filters are compiled already
        numbered = rules.number([Rule.of(entry) for entry in config.rules_of(port.name)])
        options = Options(jumbo=port.jumbo, no_socket=port.no_socket)
        compile_functions(source(numbered, options), [FUNCTION])


def facts_of(found: InterfaceInfo) -> PortFacts:
    """What the arithmetic needs to know of an interface."""
    queues = min(found.queues.rx, limits.QUEUES_MAX)
    return PortFacts(queues, found.rings.rx, found.mtu, found.numa_node)


def facts_here(config: Config) -> tuple[dict[str, PortFacts], list[str]]:
    """The facts of the interfaces that are on this host, and a line for each that is not."""
    facts: dict[str, PortFacts] = {}
    notes = []
    for port in config.ports:
        if port.interface is None:
            continue
        try:
            facts[port.name] = facts_of(interface(port.interface, port.netns or None))
        except HostError as error:
            notes.append(f"{port.name}: {error}")
    return facts, notes


def hugepages_free() -> int | None:
    """Free hugepages of 2 MiB; None where the kernel has no such pages to ask for."""
    try:
        return int(Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages").read_text())
    except (OSError, ValueError):
        return None


def planned(config: Config, facts: dict[str, PortFacts]) -> Plan:
    """The plan; ConfigError when it would stall."""
    made = plan(config, facts)
    if not made.ok:
        raise ConfigError(made.refused[0])
    return made


def hugepages(config: Config, made: Plan) -> None:
    """Asked of the host before anything is reserved: with `require` all of it has to be there."""
    free = hugepages_free() or 0
    wanted = made.hugepages + config.memory.mid_cap_mib // 2
    least = made.hugepages + bool(config.memory.mid_cap_mib)
    if config.memory.hugepages != "require" or free >= least:
        return
    try:
        there = int(Path("/proc/sys/vm/nr_hugepages").read_text())
    except (OSError, ValueError):
        there = free
    raise HostError(
        f"hugepages = require: {free} of 2 MiB are free, {made.hugepages} are needed for the ports "
        f"and up to {wanted - made.hugepages} for the mid tier",
        fix=f"echo {there - free + wanted} > /proc/sys/vm/nr_hugepages",
    )


def everything(config: Config) -> dict[str, Any]:
    """The answer of `run --check`. Interfaces that are not here are no fault, but said."""
    configuration(config)
    facts, notes = facts_here(config)
    made = planned(config, facts)
    groups = layout(config, facts).groups
    programs(config)
    return {
        "ok": True,
        "ports": len(config.ports),
        "rules": len(config.rules),
        "consumers": len(config.consumers),
        "workers": len(groups),
        "frames": sum(group.frames for group in groups),
        "reasons": [*notes, *made.reasons],
    }
