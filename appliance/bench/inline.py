"""Our inline count consumer as a peer: what the same packets cost without Python in the way.

The contestant of `bench python` and `bench share`; the load is the kernel's generator.
"""

from __future__ import annotations

import time

from appliance.bench import ours
from appliance.bench.figures import Sample
from appliance.bench.load import SETTLE_S, Blast
from appliance.net import Lab

INLINE = "inline-count"


class Inline:
    name = INLINE

    def __init__(self, lab: Lab, size: int, poll: str, case: str) -> None:
        self.lab, self.size, self.poll, self.case = lab, size, poll, case
        self.command = f"openclaw bench rx --size {size} --poll {poll} --load kernel"

    def measure(self, seconds: float) -> Sample:
        with (
            ours.Working([self.lab.b], "count", self.poll) as working,
            Blast(self.lab.a, self.size),
        ):
            time.sleep(SETTLE_S)
            return ours.window(working, seconds, self.case)
