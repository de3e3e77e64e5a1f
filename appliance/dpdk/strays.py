"""Descriptors that a driver of DPDK opened and forgot: found by what they are, and closed.

Debian 12's DPDK (22.11.11) counts the users of a UMEM down twice in net_af_xdp, and so never closes
its socket, which keeps the queue busy for as long as the process lives; libxdp 1.3.1 forgets a
map and a program. Owns the knowledge how to tell theirs from ours, and nothing else.
"""

from __future__ import annotations

import os
import socket
from typing import NamedTuple

from appliance.dataplane import bpf

AF_XDP = 44
# How the names of libxdp's maps and programs begin
NAMES = ("xsks_map", "xsk_def_", "xdp_disp")
KINDS = ("bpf-map", "bpf-prog")


class Stray(NamedTuple):
    """A descriptor, and what it was: the number alone may be somebody else's by now."""

    fd: int
    identity: int


def found() -> set[Stray]:
    """Descriptors of this process that only a driver can have opened."""
    result = set()
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
            if target.startswith("socket:") and _is_drivers_socket(fd):
                result.add(Stray(fd, os.fstat(fd).st_ino))
            kind = target.removeprefix("anon_inode:")
            if kind in KINDS:
                number, title = bpf.named(fd, kind)
                if title.startswith(NAMES):
                    result.add(Stray(fd, number))
        except OSError:
            continue  # closed since it was listed
    return result


def close(those: set[Stray]) -> None:
    """Closes them, if they are still what they were."""
    for stray in those & found():
        os.close(stray.fd)


def _is_drivers_socket(fd: int) -> bool:
    """An AF_XDP socket that is inherited on exec: ours never are, libxdp's are."""
    if not os.get_inheritable(fd):
        return False
    # The family is a lie that keeps Python from asking an AF_XDP socket for its name.
    with socket.socket(socket.AF_UNIX, socket.SOCK_RAW, 0, os.dup(fd)) as copy:
        return copy.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN) == AF_XDP
