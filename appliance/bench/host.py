"""The host under the figures: what it is, how fast its clock runs, and what its CPUs do.

Owns reading: /proc, versions of what is installed, the calibrated clock. The one thing that it
changes is the number of hugepages, and it gives them back.
"""

from __future__ import annotations

import gc
import os
import platform
import re
import shutil
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from appliance.dataplane import gauge

_PAGES = Path("/proc/sys/vm/nr_hugepages")
_FREE = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")

# Where a tool says its version; testpmd has no option for it and prints it when it starts.
_TOOLS = {
    "tcpdump": (["tcpdump", "--version"], r"tcpdump version (\S+)"),
    "dumpcap": (["dumpcap", "--version"], r"Dumpcap \(Wireshark\) (\S+)"),
    "netsniff-ng": (["netsniff-ng", "--version"], r"netsniff-ng (\S+)"),
    "fio": (["fio", "--version"], r"fio-(\S+)"),
    "dpdk-testpmd": (["dpkg-query", "-W", "-f", "${Version}", "dpdk-dev"], r"(\S+)"),
}
_PACKAGES = ("openclaw-appliance", "numpy", "scapy")


def cores() -> tuple[int, int]:
    """Which cores to use: one for the load, one for the contestant (the same if there is one)."""
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[0], allowed[-1]


def machine() -> dict[str, Any]:
    """Processor, cores, memory, what is under it, and how busy it is before we begin."""
    text = _read("/proc/cpuinfo")
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.M)
    megahertz = re.search(r"^cpu MHz\s*:\s*([\d.]+)$", text, re.M)
    memory = re.search(r"^MemTotal:\s*(\d+) kB", _read("/proc/meminfo"), re.M)
    return {
        "cpu": model[1].strip() if model else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "cpu_mhz_cpuinfo": float(megahertz[1]) if megahertz else None,
        "cpu_mhz_measured": clock_mhz(),
        "memory_mib": int(memory[1]) // 1024 if memory else None,
        "virtual": "hypervisor" in text,
        "load_before": [round(value, 2) for value in os.getloadavg()],
    }


def clock_mhz() -> int:
    """The clock that a busy core really has: the fastest of five chains of multiplications."""
    steps = 8_000_000  # 24 million cycles, 6 to 10 ms: longer than a timer tick
    best = min(gauge.chain_ns(steps) for _ in range(5))
    return round(steps * gauge.CHAIN_CYCLES * 1000 / best)


def versions() -> dict[str, str | None]:
    """Of ourselves and of everything that we are compared with; None is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    for name, (command, pattern) in _TOOLS.items():
        found[name] = _tool_version(name, command, pattern)
    return found


def _tool_version(name: str, command: list[str], pattern: str) -> str | None:
    if shutil.which(name) is None:
        return None
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    match = re.search(pattern, said.stdout + said.stderr)
    return match[1] if match else "unknown"


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def file_system(path: Path) -> str:
    """Kind and device of the file system that a path is on, from /proc/mounts."""
    best = ("", "?", "?")
    for line in _read("/proc/mounts").splitlines():
        device, where, kind = line.split()[:3]
        inside = str(path.resolve()) == where or str(path.resolve()).startswith(
            where.rstrip("/") + "/")
        if inside and len(where) >= len(best[0]):
            best = (where, kind, device)
    return f"{best[1]} on {best[2]}"


class Hugepages:
    """So many free 2 MiB pages; those that it added are taken back. `enough`: we got them."""

    def __init__(self, pages: int) -> None:
        self._added, self.enough = 0, False
        gc.collect()  # an arena in a reference cycle keeps its pages until it is collected
        try:
            for _ in range(3):  # pages that are freed meanwhile can vanish: surplus ones do
                free, total = int(_FREE.read_text()), int(_PAGES.read_text())
                if free >= pages:
                    break
                _PAGES.write_text(str(total + pages - free))
                self._added += int(_PAGES.read_text()) - total
            self.enough = int(_FREE.read_text()) >= pages
        except OSError:
            return

    def restore(self) -> None:
        if self._added > 0:
            _PAGES.write_text(str(max(0, int(_PAGES.read_text()) - self._added)))
            self._added = 0

    def __enter__(self) -> Hugepages:
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()


class CpuClock:
    """CPU time of the whole machine since it was made, from /proc/stat (10 ms steps)."""

    def __init__(self) -> None:
        self._start, self._began = _busy_ns(), time.monotonic_ns()

    def busy_ns(self) -> int:
        return _busy_ns() - self._start

    def elapsed_ns(self) -> int:
        return time.monotonic_ns() - self._began


def _busy_ns() -> int:
    """user, nice, system, irq, softirq of all CPUs: what is neither idle, waiting nor stolen."""
    fields = [int(word) for word in _read("/proc/stat").splitlines()[0].split()[1:8]]
    user, nice, system, _idle, _iowait, irq, softirq = fields
    return (user + nice + system + irq + softirq) * _TICK_NS
