"""Probes: what this host can do, each tried for real once, each skip naming the probe.

Use as fixtures (`needs_native_xdp`, ...) or call the functions. Also the readers of the host that
the fixtures compare with: BPF objects held by this process, link types of capture files.
"""

from __future__ import annotations

import functools
import os
import shutil
import socket
import struct
import subprocess
from pathlib import Path

import pytest


def bpf_objects_of_this_process() -> set[str]:
    """BPF programs, maps and links that our descriptors hold, as `prog 12`, `map 3`, `link 7`."""
    found = set()
    for number in os.listdir("/proc/self/fdinfo"):
        try:
            lines = Path(f"/proc/self/fdinfo/{number}").read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            key, _, value = line.partition(":")
            if key in ("prog_id", "map_id", "link_id"):
                found.add(f"{key[:-3]} {value.strip()}")
    return found


def link_type(path: Path) -> int | None:
    """The (first) link type of a pcap or pcapng file; None for anything else."""
    with path.open("rb") as file:
        head = file.read(65536)
    for order in "<>":
        if len(head) >= 24 and struct.unpack_from(order + "I", head)[0] in (
            0xA1B2C3D4,
            0xA1B23C4D,
        ):
            return struct.unpack_from(order + "I", head, 20)[0] & 0xFFFF
        if head[:4] == b"\n\r\r\n" and head[8:12] == struct.pack(order + "I", 0x1A2B3C4D):
            at = 0
            while at + 12 <= len(head):
                kind, size = struct.unpack_from(order + "II", head, at)
                if kind == 1:
                    return struct.unpack_from(order + "H", head, at + 8)[0]
                at += max(size, 12)
    return None


@functools.cache
def xdp_socket() -> str:
    """Empty if an AF_XDP socket can be made, else why not."""
    try:
        socket.socket(44, socket.SOCK_RAW, 0).close()
    except OSError as error:
        return error.strerror or "AF_XDP"
    return ""


@functools.cache
def network_namespaces() -> str:
    """Empty if namespaces and veth pairs can be made, else why not."""
    from appliance.errors import OpenClawError
    from appliance.net import Lab

    try:
        with Lab.temporary():
            return ""
    except (OpenClawError, OSError) as error:
        return str(error)


@functools.cache
def hugepages_free() -> int:
    """Free 2 MiB pages now."""
    try:
        return int(
            Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages").read_text()
        )
    except OSError:
        return 0


@functools.cache
def tool(name: str) -> str:
    """Empty if the program answers, else why not."""
    if shutil.which(name) is None:
        return f"{name} is not installed"
    return "" if subprocess.run([name, "--version"], capture_output=True).returncode < 126 else name


def _need(name: str, reason: str) -> None:
    if reason:
        pytest.skip(f"probe {name}: {reason}")


@pytest.fixture
def needs_xdp_socket() -> None:
    _need("xdp_socket", xdp_socket())


@pytest.fixture
def needs_namespaces() -> None:
    _need("network_namespaces", network_namespaces())


@pytest.fixture
def needs_tcpdump() -> None:
    _need("tcpdump", tool("tcpdump"))


@pytest.fixture
def needs_bpftool() -> None:
    _need("bpftool", tool("bpftool"))
