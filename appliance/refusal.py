"""What the kernel says when it refuses an AF_XDP socket, as one line that helps.

Owns the translation of an errno, given what was asked for. Pure.
"""

from __future__ import annotations

import errno

from appliance.errors import HostError, OpenClawError, PortError
from appliance.spec import PortSpec


def refused(spec: PortSpec, mode: str, error: OSError) -> OpenClawError:
    """The exception for an OSError from opening a socket of this port in this mode."""
    where = spec.interface
    if error.errno in (errno.EPERM, errno.EACCES):
        return HostError(f"{where}: {error.strerror}", fix="run as root (sudo)")
    if error.errno == errno.EAFNOSUPPORT:
        return HostError("this kernel has no AF_XDP", fix="a kernel with CONFIG_XDP_SOCKETS=y")
    if error.errno == errno.EBUSY:
        return PortError(f"{where}: {error.strerror}: another program has this queue")
    if mode == "zerocopy" and error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
        return PortError(f"{where}: the driver refuses zero-copy: {error.strerror}")
    if spec.jumbo and error.errno == errno.EINVAL:
        return HostError(f"{where}: {error.strerror}", fix="jumbo needs Linux 6.6 or later")
    return PortError(f"{where}: {error.strerror}")
