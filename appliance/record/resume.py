"""Where a log ended: recovered first, so that a recording goes on behind the last whole record.

Owns the step between recovery and recorder, nothing of either. A damaged log is not gone on with:
what follows the damage would be taken for its end.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from appliance.dataplane import log_writer
from appliance.errors import LogDamaged
from appliance.record.recover import recover
from appliance.record.store import Store
from appliance.record.verify import examine

process_start = log_writer.process_start


@dataclass(frozen=True)
class Resume:
    """What goes on from segment to segment, and what recovery said."""

    uuid: bytes
    next_index: int = 0
    next_seq: int = 1
    chain: int = 0
    report: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def begin(cls) -> Resume:
        """A new log."""
        return cls(secrets.token_bytes(16))


def resume(paths: Sequence[str]) -> Resume:
    """Recovers the log in these places; where it goes on. LogDamaged: it holds damage."""
    store = Store(paths)
    told = recover(store)
    if told["state"] == "damaged":
        raise LogDamaged(
            f"{store.name}: {told['cause']}; nothing is appended to a damaged log: "
            "move it away, or give another directory"
        )
    found = examine(store)
    headers = [facts.header for facts in found.facts if facts.header is not None]
    if not headers:
        return Resume(secrets.token_bytes(16), report=told)
    verdict = found.verdict
    uuid = bytes.fromhex(headers[0]["uuid"].replace("-", ""))
    return Resume(uuid, verdict.next_index, verdict.next_seq, verdict.chain, told)
