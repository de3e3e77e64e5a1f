"""An AF_XDP socket as small as the kernel accepts in an XSKMAP: a UMEM, a fill ring and an RX ring.

For tests of steering alone, which must not depend on the data plane. It receives nothing.
"""

from __future__ import annotations

import ctypes
import mmap
import socket
import struct

AF_XDP, SOL_XDP = 44, 283
XDP_RX_RING, XDP_UMEM_REG, XDP_UMEM_FILL_RING, XDP_UMEM_COMPLETION_RING = 2, 4, 5, 6
FRAMES, FRAME_BYTES = 16, 2048


class BareSocket:
    """fileno() is what goes into the map."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, FRAMES * FRAME_BYTES)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.socket = socket.socket(AF_XDP, socket.SOCK_RAW, 0)
        registration = struct.pack("=QQIIII", self.address, len(self.memory), FRAME_BYTES, 0, 0, 0)
        self.socket.setsockopt(SOL_XDP, XDP_UMEM_REG, registration)
        for ring in (XDP_UMEM_FILL_RING, XDP_UMEM_COMPLETION_RING, XDP_RX_RING):
            self.socket.setsockopt(SOL_XDP, ring, struct.pack("=i", FRAMES))

    def fileno(self) -> int:
        return self.socket.fileno()

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> BareSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
