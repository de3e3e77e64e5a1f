"""`bench record`: packets to a disk without loss, beside tcpdump, dumpcap and netsniff-ng.

One AF_XDP sender offers what it can push through a veth pair, for so many seconds; the contestant
records it to a file in the same directory, is ended, and its packets are counted: ours by its final
account, the others by the size of the pcap file, of which they wrote nothing else. Everything that
was sent and is not in the file is lost, wherever that was. CPU time is that of the whole machine,
sender included, and that of the recording process, threads of the kernel that work for it included.
What differs is said: ours has all of it flushed and checksummed at the end, the others write into
the page cache and flush nothing.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from appliance.bench import host
from appliance.bench.contest import Options, compete
from appliance.bench.figures import OURS, Case, Sample
from appliance.bench.load import Pump
from appliance.bench.process import Child
from appliance.engine import client
from appliance.errors import OpenClawError, PortError
from appliance.net import Lab, link_statistics

READY_S = 20.0
DRAIN_S = 5.0  # what a contestant may take to read what has arrived, after the last packet
END_S = 30.0
FRAMES = 16384  # of 2 KiB: 32 MiB; the peers are given 64 MiB for their rings
PCAP_HEADER, PCAP_RECORD = 24, 16
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")

RATE, LOSS, OWN, DISK = "recorded", "lost", "process CPU", "written"


def _cases(size: int) -> dict[str, Case]:
    return {
        RATE: Case(f"record {size} bytes: recorded", "packets/s", True),
        LOSS: Case(f"record {size} bytes: lost", "%", False),
        OWN: Case(f"record {size} bytes: process", "CPU ns/packet", False),
        DISK: Case(f"record {size} bytes: written", "MB/s", True),
    }


def directory() -> Path:
    """Where all of them write: TMPDIR, or what the system has for temporary files."""
    return Path(tempfile.mkdtemp(prefix="openclaw-bench-"))


def process_ns(pid: int) -> int:
    """CPU time of a process with all its threads, those of io_uring too."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_NS


class _Contestant:
    """One recorder. `start` gives the child; `recorded` is (packets, bytes on disk) once ended."""

    def __init__(self, name: str, lab: Lab, size: int, where: Path) -> None:
        self.name, self.lab, self.size, self.where = name, lab, size, where
        self.command = ""

    def start(self) -> Child:
        raise NotImplementedError

    def written(self, child: Child) -> int:
        """A figure that stands still once everything has been taken."""
        raise NotImplementedError

    def end(self, child: Child) -> tuple[int, int]:
        raise NotImplementedError

    def measure(self, seconds: float) -> Sample:
        child = self.start()
        self.command = " ".join(child.command)
        try:
            before = link_statistics(self.lab.a.interface, self.lab.a.netns)["tx_packets"]
            with Pump(self.lab.a, self.size) as load:
                machine, own = host.CpuClock(), process_ns(child.pid)
                began = time.monotonic()
                time.sleep(seconds)
                load.stop()
                took = time.monotonic() - began
                time.sleep(0.05)
            self._settle(child)
            busy, mine = machine.busy_ns(), process_ns(child.pid) - own
            after = link_statistics(self.lab.a.interface, self.lab.a.netns)["tx_packets"]
            # The sender's first packets left before the clock was read: all count, for everybody.
            sent, left = load.sent, after - before
            said = child.output().strip().splitlines()
            packets, nbytes = self.end(child)
            if not packets:
                raise PortError(f"{self.name}: recorded nothing: {said[-1] if said else 'silent'}")
        finally:
            child.stop()
            for file in self.where.iterdir():
                shutil.rmtree(file) if file.is_dir() else file.unlink()
        offered = max(sent, left)
        names = _cases(self.size)
        return Sample(
            values={
                names[RATE].name: packets / took,
                names[LOSS].name: 100 * max(0, offered - packets) / offered if offered else 0.0,
                names[OWN].name: mine / packets,
                names[DISK].name: nbytes / took / 1e6,
            },
            drops={"lost": max(0, offered - packets)} if offered > packets else {},
            cpu_ns_per_packet=busy / packets,
            per_packet={"offered_per_s": offered / took},
        )

    def _settle(self, child: Child) -> None:
        """Until it has written all that has arrived; a slow one gets some time, not for ever."""
        until = time.monotonic() + DRAIN_S
        last, still = -1, 0
        while still < 3 and time.monotonic() < until:
            now = self.written(child)
            still = still + 1 if now == last else 0
            last = now
            time.sleep(0.05)


class _Ours(_Contestant):
    def __init__(self, lab: Lab, size: int, where: Path, poll: str) -> None:
        super().__init__(OURS, lab, size, where)
        self.poll = poll
        self.socket = str(where.with_name(where.name + ".sock"))
        self.file = where.with_name(where.name + ".toml")

    def start(self) -> Child:
        self.file.write_text(
            f'[memory]\nframe_bytes = 2048\nframes_per_queue = {FRAMES}\n'
            f'[control]\nsocket = "{self.socket}"\nmetrics = ""\n'
            f'[[port]]\nname = "in0"\ninterface = "{self.lab.b.interface}"\n'
            f'netns = "{self.lab.b.netns}"\npoll = "{self.poll}"\n'
            '[[rule]]\nport = "in0"\nmatch = "udp"\naction = "consume"\nconsumers = ["keep"]\n'
            f'[[consumer]]\nname = "keep"\nkind = "record"\ndirectory = "{self.where}/log"\n'
        )
        child = Child([sys.executable, "-m", "appliance.cli.main", "run", "--config",
                       str(self.file), "--json"], None)
        until = time.monotonic() + READY_S
        while not self._answers():
            if time.monotonic() > until:
                said = child.output().strip().splitlines()
                child.stop()
                raise PortError(f"openclaw run: not ready: {said[-1] if said else 'silent'}")
            time.sleep(0.05)
        return child

    def _answers(self) -> bool:
        try:
            return bool(client.ask(self.socket, "stats")["running"])
        except OpenClawError:
            return False

    def _record(self) -> dict[str, Any]:
        found: dict[str, Any] = client.ask(self.socket, "stats")["consumers"][0]["record"]
        return found

    def written(self, child: Child) -> int:
        return int(self._record()["durable"])

    def end(self, child: Child) -> tuple[int, int]:
        now = self._record()
        child.stop()
        return int(now["durable"]), int(now["write_bytes"])


class _Pcap(_Contestant):
    """A peer that writes one classic pcap file."""

    def __init__(self, name: str, lab: Lab, size: int, where: Path,
                 words: Callable[[str, str], Sequence[str]], ready: str) -> None:
        super().__init__(name, lab, size, where)
        self.words, self.ready = words, ready
        self.out = where / "out.pcap"

    def start(self) -> Child:
        self.out.unlink(missing_ok=True)
        child = Child(self.words(self.lab.b.interface, str(self.out)), self.lab.b.netns)
        try:
            child.wait_for(lambda said: self.ready in said or self._has_file(), READY_S,
                           "it captures")
            time.sleep(0.3)  # the file is there before the socket's ring is
        except BaseException:
            child.stop()
            raise
        return child

    def _has_file(self) -> bool:
        return self.out.exists() and self.out.stat().st_size >= PCAP_HEADER

    def written(self, child: Child) -> int:
        return self.out.stat().st_size if self.out.exists() else 0

    def end(self, child: Child) -> tuple[int, int]:
        child.stop()
        nbytes = self.written(child)
        return max(0, nbytes - PCAP_HEADER) // (PCAP_RECORD + self.size), nbytes


def _tcpdump(interface: str, out: str) -> list[str]:
    """-B: the kernel's buffer in KiB; 64 MiB, what ours may have in memory."""
    return ["tcpdump", "-i", interface, "-n", "-B", "65536", "-Z", "root", "-w", out, "udp"]


def _dumpcap(interface: str, out: str) -> list[str]:
    return ["dumpcap", "-i", interface, "-P", "-B", "64", "-f", "udp", "-w", out]


def _netsniff(interface: str, out: str) -> list[str]:
    return ["netsniff-ng", "--in", interface, "--out", out, "--silent", "--ring-size", "64MiB",
            "-f", "udp"]


PEERS = {
    "tcpdump": (_tcpdump, "listening on", "apt install tcpdump"),
    "dumpcap": (_dumpcap, "File:", "apt install wireshark-common"),
    "netsniff-ng": (_netsniff, "Running!", "apt install netsniff-ng"),
}


def run(options: Options, poll: str) -> list[dict[str, Any]]:
    results = []
    where = directory()
    try:
        with Lab.temporary(queues=1) as lab:
            for size in options.sizes:
                contestants: list[Any] = [_Ours(lab, size, where, poll)]
                for name, (words, ready, fix) in PEERS.items():
                    if options.wants(name, "" if shutil.which(name) else fix):
                        contestants.append(_Pcap(name, lab, size, where, words, ready))
                results += compete(list(_cases(size).values()), contestants, options, _notes(where))
    finally:
        shutil.rmtree(where, ignore_errors=True)
        for suffix in (".sock", ".toml"):
            where.with_name(where.name + suffix).unlink(missing_ok=True)
    return results


def _notes(where: Path) -> list[str]:
    found = host.file_system(where)
    return [f"All write to {found}; ours with checksums and flushed at the end, the others "
            "into the page cache"]


__all__ = ["directory", "run"]
