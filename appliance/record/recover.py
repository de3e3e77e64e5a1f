"""Recovery: makes a torn log clean by cutting its tail, and refuses to touch a damaged one.

Owns every change that is made to a log that nobody is recording to. `plan` decides, purely, `act`
does it. The steps are in an order that a crash between any two leaves a log that recovery brings
to the same end: later segments go first, the newest of them first; then a seal is written where
the records end, which by itself makes the log clean; then the file is cut behind it; then the
state page forgets what was promised beyond.
"""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from typing import Any

from appliance.dataplane import log_scan, log_writer
from appliance.errors import LogDamaged, PortError
from appliance.record.store import PAGE, Place, Store
from appliance.record.verify import Examined, Progress, examine, report

__all__ = ["Continuation", "Cut", "act", "plan", "recover", "recover_to_record"]


@dataclass(frozen=True)
class Cut:
    """What is to be done; all empty: nothing."""

    remove: tuple[Place, ...] = ()  # whole segments, in this order
    seal: Place | None = None  # the segment that gets a seal ...
    at: int = 0  # ... where its records end
    end: int = 0  # of the write that they end in, as its head promised
    sums: dict[str, int] | None = None
    promise: int | None = None  # the state page promises no more than this


def plan(examined: Examined) -> Cut:
    """Where to cut. LogDamaged: a damaged log is not cut."""
    verdict = examined.verdict
    if verdict.state == "damaged":
        raise LogDamaged(f"{verdict.cause}; a damaged log is not cut")
    if verdict.state == "clean":
        return Cut()
    last = verdict.next_seq - 1
    if verdict.position is None:
        return Cut(promise=last)
    position = verdict.position
    facts, place = examined.facts[position], examined.places[position]
    later = tuple(reversed(examined.places[position + 1:]))
    if facts.header is None:
        return Cut((*later, place), promise=last)
    if facts.sealed:
        return Cut(later, promise=last)
    walk = facts.walk
    sums = {"epoch": facts.header["epoch"], "first_seq": facts.header["first_seq"],
            "seq": walk["seq"], "chain": walk["chain"], "records": walk["records"],
            "bytes": walk["bytes"], "lost": walk["lost"]}
    return Cut(later, place, walk["offset"], walk["write_end"], sums, last)


def act(cut: Cut, store: Store) -> int:
    """Does it; returns how many bytes that held something are gone. Idempotent."""
    gone = 0
    for place in cut.remove:
        gone += _remove(place)
    if cut.seal is not None:
        gone += _seal(cut)
    if cut.promise is not None:
        _remember(store, cut.promise)
    for directory in [] if store.device else store.places:
        _tidy(directory)
    return gone


@dataclass(frozen=True)
class Continuation:
    """How a recorder goes on: the next segment's index, first number, chain, and log."""

    uuid: str | None  # None: there is no log yet
    index: int
    seq: int
    chain: int
    fresh: bool  # the chain begins anew


def recover(store: Store, progress: Progress | None = None) -> dict[str, Any]:
    """Verifies, cuts what may be cut, and reports: verify's report with `cut_bytes`.

    `state` and `cause` say what was found; after a cut the log is clean.
    """
    return _recover(store, progress)[0]


def recover_to_record(store: Store) -> tuple[dict[str, Any], Continuation]:
    """The same at the start of a recorder, and where it goes on. A damaged log is left as it is;
    the recorder goes on behind it, and it stays damaged."""
    told, examined = _recover(store, None)
    verdict = examined.verdict
    uuid = next((facts.header["uuid"] for facts in examined.facts if facts.header), None)
    if verdict.state == "damaged":
        ends = [(facts.seq, facts.evidence.get("end_seq", 0))
                for facts in examined.facts if facts.header]
        index = 1 + max(facts.index for facts in examined.facts)
        return told, Continuation(uuid, index, max(verdict.durable_seq + 1, *map(max, ends), 1), 0,
                                  True)
    fresh = verdict.state == "torn"
    return told, Continuation(uuid, verdict.next_index, verdict.next_seq,
                              0 if fresh else verdict.chain, fresh)


def _recover(store: Store, progress: Progress | None) -> tuple[dict[str, Any], Examined]:
    examined = examine(store, progress)
    if examined.live:
        raise PortError(f"{store.name}: a recorder is at work on it "
                        f"(process {(examined.state or {}).get('writer_pid')})")
    cut_bytes = 0
    if examined.verdict.state != "damaged":
        for place in examined.places[-2:]:
            _flush(place)  # a killed recorder's pages: what goes on from here relies on them
        cut_bytes = act(plan(examined), store)
    return {**report(examined), "cut_bytes": cut_bytes}, examined


def _flush(place: Place) -> None:
    fd = os.open(place.path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.fdatasync(fd)
    finally:
        os.close(fd)


def _exclusive(place: Place) -> int:
    """The file, opened for changing it, with its readers gone."""
    fd = os.open(place.path, os.O_RDWR | os.O_CLOEXEC)
    if not place.slot:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise PortError(f"{place.name} is being read; recovery needs it alone") from None
    return fd


def _remove(place: Place) -> int:
    fd = _exclusive(place)
    try:
        if place.slot:
            os.pwrite(fd, bytes(PAGE), place.start)
            os.fdatasync(fd)
        else:
            os.unlink(place.path)
            _flush_directory(place)
    finally:
        os.close(fd)
    return place.size


def _flush_directory(place: Place) -> None:
    fd = os.open(place.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _seal(cut: Cut) -> int:
    """Writes recovery's seal behind the last record, then cuts the file there.

    The page that the records end in is written again, the same up to that place: the only bytes
    of a log that ever are.
    """
    place = cut.seal
    assert place is not None and cut.sums is not None
    held = max(_held(place, cut.at), min(cut.end, place.size) - cut.at, 0)
    fd = _exclusive(place)
    try:
        start = cut.at - cut.at % PAGE
        before = os.pread(fd, cut.at - start, place.start + start)
        tail = log_writer.cut_seal(before, cut.at, **cut.sums)
        end = start + len(tail)
        os.pwrite(fd, tail, place.start + start)
        os.fdatasync(fd)
        if not place.slot:
            os.ftruncate(fd, end)
            os.fdatasync(fd)
    finally:
        os.close(fd)
    return held


def _held(place: Place, at: int) -> int:
    """How many bytes behind `at` there are before the zeros to the end: the tail that is cut."""
    if at >= place.size:
        return 0
    with memoryview(place.open()) as view:
        return log_scan.last_byte(view, at, place.size) - at


def _remember(store: Store, durable_seq: int) -> None:
    """The state page promises no more than what is there."""
    for path in store.places:
        file = path if store.device else path / log_writer.STATE_NAME
        try:
            log_writer.lower_state(file, durable_seq)
        except FileNotFoundError:
            continue


def _tidy(directory: os.PathLike[str]) -> None:
    """Segments whose header was never finished have another name."""
    for entry in os.scandir(directory):
        if entry.name.endswith(log_writer.SUFFIX + ".new"):
            os.unlink(entry.path)
