"""The share socket of a running appliance: where programs of other users attach.

Owns the UNIX socket, the thread that serves it, and the connections of members. It is open to
everybody (0666) and trusts nobody: the kernel says who is at the other end, the configuration says
who may, and only then are descriptors passed. Connections, messages and waiting are bounded; what
a member may do afterwards is to be woken, to leave, and to die. Words: appliance/handshake.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import selectors
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance import handshake
from appliance.engine import permission
from appliance.engine.sharing import Membership, Sharing
from appliance.errors import ConfigError, HostError, OpenClawError, PortError, one_line
from appliance.limits import SHARE_CLIENTS_MAX, SHARE_MESSAGE_BYTES_MAX

BEAT_S = 0.05  # how often members are looked after; a dead one's frames are home after one or two
REQUEST_S = 5.0  # to say what is wanted; a client of ours needs a millisecond
WORDS_MAX = 16  # messages of a member after the first: it has one thing to say
BACKLOG = 64


@dataclass
class _Client:
    connection: socket.socket
    since: float
    who: permission.Peer
    member: Membership | None = None
    joining: bool = False
    words: int = 0


class ShareSocket:
    """Made (the path is ours from then on), then serve(), then close()."""

    def __init__(self, control: str, sharing: Sharing) -> None:
        self.path = handshake.share_path(control)
        self._sharing = sharing
        self._clients: dict[socket.socket, _Client] = {}
        self._joined: queue.SimpleQueue[tuple[_Client, Membership | None]] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        # Two at once: a filter may take the child that compiles it a while.
        self._joins = ThreadPoolExecutor(2, "share")
        self._listener = self._bind()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)

    def _bind(self) -> socket.socket:
        path = Path(self.path)
        made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        fresh = path.with_name(f".{os.getpid():x}s")
        try:
            path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
            _let_others_through(path.parent)
            if _alive(self.path):
                raise PortError(f"an appliance is sharing at {self.path} already")
            fresh.unlink(missing_ok=True)
            made.bind(os.fspath(fresh))
            os.chmod(fresh, 0o666)
            made.listen(BACKLOG)
            made.setblocking(False)
            found = fresh.stat()
            self._inode = (found.st_dev, found.st_ino)
            fresh.rename(path)
        except OSError as error:
            made.close()
            fresh.unlink(missing_ok=True)
            words = f"share socket {self.path}: {error.strerror or error}"
            raise HostError(words, fix="another control.socket") from None
        except BaseException:
            made.close()
            raise
        return made

    # ------------------------------------------------------------------------------------ thread

    def serve(self) -> None:
        """Answers from here on, in a thread of its own."""
        self._thread = threading.Thread(target=self._run, name="share", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.is_set():
            for key, _ in self._selector.select(BEAT_S):
                if key.fileobj is self._listener:
                    self._accept()
                elif isinstance(key.fileobj, socket.socket):
                    self._hear(self._clients[key.fileobj])
            self._settle_joins()
            self._expire(time.monotonic())
            self._sharing.beat()

    def _accept(self) -> None:
        for _ in range(BACKLOG):
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # nobody more, or we have no descriptor left: they may come again
            self._admit(connection)

    def _admit(self, connection: socket.socket) -> None:
        if len(self._clients) >= SHARE_CLIENTS_MAX and not self._drop_silent():
            self._refuse(connection, f"more than {SHARE_CLIENTS_MAX} connections", 1)
            connection.close()
            return
        connection.setblocking(False)
        client = _Client(connection, time.monotonic(), permission.peer(connection))
        self._clients[connection] = client
        self._selector.register(connection, selectors.EVENT_READ)

    def _drop_silent(self) -> bool:
        """Who has said nothing for longest makes room: half-open connections keep nobody out."""
        silent = (one for one in self._clients.values() if one.member is None and not one.joining)
        oldest = min(silent, key=lambda one: one.since, default=None)
        if oldest is not None:
            self._end(oldest)
        return oldest is not None

    def _expire(self, now: float) -> None:
        for client in list(self._clients.values()):
            if client.member is None and not client.joining and now - client.since > REQUEST_S:
                self._end(client)

    # ------------------------------------------------------------------------------------ client

    def _hear(self, client: _Client) -> None:
        try:
            data = client.connection.recv(SHARE_MESSAGE_BYTES_MAX)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        client.words += 1
        if not data or client.words > WORDS_MAX:
            if client.joining:  # whoever answers it will find that nobody is there
                self._selector.unregister(client.connection)
                client.words = -1
            else:
                self._end(client)
            return
        if client.member is not None:
            if _leaves(data):
                self._sharing.leave(client.member)
        elif not client.joining:
            client.joining = True
            self._joins.submit(self._join, client, data)

    def _end(self, client: _Client) -> None:
        if client.words >= 0:
            self._selector.unregister(client.connection)
        del self._clients[client.connection]
        client.connection.close()
        if client.member is not None:
            self._sharing.part(client.member)

    def _settle_joins(self) -> None:
        """What the other threads have done becomes this one's."""
        with contextlib.suppress(queue.Empty):
            while True:
                client, member = self._joined.get_nowait()
                client.joining, client.member = False, member
                if member is None or client.words < 0:
                    self._end(client)

    # ----------------------------------------------------------------------- in the other threads

    def _join(self, client: _Client, data: bytes) -> None:
        member = None
        try:
            consumer, match = self._wanted(data)
            config = self._sharing.config(consumer)
            permission.check(config, client.who)
            member = self._sharing.join(
                consumer, client.who.pid, client.who.uid, match, client.connection.fileno()
            )
            self._hand_over(client.connection, member)
        except OpenClawError as error:
            self._refuse(client.connection, str(error), error.exit_status)
        except OSError:
            pass  # it has gone: its end of the connection says so, and the member parts
        except Exception as error:
            self._refuse(client.connection, f"internal error: {type(error).__name__}: {error}", 1)
        finally:
            self._joined.put((client, member))

    def _wanted(self, data: bytes) -> tuple[str, str]:
        try:
            request = json.loads(data)
        except (ValueError, RecursionError):
            request = None
        if not isinstance(request, dict) or request.get("version") != handshake.VERSION:
            raise ConfigError(f"request: a message of version {handshake.VERSION}")
        consumer, match = request.get("consumer"), request.get("match", "")
        if not isinstance(consumer, str) or not isinstance(match, str):
            raise ConfigError("request: consumer and match are text")
        return consumer, match

    def _hand_over(self, connection: socket.socket, member: Membership) -> None:
        slabs = self._sharing.slab_fds()
        try:
            granted = {"ok": True, "workers": len(member.lanes), "slabs": list(slabs),
                       "policy": member.policy, "engine_pid": os.getpid(),
                       "quota_frames": self._sharing.quota(member.consumer)}
            handshake.send(connection, granted, list(slabs.values()))
        finally:
            for fd in slabs.values():
                os.close(fd)
        for number, lane in enumerate(member.lanes):
            frames = lane.share.frames
            with _read_only(frames.arena.fd, frames.ledger_arena.fd, lane.down.fd) as fds:
                handshake.send(connection, {"worker": number}, [*fds, lane.up.fd])

    def _refuse(self, connection: socket.socket, words: str, status: int) -> None:
        with contextlib.suppress(OSError):
            reply: dict[str, Any] = {"ok": False, "error": one_line(words), "exit_status": status}
            handshake.send(connection, reply)

    # -------------------------------------------------------------------------------------- stop

    def close(self) -> None:
        """No more members; every connection ends, and the path is removed if it is still ours."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._joins.shutdown(wait=True)
        for connection in list(self._clients):
            connection.close()
        self._clients.clear()
        self._selector.close()
        self._listener.close()
        with contextlib.suppress(OSError):
            found = os.lstat(self.path)
            if (found.st_dev, found.st_ino) == self._inode:
                os.unlink(self.path)
        self._inode = (0, 0)


def _leaves(data: bytes) -> bool:
    try:
        return json.loads(data) == {"leave": True}
    except (ValueError, RecursionError):
        return False


@contextlib.contextmanager
def _read_only(*fds: int) -> Iterator[list[int]]:
    """Descriptors of the same files, for reading and mapping only."""
    opened: list[int] = []
    try:
        for fd in fds:
            opened.append(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC))
        yield opened
    finally:
        for fd in opened:
            os.close(fd)


def _let_others_through(directory: Path) -> None:
    """Our own runtime directory, closed to others, lets them through to this one socket.

    Only where it is ours, under /run, and nobody but us had any right: 0700 becomes 0711. Whoever
    puts the control socket elsewhere decides for himself who can reach it.
    """
    found = directory.stat()
    ours = found.st_uid == os.geteuid() and directory.is_relative_to("/run")
    if ours and found.st_mode & 0o777 == 0o700:
        directory.chmod(0o711)


def _alive(path: str) -> bool:
    """Does somebody listen at the path? A file that is no socket is not ours to replace."""
    if not os.path.lexists(path):
        return False
    if not Path(path).is_socket():
        raise ConfigError(f"control.socket: {path}: there is a file that is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        probe.settimeout(REQUEST_S)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True  # full backlog, time out: there is somebody
    return True
