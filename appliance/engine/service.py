"""`openclaw run`: an engine with its control socket and metrics, until somebody ends it.

Owns the order of the three, and the waiting. The socket and the metrics port are taken before the
first interface is touched, so a second appliance ends without a trace; they answer once packets
can arrive, and are closed before the engine stops.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from appliance.config import Config
from appliance.engine.control import Control
from appliance.engine.engine import Engine
from appliance.engine.metrics import Metrics
from appliance.engine.recording import keep_arguments

TICK_S = 1.0


class Service:
    """`Service(config).run(seconds, tick)`: the final figures, or None if ended while starting."""

    def __init__(self, config: Config) -> None:
        self.engine = Engine(config)
        self.ended = threading.Event()

    def run(
        self,
        seconds: float | None = None,
        *,
        started: Callable[[Engine], None] | None = None,
        tick: Callable[[dict[str, Any]], None] | None = None,
    ) -> dict[str, Any] | None:
        """Runs until `ended` is set, or for some seconds. `tick` gets the figures every second."""
        settings = self.engine.config.control
        control = Control(settings.socket)
        metrics = None
        try:
            metrics = Metrics(settings.metrics) if settings.metrics else None
            try:
                self.engine.start()
            except BaseException:
                if self.ended.is_set():  # the signal reached the compiler too
                    return None
                raise
            try:
                control.serve(self._verbs())
                if metrics is not None:
                    metrics.serve(self.engine.statistics, self.engine.rules)
                if started is not None:
                    started(self.engine)
                self._wait(seconds, tick)
            finally:
                control.close()
                if metrics is not None:
                    metrics.close()
                final = self.engine.stop()
            return final
        finally:
            control.close()
            if metrics is not None:
                metrics.close()

    def _wait(self, seconds: float | None, tick: Callable[[dict[str, Any]], None] | None) -> None:
        until = None if seconds is None else time.monotonic() + seconds
        while not self.ended.is_set():
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                return
            if tick is None:
                self.ended.wait(left)
                continue
            self.ended.wait(TICK_S if left is None else min(TICK_S, left))
            tick(self.engine.statistics())

    def _verbs(self) -> dict[str, Callable[[dict[str, Any]], Any]]:
        engine = self.engine
        return {
            "stats": lambda _: engine.statistics(),
            "mem.explain": lambda _: engine.explain(),
            "mem.history": lambda request: engine.history(
                request.get("action"), request.get("object", "")
            ),
            "rules.list": lambda _: engine.rules(),
            "rules.swap": lambda request: engine.swap(request.get("rules", [])),
            "log.keep": lambda request: engine.keep(*keep_arguments(request)),
            "stop": self._end,
        }

    def _end(self, _: dict[str, Any]) -> str:
        self.ended.set()
        return "stopping"


class end_on_signals:
    """SIGTERM and SIGINT set the event, instead of whatever they did, inside the context."""

    def __init__(self, ended: threading.Event) -> None:
        self._ended = ended
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._end)

    def _end(self, _number: int, _frame: FrameType | None) -> None:
        self._ended.set()

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
