"""`open_log`: reading a log, whole or as it grows.

Owns Log: what a program iterates. A record is handed out only when the walk has proved it; a place
that proves nothing raises LogDamaged, or ends the reading when it is a torn tail (`state` and
`cause` say so). It changes nothing and holds nobody up: a recorder that overtakes a reader goes
on, and `overrun` counts. The way from segment to segment is cursor.py's.
"""

from __future__ import annotations

import os
import time as clock
from collections.abc import Iterator, Sequence
from typing import Any

from appliance.dataplane import log_read
from appliance.errors import ConfigError, LogDamaged
from appliance.record.cursor import Cursor
from appliance.record.select import Flow, Selection, parse_time
from appliance.record.store import Store, live

__all__ = ["Log", "open_log"]

GAPS_MAX = 10_000  # kept; one who follows for a year takes them out in time
POLL_S = 0.01  # a following reader looks this often; the recorder commits every 50 ms
Where = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def open_log(where: Where, *, follow: bool = False, match: str | None = None,
             flow: Flow | str | None = None, start: int | str | None = None,
             end: int | str | None = None) -> Log:
    """Opens a log for reading: a directory, a list of them, or a block device.

    match: a pcap filter expression. flow: a conversation, both ways ("tcp 10.0.0.1:443
    10.0.0.2:51000"). start, end: the wanted times, nanoseconds since 1970 or text as `openclaw log
    export --from` takes it. follow: goes on with what is being recorded; a wait of `timeout_ms`
    yields an empty batch, and the loop ends when the recorder has ended.
    """
    from_ns, to_ns = (
        parse_time(value, name=name) if isinstance(value, str) else value
        for value, name in ((start, "start"), (end, "end")))
    return Log(Store(where), Selection(from_ns=from_ns or 0, to_ns=to_ns, match=match, flow=flow),
               follow)


class Log:
    """A reader of one log. Iterate it for batches; several readers do not know of each other."""

    def __init__(self, store: Store, selection: Selection, follow: bool = False) -> None:
        self.store = store
        self.selection = selection
        self.follow = follow
        self.gaps: list[dict[str, Any]] = []  # losses that the recorder noted: the latest
        self.state = "reading"  # afterwards: clean, torn, damaged, closed
        self.cause = ""
        self.next_seq = 0  # of the record that comes next; 0: the first that is there
        self._cursor = Cursor(store, selection)
        self._begun = False

    @property
    def ports(self) -> dict[int, dict[str, Any]]:
        """The recorded ports by their id: name, interface, link type, snapshot length."""
        return self._cursor.ports

    @property
    def overrun(self) -> int:
        """Records that were recycled before this reader came to them."""
        return self._cursor.overrun

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the reading. Batches and views that are still held stay good."""
        self._cursor = Cursor(self.store, self.selection)
        if self.state == "reading":
            self.state = "closed"

    def seek(self, *, seq: int | None = None, time: int | str | None = None) -> None:
        """Goes to a record by its number, or to the first that is not earlier than a time
        (nanoseconds since 1970, or text). Reading goes on from there."""
        if (seq is None) == (time is None):
            raise ConfigError("seek: either seq or time")
        if self.state == "closed":
            raise ConfigError("seek: the log is closed")
        if time is not None:
            self.selection.from_ns = parse_time(time) if isinstance(time, str) else time
        self.next_seq = max(1, seq) if seq is not None else 0
        self.state, self.cause, self._begun = "reading", "", False
        self._cursor = Cursor(self.store, self.selection)

    def __iter__(self) -> Iterator[Any]:
        return self.batches()

    def batches(self, max_records: int = 4096, timeout_ms: int = 100) -> Iterator[Any]:
        """Batches of at most `max_records` packets, in the order of the log."""
        since = clock.monotonic()
        while self.state == "reading":
            batch = self._next(max_records)
            if batch is None and self.state == "reading":
                if clock.monotonic() - since >= timeout_ms / 1000:
                    since = clock.monotonic()
                    yield log_read.LogBatch.empty()
                clock.sleep(POLL_S)
            elif batch is not None and len(batch):
                yield batch
                since = clock.monotonic()

    def _next(self, max_records: int) -> Any | None:
        """The next batch, as far as it is wanted. None: nothing now, or ever (see `state`)."""
        if not self._begun:
            self._begun = self._cursor.begin(self.next_seq)
        try:
            batch = self._cursor.read(max_records)
            if len(batch) or batch.gaps:
                return self._wanted(batch)
            # Asked before looking once more: what came before the recorder ended is still read.
            waiting = self.follow and live(self.store.state())
            if self._begun and self._cursor.more():
                return batch
        except LogDamaged as error:
            self.state, self.cause = "damaged", str(error)
            raise
        if not waiting:
            self._finish()
        return None

    def _wanted(self, batch: Any) -> Any:
        after = batch.next_seq
        if len(batch) and int(batch.seqs[0]) < self.next_seq:
            batch = batch.select(batch.seqs >= self.next_seq)
        self.gaps += [gap for gap in batch.gaps
                      if gap["seq"] >= self.next_seq and self.selection.overlaps(gap)]
        del self.gaps[:-GAPS_MAX]
        self.next_seq = max(self.next_seq, after)
        return self.selection.of(batch)

    def _finish(self) -> None:
        """Nothing more can be read: says what that means."""
        verdict = self._cursor.judge()
        self.state, self.cause = verdict.state, verdict.cause
        if verdict.state == "damaged":
            raise LogDamaged(verdict.cause)
