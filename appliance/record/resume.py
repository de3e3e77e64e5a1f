"""Where a log ended: recovered first, so that a recording goes on behind the last whole record.

Owns the step between recovery and recorder, nothing of either.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Resume:
    """What goes on from segment to segment."""

    uuid: bytes
    next_index: int = 0
    next_seq: int = 1
    chain: int = 0


def resume(paths: Sequence[str]) -> Resume:
    return Resume(secrets.token_bytes(16))


def process_start(pid: int) -> int:
    """Start time of a process as the kernel counts it: a pid alone is used again."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0
