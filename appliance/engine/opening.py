"""What the engine opens its ports with: a PortSpec for each, and DPDK devices plugged in.

Owns nothing that lives: what is plugged in here is the engine's to unplug.
"""

from __future__ import annotations

from collections.abc import Mapping

from appliance.attachment import Attachment, PortSpec
from appliance.config import Config, PortConfig
from appliance.dpdk import Device, is_pci
from appliance.engine import build
from appliance.net import InterfaceInfo
from appliance.net.zerocopy import verdict


def plug(config: Config, devices: dict[str, Device]) -> None:
    """Plugs in the DPDK device of every port that has one; `devices` holds them, also on errors.

    PCI devices first: DPDK is started once, with them or without.
    """
    for port in sorted(config.ports, key=lambda port: not is_pci(port.device or "")):
        if port.device is not None:
            devices[port.name] = Device(port.device, port.netns or None)


def spec(config: Config, port: PortConfig, mode: str, plugged: Device | None) -> PortSpec:
    """What to open a port with."""
    memory = config.memory
    return PortSpec(
        interface=port.interface or (port.device or port.name).split(",")[0],
        name=port.name,
        netns=port.netns or None,
        backend=port.backend,
        queues=port.queues,
        mode=mode,
        attach=port.attach,
        poll=port.poll,
        jumbo=port.jumbo,
        frames=memory.frames_per_queue,
        frame_bytes=memory.frame_bytes,
        hugepages=memory.hugepages,
        numa=memory.numa,
        device=port.device or "",
        promiscuous=port.promiscuous,
        mtu=port.mtu,
        plugged=plugged,
    )


def mode(
    config: Config, group: build.Group, port: str, found: Mapping[str, InterfaceInfo]
) -> str:
    """The mode to ask for. Unasked, ports that share memory copy unless all their drivers are good.

    The first queue of a port is always in the group of every port that it shares memory with.
    """
    asked = build.mode_of(config, group, port)
    names = {lane.port for lane in group.lanes}
    if asked == "auto" and len(names) > 1:
        good = all(name in found and verdict(found[name].driver).good for name in names)
        return "auto" if good else "copy"
    return asked


def node(attachment: Attachment) -> int | None:
    """The NUMA node of a port's memory, or None."""
    found = attachment.queues[0].frames.arena.numa_node
    return found if found >= 0 else None
