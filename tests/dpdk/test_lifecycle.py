"""A DPDK port begins and ends: nothing stays, nothing is taken that was not given, errors are one
line. What must be counted for a whole process is counted in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import appliance
from appliance.dpdk.device import check, is_pci
from tests.engine.support import FULL

ROOT = Path(__file__).resolve().parents[2]
CYCLES = 1000 if FULL else 20
BLOCKED = """
import sys
sys.modules["cython_ext.dpdk_eal"] = None  # what a build without DPDK looks like
import appliance
appliance.open_port(backend="loop").close()
appliance.open_port(backend="dpdk", device="net_null0", match="")
"""

SIGNALS = """
import os
import appliance

def taken():
    caught = int(open("/proc/self/status").read().split("SigCgt:")[1].split()[0], 16)
    return caught & 0x7fffffff, os.sched_getaffinity(0)  # those above are the C library's

before = taken()
with appliance.open_port(backend="dpdk", device="net_null0", match=""):
    assert taken() == before
    tasks = os.listdir("/proc/self/task")
    names = {open(f"/proc/self/task/{task}/comm").read().strip() for task in tasks}
    assert not any(word in name for name in names for word in ("worker", "telemetry")), names
"""


def python(*words: str, seconds: float = 280, **more) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=seconds, cwd=ROOT, **more
    )


def open_null(**more):
    return appliance.open_port(backend="dpdk", device="net_null0", match="", **more)


def test_starting_and_stopping_over_and_over_leaves_nothing(library):
    done = python("-m", "tests.dpdk.cycles", str(CYCLES))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    before, after = found["before"], found["after"]
    assert after["files"] == []
    for what in ("descriptors", "threads", "hugetlb_kib"):
        assert after[what] == before[what], (what, found)
    # 64 bytes forgotten in each cycle would be seen in 1,000; a mapping in 20.
    assert after["maps"] <= before["maps"] + 8, found
    assert after["rss_kib"] <= before["rss_kib"] + 2048, found


def test_dpdk_takes_no_signal_no_core_and_no_terminal(library):
    done = python("-c", SIGNALS)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_build_without_dpdk_works_and_says_how_to_get_it():
    done = python("-c", BLOCKED)
    line = done.stderr.strip().splitlines()[-1]
    assert "HostError" in line and "apt-get install libdpdk-dev" in line, done.stderr


@pytest.mark.parametrize(
    ("device", "error", "words"),
    [
        ("nonsense", appliance.ConfigError, "PCI address"),
        ("net_null", appliance.ConfigError, "with its number"),
        ("net_nothing0", appliance.ConfigError, "no such driver"),
        ("net_null0,nonsense=1", appliance.PortError, "net_null0"),
        ("net_pcap0,rx_pcap=/nowhere/x", appliance.PortError, "/nowhere/x"),
        ("net_af_xdp0,iface=oc-absent", appliance.PortError, "oc-absent"),
    ],
)
def test_a_device_that_cannot_be_is_one_line(library, device, error, words):
    with pytest.raises(error, match=words) as caught:
        appliance.open_port(backend="dpdk", device=device, match="")
    assert len(str(caught.value).splitlines()) == 1


def test_a_pci_device_after_others_is_refused_with_the_reason(library):
    with pytest.raises(appliance.PortError, match="before any other DPDK port"):
        appliance.open_port(backend="dpdk", device="0000:ff:1f.7", match="")


def test_device_strings_are_told_apart():
    assert is_pci("0000:03:00.0") and is_pci("03:00.1,arg=1") and not is_pci("net_null0")
    for good in ("net_null0", "net_af_xdp12,iface=eth0,start_queue=1", "0000:3b:00.0"):
        check(good)


def test_a_device_is_one_ports_until_that_is_closed(library):
    with (open_null(frames=256) as port,
          pytest.raises(appliance.PortError, match="open already")):
        open_null(frames=256)
    assert port.ledger()["leaked"] == 0
    open_null(frames=256).close()


def test_a_port_that_is_forgotten_unplugs_its_device(library):
    port = open_null(frames=256)
    del port
    open_null(frames=256).close()


def test_too_few_frames_for_the_driver_are_refused_before_it_fails(library, lab):
    with pytest.raises(appliance.ConfigError, match="posted"):
        appliance.open_port(
            backend="dpdk", device=f"net_af_xdp0,iface={lab.b.interface}", netns=lab.b.netns,
            match="", frames=1024,
        )


def test_a_frame_that_is_too_small_for_the_mtu_is_refused(library, lab):
    with pytest.raises(appliance.ConfigError, match="MTU 1500"):
        appliance.open_port(
            backend="dpdk", device=f"net_af_xdp0,iface={lab.b.interface}", netns=lab.b.netns,
            match="", frame_bytes=2048,
        )


def test_the_interface_is_promiscuous_only_while_the_port_is_open(library, lab):
    from appliance.net import in_netns

    def flags() -> int:
        return int(in_netns(lab.b.netns, Path(
            f"/sys/class/net/{lab.b.interface}/flags").read_text), 16) & 0x100

    assert not flags()
    with appliance.open_port(backend="dpdk", device=f"net_af_xdp0,iface={lab.b.interface}",
                             netns=lab.b.netns, match="") as port:
        assert flags() and port.info["promiscuous"]
    assert not flags()


def test_closing_ends_a_receiver_that_waits_in_another_thread(library):
    port = appliance.open_port(backend="dpdk", device="net_ring0", match="", frames=256)
    counts = []

    def wait() -> None:
        counts.append(sum(len(batch) for batch in port.recv(timeout_ms=None)))

    thread = threading.Thread(target=wait)
    thread.start()
    port.close()
    thread.join(10)
    assert counts == [0]


def test_the_conformance_tests_of_a_port_in_memory_hold_over_dpdk(library):
    """Batches, frames, views, holds, quota, copy-out and the model: tests/dataplane/ports.py."""
    done = python(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/dataplane/test_batches.py",
        "tests/dataplane/test_model.py", "tests/memory/test_escape.py",
        env={**os.environ, "OPENCLAW_TEST_PORT": "dpdk"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert "passed" in done.stdout and "skipped" not in done.stdout, done.stdout[-500:]


def test_an_interrupt_ends_the_wait_on_a_device(library):
    with appliance.open_port(backend="dpdk", device="net_ring0", match="", frames=256) as port:
        timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            next(port.recv(timeout_ms=20_000))
        timer.join()
