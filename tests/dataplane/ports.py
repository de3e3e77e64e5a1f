"""The port in memory that the conformance tests run over: what is sent comes back.

OPENCLAW_TEST_PORT names the back-end: loop, or dpdk (a net_ring device: DPDK's drivers, mempool and
rules, and no network). The expectations are the same. tests/dpdk runs these tests over DPDK.
"""

from __future__ import annotations

import itertools
import os

import appliance

BACKEND = os.environ.get("OPENCLAW_TEST_PORT", "loop")
_numbers = itertools.count()


def open_memory_port(**options):
    if BACKEND == "loop":
        return appliance.open_port("loop", **{"backend": "loop", **options})
    device = f"net_ring{next(_numbers)}"
    return appliance.open_port(**{"backend": "dpdk", "device": device, "match": "", **options})
