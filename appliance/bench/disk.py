"""The disk's part of `bench record`: how fast the log is written, beside fio on the same disk.

Packets come from memory, more than any disk takes, so what is measured is the writer: blocks of
64 KiB gathered to writes of up to 1 MiB, O_DIRECT, eight under way. fio writes the same without any
content to check, and without a flush; ours flushes every MiB.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from appliance.bench.contest import Options, compete
from appliance.bench.figures import OURS, Case, Sample
from appliance.bench.record import directory
from appliance.dataplane import Frames, LoopQueue, Worker
from appliance.errors import PortError
from appliance.memory import MidTier
from appliance.record.recording import Recording
from appliance.record.settings import LogPort, Settings

CASE = Case("record: disk, 1 MiB writes, depth 8, O_DIRECT", "MB/s", True)
SIZE = 1514
SEGMENT_MIB, LIMIT_MIB = 64, 512
MEMORY_MIB = 64


class _Ours:
    name = OURS
    command = "openclaw bench record (packets of 1514 bytes from memory)"

    def __init__(self, where: Path) -> None:
        self.where = where

    def measure(self, seconds: float) -> Sample:
        log = self.where / "log"
        tier = MidTier(2 * MEMORY_MIB, "off")
        settings = Settings((str(log),), segment_mib=SEGMENT_MIB, limit_mib=LIMIT_MIB,
                            memory_mib=MEMORY_MIB)
        recording = Recording(settings, tier, [LogPort(0, "memory", "loop")], "bench")
        queue = LoopQueue(Frames(8192), generate=SIZE)
        worker = Worker([queue], [("record", recording.spool())])
        worker.set_routes(0, {1: [0]})
        recording.start()
        thread = threading.Thread(target=self._fill, args=(worker, recording), daemon=True)
        thread.start()
        try:
            time.sleep(seconds / 4)
            began, before = time.monotonic(), recording.summary()["write_bytes"]
            time.sleep(seconds)
            took = time.monotonic() - began
            written = recording.summary()["write_bytes"] - before
        finally:
            self.stopped = True
            thread.join()
            final = recording.stop(20.0)
            queue.close()
            shutil.rmtree(log, ignore_errors=True)
        return Sample({CASE.name: written / took / 1e6},
                      per_packet={"flush_ms": final["flush_ms_mean"]})

    def _fill(self, worker: Worker, recording: Recording) -> None:
        """As fast as the disk takes it, and not faster: the sender's core is the writer's, too."""
        self.stopped = False
        most = MEMORY_MIB << 19  # half of the memory
        while not self.stopped:
            if recording.pressure()[0] < most:
                worker.run(512)
            else:
                time.sleep(0.0005)


class _Fio:
    name = "fio"

    def __init__(self, where: Path) -> None:
        self.where = where
        self.command = ("fio --name=record --rw=write --bs=1M --iodepth=8 --ioengine=io_uring "
                        f"--direct=1 --size={LIMIT_MIB}M --time_based --runtime=SECONDS")

    def measure(self, seconds: float) -> Sample:
        words = self.command.replace("SECONDS", f"{max(1, round(seconds))}").split()
        done = subprocess.run(
            [*words, f"--directory={self.where}", "--output-format=json"],
            capture_output=True, text=True, timeout=120 + 4 * seconds)
        for file in self.where.glob("record.*"):
            file.unlink()
        if done.returncode:
            raise PortError(f"fio: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
        job = json.loads(done.stdout[done.stdout.index("{"):])["jobs"][0]
        return Sample({CASE.name: job["write"]["bw_bytes"] / 1e6})


def run(options: Options) -> list[dict[str, Any]]:
    where = directory()
    try:
        contestants: list[Any] = [_Ours(where)]
        if options.wants("fio", "" if shutil.which("fio") else "apt install fio"):
            contestants.append(_Fio(where))
        return compete([CASE], contestants, options)
    finally:
        shutil.rmtree(where, ignore_errors=True)
