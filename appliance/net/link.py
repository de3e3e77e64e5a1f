"""Is the link of an interface up? Asked often and from any thread, so it must cost next to nothing.

Owns one socket that was opened inside the interface's namespace and stays there: two ioctls a
question, no thread, no netlink. It changes nothing.
"""

from __future__ import annotations

import fcntl
import socket
import struct

from appliance.net.namespace import in_netns

_SIOCGIFNAME = 0x8910
_SIOCGIFFLAGS = 0x8913
_IFF_UP, _IFF_RUNNING = 0x1, 0x40


class Link:
    """The link of the interface with this index, whatever it is called meanwhile."""

    def __init__(self, ifindex: int, netns: str | None = None) -> None:
        self._ifindex = ifindex
        self._socket = in_netns(netns, socket.socket, socket.AF_INET, socket.SOCK_DGRAM)

    def state(self) -> str:
        """up, down (administratively), no carrier, or gone (a new one has another index)."""
        try:
            request = struct.pack("16sI20x", b"", self._ifindex)
            name = fcntl.ioctl(self._socket, _SIOCGIFNAME, request)[:16]
            answer = fcntl.ioctl(self._socket, _SIOCGIFFLAGS, struct.pack("16s24x", name))
        except OSError:
            return "gone"
        (flags,) = struct.unpack_from("H", answer, 16)
        if not flags & _IFF_UP:
            return "down"
        return "up" if flags & _IFF_RUNNING else "no carrier"

    def close(self) -> None:
        self._socket.close()
