"""The journal of changes to the host that somebody must undo, on disk before each change.

Owns one small file per process in /run/openclaw/journal (without root: $XDG_RUNTIME_DIR). It
stores and finds; what an entry means and how it is undone is in settings.py.

    file name   PID-STARTTIME.json: a process id alone would be reused
    content     boot id, pid namespace, entries oldest first
    abandoned   same boot, same pid namespace, and no such process any more

A file of another boot is void, because what it describes ended with that boot.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from appliance.errors import HostError

SYSTEM_DIRECTORY = Path("/run/openclaw/journal")


@dataclass(frozen=True)
class Change:
    """One thing to undo."""

    kind: str  # "offload", "device", "pause" or "namespace"
    netns: str
    interface: str = ""
    ifindex: int = 0  # an interface that was made anew under the old name is not the same one
    key: str = ""
    old: int = 0


def default_directory() -> Path:
    """Where this user's journal is."""
    if os.geteuid() == 0:
        return SYSTEM_DIRECTORY
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if not runtime:
        raise HostError("no directory for the journal of changes", fix="run as root (sudo)")
    return Path(runtime) / "openclaw" / "journal"


class Journal:
    """The entries of this process, and the way to those of processes that died."""

    def __init__(self, directory: Path | None = None) -> None:
        self.directory = directory or default_directory()
        self._lock = threading.Lock()
        self._entries: list[Change] = []
        self._pid = 0

    def remember(self, change: Change) -> None:
        """Writes the entry to disk; returns only then, so that the change may follow."""
        with self._lock:
            self._own_after_fork()
            self._write([*self._entries, change])
            self._entries.append(change)

    def forget(self, change: Change) -> None:
        """Takes out an entry that has been undone."""
        with self._lock:
            self._own_after_fork()
            if change in self._entries:
                self._entries.remove(change)
                self._write(self._entries)

    @property
    def entries(self) -> list[Change]:
        with self._lock:
            self._own_after_fork()
            return list(self._entries)

    def _own_after_fork(self) -> None:
        """A forked child owes nothing of what its parent changed."""
        if self._pid != os.getpid():
            self._pid, self._entries = os.getpid(), []

    def _write(self, entries: list[Change]) -> None:
        self._make_directory()
        path = self.directory / f"{os.getpid()}-{_start_time(os.getpid())}.json"
        if not entries:
            path.unlink(missing_ok=True)
            return
        text = json.dumps({**_here(), "entries": [asdict(entry) for entry in entries]})
        fresh = path.with_suffix(".new")
        fresh.write_text(text)
        fresh.rename(path)  # a reader sees the old text or the new one, never half of it

    def _make_directory(self) -> None:
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = self.directory.lstat()
        except OSError as error:
            raise HostError(
                f"journal {self.directory}: {error.strerror}", fix="run as root (sudo)"
            ) from None
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise HostError(
                f"journal {self.directory} can be written by others", fix=f"rm -r {self.directory}"
            )

    @contextlib.contextmanager
    def abandoned(self) -> Iterator[list[Change]]:
        """The entries of dead processes, newest first. Those still listed at the end are kept.

        The caller removes from the list what it has undone. Only one process at a time is here.
        """
        if not self.directory.is_dir():
            yield []
            return
        self._make_directory()
        with (self.directory / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            files = {path: entries for path in sorted(self.directory.glob("*-*.json"))
                     if (entries := _of_the_dead(path)) is not None}
            pending = [entry for entries in files.values() for entry in reversed(entries)]
            try:
                yield pending
            finally:
                for path, entries in files.items():
                    if not any(entry in pending for entry in entries):
                        path.unlink(missing_ok=True)
                        path.with_suffix(".new").unlink(missing_ok=True)


def _of_the_dead(path: Path) -> list[Change] | None:
    """The entries of a journal file whose process is gone; None if it lives or is unknown to us."""
    try:
        pid, start = path.stem.split("-")
        content = json.loads(path.read_text())
        entries = [Change(**entry) for entry in content["entries"]]
        boot, namespace = content["boot"], content["pid_namespace"]
        alive = _start_time(int(pid)) == int(start)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    here = _here()
    if boot != here["boot"]:
        return []
    if namespace != here["pid_namespace"]:
        return None  # its process is out of our sight, dead or alive
    return None if alive else entries


def _here() -> dict[str, str]:
    return {
        "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "pid_namespace": os.readlink("/proc/self/ns/pid"),
    }


def _start_time(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat; the name before it may hold blanks and brackets."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])
