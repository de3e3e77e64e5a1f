"""The demo: real captures over a veth pair, steered by XDP, received in UMEM, verified, accounted.

`run` is all of it, for the command and for the tests. traffic.py decides what is sent and what has
to arrive; rig.py owns namespaces and ports; exchange.py sends and checks; accounts.py judges.
sample.pcap is the capture of the demo without --pcap (make_sample.py made it).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from appliance.capture import Capture, ethernet_only
from appliance.demo import accounts
from appliance.demo.exchange import Exchange, Latencies
from appliance.demo.keep import Keep
from appliance.demo.rig import Rig
from appliance.demo.traffic import RULES, prepare

SAMPLE = Path(__file__).with_name("sample.pcap")
QUEUES = 2

__all__ = ["QUEUES", "RULES", "SAMPLE", "run"]


def run(
    captures: Sequence[Capture],
    *,
    repeat: int = 1,
    rate: float | None = None,
    keep: str | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Replays the captures one after the other, each `repeat` times, at `rate` packets a second.

    `keep` is a directory that the recording is left in. The result has the contract's names; its
    "faults" are empty if everything holds. ConfigError for
    a capture that is not Ethernet, before anything is set up. Nothing is left behind in any case.
    """
    for capture in captures:
        ethernet_only(capture)
    longest = max((int(capture.lengths.max()) for capture in captures if len(capture)), default=0)
    latencies = Latencies()
    entries: list[dict[str, Any]] = []
    done = 0
    with Rig(RULES, longest, QUEUES) as rig, _kept(keep, rig) as kept:
        before = rig.figures()
        for capture in captures:
            traffic = prepare(capture, longest=rig.longest, queues=QUEUES, repeat=repeat,
                              longest_reason=rig.longest_reason)
            exchange = Exchange(rig.sender, rig.receiver, traffic, latencies, rate=rate,
                                keep=kept.take if kept is not None else None)
            outcome = exchange.run(_after(done, progress))
            done += outcome.sent
            after = rig.figures()
            entries.append(accounts.entry(traffic, outcome, before, after))
            before = after
        matches = {number: rule.match for number, rule in rig.receiver.rules}
        recorded = kept.end() if kept is not None else None
        figures = rig.close()
        return accounts.result(entries, figures, latencies.summary(), matches, rig.reasons,
                               recorded)


def _kept(directory: str | None, rig: Rig) -> contextlib.AbstractContextManager[Keep | None]:
    """The recording, which ends with its context whatever happens in it."""
    if directory is None:
        return contextlib.nullcontext()
    return Keep(os.path.abspath(directory), "demo", rig.lab.b.interface)


def _after(done: int, progress: Callable[[int], None]) -> Callable[[int], None]:
    """Progress of one capture as progress of all."""
    return lambda sent: progress(done + sent)
