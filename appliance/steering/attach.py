"""Programs on interfaces: attaches by a BPF link, natively or generically, and replaces none.

Owns the choice of the mode and the words for what can stand in the way. All calls concern the
network namespace of the calling thread. The link is the caller's, and lasts as long as the caller
keeps it: when its process dies, the kernel detaches.
"""

from __future__ import annotations

import errno
import socket

from appliance.dataplane import bpf
from appliance.errors import ConfigError, PortError
from appliance.steering.loader import kernel_errors

MODES = ("auto", "native", "generic")
FLAGS = {"native": bpf.NATIVE, "generic": bpf.GENERIC}
# What a driver without XDP answers, or one that cannot under the present MTU or features.
CANNOT = (errno.EOPNOTSUPP, errno.EINVAL, errno.ERANGE, errno.ENOSPC, errno.E2BIG, errno.ENOMEM)
TAKEN = (errno.EBUSY, errno.EEXIST)


def attach(program: bpf.Program, ifindex: int, mode: str = "auto") -> tuple[bpf.Link, str]:
    """The link, and the mode that was granted: native or generic."""
    if mode not in MODES:
        raise ConfigError(f"attach: {mode!r}: one of {', '.join(MODES)}")
    refuse_foreign(ifindex)
    wanted = ("native", "generic") if mode == "auto" else (mode,)
    for attempt in wanted:
        try:
            return bpf.Link(program, ifindex, FLAGS[attempt]), attempt
        except OSError as error:
            if error.errno in TAKEN:
                refuse_foreign(ifindex)  # it came between our question and our attempt
            if error.errno in CANNOT and attempt != wanted[-1]:
                continue
            what = f"{attempt} XDP cannot be attached to {name(ifindex)}"
            with kernel_errors(what):
                raise
    raise AssertionError("the loop returns or raises")


def refuse_foreign(ifindex: int) -> None:
    """PortError when the interface runs an XDP program already, naming it."""
    with kernel_errors(f"{name(ifindex)} cannot be asked for its XDP program"):
        found = bpf.attached(ifindex)
    for mode, number in found.items():
        raise PortError(
            f"{name(ifindex)} already runs XDP program {number} ({mode}); it is not replaced: "
            f"detach it first (ip link set dev {name(ifindex)} xdp off, or end its owner)"
        )


def name(ifindex: int) -> str:
    try:
        return socket.if_indextoname(ifindex)
    except OSError:
        return f"interface {ifindex}"
