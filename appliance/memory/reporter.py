"""The report that is written when memory runs out: the page of `mem explain` of that moment.

Owns the thread that writes, the file, and the pace: at most one report a minute, however often
memory runs out. `ran_out` costs its caller nothing: it is called from the governor's beat. A report
that cannot be written is an event, never an error. It does not decide when memory has run out.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from appliance.errors import one_line
from appliance.memory.events import EventLog

PACE_S = 60.0  # a page is 10 to 100 kB: a disk that is in trouble too must not be flooded
CULPRIT = "mem explain"


def beside(socket: str) -> str:
    """Where the report of an appliance with this control socket is, unless it is configured."""
    return str(Path(socket).with_suffix(".memory.json"))


class Reporter:
    """`Reporter(path, page, events)`: start(), ran_out(why) whenever it did, stop().

    `page` is called in a thread of its own and must wait for nobody who waits for stop().
    """

    def __init__(self, path: str, page: Callable[[], dict[str, Any]], events: EventLog) -> None:
        self.path = path
        self.written = 0
        self._page = page
        self._events = events
        self._why: str | None = None
        self._last = -1e9
        self._wake = threading.Event()
        self._ended = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        if self.path:
            self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """No more reports; one that is being written is finished first."""
        self._ended = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._page = dict  # whose page it was is to end with the last reference to it

    def ran_out(self, why: str) -> None:
        """Writes a report soon, unless there was one within the last minute."""
        if time.monotonic() - self._last >= PACE_S and not self._wake.is_set():
            self._last = time.monotonic()
            self._why = why
            self._wake.set()

    def _run(self) -> None:
        while self._wake.wait() and not self._ended:
            why = self._why or ""
            try:
                self._write({"time": time.time(), "pid": os.getpid(), "why": why, **self._page()})
                self.written += 1
                self._events.note(CULPRIT, "wrote a report", 1, why=f"{why}: {self.path}")
            except Exception as error:  # whatever it is, memory is what matters now
                words = one_line(getattr(error, "strerror", None) or error)
                self._events.note(CULPRIT, "could not write a report", 1,
                                  why=f"{self.path}: {words}")
            if not self._ended:
                self._wake.clear()

    def _write(self, page: dict[str, Any]) -> None:
        """Whole or not at all, and for nobody but us: it names who holds what."""
        path = Path(self.path)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.{os.getpid():x}")
        try:
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW,
                                 0o600)
            with os.fdopen(descriptor, "w") as out:
                json.dump(page, out)
            fresh.rename(path)
        finally:
            fresh.unlink(missing_ok=True)
