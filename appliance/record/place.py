"""A place that segments lie in, as the recorder sees it: ordered ahead, given, retired, failed.

Owns the thread of one place. Everything that may wait for a device (create, allocate, rename,
remove, flush) happens in that thread and nowhere else, so a device that hangs holds up nothing but
its own place. What it does on the medium is the medium's (directory.py, device.py); which place is
next, and when it is tried again, is the recording's.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

BACKOFF_S = 0.1  # first retry; doubles with each failure in a row
BACKOFF_S_MAX = 10.0
SETTLED_S = 10.0  # a place that has worked for so long begins with the first backoff again
IDLE_S = 1.0  # how often a place looks after the age of its segments


@dataclass
class Prepared:
    """Room for one segment, with a header page of zeros: nothing of it counts until it is begun."""

    index: int
    fd: int
    base: int  # of the segment, from the start of fd
    bytes: int
    direct: bool
    map: Any = None  # of the whole file or device, where stores are writes (DAX)
    path: str = ""
    slot: int = -1


class Medium(Protocol):
    """What a place does on its medium. Each may raise OSError, and each may hang."""

    path: str
    why_buffered: str
    recycled: int
    removed: int

    def open(self) -> None: ...

    def prepare(self, index: int) -> Prepared: ...

    def discard(self, prepared: Prepared) -> None:
        """It was not begun, or holds nothing."""

    def retire(self, prepared: Prepared, end: int) -> None:
        """It is not written any more; its descriptor goes. end: where it was sealed, or 0."""

    def look(self) -> None:
        """Now and then: what is too old goes."""

    def close(self) -> None: ...


class Place:
    """`Place(number, medium)`: order(index), then ready() until it is not None."""

    def __init__(self, number: int, medium: Medium, hang_s: float) -> None:
        self.number = number
        self.medium = medium
        self.path = medium.path
        self.hang_s = hang_s
        self.error = ""  # why it is out of the set; "" if it is in
        self.retry_at = 0.0
        self.direct: bool | None = None
        self.stuck: list[Prepared] = []  # the kernel may still write to these: kept open
        self._backoff = BACKOFF_S
        self._failed_at = -1e9
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._ordered: int | None = None
        self._ordered_at = 0.0
        self._done: Prepared | OSError | None = None
        self._busy_since: float | None = None
        self._thread = threading.Thread(
            target=self._run, name=f"log place {number}", daemon=True
        )
        self._thread.start()

    # ------------------------------------------------------------------------------- its thread

    def _run(self) -> None:
        while True:
            try:
                task = self._work.get(timeout=IDLE_S)
            except queue.Empty:
                task = self._look
            if task is None:
                return
            self._busy_since = time.monotonic()
            try:
                task()
            finally:
                self._busy_since = None

    def _look(self) -> None:
        with contextlib.suppress(OSError):
            self.medium.look()

    def _prepare(self, index: int) -> None:
        found: Prepared | OSError
        try:
            self.medium.open()
            found = self.medium.prepare(index)
        except OSError as error:
            found = error
        with self._lock:
            if self._ordered == index:
                self._done = found
                return
        if isinstance(found, Prepared):  # nobody waits for it any more: another place has its index
            self._try(self.medium.discard, found)

    @staticmethod
    def _try(act: Callable[[Prepared], None], prepared: Prepared) -> None:
        with contextlib.suppress(OSError):
            act(prepared)

    # ----------------------------------------------------------------------------- the recording

    def order(self, index: int) -> None:
        """Begins to prepare a segment of this index."""
        with self._lock:
            self._ordered, self._ordered_at, self._done = index, time.monotonic(), None
        self._work.put(lambda: self._prepare(index))

    def ready(self) -> Prepared | None:
        """What was ordered, when it is there. OSError: it cannot be had, or it takes too long."""
        with self._lock:
            done = self._done
            if done is None:
                if time.monotonic() - self._ordered_at < self.hang_s:
                    return None
                done = TimeoutError(110, f"no answer for {self.hang_s:.0f} s")
            self._ordered = self._done = None
        if isinstance(done, OSError):
            raise done
        self.direct = done.direct
        return done

    def failed(self, reason: str, *, now: float) -> None:
        """Out of the set, and tried again later; later each time."""
        if now - self._failed_at > SETTLED_S + self._backoff:
            self._backoff = BACKOFF_S
        self.error, self._failed_at = reason, now
        self.retry_at = now + self._backoff
        self._backoff = min(2 * self._backoff, BACKOFF_S_MAX)

    def works(self) -> None:
        self.error = ""

    @property
    def hangs(self) -> bool:
        """Its thread has been in one call for too long."""
        since = self._busy_since
        return since is not None and time.monotonic() - since > self.hang_s

    def retire(self, prepared: Prepared, end: int = 0) -> None:
        self._work.put(lambda: self._try(lambda one: self.medium.retire(one, end), prepared))

    def discard(self, prepared: Prepared) -> None:
        self._work.put(lambda: self._try(self.medium.discard, prepared))

    def close(self, timeout: float) -> bool:
        """Ends the thread; False: it hangs in a call, and is left there."""
        self._work.put(None)
        self._thread.join(timeout)
        if self._thread.is_alive():
            return False
        with contextlib.suppress(OSError):
            self.medium.close()
        return True
