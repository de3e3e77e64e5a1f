"""The port in memory that the conformance tests run over: what is sent comes back.

OPENCLAW_TEST_PORT names the back-end: loop, or dpdk (a net_ring device: DPDK's drivers, mempool and
rules, and no network). The expectations are the same. tests/dpdk runs these tests over DPDK.
"""

from __future__ import annotations

import os

import appliance

BACKEND = os.environ.get("OPENCLAW_TEST_PORT", "loop")


def open_memory_port(**options):
    if BACKEND == "loop":
        return appliance.open_port("loop", **{"backend": "loop", **options})
    # The first name that is free: net_ring keeps some memory for each name that it has ever had.
    for number in range(64):
        words = {"backend": "dpdk", "device": f"net_ring{number}", "match": ""}
        try:
            return appliance.open_port(**{**words, **options})
        except appliance.PortError as error:
            if "open already" not in str(error):
                raise
    raise AssertionError("64 ports are open")
