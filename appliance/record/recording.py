"""A recording: the writer, its places and what happens when one of them fails, from start to end.

    made = Recording(Settings(("/var/lib/openclaw/log",)), tier, ports, "keep")
    made.start(); spool = made.spool() (given to a worker); ...; made.stop()

Owns the order of life, the choice of the next place, retries, and the account. The writer's thread
is compiled and waits for nobody (cython_ext/recorder.pyx); each place waits for its own device
(place.py), and so does what publishes its state; this object's helper thread only carries segments and events between them.

While no place takes writes the newest packets stay in memory (`memory_mib`), the oldest go and are
counted, and the log says so with a GAP as soon as a place is back. Always:
packets = durable + in memory + dropped, by reason.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from appliance.dataplane import LogRecorder, Spool
from appliance.errors import HostError, PortError
from appliance.limits import RECORD_PORTS_MAX
from appliance.memory import EventLog, MidTier
from appliance.record.device import Device, is_device
from appliance.record.directory import Directory, explained
from appliance.record.place import Place, Prepared
from appliance.record.resume import Resume, process_start, resume
from appliance.record.settings import LogPort, Settings, clock_offset_ns

BEAT_S = 0.1  # the helper is woken by events; this is for retries
STOP_S = 5.0  # to write what is in memory at the end
MARGIN_S = 2.0
WRITER_NICE = -10  # it takes 5 % of a core, and blocks run out when it waits for one


class Recording:
    """See above. `events` gets what was done; methods may be called from any thread."""

    def __init__(
        self,
        settings: Settings,
        tier: MidTier,
        ports: Sequence[LogPort],
        name: str = "recorder",
        events: EventLog | None = None,
    ) -> None:
        if len(ports) > RECORD_PORTS_MAX:
            raise PortError(f"{name}: {len(ports)} ports: a log has {RECORD_PORTS_MAX} at most")
        self.settings = settings
        self.name = name
        self._ports = list(ports)
        self._events = events if events is not None else EventLog()
        self._recorder = LogRecorder(
            tier.slabs, settings.memory_mib, name=f"recorder {name}", engine=settings.engine,
            commit_ms=settings.commit_ms, commit_kib=settings.commit_kib,
            snap_bytes=settings.snap_bytes, flow_bytes=settings.flow_bytes,
            hang_ms=int(settings.hang_s * 1000), to_realtime=clock_offset_ns(),
        )
        self._lock = threading.Lock()
        self._places: list[Place] = []
        self._next_place = 0
        self._index = 0
        self._ordered: Place | None = None
        self._given: dict[int, tuple[Place, Prepared]] = {}  # by index: not yet retired
        self._waiting_since: float | None = None
        self._ending = False
        self._threads: list[threading.Thread] = []
        self._failure = ""
        self._final: dict[str, Any] | None = None
        self.resumed: Resume | None = None

    # ------------------------------------------------------------------------------------ start

    def start(self, cpu: int | None = None) -> None:
        """Recovers what is there, takes the places, runs. Spools come before."""
        media = [self._medium(path) for path in self.settings.directories]
        locked: list[Directory | Device] = []
        try:
            for medium in media:
                medium.lock()
                locked.append(medium)
            for medium in media:
                medium.clean()
            blank = all(medium.blank for medium in media)
            self.resumed = found = (
                Resume.begin() if blank else resume(self.settings.directories)
            )
            self._index = found.next_index
            self._recorder.resume(found.next_seq, found.chain, found.next_seq - 1)
            pages = [medium.state_page() for medium in media]
            slots = [medium.slots for medium in media if isinstance(medium, Device)]
            self._recorder.states(
                pages, found.uuid, os.getpid(), process_start(os.getpid()),
                self.settings.segment_mib << 20 if slots else 0, min(slots, default=0),
            )
        except BaseException:
            for medium in locked:
                medium.close()
            raise
        self._places = [
            Place(number, medium, self.settings.hang_s) for number, medium in enumerate(media)
        ]
        self._run("log writer", lambda: self._write(cpu))
        self._run("log helper", self._help)
        for number, place in enumerate(self._places):
            self._run(f"log state {number}", self._publisher(number))
        until = time.monotonic() + MARGIN_S
        while not self._recorder.primed and not self._failure and time.monotonic() < until:
            time.sleep(0.001)  # the workers have blocks before their first packet

    def _medium(self, path: str) -> Directory | Device:
        segment, each = self.settings.segment_mib << 20, len(self.settings.directories)
        if is_device(path):
            return Device(path, segment)
        limit = (self.settings.limit_mib << 20) // each
        return Directory(path, segment, limit, self.settings.max_age_s)

    def _run(self, what: str, target: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                target()
            except BaseException as error:
                self._failure = f"{self.name}: {what}: {error}"

        thread = threading.Thread(target=guarded, name=f"{what} {self.name}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _write(self, cpu: int | None) -> None:
        with contextlib.suppress(OSError):  # without the privilege it is as important as others
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), WRITER_NICE)
        self._recorder.run(cpu)

    def _publisher(self, number: int) -> Callable[[], None]:
        return lambda: self._recorder.publish_to(number)

    def spool(self) -> Spool:
        """The end of one more worker."""
        return self._recorder.spool()

    @property
    def spools(self) -> list[Spool]:
        return list(self._recorder.spools)

    # ------------------------------------------------------------------------------------ helper

    def _help(self) -> None:
        fd = self._recorder.helper_fd
        while not self._ending:
            if select.select([fd], [], [], BEAT_S)[0]:
                os.read(fd, 8)
            with self._lock:
                self._step()

    def _step(self) -> None:
        for event in self._recorder.events():
            self._happened(*event)
        if self._recorder.wants:
            self._supply(time.monotonic())

    def _supply(self, now: float) -> None:
        """One segment ahead, always: from the next place in turn that is not out."""
        place = self._ordered
        if place is None:
            place = self._choose(now)
            if place is not None:
                place.order(self._index)
                self._ordered = place
            return
        try:
            prepared = place.ready()
        except OSError as error:
            self._ordered = None
            self._out(place, f"{place.path}: no segment: {explained(error)}", now)
            return
        if prepared is None:
            return
        self._ordered = None
        assert self.resumed is not None
        self._given[prepared.index] = (place, prepared)
        self._index = prepared.index + 1
        self._recorder.give(
            prepared.fd, prepared.base, prepared.bytes, place=place.number, index=prepared.index,
            epoch=secrets.randbits(63) | 1, uuid=self.resumed.uuid,
            ports=[(port.number, port.link_type, self.settings.snap_bytes, port.name,
                    port.interface) for port in self._ports],
            stripe=place.number, stripes=len(self._places), map=prepared.map,
            persistent_stores=prepared.map is not None,
        )

    def _choose(self, now: float) -> Place | None:
        count = len(self._places)
        for step in range(count):
            place = self._places[(self._next_place + step) % count]
            if not place.hangs and now >= place.retry_at:
                self._next_place = (place.number + 1) % count
                return place
        return None

    def _happened(self, what: str, number: int, index: int, error: int, operation: str,
                  synced: int) -> None:
        place, prepared = self._given[index]
        now = time.monotonic()
        if what == "begun":
            if place.error:
                self._events.note(self.name, "writes again", 1, why=place.path)
            place.works()
            return
        del self._given[index]
        if what == "hung":
            place.stuck.append(prepared)  # the kernel may still write to it: it stays open
        elif what == "retired":
            place.retire(prepared, synced)
        elif synced > 4096:
            place.retire(prepared)  # the end of it does not count, the beginning does
        else:
            place.discard(prepared)  # nothing in it was ever durable
        if error:
            words = explained(OSError(error, os.strerror(error)))
            if what == "hung":
                words = f"no answer for {self.settings.hang_s:.0f} s"
            self._out(place, f"{place.path}: {operation}: {words}", now)

    def _out(self, place: Place, reason: str, now: float) -> None:
        if place.error != reason:
            self._events.note(self.name, "keeps packets in memory", 1, why=reason)
        place.failed(reason, now=now)

    # -------------------------------------------------------------------------------------- stop

    def stop(self, seconds: float = STOP_S) -> dict[str, Any]:
        """Writes what is in memory, for so long at most; seals; the final figures.

        The workers have stopped before: nobody fills a spool any more.
        """
        if self._final is not None:
            return self._final
        if not self._threads:
            return self.summary()
        until = time.monotonic() + seconds
        for spool in self._recorder.spools:
            while not spool.hand_over() and time.monotonic() < until:
                time.sleep(0.001)
        self._recorder.stop(max(0.0, until - time.monotonic()))
        writer, helper, *publishers = self._threads
        writer.join(seconds + MARGIN_S)
        if writer.is_alive():
            raise PortError(f"{self.name}: the log's writer does not stop")
        self._ending = True
        helper.join(seconds + MARGIN_S)
        self._recorder.publish_last()
        for thread in publishers:
            thread.join(MARGIN_S)
        with self._lock:
            self._step_last()
            # Before the places go: after it nobody refers to their pages.
            self._recorder.close(any(thread.is_alive() for thread in publishers))
            self._final = self.summary()
        for place in self._places:
            place.close(0.1 if place.hangs else MARGIN_S)
        self._threads = []
        return self._final

    def _step_last(self) -> None:
        for event in self._recorder.events():
            self._happened(*event)
        self._recorder.take_back()
        for place, prepared in self._given.values():
            place.discard(prepared)  # given and not begun: whatever was begun has been retired
        self._given.clear()
        if self._ordered is not None:
            ordered, self._ordered = self._ordered, None
            deadline = time.monotonic() + MARGIN_S
            while time.monotonic() < deadline:
                try:
                    prepared = ordered.ready()
                except OSError:
                    return
                if prepared is not None:
                    ordered.discard(prepared)
                    return
                time.sleep(0.005)

    # ------------------------------------------------------------------------------------ figures

    def pressure(self) -> tuple[int, int, str, list[str]]:
        """What the governor looks at. In memory only, what is held is as full as it may be by
        design: no reason to shed anything."""
        used, most, _ = self._recorder.pressure()
        reasons = self.reasons()
        if reasons:
            return 0, most, "degraded", reasons
        return used, most, "ok", []

    def reasons(self) -> list[str]:
        """Why it is not as it should be; nothing if it is."""
        found = [f"{self.name}: {place.error}" for place in self._places if place.error]
        found += [
            f"{self.name}: {place.path}: hangs" for place in self._places
            if place.hangs and not place.error
        ]
        if self._failure:
            found.append(self._failure)
        return found

    def summary(self) -> dict[str, Any]:
        """The account and how it stands; see ARCHITECTURE.md for what each figure is."""
        if self._final is not None:
            return self._final
        figures = self._recorder.figures()
        reasons = self.reasons()
        notes = [place.medium.why_buffered for place in self._places if place.medium.why_buffered]
        if self._recorder.engine_reason:
            notes.append(f"{self._recorder.engine_reason}: writes by threads")
        dropped = {"no_memory": figures["no_memory"], "device": figures["dropped"],
                   "flow_cut": figures["flow_cut"]}
        return {
            "name": self.name,
            "packets": figures["packets"], "bytes": figures["bytes"],
            "durable": figures["durable"], "durable_bytes": figures["durable_bytes"],
            "in_memory": figures["in_memory"],
            "dropped": {reason: count for reason, count in dropped.items() if count},
            "cut_packets": figures["cut_packets"],
            "durable_seq": figures["durable_seq"],
            "gaps": figures["gaps"], "gap_packets": figures["gap_packets"],
            "memory_bytes": figures["blocks"] << 16, "memory_peak_bytes":
                figures["blocks_peak"] << 16, "memory_cap_bytes": figures["blocks_max"] << 16,
            "stuck_bytes": figures["blocks_stuck"] << 16,
            "engine": self._recorder.engine,
            "writes": figures["writes"], "write_bytes": figures["write_bytes"],
            "flushes": figures["syncs"], "flush_ms_mean": round(figures["sync_ms_mean"], 3),
            "flush_ms_worst": round(figures["sync_ms_worst"], 3),
            "segment": figures["index"], "segment_bytes": figures["written"],
            "devices": [self._device(place) for place in self._places],
            "state": "degraded" if reasons else "ok", "reasons": reasons, "notes": notes,
        }

    def _device(self, place: Place) -> dict[str, Any]:
        return {
            "path": place.path, "state": "failed" if place.error else "ok",
            "reason": place.error, "direct": place.direct,
            "recycled": place.medium.recycled, "removed": place.medium.removed,
        }


def closed_account(summary: dict[str, Any]) -> str:
    """"" if every packet that came is durable, in memory or dropped for a reason; else the line."""
    dropped = sum(summary["dropped"].values())
    held = summary["durable"] + summary["in_memory"] + dropped
    if held == summary["packets"]:
        return ""
    return (f"{summary['name']}: {summary['packets']} packets came, {summary['durable']} durable, "
            f"{summary['in_memory']} in memory, {dropped} dropped")


__all__ = ["HostError", "Recording", "closed_account"]
