"""What one recorder is asked to do, and how it stands: the words shared by its parts.

Owns two plain records; nothing here touches a device.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

from appliance.errors import ConfigError


@dataclass(frozen=True)
class Settings:
    """A [[consumer]] table of kind record, as the recorder wants it."""

    directories: tuple[str, ...]
    segment_mib: int = 64
    limit_mib: int = 0  # of all directories together; 0: no limit
    max_age_s: float = 0
    commit_ms: int = 50
    commit_kib: int = 1024
    memory_mib: int = 64
    snap_bytes: int = 0
    flow_bytes: int = 0
    window_s: float = 0
    engine: str = "auto"  # auto | io_uring | threads
    hang_s: float = 5.0  # a disk that answers nothing for so long is out


@dataclass(frozen=True)
class LogPort:
    """A port as the log names it."""

    number: int
    name: str
    interface: str
    link_type: int = 1  # Ethernet


_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def duration(text: str) -> float:
    """Seconds of "30s", "500ms", "2m", "1h"."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h)", text.strip())
    if match is None:
        raise ConfigError(f"--last: {text!r}: a number with ms, s, m or h, such as 30s")
    return float(match[1]) * _UNITS[match[2]]


def clock_offset_ns() -> int:
    """CLOCK_REALTIME less CLOCK_MONOTONIC: the narrowest of some samples."""
    best = None
    for _ in range(16):
        before = time.monotonic_ns()
        wall = time.time_ns()
        after = time.monotonic_ns()
        if best is None or after - before < best[0]:
            best = (after - before, wall - (before + after) // 2)
    assert best is not None
    return best[1]
