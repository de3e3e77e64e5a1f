"""Other programs under measurement: started in a namespace, read while they run, always ended.

Owns the child process, its output file and its end: asked first (SIGINT), then killed, always by
its own process id, always waited for.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence

from appliance.errors import HostError, PortError
from appliance.net import inside

STOP_S = 5.0  # testpmd takes 1 s to stop its ports and close its devices


class Child:
    """A program in a network namespace, its output in a file that has no name."""

    def __init__(self, command: Sequence[str], netns: str | None, *, cpus: set[int] | None = None):
        self.command = inside(netns, *command)
        self._output = tempfile.TemporaryFile("w+b")  # noqa: SIM115  closed by stop()
        inherited = os.sched_getaffinity(0)
        try:
            if cpus:
                os.sched_setaffinity(0, cpus)  # of this thread only; the child inherits it
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                # No session of its own: the scheduler shares a CPU out by session (autogroup), and
                # the peer must stand in the same group as we do.
            )
        except FileNotFoundError as error:
            self._output.close()
            what = f"{error.filename} is not installed"
            raise HostError(what, fix="apt install iproute2") from None
        finally:
            os.sched_setaffinity(0, inherited)

    @property
    def pid(self) -> int:
        return self._process.pid

    def output(self) -> str:
        """All that it has said so far."""
        size = os.fstat(self._output.fileno()).st_size
        return os.pread(self._output.fileno(), size, 0).decode("utf-8", "replace")

    def say(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()

    def wait_for(self, ready: Callable[[str], bool], timeout_s: float, what: str) -> str:
        """Its output, once `ready` says yes to it. PortError if it ends or takes too long."""
        deadline = time.monotonic() + timeout_s
        while True:
            said = self.output()
            if ready(said):
                return said
            ended = self._process.poll() is not None
            if ended or time.monotonic() > deadline:
                if ready(said := self.output()):
                    return said
                raise PortError(
                    f"{_program(self.command)}: "
                    f"{'ended' if ended else 'timeout'} before {what}: {_last_words(said)}"
                )
            time.sleep(0.002)

    def stop(self) -> None:
        """Ends it: input closed and SIGINT, then SIGKILL. It is gone when this returns."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        for number in (signal.SIGINT, signal.SIGKILL):
            if self._process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    self._process.send_signal(number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(STOP_S)
        self._process.wait()
        self._output.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _program(command: Sequence[str]) -> str:
    """Its name, without what it was started through."""
    words = command[2 if command[0] == "nsenter" else 0:]
    return words[2] if words[0] == "stdbuf" else words[0]


def _last_words(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    wrong = [line for line in lines if "rror" in line or "annot" in line or "ailed" in line]
    return (wrong or lines or ["it said nothing"])[-1]
