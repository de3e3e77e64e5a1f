"""The way through a log: which segment comes first, which next, and what it means when none does.

Owns Cursor, the place of one reader. It gives batches as the walk proves them and says whether
there is more; waiting, filtering and raising are reader.py's.
"""

from __future__ import annotations

from typing import Any

from appliance.dataplane import log_read, log_scan
from appliance.errors import LogDamaged
from appliance.record.select import Selection
from appliance.record.store import PAGE, SEGMENT_BYTES_MAX, Place, Store, live
from appliance.record.verdict import Verdict, decide
from appliance.record.verify import facts_of, superseded_from

__all__ = ["Cursor"]

BATCH_BYTES = 8 << 20  # of one batch: what a cache still likes to see again
GONE = (FileNotFoundError, BlockingIOError)  # the recorder has taken the file for something new


class Cursor:
    """One reader's place in a log."""

    def __init__(self, store: Store, selection: Selection) -> None:
        self.store = store
        self.selection = selection
        self.ports: dict[int, dict[str, Any]] = {}  # by id, of all segments opened
        self.overrun = 0  # records that were recycled before the reader came to them
        self.place: Place | None = None
        self._map: Any = None
        self._walk: Any = None
        self._seq, self._chain = 0, 0  # what the next segment must continue
        self._until: int | None = None  # from there on the next segment has the records anew

    def begin(self, next_seq: int) -> bool:
        """Opens the segment to begin with; False: there is none yet, or it has no header."""
        best = None
        for place in self.store.segments():
            try:
                header, seal = self._peek(place)
            except GONE:
                continue
            if header is None:
                if best is None and self.place is None and not place.prepared():
                    self.place = place  # for the verdict
                continue
            if next_seq and header["first_seq"] > next_seq and best is not None:
                break
            best = place
            if not next_seq and self.selection.may_hold(seal):
                break
        if best is None or (self.place is not None and not next_seq):
            return False  # records before the first that can be read are lost: judge
        return self._open(best, next_seq)

    def read(self, max_records: int) -> Any:
        """The next packets; an empty batch without gaps: the walk has stopped."""
        if self._walk is None:
            return log_read.LogBatch.empty()
        place = self.place
        assert place is not None
        if self._until is not None:
            max_records = min(max_records, self._until - self._walk.facts["seq"])
            if max_records <= 0:
                return log_read.LogBatch.empty()
        try:
            batch = log_read.read_batch(self._walk, max_records, BATCH_BYTES)
        except OSError as error:
            raise LogDamaged(f"{place.name}: {error.strerror or error}") from error
        if place.slot and not self._map.same():
            raise LogDamaged(f"{place.name} was used again while it was read")
        return batch

    def more(self) -> bool:
        """After an empty batch: whether reading again is worth while."""
        if self._walk is not None and self._walk.stop != log_scan.SEALED:
            before = self._walk.facts["limit"]
            self._walk.raise_limit(self._limit())
            if self._walk.facts["limit"] > before:
                return True
        return self._advance()

    def judge(self) -> Verdict:
        """The verdict on the log from this segment on."""
        state = self.store.state()
        alive = live(state)
        here = -1 if self.place is None else self.place.index
        facts = []
        listed = self.store.segments()
        for place, until in zip(listed, superseded_from(listed), strict=True):
            if place.index < here or (alive and state and place.index > state["index"]):
                continue
            newest = alive and state is not None and place.index == state["index"]
            try:
                facts.append(facts_of(place, state["published"] if newest and state else None,
                                      until=until))
            except GONE:
                continue
        return decide([one for one in facts if not one.prepared], state)

    # ------------------------------------------------------------------ segments
    def _peek(self, place: Place) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        """Header and seal of a segment, if they hold. GONE: it is being recycled."""
        if place.size < PAGE:
            return None, None
        try:
            mapped = place.open()
            return mapped.header, mapped.seal(place.size)
        except GONE:
            raise
        except OSError as error:
            raise LogDamaged(f"{place.name}: {error.strerror or error}") from error

    def _open(self, place: Place, next_seq: int = 0) -> bool:
        """Goes to a segment: at its beginning, or near to next_seq or the wanted time."""
        try:
            header = place.open(PAGE).header
            if header is None:
                return False
            self._map = place.open(min(max(place.size, header["segment_bytes"]), SEGMENT_BYTES_MAX))
        except GONE:
            return False
        self.place = place
        self.ports.update((port["id"], port) for port in header["ports"])
        limit = self._limit()
        self._walk = log_scan.Walk(self._map, limit)
        after = self._next_of([p for p in self.store.segments() if p.index > place.index])
        self._until = after[1]["first_seq"] if after and after[1]["fresh"] else None
        seal = self._map.seal(min(self._map.length(), limit))
        entry = self._entry(seal["index"] if seal else (), next_seq)
        if entry is not None:
            # A hint may lie; what begins at it must then not be taken for the end of the log.
            probe = log_scan.Walk(self._map, limit, entry=entry)
            probe.run(1)
            if probe.facts["records"]:
                self._walk = log_scan.Walk(self._map, limit, entry=entry)
        return True

    def _entry(self, index: Any, next_seq: int) -> Any:
        """The last index entry before which nothing is wanted."""
        for entry in reversed(index):
            seq, _offset, high_ns = entry[:3]
            if seq <= next_seq if next_seq else 0 < high_ns < self.selection.from_ns:
                return entry
        return None

    def _limit(self) -> int:
        """How much of this segment may be looked at now: of a live one, what is published."""
        place = self.place
        assert place is not None
        state = self.store.state()
        if state is not None and live(state):
            if place.index == state["index"]:
                return int(state["published"])
            if place.index > state["index"]:
                return PAGE
        return int(self._map.length())

    def _advance(self) -> bool:
        """To the next segment, if it continues this one."""
        if self._walk is not None:
            facts = self._walk.facts
            self._seq, self._chain = facts["seq"], facts["chain"]
        state = self.store.state()
        newest = state["index"] if state is not None and live(state) else None
        places = self.store.segments()
        while self.place is not None:
            here = self.place.index
            found = self._next_of([p for p in places if p.index > here
                                   and (newest is None or p.index <= newest)])
            if found is None:
                return False
            after, header, seal = found
            if not self._continues(header, places):
                return False
            if self.selection.may_hold(seal):
                return self._open(after)
            assert seal is not None
            self.place, self._walk = after, None  # nothing in it is wanted
            self._seq, self._chain = seal["last_seq"] + 1, -1
        return False

    def _next_of(self, later: list[Place]) -> Any | None:
        """The first of these that has been begun, with header and seal; None: there is none, or
        its header does not hold, or it is just being recycled."""
        for place in later:
            try:
                header, seal = self._peek(place)
            except GONE:
                return None
            if header is not None:
                return place, header, seal
            if not place.prepared():
                return None
        return None

    def _continues(self, header: dict[str, Any], places: list[Place]) -> bool:
        assert self.place is not None
        if header["fresh"] and header["first_seq"] <= self._seq:
            return True
        if all(place.index > self.place.index for place in places):
            self.overrun += max(0, header["first_seq"] - self._seq)
            return True  # this one was there when it was opened: recycled since
        whole = self._walk is None or self._walk.stop in (
            log_scan.SEALED, log_scan.AT_LIMIT, log_scan.NO_WRITE)
        return (whole and header["first_seq"] == self._seq
                and (header["fresh"] or self._chain in (-1, header["chain"])))
