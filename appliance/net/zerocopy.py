"""Where AF_XDP zero-copy is known to be good: a table of drivers and kernels, with the reasons.

Owns the judgement that `mode = "auto"` asks for. Asking for zero-copy by name is always possible;
this table only says when we do it unasked. A driver that is not in it counts as unknown, and
unknown means copy mode: a copy costs some nanoseconds, a driver bug costs the host.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """Whether to use zero-copy unasked, and why (not)."""

    good: bool
    reason: str


# driver -> (oldest good kernel or None for never, reason)
_TABLE: dict[str, tuple[tuple[int, int] | None, str]] = {
    # Two guests of this project's own tests: every frame of 1,000 came through and byte for byte;
    # 6.12 answers EOPNOTSUPP, and without iommu_platform=on the bind fails with EINVAL.
    "virtio_net": ((7, 2), "works from 7.2 on with iommu_platform=on; older kernels refuse"),
    # In daily use on public validators for years: firedancer-io/firedancer,
    # src/app/shared/fd_config_auto.c, which keeps a list like this one.
    "mlx5_core": ((6, 1), "in wide use elsewhere from 6.1 on"),
    "i40e": ((6, 1), "in wide use elsewhere from 5.19 on; 6.1 is our oldest kernel"),
    # netdev 2026-05-12, "remote kernel memory corruption", and intel/ethernet-linux-ice issue 59.
    "ice": (None, "memory corruption reported in 2026 (firedancer-io/firedancer PR 11245)"),
    # amzn/amzn-drivers issue 330: frames overwritten under load.
    "ena": (None, "frames overwritten under load (amzn/amzn-drivers issue 330)"),
    "veth": (None, "veth has no zero-copy"),
}


def verdict(driver: str | None, kernel: tuple[int, int] | None = None) -> Verdict:
    """Whether zero-copy is known to be good for the driver on the kernel (default: this one)."""
    running = kernel or running_kernel()
    if driver not in _TABLE:
        return Verdict(False, f"driver {driver or 'unknown'} is not on the list of known good ones")
    oldest, reason = _TABLE[driver]
    if oldest is None:
        return Verdict(False, reason)
    return Verdict(running >= oldest, f"{driver}: {reason}")


def running_kernel(release: str | None = None) -> tuple[int, int]:
    """(major, minor) of the running kernel."""
    match = re.match(r"(\d+)\.(\d+)", release or os.uname().release)
    return (int(match[1]), int(match[2])) if match else (0, 0)
