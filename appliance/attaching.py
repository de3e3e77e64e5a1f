"""`attach`: the packets of a running appliance in another process, without root and without copies.

    with appliance.attach("/run/openclaw/control.sock", consumer="taps") as port:
        for batch in port.recv():
            ...

Owns the conversation and the words; the loop, the mappings and the views are compiled
(cython_ext/attached.pyx). What this process may hold, and whether it may attach at all, the
appliance decides.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

from appliance import handshake
from appliance.asynchronous import batches
from appliance.dataplane import Attached, AttachedBatch
from appliance.errors import ConfigError, HostError, OpenClawError, PortError, StaleFrame
from appliance.memory.reader import SlabReader

WORKERS_MAX = 128
_BY_STATUS: dict[int, type[OpenClawError]] = {2: ConfigError, 3: HostError}


def attach(
    path: str = "/run/openclaw/control.sock",
    consumer: str = "",
    match: str = "",
    *,
    timeout_s: float = 30.0,
) -> AttachedPort:
    """Attaches to a consumer of kind share of the appliance whose control socket is at `path`.

    match      a pcap filter of our own, applied by the appliance before a packet is lent.
    timeout_s  how long the appliance may take to let us in.

    Raises HostError (nothing runs there), PortError (refused), ConfigError (no such consumer, no
    such filter).
    """
    where = handshake.share_path(path)
    connection = _connect(where, timeout_s)
    fds: list[int] = []
    try:
        handshake.send(
            connection, {"version": handshake.VERSION, "consumer": consumer, "match": match}
        )
        answer, fds = handshake.receive(connection)
        if not answer.get("ok"):
            status = answer.get("exit_status", 1)
            raise _BY_STATUS.get(status, PortError)(answer.get("error", "the appliance refused"))
        slabs = dict(zip(answer.get("slabs", ()), fds, strict=True))
        workers = answer.get("workers")
        if not isinstance(workers, int) or not 1 <= workers <= WORKERS_MAX:
            raise PortError(f"what listens at {where} is no appliance")
        lanes = []
        for _ in range(workers):
            _, more = handshake.receive(connection)
            fds += more
            lanes.append(more)
        return AttachedPort(connection, consumer, answer, lanes, slabs)
    except TimeoutError:
        raise PortError(f"the appliance at {path} does not answer in {timeout_s:g} s") from None
    except OSError as error:
        raise PortError(f"the appliance at {path}: {error.strerror or error}") from None
    except (ValueError, TypeError) as error:
        raise PortError(f"what listens at {where} is no appliance of ours: {error}") from None
    finally:
        for fd in fds:
            os.close(fd)


def _connect(path: str, timeout_s: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(timeout_s)
    try:
        connection.connect(path)
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        connection.close()
        raise HostError(
            f"no appliance shares packets at {path}",
            fix='openclaw run with a [[consumer]] of kind = "share"',
        ) from None
    except PermissionError:
        connection.close()
        raise HostError(
            f"{path}: not permitted", fix=f"chmod o+x {os.path.dirname(path)} (as root)"
        ) from None
    except OSError as error:
        connection.close()
        raise HostError(f"{path}: {error.strerror or error}") from None
    return connection


class AttachedPort:
    """The packets that the appliance lends us. Close it, or use it as a context."""

    def __init__(
        self,
        connection: socket.socket,
        consumer: str,
        answer: dict[str, Any],
        lanes: list[list[int]],
        slabs: dict[str, int],
    ) -> None:
        self.consumer = consumer
        self._connection = connection
        self._reader = None
        if slabs:
            self._reader = SlabReader({name: os.dup(fd) for name, fd in slabs.items()})
        self._attached = Attached(
            connection, lanes, slabs.get("2M"), slabs.get("4k"), self._slab_bytes
        )
        self._answer = answer

    def _slab_bytes(self, handle: int, nbytes: int) -> bytes:
        if self._reader is None:
            raise StaleFrame("the appliance has no mid tier")
        return self._reader.read(handle, nbytes)

    # ------------------------------------------------------------------------------- packets

    def recv(
        self, max_frames: int = 64, timeout_ms: float | None = 100
    ) -> Iterator[AttachedBatch]:
        """As Port.recv: a timeout gives an empty batch; it ends when the port closes or the
        appliance does, after the last packet that it had lent."""
        try:
            return self._attached.recv(max_frames, timeout_ms)
        except ValueError as error:
            raise ConfigError(str(error)) from None

    def batches(self, max_frames: int = 64) -> AsyncIterator[AttachedBatch]:
        """The same for asyncio: batches that are never empty."""
        return batches(self._attached, max_frames)

    def __aiter__(self) -> AsyncIterator[AttachedBatch]:
        return self.batches()

    # ------------------------------------------------------------------------------- figures

    @property
    def info(self) -> dict[str, Any]:
        """What was granted: consumer, policy, quota_frames, workers, the appliance's pid."""
        return {
            "consumer": self.consumer,
            **{key: self._answer.get(key)
               for key in ("policy", "quota_frames", "workers", "engine_pid")},
        }

    @property
    def held(self) -> int:
        """Packets that we hold or look at."""
        return int(self._attached.held)

    def stats(self) -> dict[str, int]:
        """Packets and bytes that we got; missed: for which the appliance had no room; overruns:
        that a lossy consumer was too slow for."""
        return {
            "frames": self._attached.frames,
            "bytes": self._attached.bytes,
            "missed": self._attached.missed,
            "overruns": self._attached.overruns,
            "held": self.held,
        }

    # ---------------------------------------------------------------------------------- stop

    @property
    def closed(self) -> bool:
        return bool(self._attached.closed)

    def close(self) -> None:
        """Takes nothing more. What is held or looked at stays readable until it is let go."""
        if self.closed:
            return
        if self.held:
            with contextlib.suppress(OSError):
                handshake.send(self._connection, {"leave": True})
        self._attached.close()
        if self._reader is not None:
            self._reader.close()

    def __enter__(self) -> AttachedPort:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_attached"):
            self.close()

    def __repr__(self) -> str:
        return f"<AttachedPort {self.consumer}, {'closed' if self.closed else 'open'}>"


__all__ = ["AttachedPort", "attach"]
