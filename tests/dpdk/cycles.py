"""Opens and closes DPDK ports over and over, and prints what is left as JSON. Run as a process.

    cycles.py COUNT         the first tenth warms up: libraries, caches and arenas of malloc
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path

import appliance

DEVICES = ("net_null0,size=64", "net_ring0", "net_null1,size=300,copy=1")


def belongings() -> dict[str, object]:
    gc.collect()
    status = Path("/proc/self/status").read_text().splitlines()
    words = dict(line.split(":", 1) for line in status)
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": int(words["Threads"]),
        "hugetlb_kib": int(words["HugetlbPages"].split()[0]),
        "rss_kib": int(words["VmRSS"].split()[0]),
        "maps": len(Path("/proc/self/maps").read_text().splitlines()),
        "files": sorted(map(str, Path("/var/run/dpdk").glob(f"openclaw-{os.getpid()}"))),
    }


def cycle(number: int) -> None:
    device = DEVICES[number % len(DEVICES)]
    with appliance.open_port(backend="dpdk", device=device, match="", frames=256) as port:
        port.send([bytes(60)] * 8)
        for batch in port.recv(timeout_ms=0):
            batch.release()
            break
    ledger = port.ledger()
    assert ledger["leaked"] == 0 and ledger["free"] == ledger["total"], ledger


def main() -> int:
    count = int(sys.argv[1])
    for number in range(max(3, count // 10)):
        cycle(number)
    before = belongings()
    for number in range(count):
        cycle(number)
    print(json.dumps({"before": before, "after": belongings()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
