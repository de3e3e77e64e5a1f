"""What this host has and lacks for the appliance, each finding with the command that mends it.

Owns the questions; changes nothing. A check never raises: a question that cannot be answered is a
finding too.

    check.py      what a finding is, and how a check is run
    host.py       kernel, BPF, libraries, limits, processors
    memory.py     hugepages, NUMA, locked memory
    port.py       one interface: queues, rings, offloads, MTU, programs
"""

from __future__ import annotations

from appliance.doctor.check import Finding, report, run
from appliance.doctor.host import CHECKS as HOST_CHECKS
from appliance.doctor.memory import CHECKS as MEMORY_CHECKS
from appliance.doctor.port import examine_interface

__all__ = ["Finding", "examine"]


def examine(interface: str | None = None, netns: str | None = None) -> dict[str, object]:
    """All findings as {"checks": [{"name", "state", "found", "fix"}], "ok"}.

    `ok` says that nothing failed; a warning is something to know, not something that stops.
    """
    findings = run(*HOST_CHECKS, *MEMORY_CHECKS)
    if interface is not None:
        findings += examine_interface(interface, netns)
    return report(findings)
