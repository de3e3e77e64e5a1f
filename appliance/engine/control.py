"""The control socket of a running appliance: one JSON object per line in, one per line out.

Owns the UNIX socket and the thread that serves it. It trusts nobody more than needed: mode 0600,
peers are root or our own user, messages, clients and waiting are bounded, and whatever arrives is
answered or dropped, never fatal. What the verbs do is the engine's.

    {"verb": "stats"}  ->  {"ok": true, "result": {...}}
    anything wrong     ->  {"ok": false, "error": "one line", "exit_status": 1|2|3}
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from appliance.errors import ConfigError, HostError, OpenClawError, PortError, one_line
from appliance.limits import CONTROL_CLIENTS_MAX, CONTROL_MESSAGE_BYTES_MAX

REQUEST_S = 5.0  # to send a whole line; a client of ours needs a millisecond
REPLY_S = 5.0  # to take the answer
BACKLOG = 128

Verb = Callable[[dict[str, Any]], Any]


class Control:
    """Made (the path is ours from then on), then serve(), then close()."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._inode = (0, 0)
        self._socket = self._bind()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stop: asyncio.Event | None = None
        self._waiting: dict[asyncio.Task[Any], None] = {}  # clients without a request, oldest first
        self._clients: set[asyncio.Task[Any]] = set()

    # ------------------------------------------------------------------------------------- path

    def _bind(self) -> socket.socket:
        """A listening socket at the path; one of a dead process is replaced, a live one is not.

        It gets its mode under another name and is renamed into place, so nobody ever finds it open.
        """
        path = Path(self.path)
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        fresh = path.with_name(f".{os.getpid():x}")  # sun_path is short
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._alive():
                raise PortError(f"an appliance is running at {self.path} already")
            fresh.unlink(missing_ok=True)
            made.bind(os.fspath(fresh))
            os.chmod(fresh, 0o600)
            made.listen(BACKLOG)
            made.setblocking(False)
            found = fresh.stat()
            self._inode = (found.st_dev, found.st_ino)
            fresh.rename(path)
        except OSError as error:
            made.close()
            fresh.unlink(missing_ok=True)
            what = error.strerror or str(error)
            raise HostError(f"control socket {self.path}: {what}", fix="another control.socket") \
                from None
        except BaseException:
            made.close()
            raise
        return made

    def _alive(self) -> bool:
        """Does somebody listen at the path? A file that is no socket is not ours to replace."""
        path = Path(self.path)
        if not path.exists():
            return False
        if not path.is_socket():
            raise ConfigError(f"control.socket: {self.path}: there is a file that is no socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(REQUEST_S)
            try:
                probe.connect(self.path)
            except (ConnectionRefusedError, FileNotFoundError):
                return False
            except OSError:
                return True  # full backlog, time out: there is somebody
        return True

    # ------------------------------------------------------------------------------------ thread

    def serve(self, verbs: Mapping[str, Verb]) -> None:
        """Answers from here on, in a thread of its own."""
        ready = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._main(verbs, ready)), name="control", daemon=True
        )
        self._thread.start()
        ready.wait()

    def close(self) -> None:
        """Ends all conversations; the path is removed if it is still ours."""
        if self._thread is not None and self._loop is not None and self._stop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended by itself
                self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()
            self._thread = None
        self._socket.close()
        with contextlib.suppress(OSError):
            found = os.lstat(self.path)
            if (found.st_dev, found.st_ino) == self._inode:
                os.unlink(self.path)
        self._inode = (0, 0)  # the number may be another's from now on

    async def _main(self, verbs: Mapping[str, Verb], ready: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        server = await asyncio.start_unix_server(
            lambda reader, writer: self._client(reader, writer, verbs),
            sock=self._socket,
            limit=CONTROL_MESSAGE_BYTES_MAX,
        )
        ready.set()
        await self._stop.wait()
        server.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        # Answers that are being written may finish; who only waits is not waited for.
        for task in others:
            if task in self._waiting:
                task.cancel()
        _, late = await asyncio.wait(others, timeout=1.0) if others else ((), ())
        for task in late:
            task.cancel()

    # ------------------------------------------------------------------------------------ client

    async def _client(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, verbs: Mapping[str, Verb]
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            if not _allowed(writer):
                await _send(writer, _error("control socket: not your appliance", 1))
            elif not self._room():
                await _send(writer, _error(f"more than {CONTROL_CLIENTS_MAX} clients", 1))
            else:
                self._clients.add(task)
                await self._converse(task, reader, writer, verbs)
        except (OSError, TimeoutError, asyncio.CancelledError):
            pass  # it went away, or was too slow, or we are going: nothing to tell anybody
        finally:
            self._clients.discard(task)
            self._waiting.pop(task, None)
            if writer.transport.get_write_buffer_size():
                writer.transport.abort()
            else:
                writer.close()

    def _room(self) -> bool:
        """Room for one more. Who has been silent for longest goes: half-open clients keep nobody
        out."""
        if len(self._clients) < CONTROL_CLIENTS_MAX:
            return True
        if not self._waiting:
            return False
        silent = next(iter(self._waiting))
        silent.cancel()
        del self._waiting[silent]
        self._clients.discard(silent)
        return True

    async def _converse(
        self,
        task: asyncio.Task[Any],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        verbs: Mapping[str, Verb],
    ) -> None:
        while True:
            self._waiting[task] = None
            try:
                line = await asyncio.wait_for(reader.readuntil(b"\n"), REQUEST_S)
            except asyncio.IncompleteReadError:
                return
            except asyncio.LimitOverrunError:
                most = f"a line of at most {CONTROL_MESSAGE_BYTES_MAX} bytes"
                await _send(writer, _error(f"request: too long: {most}", 2))
                return
            finally:
                self._waiting.pop(task, None)
            # In a thread: a swap compiles for a while, and others want their answers meanwhile.
            await _send(writer, await asyncio.to_thread(answer, line, verbs))


def answer(line: bytes, verbs: Mapping[str, Verb]) -> dict[str, Any]:
    """The reply to one line, whatever it is."""
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        return _error("request: not JSON: one object on one line", 2)
    if not isinstance(request, dict) or not isinstance(request.get("verb"), str):
        return _error('request: an object with a "verb"', 2)
    verb = verbs.get(request["verb"])
    if verb is None:
        known = ", ".join(sorted(verbs))
        return _error(f"verb: {request['verb'][:40]!r}: one of {known}", 2)
    try:
        return {"ok": True, "result": verb(request)}
    except OpenClawError as error:
        return _error(str(error), error.exit_status)
    except Exception as error:
        return _error(f"internal error: {type(error).__name__}: {error}", 1)


def _error(text: str, status: int) -> dict[str, Any]:
    return {"ok": False, "error": one_line(text), "exit_status": status}


async def _send(writer: asyncio.StreamWriter, reply: dict[str, Any]) -> None:
    writer.write(json.dumps(reply).encode() + b"\n")
    await asyncio.wait_for(writer.drain(), REPLY_S)


def _allowed(writer: asyncio.StreamWriter) -> bool:
    """The kernel says who is at the other end: root, or the user that we run as."""
    peer = writer.get_extra_info("socket")
    size = struct.calcsize("3i")
    _, uid, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return uid in (0, os.geteuid())
