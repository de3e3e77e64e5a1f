"""Whether this host is the project's image, of which version, and what became of the last update.

Owns the reading of os-release and of STATE, which appliance.update writes. Statistics and metrics
show it; on any other host there is nothing to show. Standard library only.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

OS_RELEASE = Path("/etc/os-release")
STATE = Path("/var/lib/openclaw/update.json")


def version() -> str | None:
    """The version of the image that runs; None on any other host."""
    try:
        text = OS_RELEASE.read_text()
    except OSError:
        return None
    values = dict(re.findall(r'^([A-Z_]+)="?([^"\n]*)"?$', text, re.M))
    return values.get("IMAGE_VERSION") if values.get("IMAGE_ID") == "openclaw" else None


def last_update() -> dict[str, Any]:
    """{"from", "to", "result"} of the last update; empty before the first."""
    try:
        found = json.loads(STATE.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def facts() -> dict[str, Any]:
    """What statistics show: {"image": {"version", "update"}} in the image, nothing elsewhere."""
    running = version()
    return {} if running is None else {"image": {"version": running, "update": last_update()}}
