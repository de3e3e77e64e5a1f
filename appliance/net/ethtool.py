"""The few ethtool questions that matter to XDP: driver, channels, ring sizes, offloads.

Owns the SIOCETHTOOL ioctl. The legacy commands are used because every driver and every kernel
since 2.6 answers them; a feature that a driver does not have reads as None and never as an error.
It decides nothing and remembers nothing (settings.py does).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import socket
import struct
from dataclasses import dataclass

_SIOCETHTOOL = 0x8946
_NOT_THERE = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY, errno.ENODEV)

# linux/ethtool.h: (get, set) of each on/off value
_VALUE = {
    "rx-checksum": (0x14, 0x15),
    "tx-checksum": (0x16, 0x17),
    "scatter-gather": (0x18, 0x19),
    "tso": (0x1E, 0x1F),
    "gso": (0x23, 0x24),
    "gro": (0x2B, 0x2C),
}
# bits of ETHTOOL_GFLAGS (0x25) and ETHTOOL_SFLAGS (0x26)
_FLAG = {"tx-vlan-insert": 1 << 7, "rx-vlan-strip": 1 << 8, "lro": 1 << 15, "ntuple": 1 << 27}
_GET_FLAGS, _SET_FLAGS = 0x25, 0x26

OFFLOADS = (*_VALUE, *_FLAG)


@dataclass(frozen=True)
class Channels:
    """Queues of an interface; combined ones count for both directions."""

    rx: int
    tx: int
    rx_max: int
    tx_max: int


@dataclass(frozen=True)
class HardwareRings:
    """Descriptors of one queue; 0 where the driver has no such ring (veth)."""

    rx: int
    tx: int
    rx_max: int
    tx_max: int


def _ioctl(interface: str, request: bytes) -> bytes | None:
    """The answer to one ethtool command, or None where the driver does not know it."""
    data = ctypes.create_string_buffer(request, len(request))
    ifreq = struct.pack("16sP16x", interface.encode(), ctypes.addressof(data))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        try:
            fcntl.ioctl(handle, _SIOCETHTOOL, ifreq)
        except OSError as error:
            if error.errno in _NOT_THERE:
                return None
            raise
    return data.raw


def driver(interface: str) -> str | None:
    """ETHTOOL_GDRVINFO: the driver's name."""
    answer = _ioctl(interface, struct.pack("I192x", 0x03))
    return answer[4:36].split(b"\0")[0].decode(errors="replace") if answer else None


def channels(interface: str) -> Channels | None:
    """ETHTOOL_GCHANNELS."""
    answer = _ioctl(interface, struct.pack("9I", 0x3C, *[0] * 8))
    if answer is None:
        return None
    _, rx_max, tx_max, _, both_max, rx, tx, _, both = struct.unpack("9I", answer)
    return Channels(rx + both, tx + both, rx_max + both_max, tx_max + both_max)


def hardware_rings(interface: str) -> HardwareRings | None:
    """ETHTOOL_GRINGPARAM."""
    answer = _ioctl(interface, struct.pack("9I", 0x10, *[0] * 8))
    if answer is None:
        return None
    _, rx_max, _, _, tx_max, rx, _, _, tx = struct.unpack("9I", answer)
    return HardwareRings(rx, tx, rx_max, tx_max)


def offload(interface: str, name: str) -> bool | None:
    """Whether the offload is on; None where the interface does not have it."""
    command = _VALUE[name][0] if name in _VALUE else _GET_FLAGS
    answer = _ioctl(interface, struct.pack("II", command, 0))
    if answer is None:
        return None
    value = struct.unpack("II", answer)[1]
    return bool(value & _FLAG[name]) if name in _FLAG else bool(value)


def set_offload(interface: str, name: str, on: bool) -> bool:
    """Switches the offload; False where the driver refuses or it does not change (fixed)."""
    if name in _VALUE:
        request = struct.pack("II", _VALUE[name][1], int(on))
    else:
        answer = _ioctl(interface, struct.pack("II", _GET_FLAGS, 0))
        if answer is None:
            return False
        flags = struct.unpack("II", answer)[1]
        flags = flags | _FLAG[name] if on else flags & ~_FLAG[name]
        request = struct.pack("II", _SET_FLAGS, flags)
    _ioctl(interface, request)
    return offload(interface, name) is on
