"""DPDK's rte_mempool and rte_ring as peers: rte_peer.c, compiled here against Debian's library.

dpdk-test's mempool_perf_autotest measures the same, 5 s for each of some hundred cases that cannot
be chosen: more than an hour a run. So a small program of ours does its loop for the cases that we
compare, and can alternate with us. Owns the compiled program (in a directory that is gone at exit)
and its start.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

from appliance.bench import host
from appliance.bench.process import Child
from appliance.errors import PortError

MISSING = "apt install dpdk-dev gcc pkg-config"
SOURCE = Path(__file__).with_name("rte_peer.c")
START_S = 30.0
PAGES = 48  # hugepages: 64 MiB for the peer, the rest for our arenas


def missing() -> str:
    """Empty if the peer can be built, else how to get it."""
    if not (shutil.which("pkg-config") and shutil.which("cc")):
        return MISSING
    known = subprocess.run(["pkg-config", "--exists", "libdpdk"], capture_output=True)
    return "" if known.returncode == 0 else MISSING


@functools.cache
def _built() -> tuple[tempfile.TemporaryDirectory[str], str]:
    place = tempfile.TemporaryDirectory(prefix="openclaw-rte-")
    program = f"{place.name}/rte_peer"
    flags = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "libdpdk"], capture_output=True, text=True, check=True
    ).stdout.split()
    done = subprocess.run(
        ["cc", "-O3", "-o", program, str(SOURCE), *flags], capture_output=True, text=True
    )
    if done.returncode:
        raise PortError(f"rte_peer.c does not compile: {done.stderr.strip().splitlines()[-1]}")
    return place, program


def arguments(words: list[str], cores: list[int], hugepages: bool) -> list[str]:
    memory = ["--in-memory"] if hugepages else ["--no-huge", "--no-shconf"]
    return [
        _built()[1], "-l", ",".join(map(str, cores)), "--no-pci", "--no-telemetry",
        "--log-level", "error", "-m", "64", *memory, "--", *words,
    ]  # fmt: skip


def _has_figure(said: str) -> bool:
    return "ns " in said and said.endswith("\n")


def figure(words: list[str], cores: list[int], seconds: float) -> tuple[float, str]:
    """(ns per object, the command) of one run of the peer."""
    with host.Hugepages(PAGES) as pages:
        for hugepages in (True, False) if pages.enough else (False,):
            command = arguments([*words, f"{seconds:g}"], cores, hugepages)
            with Child(command, None, cpus=set(cores)) as child:
                try:
                    said = child.wait_for(_has_figure, START_S + seconds, "its figure")
                except PortError:
                    # Someone else may have taken the pages between our count and its start.
                    if not hugepages:
                        raise
                    continue
            return float(said.rsplit("ns ", 1)[1].split()[0]), " ".join(child.command)
    raise AssertionError("unreachable")
