"""A core for each worker.

Owns the choice: cores near the worker's memory first, those with the fewest workers first, and
never one that this process may not use. Reading the topology is apart from choosing.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

NODES = Path("/sys/devices/system/node")


def choose(
    nodes: Sequence[int | None], allowed: Iterable[int], node_of: Mapping[int, int]
) -> list[int]:
    """A core for each worker; `nodes` says where each one's memory is (None: anywhere)."""
    cores = sorted(allowed)
    load: Counter[int] = Counter()
    chosen = []
    for node in nodes:
        near = [core for core in cores if node_of.get(core) == node] if node is not None else []
        core = min(near or cores, key=lambda number: (load[number], number))
        load[core] += 1
        chosen.append(core)
    return chosen


def here(nodes: Sequence[int | None]) -> list[int]:
    """choose() on this host, among the cores that this process may use."""
    return choose(nodes, os.sched_getaffinity(0), topology())


def topology(root: Path = NODES) -> dict[int, int]:
    """The NUMA node of each core; empty where the kernel does not say."""
    found = {}
    for entry in root.glob("node[0-9]*/cpulist"):
        node = int(entry.parent.name[4:])
        for first, last in re.findall(r"(\d+)(?:-(\d+))?", entry.read_text()):
            for core in range(int(first), int(last or first) + 1):
                found[core] = node
    return found
