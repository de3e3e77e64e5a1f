"""dpdk-testpmd as a peer: on AF_XDP interfaces, or on DPDK's null device.

Owns its command line, its start, and reading its own counters while it runs. Its poll-mode core is
the contestant's core, its main core (which only waits for a command) is the load's.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Sequence

from appliance.bench import host
from appliance.bench.host import Hugepages
from appliance.bench.process import Child
from appliance.errors import PortError

NAME = "testpmd"
MISSING = "apt install dpdk-dev"
MBUFS = 16384  # 38 MiB at 2,304 bytes: the rings of two ports, bursts and caches, twice over
MEMORY_MIB = 128
START_S = 30.0


def missing() -> str:
    return "" if shutil.which("dpdk-testpmd") else MISSING


def af_xdp(number: int, interface: str) -> str:
    """A device over one queue of an interface, as DPDK's af_xdp driver is told."""
    return f"net_af_xdp{number},iface={interface},start_queue=0,queue_count=1"


class Testpmd:
    """testpmd, forwarding in one of its modes until stop(). `command` is what was started.

    It runs on hugepages where they can be had, and without where not: its command says which.
    """

    def __init__(
        self, devices: Sequence[str], mode: str, netns: str | None = None, *, size: int = 64
    ) -> None:
        self._pages = Hugepages(MEMORY_MIB // 2)
        try:
            self._child = self._start(devices, mode, netns, size)
        except BaseException:
            self._pages.restore()
            raise

    def _start(self, devices: Sequence[str], mode: str, netns: str | None, size: int) -> Child:
        for hugepages in (True, False) if self._pages.enough else (False,):
            words = arguments(devices, mode, size=size, hugepages=hugepages)
            child = Child(words, netns, cpus=set(host.cores()))
            self.command = " ".join(child.command)
            try:
                child.wait_for(lambda said: "testpmd>" in said, START_S, "its prompt")
                child.say("start")
                child.wait_for(lambda said: "packet forwarding" in said, START_S, "forwarding")
                return child
            except PortError:
                child.stop()
                # Someone else may have taken the pages between our count and its start.
                if not hugepages:
                    raise
            except BaseException:
                child.stop()
                raise
        raise AssertionError("unreachable")

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
        self._pages.restore()

    def __enter__(self) -> Testpmd:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def arguments(devices: Sequence[str], mode: str, *, size: int, hugepages: bool) -> list[str]:
    load, contestant = host.cores()
    # Neither way leaves a file or a socket behind. EAL refuses --in-memory together with --no-huge.
    memory = ["--in-memory"] if hugepages else ["--no-huge", "--no-shconf", "--no-telemetry"]
    cores = ["--lcores", f"0@{load},1@{contestant}"]
    options = [f"--forward-mode={mode}", f"--total-num-mbufs={MBUFS}"]
    if mode == "txonly":
        options.append(f"--txpkts={size}")
    vdevs = [word for device in devices for word in ("--vdev", device)]
    # Line by line, because a program whose output is a file keeps it to itself for 4 KiB.
    return ["stdbuf", "-oL", "dpdk-testpmd", *cores, "--no-pci", *memory, "-m", str(MEMORY_MIB),
            *vdevs, "--", "-i", *options]
