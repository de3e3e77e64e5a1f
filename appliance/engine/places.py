"""Where packets lie: a port's mode, its node, and the mid tier that they are moved to.

Owns these choices, from the configuration and what the interfaces are. Which queues share memory is
build.py's.
"""

from __future__ import annotations

from collections.abc import Mapping

from appliance.attachment import Attachment
from appliance.config import Config
from appliance.engine import build
from appliance.memory import MidTier, reporter
from appliance.net import InterfaceInfo
from appliance.net.zerocopy import verdict
from appliance.plan import PortFacts


def mode(
    config: Config, group: build.Group, port: str, found: Mapping[str, InterfaceInfo]
) -> str:
    """The mode to ask for. Unasked, ports that share memory copy unless all their drivers are good.

    The first queue of a port is always in the group of every port that it shares memory with.
    """
    asked = build.mode_of(config, group, port)
    names = {lane.port for lane in group.lanes}
    if asked == "auto" and len(names) > 1:
        good = all(name in found and verdict(found[name].driver).good for name in names)
        return "auto" if good else "copy"
    return asked


def node(attachment: Attachment) -> int | None:
    """The node that the port's memory is on; None where the kernel does not say."""
    found = attachment.queues[0].frames.arena.numa_node
    return found if found >= 0 else None


def report(config: Config) -> str:
    """The file of the report that is written when memory runs out; empty: none."""
    chosen = config.memory.report
    return reporter.beside(config.control.socket) if chosen == "auto" else chosen


def mid_tier(config: Config, facts: Mapping[str, PortFacts]) -> MidTier | None:
    """The appliance's one mid tier; None where the configuration wants none (mid_cap_mib = 0).

    Packets are copied to it from the ports' memory, so with numa = "auto" it is on their node if
    they have one in common; mid_numa names others, also nodes without a CPU (CXL, HBM). Nothing
    but addresses is taken before somebody needs a slab.
    """
    memory = config.memory
    if not memory.mid_cap_mib:
        return None
    hugepages = "auto" if memory.hugepages == "1G" else memory.hugepages  # an arena is 2 MiB
    nodes = {fact.numa_node for fact in facts.values()} if memory.numa == "auto" else {memory.numa}
    common = nodes.pop() if len(nodes) == 1 else None
    where = common if memory.mid_numa == "auto" else memory.mid_numa
    return MidTier(memory.mid_cap_mib, hugepages, where)
