"""The other end of the control socket: asks a running appliance one thing.

Owns one connection per question, bounded in time. Errors of the appliance come out as the same
exceptions that they were inside it.
"""

from __future__ import annotations

import contextlib
import json
import socket
from typing import Any

from appliance.errors import ConfigError, HostError, OpenClawError, PortError
from appliance.limits import CONTROL_MESSAGE_BYTES_MAX

SOCKET = "/run/openclaw/control.sock"
ANSWER_S = 10.0
SWAP_S = 200.0  # compiling may take COMPILE_S (180) on an emulated machine
REPLY_BYTES_MAX = 16 << 20  # 256 rules with matches of 64 KiB

_BY_STATUS: dict[int, type[OpenClawError]] = {2: ConfigError, 3: HostError}


def ask(path: str, verb: str, *, timeout_s: float = ANSWER_S, **arguments: Any) -> Any:
    """The result of a verb of the appliance at `path`."""
    request = json.dumps({"verb": verb, **arguments}).encode() + b"\n"
    if len(request) > CONTROL_MESSAGE_BYTES_MAX:
        raise ConfigError(
            f"{verb}: {len(request)} bytes to send: at most {CONTROL_MESSAGE_BYTES_MAX}"
        )
    with _connect(path, timeout_s) as connection:
        try:
            with contextlib.suppress(BrokenPipeError):  # refused: the reason may have been said
                connection.sendall(request)
            reply = _read_line(connection, path)
        except TimeoutError:
            raise PortError(f"the appliance at {path} does not answer in {timeout_s:g} s") from None
        except OSError as error:
            raise PortError(f"the appliance at {path}: {error.strerror or error}") from None
    if not reply.get("ok"):
        status = reply.get("exit_status", 1)
        raise _BY_STATUS.get(status, PortError)(reply.get("error", "the appliance refused"))
    return reply["result"]


def _connect(path: str, timeout_s: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout_s)
    try:
        connection.connect(path)
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        connection.close()
        raise HostError(
            f"no appliance is running at {path}", fix="openclaw run --config FILE"
        ) from None
    except PermissionError:
        connection.close()
        raise HostError(f"{path}: not permitted", fix="run as root (sudo)") from None
    except OSError as error:
        connection.close()
        raise ConfigError(f"--socket: {path}: {error.strerror or error}") from None
    return connection


def _read_line(connection: socket.socket, path: str) -> dict[str, Any]:
    parts: list[bytes] = []
    size = 0
    while not (parts and parts[-1].endswith(b"\n")):
        part = connection.recv(1 << 16)
        size += len(part)
        if not part or size > REPLY_BYTES_MAX:
            raise PortError(f"the appliance at {path} ended the conversation")
        parts.append(part)
    try:
        reply = json.loads(b"".join(parts))
    except ValueError:
        reply = None
    if not isinstance(reply, dict):
        raise PortError(f"what listens at {path} is no appliance")
    return reply
