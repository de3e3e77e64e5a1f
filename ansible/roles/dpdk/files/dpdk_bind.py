#!/usr/bin/env python3
"""Binds listed PCI network devices to a user-space driver, and refuses those that carry management.

Owns the judgement `objections` and the writes to driver_override; it runs on any Debian with the
standard library alone. A device is refused when any of its interfaces is up with an address, has
the default route, belongs to a bridge or bond, or is the one that this connection arrives at.
Refused means exit status 1 and nothing bound, not even the others of the list.

    dpdk_bind.py --look [--connection ADDRESS] DEVICE...     only judge
    dpdk_bind.py --config FILE                               judge, then bind
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

PCI = Path("/sys/bus/pci/devices")


def interfaces(device: str, sys_pci: Path = PCI) -> list[str]:
    """Network interfaces of a device; virtio has its own directory in between."""
    at = sys_pci / device
    return sorted(path.name for pattern in ("net/*", "virtio*/net/*") for path in at.glob(pattern))


def objections(
    names: list[str], links: list[dict], routes: list[dict], connection: str
) -> list[str]:
    """Why the device with these interfaces must not be taken; empty when it may.

    `links` and `routes` are those of `ip -j address` and `ip -j route show default`.
    """
    found = []
    for link in links:
        if link["ifname"] not in names:
            continue
        addresses = [one["local"] for one in link.get("addr_info", [])]
        # An address that IPv6 gave itself says nothing about who uses the interface.
        given = [one["local"] for one in link.get("addr_info", []) if one.get("scope") != "link"]
        if connection in addresses:
            found.append(f"{link['ifname']} carries this connection ({connection})")
        elif given:
            found.append(f"{link['ifname']} has the address {given[0]}")
        if link.get("master"):
            found.append(f"{link['ifname']} belongs to {link['master']}")
    taken = [route["dev"] for route in routes if route.get("dev") in names]
    found += [f"{name} has the default route" for name in taken]
    return found


def ip(*arguments: str) -> list[dict]:
    done = subprocess.run(["ip", "-j", *arguments], capture_output=True, text=True, check=True)
    return json.loads(done.stdout or "[]")


def judge(devices: list[str], connection: str) -> list[str]:
    links = ip("address")
    routes = ip("route", "show", "default") + ip("-6", "route", "show", "default")
    refused = []
    for device in devices:
        if not (PCI / device).exists():
            refused.append(f"{device}: no such PCI device")
        reasons = objections(interfaces(device), links, routes, connection)
        refused += [f"{device}: {why}" for why in reasons]
    return refused


def bind(device: str, driver: str) -> None:
    at = PCI / device
    now = (at / "driver").resolve().name if (at / "driver").exists() else ""
    if now == driver:
        return
    (at / "driver_override").write_text(driver + "\n")
    if now:
        (at / "driver" / "unbind").write_text(device)
    (PCI.parent / "drivers_probe").write_text(device)
    if not (at / "driver").exists() or (at / "driver").resolve().name != driver:
        (at / "driver_override").write_text("\n")
        (PCI.parent / "drivers_probe").write_text(device)
        raise SystemExit(f"dpdk_bind: {device}: {driver} did not take it; the former one is back")


def main(arguments: list[str]) -> int:
    connection, driver = "none", ""
    if arguments[:1] == ["--config"]:
        lines = Path(arguments[1]).read_text().splitlines()
        words = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        driver, devices = words[0], words[1:]
    elif arguments[:1] == ["--look"]:
        devices = arguments[1:]
        if devices[:1] == ["--connection"]:
            connection, devices = devices[1], devices[2:]
    else:
        print(__doc__, file=sys.stderr)
        return 2
    refused = judge(devices, connection)
    for line in refused:
        print(f"dpdk_bind: refused: {line}", file=sys.stderr)
    if refused:
        return 1
    for device in devices if driver else []:
        bind(device, driver)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
