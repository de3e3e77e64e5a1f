"""QEMU's machine and firmware: what is the same for every guest of machine.py.

Owns the choice of processor and of UEFI's files; no state.
"""

from __future__ import annotations

import shutil
from pathlib import Path

OVMF = Path("/usr/share/OVMF")


class FirmwareMissing(Exception):
    """UEFI's files are not on this machine."""


def machine(accelerator: str, nvdimm: bool, secure_boot: bool) -> list[str]:
    """-machine, -accel and -cpu."""
    kind = "q35" + (",nvdimm=on" if nvdimm else "") + (",smm=on" if secure_boot else "")
    if accelerator == "kvm":
        return ["-machine", kind, "-accel", "kvm", "-cpu", "host"]
    # la57: emulating a fifth level of page tables only costs time.
    return ["-machine", kind, "-accel", "tcg,thread=multi", "-cpu", "max,la57=off"]


def drives(work: Path, name: str, secure_boot: bool) -> list[str]:
    """The firmware's code, and this guest's own copy of its variables."""
    code = OVMF / ("OVMF_CODE_4M.secboot.fd" if secure_boot else "OVMF_CODE_4M.fd")
    variables = OVMF / "OVMF_VARS_4M.fd"
    for file in (code, variables):
        if not file.exists():
            raise FirmwareMissing(f"no {file}; fix: apt-get install ovmf")
    own = work / f"{name}.vars.fd"
    if not own.exists():
        shutil.copyfile(variables, own)
    parts = ["-drive", f"if=pflash,format=raw,readonly=on,file={code}",
             "-drive", f"if=pflash,format=raw,file={own}"]
    if secure_boot:
        parts += ["-global", "driver=cfi.pflash01,property=secure,value=on"]
    return parts
