"""The doctor's questions about memory: hugepages, NUMA nodes, the limit of locked memory."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from appliance.doctor.check import Check, Finding, fail, ok, warn

_HUGEPAGES = Path("/sys/kernel/mm/hugepages")
# One port of two queues of 8,192 frames of 4 KiB is 64 MiB; as much again for the mid tier.
_PAGES_2M_WANTED = 64


def _pages(size_kib: int, what: str) -> int:
    try:
        return int((_HUGEPAGES / f"hugepages-{size_kib}kB" / what).read_text())
    except (OSError, ValueError):
        return -1


def hugepages_2m() -> Finding:
    total, free = _pages(2048, "nr_hugepages"), _pages(2048, "free_hugepages")
    if total < 0:
        return warn("hugepages 2M", "the kernel has none; frames will lie on 4 KiB pages")
    found = f"{free} free of {total}"
    if free < _PAGES_2M_WANTED:
        wanted = total - free + _PAGES_2M_WANTED
        return warn("hugepages 2M", f"{found}; frames will lie on smaller pages",
                    f"echo {wanted} > /proc/sys/vm/nr_hugepages")
    return ok("hugepages 2M", found)


def hugepages_1g() -> Finding:
    total, free = _pages(1048576, "nr_hugepages"), _pages(1048576, "free_hugepages")
    if total < 0:
        return ok("hugepages 1G", "not supported here, and not needed")
    return ok("hugepages 1G", f"{free} free of {total}")


def transparent_hugepages() -> Finding:
    """The second rung of the ladder when no 2 MiB page is free; memfd obeys shmem_enabled."""
    try:
        text = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled").read_text()
        chosen = text.split("[")[1].split("]")[0]
    except (OSError, IndexError):
        return warn("hugepages thp", "not in this kernel")
    return ok("hugepages thp", f"shared memory: {chosen}")


def numa() -> Finding:
    found = Path("/sys/devices/system/node").glob("node[0-9]*")
    nodes = sorted(int(path.name[4:]) for path in found)
    without = [node for node in nodes if _cpulist(node) == ""]
    shown = f"{len(nodes) or 1} node" + ("s" if len(nodes) > 1 else "")
    if without:
        shown += f", without processors: {', '.join(map(str, without))}"
    return ok("numa", shown)


def _cpulist(node: int) -> str | None:
    try:
        return Path(f"/sys/devices/system/node/node{node}/cpulist").read_text().strip()
    except OSError:
        return None


def locked_memory() -> Finding:
    """A UMEM counts as locked memory, unless CAP_IPC_LOCK says that nobody counts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    text = Path("/proc/self/status").read_text()
    if int(text.split("CapEff:")[1].split()[0], 16) >> 14 & 1:
        return ok("locked memory", "not limited (CAP_IPC_LOCK)")
    if resource.RLIM_INFINITY in (soft, hard):
        return ok("locked memory", "not limited")
    return fail("locked memory", f"{hard // 1024} KiB, and CAP_IPC_LOCK is missing",
                "run as root (sudo)" if os.geteuid() else "ulimit -l unlimited")


def available() -> Finding:
    fields = dict(
        line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines() if ":" in line
    )
    mib = int(fields["MemAvailable"].split()[0]) // 1024
    if mib < 512:
        return warn("memory", f"{mib:,} MiB available", "lower memory.frames_per_queue")
    return ok("memory", f"{mib:,} MiB available")


CHECKS: tuple[Check, ...] = (
    hugepages_2m, hugepages_1g, transparent_hugepages, numa, locked_memory, available,
)
