"""Tests inside the booted image. Collected only by images/vm-test, which says which image it is.

Owns the guests: one is booted once and shared by the tests that change nothing; a test that cuts
the power or boots again gets its own. Serial logs stay in build/vm when a test failed.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
IMAGE = os.environ.get("OPENCLAW_VM_IMAGE")
WORK = ROOT / "build/vm"
if IMAGE is None:
    collect_ignore_glob = ["*"]  # hours of emulation are nothing for `make test`
else:
    from devices import Nic, Node
    from machine import Machine


def pytest_configure(config):
    config.addinivalue_line("markers", "full: only with FULL=1")


def pytest_collection_modifyitems(items):
    for item in items:
        item.add_marker(pytest.mark.timeout(3600))
        if item.get_closest_marker("full") and not os.environ.get("OPENCLAW_FULL"):
            item.add_marker(pytest.mark.skip(reason="probe OPENCLAW_FULL: not set (FULL=1)"))


@pytest.fixture(scope="session")
def image() -> Path:
    return Path(IMAGE)


@pytest.fixture
def new_machine(image, request):
    """A function that makes a guest of the test's own; all end with the test."""
    made = []

    def make(**kwargs) -> Machine:
        name = f"{request.node.name[:48]}-{len(made)}"
        made.append(Machine(image, WORK / name, name=name, **kwargs))
        return made[-1]

    yield make
    for machine in made:
        machine.stop()
        if not request.session.testsfailed:
            shutil.rmtree(machine.work, ignore_errors=True)


@pytest.fixture(scope="session")
def guest(image, request):
    """The shared guest: two NUMA nodes, two data NICs back to back."""
    work = WORK / "guest"
    shutil.rmtree(work, ignore_errors=True)
    nodes = [Node((0,), 1536), Node((1,), 1536)]
    with Machine(image, work, name="guest", nodes=nodes, nics=[Nic(hub=7), Nic(hub=7)]) as machine:
        seconds = machine.boot()
        print(f"\nguest up in {seconds:.0f} s ({machine.accelerator})")
        yield machine
    if not request.session.testsfailed:
        shutil.rmtree(work, ignore_errors=True)


@pytest.fixture
def ask(guest):
    """openclaw ... --json in the shared guest, as an object."""

    def run(command: str, wait_s: float = 600):
        return json.loads(guest.run(f"openclaw {command} --json", wait_s).stdout)

    return run
