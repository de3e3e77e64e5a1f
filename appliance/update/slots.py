"""What versions of the image are on this disk, which one runs, and what became of the last update.

Owns the reading of os-release, of the boot loader's entries (their names carry the tries left:
openclaw_1.2+1-1.efi has one left and one done), and one small file, /var/lib/openclaw/update.json,
which is all that it writes. On a host that is no image every question has an answer that says so.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OS_RELEASE = Path("/etc/os-release")
STATE = Path("/var/lib/openclaw/update.json")
MOTD = Path("/run/motd.d/openclaw")
ENTRIES = (Path("/efi/EFI/Linux"), Path("/boot/EFI/Linux"))
SELECTED = Path(
    "/sys/firmware/efi/efivars/LoaderEntrySelected-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f")
_ENTRY = re.compile(r"openclaw_(?P<version>[^+]+)(\+(?P<left>\d+)(-(?P<done>\d+))?)?\.efi")


@dataclass(frozen=True)
class Entry:
    """One version that the boot loader knows. `left` None: proven, not counted any more."""

    version: str
    left: int | None = None
    done: int = 0

    @property
    def counted(self) -> bool:
        return self.left is not None

    @property
    def spent(self) -> bool:
        """Tried as often as it may be, and never good."""
        return self.left == 0


def entry(name: str) -> Entry | None:
    """The entry that a file name of the boot partition stands for."""
    match = _ENTRY.fullmatch(name)
    if match is None:
        return None
    left = match["left"]
    return Entry(match["version"], None if left is None else int(left), int(match["done"] or 0))


def image_version(os_release: Path | None = None) -> str | None:
    """The version of the image that runs; None on any other host."""
    try:
        text = (os_release or OS_RELEASE).read_text()
    except OSError:
        return None
    values = dict(re.findall(r'^([A-Z_]+)="?([^"\n]*)"?$', text, re.M))
    return values.get("IMAGE_VERSION") if values.get("IMAGE_ID") == "openclaw" else None


def directory() -> Path | None:
    """Where the boot loader's entries are; the automount answers when it is asked."""
    return next((at for at in ENTRIES if at.is_dir()), None)


def entries(at: Path | None = None) -> list[Entry]:
    """Every version on the boot partition."""
    at = at or directory()
    names = sorted(os.listdir(at)) if at else []
    return [found for name in names if (found := entry(name))]


def running() -> Entry:
    """The version that runs, with its tries as they are on the disk now."""
    version = image_version() or ""
    for found in entries():
        if found.version == version:
            return found
    return Entry(version)


def read_state(path: Path | None = None) -> dict[str, Any]:
    """What is known of the last update; empty before the first."""
    try:
        found = json.loads((path or STATE).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_state(state: dict[str, Any], path: Path | None = None) -> None:
    """Whole or not at all: the power may go at any moment, here more than elsewhere."""
    path = path or STATE
    new = path.with_suffix(".new")
    with new.open("w") as file:
        json.dump(state, file)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def note_boot(good: bool) -> None:
    """What this boot says of the last update: kept, rolled back, or still on trial."""
    version, state = image_version(), read_state()
    wanted = state.get("to")
    if version is None or wanted is None:
        return
    if version == wanted:
        state["result"] = "kept" if good else "on trial"
    elif any(found.version == wanted and found.spent for found in entries()):
        state["result"] = "rolled back"
    write_state(state)
    if state.get("result") == "rolled back":
        MOTD.parent.mkdir(parents=True, exist_ok=True)
        MOTD.write_text(f"Version {wanted} failed its health gate and was rolled back; "
                        f"{version} runs. See: journalctl -u openclaw-health\n")
