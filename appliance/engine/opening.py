"""What the engine opens its ports with: a PortSpec for each, and DPDK devices plugged in.

Owns nothing that lives: what is plugged in here is the engine's to unplug.
"""

from __future__ import annotations

from appliance.attachment import PortSpec
from appliance.config import Config, PortConfig
from appliance.dpdk import Device, is_pci


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
        pause=port.pause,
        frames=memory.frames_per_queue,
        frame_bytes=memory.frame_bytes,
        hugepages=memory.hugepages,
        numa=memory.numa,
        device=port.device or "",
        promiscuous=port.promiscuous,
        mtu=port.mtu,
        plugged=plugged,
    )
