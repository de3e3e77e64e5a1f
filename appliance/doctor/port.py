"""The doctor's questions about one interface. Reads only; what to change is said, never done."""

from __future__ import annotations

from functools import partial

from appliance.doctor.check import Finding, fail, ok, run, warn
from appliance.errors import OpenClawError
from appliance.net import InterfaceInfo, namespace, pause_of
from appliance.net import interface as read_interface
from appliance.net.zerocopy import running_kernel, verdict
from appliance.plan import packet_bytes_max

# Drivers with ndo_bpf for native XDP in Debian's kernels. On another one native is tried all the
# same (mode auto), so a driver that is missing here costs a warning and nothing else.
_NATIVE_XDP = frozenset((
    "atlantic", "bnxt_en", "bonding", "ena", "fec", "funeth", "gve", "hv_netvsc", "i40e", "ice",
    "igb", "igc", "ixgbe", "ixgbevf", "mana", "mlx4_en", "mlx5_core", "mvneta", "mvpp2", "nfp",
    "qede", "sfc", "stmmac", "tsnep", "tun", "veth", "virtio_net", "vmxnet3",
))


def examine_interface(name: str, netns: str | None = None) -> list[Finding]:
    """All findings about the interface; just one if there is none."""
    try:
        info = read_interface(name, netns)
    except OpenClawError as error:
        plain = str(error).split("; fix:")[0]
        return [fail("interface", plain, getattr(error, "fix", ""))]
    inside = "".join(f"{word} " for word in namespace.inside(netns))
    return run(
        partial(_link, info, inside),
        partial(_native_xdp, info),
        partial(_xdp_program, info, inside),
        partial(_queues, info, inside),
        partial(_rings, info, inside),
        partial(_offloads, info, inside),
        partial(_mtu, info, inside),
        partial(_pause, info),
        partial(_zero_copy, info),
    )


def _link(info: InterfaceInfo, inside: str) -> Finding:
    what = f"{info.name}: driver {info.driver or 'unknown'}, {info.mac or 'no address'}"
    if not info.up:
        return fail("link", f"{what}, down", f"{inside}ip link set {info.name} up")
    if not info.carrier:
        return warn("link", f"{what}, up, no carrier", "plug in the cable, or bring up the peer")
    return ok("link", f"{what}, up")


def _native_xdp(info: InterfaceInfo) -> Finding:
    if info.driver in _NATIVE_XDP:
        return ok("native xdp", f"{info.driver} has it")
    return warn("native xdp", f"{info.driver or 'the driver'} is not known to have it; "
                "generic XDP works, slower", 'set attach = "generic" to skip the attempt')


def _xdp_program(info: InterfaceInfo, inside: str) -> Finding:
    if info.xdp_prog_id is None and info.xdp_mode is None:
        return ok("xdp program", "none attached")
    return fail("xdp program", f"program {info.xdp_prog_id} is attached ({info.xdp_mode}), "
                "and is not ours to replace", f"{inside}ip link set {info.name} xdp off "
                "(or end the process that holds its link)")


def _queues(info: InterfaceInfo, inside: str) -> Finding:
    found = f"{info.queues.rx} rx, {info.queues.tx} tx"
    if info.driver == "veth" and info.queues.rx < info.queues.tx:
        return warn("queues", f"{found}; XDP wants no fewer rx here than tx on the peer",
                    f"{inside}ethtool -L {info.name} rx {info.queues.tx}")
    return ok("queues", f"{found} (at most {info.queues.rx_max} and {info.queues.tx_max})")


def _rings(info: InterfaceInfo, inside: str) -> Finding:
    """The FILL ring must hold the hardware ring plus the RX ring, or the NIC starves at once."""
    if info.rings.rx == 0:
        return ok("rings", "the driver has no rings of its own")
    found = f"{info.rings.rx} of {info.rings.rx_max} rx, {info.rings.tx} of {info.rings.tx_max} tx"
    if info.rings.rx > 4096:
        return warn("rings", f"{found}; so many must be filled before the first packet",
                    f"{inside}ethtool -G {info.name} rx 2048")
    return ok("rings", found)


def _offloads(info: InterfaceInfo, inside: str) -> Finding:
    """What makes XDP see other packets than were sent. GRO comes after native XDP, before generic.
    """
    named = {"lro": "lro", "rx-vlan-strip": "rxvlan", "gro": "gro"}
    on = [name for name in named if info.offloads.get(name)]
    if not on:
        return ok("offloads", "none that changes what XDP sees")
    switches = " ".join(f"{named[name]} off" for name in on)
    fix = f"{inside}ethtool -K {info.name} {switches}"
    if on == ["gro"]:
        return warn("offloads", "gro is on: generic XDP sees merged packets (native does not)", fix)
    return warn("offloads", f"on: {', '.join(on)}: packets or tags differ from the wire", fix)


def _mtu(info: InterfaceInfo, inside: str) -> Finding:
    fits = [size for size in (2048, 4096) if info.mtu <= packet_bytes_max(size) - 18]
    if fits:
        return ok("mtu", f"{info.mtu} fits a frame of {fits[0]} bytes")
    limit = packet_bytes_max(4096) - 18
    return warn("mtu", f"{info.mtu} is more than one frame of 4096 bytes holds ({limit})",
                f"set jumbo = true, or {inside}ip link set {info.name} mtu {limit}")


def _pause(info: InterfaceInfo) -> Finding:
    """Whether a full NIC asks the other end to wait, or drops."""
    found = pause_of(info.name, info.netns)
    if found is None:
        return ok("pause", f"{info.driver or 'the driver'} has none: what does not fit is dropped")
    return ok("pause", found.words())


def _zero_copy(info: InterfaceInfo) -> Finding:
    judged = verdict(info.driver)
    major, minor = running_kernel()
    said = f"{'yes' if judged.good else 'no'} on {major}.{minor}: {judged.reason}"
    return ok("zero-copy", said)
