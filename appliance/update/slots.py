"""What versions of the image are on this disk, which one runs, and what became of the last update.

Owns the reading of the boot loader's entries (their names carry the tries left:
openclaw_1.2+1-1.efi has one left and one done) and the writing of image.STATE, which is all that
it writes. On a host that is no image every question has an answer that says so.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance import image

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
    version = image.version() or ""
    for found in entries():
        if found.version == version:
            return found
    return Entry(version)


def write_state(state: dict[str, Any]) -> None:
    """Whole or not at all: the power may go at any moment, here more than elsewhere."""
    path = image.STATE
    new = path.with_suffix(".new")
    with new.open("w") as file:
        json.dump(state, file)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def note_boot(good: bool) -> None:
    """What this boot says of the last update: kept, rolled back, or still on trial."""
    version, state = image.version(), image.last_update()
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
