"""A recording: the writer, its places and the account, from start to end.

    made = Recording(Settings(("/var/lib/openclaw/log",)), tier, ports, "keep")
    made.start(); spool = made.spool() (given to a worker); ...; made.stop()

Owns the order of life. The writer's thread is compiled and waits for nobody
(cython_ext/recorder.pyx); each place waits for its own device (place.py), and so does what
publishes its state; supply.py carries segments and events between them.

While no place takes writes the newest packets stay in memory (`memory_mib`), the oldest go and are
counted, and the log says so with a GAP as soon as a place is back.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from appliance.dataplane import LogRecorder, Spool, pcap
from appliance.errors import ConfigError, PortError
from appliance.limits import RECORD_PORTS_MAX
from appliance.memory import EventLog, MidTier
from appliance.record import account
from appliance.record.device import Device, is_device
from appliance.record.directory import Directory
from appliance.record.place import Place
from appliance.record.resume import Resume, process_start, resume
from appliance.record.settings import LogPort, Settings, clock_offset_ns
from appliance.record.supply import Supply

STOP_S = 5.0  # to write what is in memory at the end
KEEP_S = 30.0  # to write what was asked for of a window
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
            window_ms=int(settings.window_s * 1000),
        )
        self._places: list[Place] = []
        self._supply: Supply | None = None
        self._threads: list[threading.Thread] = []
        self._failure = ""
        self._keeping = threading.Lock()
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
            self.resumed = self._resume(media)
        except BaseException:
            for medium in locked:
                medium.close()
            raise
        self._places = [
            Place(number, medium, self.settings.hang_s) for number, medium in enumerate(media)
        ]
        self._supply = Supply(self._recorder, self._places, self.settings, self._ports,
                              self.resumed, self._events, self.name)
        self._run("log writer", lambda: self._write(cpu))
        self._run("log helper", self._supply.run)
        for number in range(len(self._places)):
            self._run(f"log state {number}", self._publisher(number))
        # The workers have blocks and the writer has a segment before the first packet, or a reason.
        until = time.monotonic() + MARGIN_S
        while not (self._recorder.primed or self.reasons()) and time.monotonic() < until:
            time.sleep(0.001)

    def _medium(self, path: str) -> Directory | Device:
        segment, each = self.settings.segment_mib << 20, len(self.settings.directories)
        if is_device(path):
            return Device(path, segment)
        limit = (self.settings.limit_mib << 20) // each
        return Directory(path, segment, limit, self.settings.max_age_s)

    def _resume(self, media: Sequence[Directory | Device]) -> Resume:
        """Where the log goes on, told to the writer with the pages to publish to."""
        for medium in media:
            medium.clean()
        blank = all(medium.blank for medium in media)
        found = Resume.begin() if blank else resume(self.settings.directories)
        self._recorder.resume(found.next_seq, found.chain, found.next_seq - 1)
        slots = [medium.slots for medium in media if isinstance(medium, Device)]
        self._recorder.states(
            [medium.state_page() for medium in media], found.uuid, os.getpid(),
            process_start(os.getpid()), self.settings.segment_mib << 20 if slots else 0,
            min(slots, default=0),
        )
        return found

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

    # ------------------------------------------------------------------------------------ window

    def keep(self, last_s: float, match: str = "") -> dict[str, Any]:
        """Writes what the window has of the last seconds and matches; returns when it is durable.

        {"packets", "durable"}: how many were written now, and whether all of them are flushed.
        """
        if not self.settings.window_s:
            raise ConfigError(f"{self.name}: it has no window (window_s): it keeps everything")
        if not 0 < last_s <= self.settings.window_s:
            raise ConfigError(f"last: {last_s:g}: more than 0, up to {self.settings.window_s:g} s, "
                              "which is the window")
        try:
            wanted = pcap.Filter(match) if match else None
        except ValueError as error:
            raise ConfigError(f"match: {match!r}: {error}") from None
        until = time.monotonic() + KEEP_S
        with self._keeping:
            before = self._recorder.figures()["kept"]
            self._recorder.keep(time.time_ns() - int(last_s * 1e9), wanted)
            while not self._recorder.kept_all and time.monotonic() < until:
                time.sleep(0.002)
            if not self._recorder.kept_all:
                why = "; ".join(self.reasons()) or "the disk takes nothing"
                raise PortError(f"{self.name}: not written in {KEEP_S:.0f} s: {why}")
            count = self._recorder.figures()["kept"] - before
            while (durable := self._recorder.idle) is False and time.monotonic() < until:
                time.sleep(0.002)
        self._events.note(self.name, "keeps a window", count, why=match or "everything")
        return {"consumer": self.name, "packets": count, "durable": durable}

    # -------------------------------------------------------------------------------------- stop

    def stop(self, seconds: float = STOP_S) -> dict[str, Any]:
        """Writes what is in memory, for so long at most; seals; the final figures.

        The workers have stopped before: nobody fills a spool any more.
        """
        if self._final is not None:
            return self._final
        if not self._threads or self._supply is None:
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
        self._supply.end()
        helper.join(seconds + MARGIN_S)
        self._recorder.publish_last()
        for thread in publishers:
            thread.join(MARGIN_S)
        self._supply.last()
        # Before the places go: after it nobody refers to their pages.
        self._recorder.close(any(thread.is_alive() for thread in publishers))
        self._final = self.summary()
        for place in self._places:
            place.close(0.1 if place.hangs else MARGIN_S)
        self._threads = []
        return self._final

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
        found = self._supply.reasons() if self._supply is not None else []
        return [*found, self._failure] if self._failure else found

    def summary(self) -> dict[str, Any]:
        """The account and how it stands: see account.py."""
        if self._final is not None:
            return self._final
        return account.summary(
            self.name, self._recorder.figures(), self._places, self.reasons(),
            self._recorder.engine, self._recorder.engine_reason,
        )
