"""Segments as files of a directory: prepared, recycled within limits, removed when they are old.

Owns the files `<index>.oclog` of one directory of a log while its recorder runs, and the lock that
says so. A file is prepared with all of its blocks allocated, so a full disk is met before a packet
needs it, and with a header page of zeros, which says "not begun". The oldest segment is used again
where nobody reads it (a reader holds a shared lock on what it maps), else it is removed and lives
on for its readers. All of it may wait for the disk: place.py calls it from a thread of its own.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import re
import time
from pathlib import Path

from appliance.errors import HostError, PortError
from appliance.record.place import Prepared

PAGE = 4096
_NAME = re.compile(r"(\d{12})\.oclog")
_MAP_SHARED_VALIDATE = 0x03
_MAP_SYNC = 0x80000


def segment_name(index: int) -> str:
    return f"{index:012d}.oclog"


class Directory:
    """`Directory(path, segment_bytes, limit_bytes=0, max_age_s=0)`: 0 is no limit."""

    def __init__(
        self, path: str, segment_bytes: int, limit_bytes: int = 0, max_age_s: float = 0
    ) -> None:
        self.path = path
        self.segment_bytes = segment_bytes
        self.limit_bytes = limit_bytes
        self.max_age_s = max_age_s
        self.why_buffered = ""
        self.blank = False  # recovery finds out
        self.recycled = self.removed = 0
        self._ours: set[int] = set()  # prepared or being written: never recycled
        self._lock_fd = -1

    # ---------------------------------------------------------------------------- lock and state

    def lock(self) -> None:
        """The directory is this recorder's from here on. At the start only: it may wait."""
        try:
            Path(self.path).mkdir(parents=True, exist_ok=True)
            fd = os.open(self._file("state"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError as error:
            raise HostError(
                f"{self.path}: {error.strerror}", fix="a directory that can be written"
            ) from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise PortError(f"{self.path}: another recorder writes there") from None
        self._lock_fd = fd

    def state_page(self) -> mmap.mmap:
        """The page of `state`, allocated and locked in memory: to write it never fails later.

        A store into a mapping whose page the disk cannot give raises SIGBUS, which would end the
        appliance for a fault that is only the log's.
        """
        try:
            if os.fstat(self._lock_fd).st_size < PAGE:
                os.pwrite(self._lock_fd, bytes(PAGE), 0)
            page = mmap.mmap(self._lock_fd, PAGE)
        except (OSError, ValueError) as error:
            raise HostError(f"{self._file('state')}: {error}", fix="room on the disk") from None
        lock_pages(page)
        return page

    def open(self) -> None:
        """A directory that vanished and came back is made again."""
        Path(self.path).mkdir(parents=True, exist_ok=True)

    def close(self) -> None:
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    # ---------------------------------------------------------------------------------- segments

    def prepare(self, index: int) -> Prepared:
        """A file of this index, with blocks for the whole segment and a header of zeros."""
        self.look()
        path = self._file(segment_name(index))
        fd = self._recycle(path)
        if fd < 0:
            fd = self._create(path)
        self._ours.add(index)
        direct = self._direct(fd)
        return Prepared(index, fd, 0, self.segment_bytes, direct, self._stores(fd), path)

    def _create(self, path: str) -> int:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
        try:
            os.posix_fallocate(fd, 0, self.segment_bytes)
            os.fsync(fd)
            self._sync_directory()
        except OSError:
            os.close(fd)
            with contextlib.suppress(OSError):
                os.unlink(path)
            raise
        return fd

    def _recycle(self, path: str) -> int:
        """The oldest segment under another name, if there is one too many and nobody reads it.

        Its header goes first: in between it is a segment that has not begun, under either name.
        """
        if not self.limit_bytes:
            return -1
        found = self._segments()
        total = sum(size for _, _, size in found) + self.segment_bytes
        while found and total > self.limit_bytes:
            index, old, size = found.pop(0)
            if index in self._ours:
                continue
            total -= size
            if total > self.limit_bytes:
                os.unlink(old)
                self.removed += 1
                continue
            fd = os.open(old, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.pwrite(fd, bytes(PAGE), 0)
                os.posix_fallocate(fd, 0, self.segment_bytes)
                os.fdatasync(fd)
                os.rename(old, path)
                self._sync_directory()
                fcntl.flock(fd, fcntl.LOCK_UN)
            except BlockingIOError:
                os.close(fd)
                os.unlink(old)
                self.removed += 1
                return -1
            except OSError:
                os.close(fd)
                raise
            self.recycled += 1
            return fd
        return -1

    def look(self) -> None:
        """Removes what is older than max_age_s. The first in order that is not ends it."""
        if not self.max_age_s:
            return
        oldest = time.time() - self.max_age_s
        for index, path, _ in self._segments():
            if index in self._ours or os.stat(path).st_mtime >= oldest:
                return
            os.unlink(path)
            self.removed += 1

    def retire(self, prepared: Prepared, end: int) -> None:
        """A sealed file ends with its seal: readers find the index by that."""
        try:
            if end:
                os.ftruncate(prepared.fd, end)
        finally:
            _close(prepared)
            self._ours.discard(prepared.index)

    def discard(self, prepared: Prepared) -> None:
        self._ours.discard(prepared.index)
        _close(prepared)
        os.unlink(prepared.path)
        self._sync_directory()

    def clean(self) -> None:
        """At the start, after recovery: files that were prepared and never begun."""
        for _, path, _ in self._segments():
            with open(path, "rb") as file:
                begun = any(file.read(PAGE))
            if not begun:
                os.unlink(path)

    # ------------------------------------------------------------------------------------- files

    def _file(self, name: str) -> str:
        return os.path.join(self.path, name)

    def _segments(self) -> list[tuple[int, str, int]]:
        """(index, path, bytes), oldest first."""
        found = []
        with os.scandir(self.path) as entries:
            for entry in entries:
                match = _NAME.fullmatch(entry.name)
                if match is not None:
                    found.append((int(match[1]), entry.path, entry.stat().st_size))
        return sorted(found)

    def _sync_directory(self) -> None:
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _direct(self, fd: int) -> bool:
        """O_DIRECT where the file system takes it; where not, writes go through the page cache."""
        try:
            fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_DIRECT)
        except OSError as error:
            self.why_buffered = f"{self.path}: no O_DIRECT ({error.strerror}): buffered"
            return False
        return True

    def _stores(self, fd: int) -> mmap.mmap | None:
        """A mapping where stores and a fence are writes (DAX with MAP_SYNC), or None."""
        try:
            return mmap.mmap(fd, self.segment_bytes, flags=_MAP_SHARED_VALIDATE | _MAP_SYNC)
        except (OSError, ValueError):
            return None


def lock_pages(page: mmap.mmap) -> bool:
    """mlock: a page that is needed at a bad time is there."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    view = (ctypes.c_char * len(page)).from_buffer(page)
    try:
        return libc.mlock(ctypes.addressof(view), ctypes.c_size_t(len(page))) == 0
    finally:
        del view


def _close(prepared: Prepared) -> None:
    if prepared.fd >= 0:
        os.close(prepared.fd)
        prepared.fd = -1


def explained(error: OSError) -> str:
    """The error in the words of the system, with what it means for a log."""
    text = error.strerror or str(error)
    if error.errno == errno.ENOSPC:
        return f"{text} (set limit_mib below the room that there is)"
    return text
