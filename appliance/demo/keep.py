"""`demo --keep DIR`: what the demo receives, recorded by the recorder of a running appliance.

Owns one recording for the length of a demo. Batches come from the demo's own loop instead of a
worker; blocks, writer and log are the same. Here nothing is lost for want of memory: the loop waits
for the disk, since it is its own sender.
"""

from __future__ import annotations

import time
from typing import Any

from appliance.dataplane import Batch
from appliance.errors import PortError
from appliance.memory import MidTier
from appliance.record.recording import Recording
from appliance.record.settings import LogPort, Settings

MEMORY_MIB = 32
ROOM_BLOCKS = 4  # of 64 KiB: a batch of 64 jumbo packets may need more than one
WAIT_S = 30.0


class Keep:
    """`Keep(directory, port name, interface)`: take() each batch, then end()."""

    def __init__(self, directory: str, name: str, interface: str) -> None:
        tier = MidTier(2 * MEMORY_MIB, "off")
        settings = Settings((directory,), memory_mib=MEMORY_MIB)
        self._recording = Recording(settings, tier, [LogPort(0, name, interface)], "demo")
        self._spool = self._recording.spool()
        self._recording.start()

    def take(self, batch: Batch) -> None:
        until = time.monotonic() + WAIT_S
        while self._spool.room < ROOM_BLOCKS:
            if time.monotonic() > until:
                reasons = "; ".join(self._recording.reasons()) or "the disk takes nothing"
                raise PortError(f"--keep: {reasons}")
            time.sleep(0.0005)
        self._spool.add(batch)

    def end(self) -> dict[str, Any]:
        """Sealed; the account of it."""
        return self._recording.stop()

    def __enter__(self) -> Keep:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
