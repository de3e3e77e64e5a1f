"""dpdk-testpmd as a peer: on AF_XDP interfaces, or on DPDK's null device.

Owns its command line, its start, and reading its own counters while it runs. Its poll-mode core is
the contestant's core, its main core (which only waits for a command) is the load's.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from appliance.bench import host
from appliance.bench.process import Child, in_namespace

NAME = "testpmd"
MISSING = "apt install dpdk-dev"
MBUFS = 16384  # 38 MiB at 2,304 bytes: two rings of 2,048 for two ports, bursts and caches, twice over
MEMORY_MIB = 128
START_S = 30.0

_PAGES = Path("/proc/sys/vm/nr_hugepages")
_FREE = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")


def missing() -> str:
    return "" if shutil.which("dpdk-testpmd") else MISSING


def af_xdp(number: int, interface: str) -> str:
    """A device over one queue of an interface, as DPDK's af_xdp driver is told."""
    return f"net_af_xdp{number},iface={interface},start_queue=0,queue_count=1"


class Hugepages:
    """Some 2 MiB pages more than there were; taken back at the end. `enough` says if we got them."""

    def __init__(self, pages: int) -> None:
        self._added, self.enough = 0, True
        try:
            free, total = int(_FREE.read_text()), int(_PAGES.read_text())
            if free < pages:
                _PAGES.write_text(str(total + pages - free))
                self._added = int(_PAGES.read_text()) - total
            self.enough = int(_FREE.read_text()) >= pages
        except OSError:
            self.enough = False

    def restore(self) -> None:
        if self._added > 0:
            _PAGES.write_text(str(max(0, int(_PAGES.read_text()) - self._added)))
            self._added = 0

    def __enter__(self) -> Hugepages:
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()


class Testpmd:
    """testpmd, forwarding in one of its modes until stop()."""

    def __init__(
        self,
        devices: Sequence[str],
        mode: str,
        netns: str | None = None,
        *,
        size: int = 64,
        hugepages: bool = True,
    ) -> None:
        self._child = Child(
            arguments(devices, mode, size=size, hugepages=hugepages), netns,
            cpus=set(host.cores()),
        )
        try:
            self._child.wait_for(lambda said: "testpmd>" in said, START_S, "its prompt")
            self._child.say("start")
            self._child.wait_for(lambda said: "packet forwarding" in said, START_S, "forwarding")
        except BaseException:
            self._child.stop()
            raise

    def counters(self, port: int = 0) -> tuple[float, dict[str, int]]:
        """(the moment, its counters of a port): RX-packets, RX-missed, TX-packets, TX-errors ..."""
        before = self._child.output().count("NIC statistics for port")
        self._child.say(f"show port stats {port}")
        said = self._child.wait_for(
            lambda text: text.count("NIC statistics for port") > before
            and "Tx-bps" in text.rsplit("NIC statistics for port", 1)[1],
            5.0,
            "its statistics",
        )
        now = time.monotonic()
        block = said.rsplit("NIC statistics for port", 1)[1]
        return now, {name: int(n) for name, n in re.findall(r"([RT]X-[\w-]+):\s+(\d+)", block)}

    def stop(self) -> None:
        self._child.say("stop")
        self._child.say("quit")
        self._child.stop()

    def __enter__(self) -> Testpmd:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def arguments(devices: Sequence[str], mode: str, *, size: int, hugepages: bool) -> list[str]:
    load, contestant = host.cores()
    memory = ["--in-memory"] if hugepages else ["--in-memory", "--no-huge"]
    cores = ["--lcores", f"0@{load},1@{contestant}"]
    options = [f"--forward-mode={mode}", f"--total-num-mbufs={MBUFS}"]
    if mode == "txonly":
        options.append(f"--txpkts={size}")
    vdevs = [word for device in devices for word in ("--vdev", device)]
    # Line by line, because a program whose output is a file keeps it to itself for 4 KiB.
    return ["stdbuf", "-oL", "dpdk-testpmd", *cores, "--no-pci", *memory, "-m", str(MEMORY_MIB),
            *vdevs, "--", "-i", *options]


def command(devices: Sequence[str], mode: str, netns: str | None, *, size: int = 64,
            hugepages: bool = True) -> str:
    """The exact command, for the page."""
    words = in_namespace(arguments(devices, mode, size=size, hugepages=hugepages), netns)
    return " ".join(words)
