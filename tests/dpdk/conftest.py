"""DPDK for the tests: started once in this process, or a skip that names what is missing."""

from __future__ import annotations

import pytest

from appliance.dataplane import dpdk
from appliance.errors import HostError


def missing() -> str:
    """Why there is no DPDK here; empty if there is."""
    try:
        dpdk()
    except HostError as error:
        return str(error)
    return ""


@pytest.fixture(scope="session")
def library():
    """The compiled modules, with EAL running: it stays, with its descriptors, until the end."""
    if missing():
        pytest.skip(f"probe dpdk: {missing()}")
    dpdk().eal.start()
    return dpdk()
