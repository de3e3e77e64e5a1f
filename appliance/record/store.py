"""Where the segments of a log lie: directories of files, or the slots of a block device.

Owns names and places, the state page, and the question whether a recorder is at work. It opens
segments (SegmentMap) but neither reads records nor judges; nothing here changes anything.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.dataplane import log_scan, log_writer
from appliance.errors import ConfigError, LogDamaged, PortError

__all__ = ["PAGE", "Place", "Store"]

PAGE: int = log_scan.PAGE
DEVICE_FIRST: int = log_scan.DEVICE_FIRST
SEGMENT_BYTES_MAX = 64 << 30  # OC_LOG_SEGMENT_BYTES_MAX: what a map is made for
NAME = re.compile(r"(\d{12,20})" + re.escape(log_writer.SUFFIX))
State = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """One segment: a file, or a slot of a device. `size` is what existed when it was found."""

    index: int
    path: Path
    size: int
    start: int = 0
    slot: bool = False

    @property
    def name(self) -> str:
        return f"{self.path}@{self.start}" if self.slot else str(self.path)

    def prepared(self) -> bool:
        """Whether a recorder made it ahead of need and has not begun it: the first page is zeros,
        and no write in it names this segment (one that does has lost its header)."""
        if self.size < PAGE:
            return False
        try:
            mapped = self.open()
            return bool(mapped.blank and not mapped.stray_heads(self.index, self.size))
        except (FileNotFoundError, BlockingIOError):
            return True
        except OSError as error:
            raise LogDamaged(f"{self.name}: {error.strerror or error}") from error

    def open(self, size: int | None = None) -> Any:
        """The map of it. LogDamaged: the medium cannot be read; FileNotFoundError and
        BlockingIOError: the recorder has taken it for something else."""
        try:
            return log_scan.SegmentMap(
                self.path, size or max(self.size, PAGE), start=self.start, lock=not self.slot
            )
        except (FileNotFoundError, BlockingIOError):
            raise
        except OSError as error:
            raise LogDamaged(f"{self.name}: {error.strerror or error}") from error


class Store:
    """The directories of one log, or its block devices."""

    def __init__(self, where: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> None:
        several = [where] if isinstance(where, (str, os.PathLike)) else list(where)
        self.places = [Path(one) for one in several]
        if not self.places:
            raise ConfigError("a log needs a directory")
        kinds = set()
        for path in self.places:
            try:
                mode = path.stat().st_mode
            except OSError as error:
                raise ConfigError(f"cannot open log {path}: {error.strerror}") from error
            kinds.add(stat.S_ISDIR(mode))
        if len(kinds) > 1:
            raise ConfigError(
                f"{several[0]}: the places of a log are all directories or all devices")
        self.device = kinds == {False}
        self.name = ", ".join(str(path) for path in self.places)

    # ------------------------------------------------------------------ state
    def states(self) -> list[State]:
        """The state page of each place that has a valid one."""
        return [state for path in self.places if (state := self._state_of(path)) is not None]

    def _state_of(self, path: Path) -> State | None:
        file = path if self.device else path / log_writer.STATE_NAME
        try:
            with open(file, "rb") as stream:
                found: State | None = log_scan.read_state(stream.read(PAGE))
        except OSError:
            return None
        return found

    def state(self) -> State | None:
        """The one that promises most; of equal ones the newest."""
        return max(self.states(), default=None,
                   key=lambda state: (state["durable_seq"], state["updated_ns"]))

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Holds the lock that a recorder holds while it lives; PortError: one does. A pid tells
        nothing about a recorder in another container."""
        with contextlib.ExitStack() as held:
            for path in self.places:
                file = path if self.device else path / log_writer.STATE_NAME
                try:
                    stream = held.enter_context(open(file, "r+b"))
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except FileNotFoundError:
                    continue
                except BlockingIOError:
                    raise PortError(f"{path}: a recorder is at work on it") from None
                except OSError as error:
                    raise ConfigError(f"cannot change log {path}: {error.strerror}") from error
            yield

    # ------------------------------------------------------------------ segments
    def segments(self) -> list[Place]:
        """What is there, by index. A file that has another index twice is the caller's to judge."""
        found = self._slots() if self.device else self._files()
        return sorted(found, key=lambda place: (place.index, place.name))

    def _files(self) -> Iterable[Place]:
        for directory in self.places:
            try:
                entries = list(os.scandir(directory))
            except OSError as error:
                raise ConfigError(f"cannot open log {directory}: {error.strerror}") from error
            for entry in entries:
                named = NAME.fullmatch(entry.name)
                if named is None or not entry.is_file(follow_symlinks=False):
                    continue
                try:
                    size = entry.stat().st_size
                except FileNotFoundError:
                    continue  # recycled since
                yield Place(int(named[1]), Path(entry.path), min(size, SEGMENT_BYTES_MAX))

    def _slots(self) -> Iterable[Place]:
        for path in self.places:
            total = _size(path)
            slot_bytes, slots = self._geometry(path, total)
            for number in range(slots):
                start = DEVICE_FIRST + number * slot_bytes
                if start + slot_bytes > total:
                    break
                place = Place(0, path, slot_bytes, start, slot=True)
                header = place.open(PAGE).header
                if header is not None:
                    yield Place(header["index"], path, slot_bytes, start, slot=True)

    def _geometry(self, path: Path, total: int) -> tuple[int, int]:
        state = self._state_of(path)
        if state is not None and state["slot_bytes"] >= PAGE:
            return state["slot_bytes"], state["slots"]
        if total >= DEVICE_FIRST + PAGE:
            header = Place(0, path, PAGE, DEVICE_FIRST, slot=True).open(PAGE).header
            if header is not None:
                size = header["segment_bytes"]
                return size, (total - DEVICE_FIRST) // size if size >= PAGE else 0
        raise ConfigError(f"{path} holds no log: neither a state page nor a first segment")


def live(state: State | None) -> bool:
    """Whether the recorder that wrote the state is still there."""
    if state is None or not state["writer_pid"]:
        return False
    started: int = log_writer.process_start(state["writer_pid"])
    return started != 0 and started == state["writer_start"]


def _size(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.lseek(fd, 0, os.SEEK_END)
    finally:
        os.close(fd)
