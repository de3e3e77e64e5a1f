"""The supply of segments: which place is next, what became of each, when one is tried again.

Owns the places of one recording while it runs, and the thread that carries segments and events
between them and the compiled writer. One segment is always given ahead of need. A place that fails
is out of the set until its time comes; with none left the writer keeps packets in memory.
"""

from __future__ import annotations

import os
import secrets
import select
import threading
import time
from collections.abc import Sequence

from appliance.dataplane import LogRecorder
from appliance.memory import EventLog
from appliance.record.directory import PAGE, explained
from appliance.record.place import Place, Prepared
from appliance.record.resume import Resume
from appliance.record.settings import LogPort, Settings

BEAT_S = 0.1  # the helper is woken by events; this is for retries
MARGIN_S = 2.0


class Supply:
    """`run()` on a thread of its own until `end()`; then `last()`."""

    def __init__(
        self,
        recorder: LogRecorder,
        places: Sequence[Place],
        settings: Settings,
        ports: Sequence[LogPort],
        resumed: Resume,
        events: EventLog,
        name: str,
    ) -> None:
        self.places = list(places)
        self._recorder = recorder
        self._settings = settings
        self._ports = list(ports)
        self._uuid = resumed.uuid
        self._index = resumed.next_index
        self._events = events
        self._name = name
        self._next_place = 0
        self._ordered: Place | None = None
        self._given: dict[int, tuple[Place, Prepared]] = {}  # by index: not yet retired
        self._lock = threading.Lock()
        self._ending = False

    def run(self) -> None:
        fd = self._recorder.helper_fd
        while not self._ending:
            if select.select([fd], [], [], BEAT_S)[0]:
                os.read(fd, 8)
            with self._lock:
                for event in self._recorder.events():
                    self._happened(*event)
                if self._recorder.wants:
                    self._step(time.monotonic())

    def _step(self, now: float) -> None:
        """Orders the next segment, or gives it if it is there."""
        place = self._ordered
        if place is None:
            place = self._choose(now)
            if place is not None:
                place.order(self._index)
                self._ordered = place
                self._wait_a_little(place)
            return
        try:
            prepared = place.ready()
        except OSError as error:
            self._ordered = None
            self._out(place, f"{place.path}: no segment: {explained(error)}", now)
            return
        if prepared is not None:
            self._ordered = None
            self._give(place, prepared)

    def _wait_a_little(self, place: Place) -> None:
        """A healthy disk has a segment in milliseconds; the next beat would be long after that."""
        until = time.monotonic() + BEAT_S
        while self._ordered is place and time.monotonic() < until and not self._ending:
            time.sleep(0.001)
            self._step(time.monotonic())

    def _give(self, place: Place, prepared: Prepared) -> None:
        self._given[prepared.index] = (place, prepared)
        self._index = prepared.index + 1
        snap = self._settings.snap_bytes
        self._recorder.give(
            prepared.fd, prepared.base, prepared.bytes, place=place.number, index=prepared.index,
            epoch=secrets.randbits(63) | 1, uuid=self._uuid,
            ports=[(port.number, port.link_type, snap, port.name, port.interface)
                   for port in self._ports],
            stripe=place.number, stripes=len(self.places), map=prepared.map,
            persistent_stores=prepared.map is not None,
        )

    def _choose(self, now: float) -> Place | None:
        count = len(self.places)
        for step in range(count):
            place = self.places[(self._next_place + step) % count]
            if not place.hangs and now >= place.retry_at:
                self._next_place = (place.number + 1) % count
                return place
        return None

    def _happened(
        self, what: str, number: int, index: int, error: int, operation: str, synced: int
    ) -> None:
        place, prepared = self._given[index]
        now = time.monotonic()
        if what == "begun":
            if place.error:
                self._events.note(self._name, "writes again", 1, why=place.path)
            place.works()
            return
        del self._given[index]
        if what == "hung":
            place.stuck.append(prepared)  # the kernel may still write to it: it stays open
        elif what == "retired":
            place.retire(prepared, synced)
        elif synced > PAGE:
            place.retire(prepared)  # the end of it does not count, the beginning does
        else:
            place.discard(prepared)  # nothing in it was ever durable
        if error:
            words = explained(OSError(error, os.strerror(error)))
            if what == "hung":
                words = f"no answer for {self._settings.hang_s:g} s"
            self._out(place, f"{place.path}: {operation}: {words}", now)

    def _out(self, place: Place, reason: str, now: float) -> None:
        if place.error != reason:
            self._events.note(self._name, "keeps packets in memory", 1, why=reason)
        place.failed(reason, now=now)

    def end(self) -> None:
        self._ending = True

    def last(self) -> None:
        """When writer and helper have ended: what was given and not begun goes."""
        with self._lock:
            for event in self._recorder.events():
                self._happened(*event)
            self._recorder.take_back()
            for place, prepared in self._given.values():
                place.discard(prepared)
            self._given.clear()
            if self._ordered is not None:
                self._take_order(self._ordered)
                self._ordered = None

    @staticmethod
    def _take_order(place: Place) -> None:
        until = time.monotonic() + MARGIN_S
        while time.monotonic() < until:
            try:
                prepared = place.ready()
            except OSError:
                return
            if prepared is not None:
                place.discard(prepared)
                return
            time.sleep(0.005)

    def reasons(self) -> list[str]:
        """Why a place is out."""
        found = [place.error for place in self.places if place.error]
        found += [f"{place.path}: hangs" for place in self.places
                  if place.hangs and not place.error]
        return [f"{self._name}: {line}" for line in found]
