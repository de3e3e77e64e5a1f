"""What a port does with holds past their quota and deadline: arguments, checked; tier and events.

Owns the mid tier of one port, made when the first packet needs it, and the log of what was done.
When that is, is decided by the compiled side (cython_ext/holding.pyx).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from appliance.dataplane import Endpoint
from appliance.errors import ConfigError
from appliance.limits import HOLD_MS_MAX, MID_CAP_MIB_MAX
from appliance.memory import EventLog, MidTier

POLICIES = ("reliable", "lossy", "strict")
CULPRIT = "this program"


@dataclass
class Holding:
    """The tier belongs to one port alone, so its cap is that port's; copies outlive the port."""

    quota_frames: int = 1024
    policy: str = "reliable"
    max_hold_ms: int | None = None
    mid_cap_mib: int = 64
    tier: MidTier | None = None
    events: EventLog = field(default_factory=EventLog)

    def __post_init__(self) -> None:
        if not isinstance(self.quota_frames, int) or self.quota_frames < 0:
            raise ConfigError(f"quota_frames: {self.quota_frames!r}: a number from 0 up")
        if self.policy not in POLICIES:
            raise ConfigError(f"policy: {self.policy!r}: one of {', '.join(POLICIES)}")
        if self.max_hold_ms is not None:
            if not 1 <= self.max_hold_ms <= HOLD_MS_MAX:
                raise ConfigError(f"max_hold_ms: {self.max_hold_ms!r}: 1 to {HOLD_MS_MAX}, or None")
            if self.policy == "strict":
                raise ConfigError("max_hold_ms: policy: reliable or lossy says what happens then")
        if not 2 <= self.mid_cap_mib <= MID_CAP_MIB_MAX:
            raise ConfigError(f"mid_cap_mib: {self.mid_cap_mib!r}: 2 to {MID_CAP_MIB_MAX}")

    def rule(self, endpoint: Endpoint) -> None:
        """The endpoint's holds follow this from now on."""
        deadline_ns = (self.max_hold_ms or 0) * 1_000_000
        endpoint.rule_holds(self.policy, self._spill, self._tell, deadline_ns)

    def _spill(self, nbytes: int) -> Any:
        if self.tier is None:
            self.tier = MidTier(self.mid_cap_mib)
        return self.tier.alloc(nbytes)

    def _tell(self, action: str, packets: int, age_ns: int) -> None:
        self.events.note(CULPRIT, action, packets, age_ns // 1_000_000)
