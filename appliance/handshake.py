"""How a program in another process and the engine speak: one message each way, with descriptors.

Owns the shape of messages on the share socket and where that socket is. It opens nothing, and
decides nothing: who may attach is the engine's matter.

    ->  {"version": 1, "consumer": NAME, "match": ""}
    <-  {"ok": true, "workers": N, "slabs": ["2M", "4k", "ledger"], ...}  + a descriptor for each
    <-  N times {"worker": K}  + [umem, ledger, down, up] (cython_ext/include/oc_share.h)
    or  {"ok": false, "error": "one line", "exit_status": 1|2|3}

Afterwards the engine sends one byte to wake a member that sleeps, the member may send
{"leave": true}, and the end of the connection ends everything.
"""

from __future__ import annotations

import array
import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from appliance.errors import PortError
from appliance.limits import SHARE_MESSAGE_BYTES_MAX

VERSION = 1
DESCRIPTORS_MAX = 8  # of one message; the kernel takes 253


def share_path(control: str) -> str:
    """The share socket beside a control socket."""
    path = Path(control)
    name = "share.sock" if path.name == "control.sock" else f"{path.name}.share"
    return os.fspath(path.with_name(name))


def send(connection: socket.socket, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
    """One message, whole."""
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    connection.sendmsg([json.dumps(message).encode()], ancillary)


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """One message and its descriptors, which are the caller's to close."""
    fds: list[int] = []
    data, ancillary, flags, _ = connection.recvmsg(
        SHARE_MESSAGE_BYTES_MAX, socket.CMSG_SPACE(4 * DESCRIPTORS_MAX), socket.MSG_CMSG_CLOEXEC
    )
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            received = array.array("i")
            received.frombytes(content[: len(content) - len(content) % received.itemsize])
            fds += received
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict) or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        for fd in fds:
            os.close(fd)
        what = "ended the conversation" if not data else "sent what is no message"
        raise PortError(f"the other end {what}")
    return message, fds
