"""What every test may ask for: a lab, captures, probes of the host, and proof of cleanliness.

Owns the fixtures and the counting around each root test. Two runs of the suite may go on at once
on one host, so only what belongs to this process and to this process's names is compared.

OPENCLAW_CAPTURES names another folder of captures; OPENCLAW_FULL=1 asks for the long forms.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CAPTURES = Path(os.environ.get("OPENCLAW_CAPTURES", ROOT.parent / "shared" / "captures"))

# For `tests.probes`. At the end: in front, the sources would hide a compiled build (tools/debug).
sys.path.append(str(ROOT))
pytest_plugins = ["tests.probes"]


@pytest.fixture
def lab():
    """Two namespaces and a veth pair with two queues, removed after the test."""
    from appliance.net import Lab

    with Lab.temporary(queues=2) as made:
        yield made


@pytest.fixture(scope="session")
def captures() -> Path:
    """The folder of real captures; skips by name where it is absent."""
    if not CAPTURES.is_dir():
        pytest.skip(f"no captures at {CAPTURES} (OPENCLAW_CAPTURES names another folder)")
    return CAPTURES


def capture_files() -> list[Path]:
    """Every capture file, in a fixed order; empty where there are none."""
    return sorted(
        path for path in CAPTURES.rglob("*") if path.suffix in (".pcap", ".pcapng", ".trace")
    )


def ethernet_captures() -> list[Path]:
    """The capture files whose link type is Ethernet, told from their headers alone."""
    from tests.probes import link_type

    return [path for path in capture_files() if link_type(path) == 1]


class Belongings:
    """What this process has at this moment, by kind."""

    def __init__(self) -> None:
        from appliance.net import namespaces
        from tests.probes import bpf_objects_of_this_process

        self.descriptors = _descriptors()
        self.namespaces = {name for name in namespaces() if str(os.getpid()) in name}
        self.bpf = bpf_objects_of_this_process()
        self.journal = {
            path.name for path in Path("/run/openclaw/journal").glob(f"{os.getpid()}-*.json")
        }

        self.hugetlb_kib = _hugetlb_kib()

    def beyond(self, before: Belongings) -> dict[str, object]:
        """What is here now and was not before."""
        more: dict[str, object] = {
            kind: sorted(map(str, extra))
            for kind in ("descriptors", "namespaces", "bpf", "journal")
            if (extra := set(vars(self)[kind]) - set(vars(before)[kind]))
        }
        if self.hugetlb_kib > before.hugetlb_kib:
            more["hugetlb_kib"] = self.hugetlb_kib - before.hugetlb_kib
        return more


def _hugetlb_kib() -> int:
    """Hugepages that this process has mapped; the system's count belongs to everybody."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("HugetlbPages:"):
            return int(line.split()[1])
    return 0


def _descriptors() -> dict[tuple[int, str], None]:
    """Descriptors with what they lead to, because a number alone is reused."""
    found = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            found[(int(number), os.readlink(f"/proc/self/fd/{number}"))] = None
        except OSError:
            continue  # the one that listed the directory
    return found


@pytest.fixture(autouse=True)
def nothing_left_behind(request):
    """Around each root test: no descriptor, namespace, BPF object or journal entry is left."""
    if request.node.get_closest_marker("root") is None or os.geteuid() != 0:
        yield
        return
    gc.collect()
    before = Belongings()
    yield
    # The kernel frees BPF objects after a grace period; a second is ten times what it takes.
    deadline = time.monotonic() + 1.0
    while True:
        gc.collect()
        left = Belongings().beyond(before)
        if not left or time.monotonic() > deadline:
            break
        time.sleep(0.02)
    assert not left, f"left behind: {left}"


def pytest_collection_modifyitems(items):
    """A test that asks for a lab is a root test; without root it is skipped by name."""
    for item in items:
        if "lab" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.root)
        if item.get_closest_marker("root") is not None and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="probe root: not root"))
