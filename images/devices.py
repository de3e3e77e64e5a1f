"""The devices that a guest can have, each with the part of QEMU's command line that makes it.

Owns names and options of devices; files behind disks and modules belong to whoever made them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Nic:
    """A virtio NIC for data. Those of one hub are joined back to back, without the host."""

    hub: int
    mac: str = ""
    iommu: bool = True  # zero-copy AF_XDP on virtio-net needs it


@dataclass(frozen=True)
class Nvme:
    """An emulated NVMe disk; its file lives as long as its owner wants."""

    path: Path
    serial: str


@dataclass(frozen=True)
class Nvdimm:
    """Persistent memory; the file's size is the module's, with a label area inside."""

    path: Path
    bytes: int


@dataclass(frozen=True)
class Share:
    """A directory of this machine, read-only in the guest: mount -t 9p -o ro TAG /mnt."""

    path: Path
    tag: str


@dataclass(frozen=True)
class Node:
    """A NUMA node: its cores and its memory."""

    cpus: tuple[int, ...]
    mib: int


def memory(mib: int, cpus: int, nodes: Sequence[Node], modules: bool) -> list[str]:
    """-m, -smp and -numa; `modules` leaves room for NVDIMMs."""
    slots = ",slots=4,maxmem=12G" if modules else ""
    if not nodes:
        return ["-m", f"{mib}M{slots}", "-smp", str(cpus)]
    total = sum(node.mib for node in nodes)
    cores = sum(len(node.cpus) for node in nodes)
    parts = ["-m", f"{total}M{slots}",
             "-smp", f"{cores},sockets={len(nodes)},cores={cores // len(nodes)}"]
    for number, node in enumerate(nodes):
        parts += ["-object", f"memory-backend-ram,id=node{number},size={node.mib}M",
                  "-numa", f"node,nodeid={number},memdev=node{number}"
                  + "".join(f",cpus={cpu}" for cpu in node.cpus)]
    return parts


def nics(found: Sequence[Nic]) -> list[str]:
    """Numbered MACs, so that tests find their interfaces."""
    parts: list[str] = []
    for number, nic in enumerate(found):
        mac = nic.mac or f"52:54:00:6f:63:{16 + number:02x}"
        iommu = ",iommu_platform=on,disable-legacy=on" if nic.iommu else ""
        parts += ["-netdev", f"hubport,id=data{number},hubid={nic.hub}",
                  "-device", f"virtio-net-pci,netdev=data{number},romfile=,mac={mac}{iommu}"]
    return parts


def storage(disks: Sequence[Nvme], modules: Sequence[Nvdimm], shares: Sequence[Share]) -> list[str]:
    """NVMe disks, NVDIMMs and shared directories."""
    parts: list[str] = []
    for number, disk in enumerate(disks):
        parts += ["-drive", f"if=none,id=nvme{number},file={disk.path},format=raw,cache=unsafe",
                  "-device", f"nvme,drive=nvme{number},serial={disk.serial}"]
    for number, module in enumerate(modules):
        parts += ["-object", f"memory-backend-file,id=pmem{number},share=on,"
                  f"mem-path={module.path},size={module.bytes}",
                  "-device", f"nvdimm,memdev=pmem{number},id=nv{number},label-size=16M"]
    for share in shares:
        parts += ["-virtfs", f"local,path={share.path},mount_tag={share.tag},"
                  "security_model=none,readonly=on"]
    return parts
