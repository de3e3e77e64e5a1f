"""`openclaw update DIR`: looks at everything, then has systemd-sysupdate write the slot.

Owns the refusals, in the order of what they cost: no image here, files damaged or missing, version
not newer, running version not yet proven, no room. Nothing is written before the last of them is
passed. The running slot is never touched; the new version is tried twice by the boot loader.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from pathlib import Path
from typing import Any

from appliance import image
from appliance.errors import ConfigError, HostError, OpenClawError
from appliance.update import slots

SOURCE = Path("/run/openclaw/update")  # where the transfer definitions look (images/mkosi)
SYSUPDATE = "/usr/lib/systemd/systemd-sysupdate"
# FAT's own structures and the boot loader's entry tokens; an update must not fill the partition.
ESP_SPARE = 4 << 20
SYSUPDATE_S = 1800
_PARTS = ("efi", "root", "verity")
# The Discoverable Partitions Specification, x86-64.
_TYPES = {
    "root": "4f68bce3-e8cd-4db1-96e7-fbcaf984b709",
    "root-verity": "2c7357ed-ebd2-46d9-aec1-23d437ec2bf5",
}


def parts(at: Path) -> tuple[str, dict[str, Path]]:
    """The version that the directory holds and its three files; ConfigError if it is no update."""
    patterns = {
        "efi": r"openclaw_(.+)\.efi",
        "root": r"openclaw_(.+)\.root-x86-64\.[0-9a-f]{32}\.raw",
        "verity": r"openclaw_(.+)\.root-x86-64-verity\.[0-9a-f]{32}\.raw",
    }
    if not at.is_dir():
        raise ConfigError(f"DIR: {at}: a directory with an update (images/image makes them)")
    found: dict[str, tuple[str, Path]] = {}
    for path in sorted(at.iterdir()):
        for part, pattern in patterns.items():
            if match := re.fullmatch(pattern, path.name):
                if part in found:
                    raise ConfigError(
                        f"DIR: {at}: one version, not {found[part][1].name} and {path.name}")
                found[part] = (match[1], path)
    missing = [part for part in _PARTS if part not in found]
    versions = {version for version, _ in found.values()}
    if missing or len(versions) != 1:
        raise ConfigError(
            f"DIR: {at}: an update of one version (missing: {', '.join(missing) or 'none'}; "
            f"versions: {', '.join(sorted(versions)) or 'none'})")
    return versions.pop(), {part: path for part, (_, path) in found.items()}


def verify(at: Path, files: dict[str, Path]) -> None:
    """The files against SHA256SUMS; the root is checked again at every read, by dm-verity."""
    try:
        lines = (at / "SHA256SUMS").read_text().split("\n")
    except OSError:
        raise ConfigError(f"DIR: {at}: an update with its SHA256SUMS") from None
    sums = {name: digest for line in lines if line for digest, name in [line.split(maxsplit=1)]}
    for path in files.values():
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != sums.get(path.name):
                raise OpenClawError(f"{path}: damaged: its sum is not that of SHA256SUMS")


def newer(version: str, than: str) -> bool:
    """Numbers as numbers, as in 0.1.10 after 0.1.9."""
    def key(text: str) -> list[tuple[int, str]]:
        return [(int(part), "") if part.isdigit() else (-1, part)
                for part in re.split(r"[.+~-]", text)]

    return key(version) > key(than)


def refuse_unproven(running: slots.Entry) -> None:
    """Writing now would overwrite the only version that is known to work."""
    if running.counted:
        raise HostError(
            f"version {running.version} is on trial itself ({running.left} tries left): the other "
            "slot is the way back", fix="systemctl status openclaw-health.service")


def refuse_without_room(files: dict[str, Path], running: str, root: Path = Path("/")) -> None:
    """The slot's size, and the boot partition's once the oldest version is gone from it."""
    size = {part: path.stat().st_size for part, path in files.items()}
    for part, link in (("root", "root"), ("verity", "root-verity")):
        room = _partition_bytes(root, link)
        if room is not None and size[part] > room:
            raise HostError(f"{files[part].name} has {size[part]} bytes, the slot {room}",
                            fix="install the new image; the slots of this one are too small")
    at = slots.directory()
    if at is None:
        raise HostError("no boot partition at /efi or /boot", fix="systemctl start efi.automount")
    goes = sum(path.stat().st_size for path in at.iterdir()
               if (found := slots.entry(path.name)) and found.version != running)
    free = os.statvfs(at).f_bavail * os.statvfs(at).f_frsize
    if size["efi"] + ESP_SPARE > free + goes:
        raise HostError(
            f"{files['efi'].name} has {size['efi']} bytes, the boot partition {free} free",
            fix=f"remove what is not ours from {at}")


def _partition_bytes(root: Path, kind: str) -> int | None:
    """The size of the smallest partition of this kind, as udev names them."""
    found = []
    for path in sorted((root / "sys/class/block").glob("*/partition")):
        block = path.parent
        device = (block / "dev").read_text().strip()
        try:
            facts = (root / f"run/udev/data/b{device}").read_text()
        except OSError:
            continue
        if f"ID_PART_ENTRY_TYPE={_TYPES[kind]}" in facts:
            found.append(int((block / "size").read_text()) * 512)
    return min(found, default=None)


def install(directory: str) -> dict[str, Any]:
    """Writes the version in the directory into the other slot; it runs from the next boot on."""
    at = Path(directory)
    running = image.version()
    if running is None:
        raise HostError("this host is no OpenClaw image; its package is updated",
                        fix="apt-get install ./openclaw_*.deb")
    version, files = parts(at)
    if not newer(version, running):
        raise ConfigError(f"DIR: {at}: a version newer than {running}, not {version}")
    refuse_unproven(slots.running())
    refuse_without_room(files, running)
    verify(at, files)
    SOURCE.parent.mkdir(parents=True, exist_ok=True)
    SOURCE.unlink(missing_ok=True)
    SOURCE.symlink_to(at.resolve())
    # Before the first byte: a power cut in the middle must not leave a result of the update before.
    slots.write_state({"from": running, "to": version, "result": "written"})
    try:
        done = subprocess.run([SYSUPDATE, "update", version], capture_output=True, text=True,
                              timeout=SYSUPDATE_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostError(
            f"systemd-sysupdate: {error}", fix="apt-get install systemd-container") from None
    finally:
        SOURCE.unlink(missing_ok=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise OpenClawError(f"systemd-sysupdate: {reason}")
    return {"from": running, "to": version, "tries": 2, "next": "reboot"}
