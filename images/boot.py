"""Boots an image for a person: waits until SSH answers, opens a shell, ends the guest after it.

Owns a temporary directory for the guest's disk and log. Everything else is machine.py's.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from devices import Nic, Node, Nvme
from firmware import FirmwareMissing
from machine import Machine, MachineError

OUT = Path(__file__).resolve().parent.parent / "build/image/out"


def main() -> int:
    given = argparse.ArgumentParser(description="Boot the image and open a shell in it.")
    given.add_argument("--image", type=Path, default=OUT / "openclaw.qcow2")
    given.add_argument("--nics", type=int, default=2, help="data NICs, joined back to back")
    given.add_argument("--nvme", action="store_true", help="an emulated NVMe disk of 2 GiB")
    given.add_argument("--numa", action="store_true", help="two NUMA nodes of 1.5 GiB")
    asked = given.parse_args()
    if not asked.image.exists():
        print(f"boot: no {asked.image}; fix: make image", file=sys.stderr)
        return 3
    with tempfile.TemporaryDirectory(prefix="openclaw-boot-") as place:
        work = Path(place)
        disks = []
        if asked.nvme:
            disks = [Nvme(work / "nvme.raw", "boot0")]
            subprocess.run(["truncate", "-s", "2G", str(disks[0].path)], check=True)
        nodes = [Node((0,), 1536), Node((1,), 1536)] if asked.numa else []
        nics = [Nic(hub=1) for _ in range(asked.nics)]
        with Machine(asked.image, work, nics=nics, nvmes=disks, nodes=nodes) as machine:
            print("boot: starting; this takes a minute or two where it must be emulated",
                  file=sys.stderr)
            took = machine.boot()
            print(f"boot: up in {took:.0f} s ({machine.accelerator}); leave with Ctrl-D",
                  file=sys.stderr)
            command = machine.ssh()
            return subprocess.call([*command[:1], "-t", *command[1:]])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (MachineError, FirmwareMissing) as error:
        print(f"boot: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
