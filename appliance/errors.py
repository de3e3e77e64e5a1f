"""The exceptions of OpenClaw, one class per kind of trouble, each with its exit status.

Owns the promise that `str(error)` is one line that a person can act on. It is not a place for
logic: nothing here knows who raises what. Standard library only.
"""

from __future__ import annotations

import re

_CONTROL = re.compile(r"\s*[\x00-\x1f\x7f\u0085\u2028\u2029]+\s*")


def one_line(text: object) -> str:
    """The text without line breaks and control characters, so that it can be printed as one line.

    Configuration and filter text reach messages; a newline or an escape sequence in them must not
    forge a second line or repaint a terminal.
    """
    return _CONTROL.sub(" ", str(text)).strip()


class OpenClawError(Exception):
    """Base of all errors that OpenClaw raises on purpose; the command exits with exit_status."""

    exit_status = 1

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(message))

    def __str__(self) -> str:
        return one_line(self.args[0]) if self.args else ""


class ConfigError(OpenClawError):
    """Bad usage or configuration: names the field, the value and what is allowed."""

    exit_status = 2


class HostError(OpenClawError):
    """The host lacks something. `fix` is the command that provides it, and is part of the line."""

    exit_status = 3

    def __init__(self, message: object = "", fix: str = "") -> None:
        super().__init__(message)
        self.fix = one_line(fix)

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text}; fix: {self.fix}" if self.fix else text


class PortError(OpenClawError):
    """A port could not be opened or used."""


class MemoryExhausted(OpenClawError):
    """No frame, slab or arena is left within the limits that were given.

    `summary` says who has what, and is part of the line; the whole page is `mem explain`.
    """

    def __init__(self, message: object = "", summary: object = "") -> None:
        super().__init__(message)
        self.summary = one_line(summary)

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text}; {self.summary}" if self.summary else text


class LogDamaged(OpenClawError):
    """The persistent log does not prove its integrity."""


class StaleFrame(OpenClawError):
    """A view of a frame that has been given back was used."""
