"""A contest: contestants that are measured in turn, within one run, as often as was asked.

Owns the alternation. A contestant is anything with a name, the exact command that repeats it, and
`measure(seconds)`, which brings its process up, takes a Sample and takes everything down again: two
of them never stand on the same interface at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from appliance.bench import figures
from appliance.bench.figures import OURS, Case, Sample


class Contestant(Protocol):
    name: str  # OURS, or the peer's
    command: str

    def measure(self, seconds: float) -> Sample: ...


@dataclass
class Options:
    """What the command line asks of any benchmark."""

    against: Sequence[str] | None = None  # None: every peer that is installed
    reps: int = 5
    seconds: float = 1.0
    sizes: Sequence[int] = (64, 1514)
    loads: Sequence[str] = ("afxdp",)  # of rx and forward: load.LOADS
    progress: Callable[[str], None] = lambda text: None
    absent: dict[str, str] = field(default_factory=dict)  # peer -> how to get it; filled as we go

    def wants(self, peer: str, missing: str = "") -> bool:
        """Is this peer to be measured? One that is not installed is remembered as absent."""
        if self.against is not None and peer not in self.against:
            return False
        if missing:
            self.absent[peer] = missing
        return not missing


def compete(
    cases: Sequence[Case],
    contestants: Sequence[Contestant],
    options: Options,
    notes: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Measures all contestants in turn, `reps` times, every second time in reverse order.

    Reversal takes away what comes with time alone: a machine that grows warm or busy would
    otherwise always favour the same side of each pair.
    """
    samples: dict[str, list[Sample]] = {one.name: [] for one in contestants}
    assert OURS in samples
    for turn in range(options.reps):
        order = contestants if turn % 2 == 0 else list(reversed(contestants))
        for one in order:
            options.progress(f"{cases[0].name}: {one.name} {turn + 1}/{options.reps}")
            samples[one.name].append(one.measure(options.seconds))
    commands = {one.name: one.command for one in contestants}
    return [figures.result(case, samples, commands, notes) for case in cases]
