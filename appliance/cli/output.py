"""What commands print: one JSON object, or text and tables for people.

Owns standard output. With --json it belongs to exactly one object: while the command runs,
descriptor 1 leads to standard error, so that neither a library nor a child process can spoil it.

    @click.command()
    @output.json_option
    def command(out: output.Output) -> None:
        out.note("on standard error")
        out.result({"ok": True}, render)     # exactly once; render(data) is called without --json
        raise SystemExit(1)                  # the exit status, if it is not 0
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TextIO

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from appliance.errors import one_line

_WIDTH_WITHOUT_TERMINAL = 10_000

STATE_STYLE = {"ok": "green", "warn": "yellow", "fail": "bold red", "degraded": "yellow",
               "pressure": "yellow", "shedding": "yellow"}


class JsonAnswer:
    """The one JSON object of this invocation: whoever comes first writes it."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, data: object) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.write(json.dumps(data, default=_plain, allow_nan=False) + "\n")
            stream.flush()

    def error(self, line: str, status: int) -> None:
        """An error is an object too, unless the result is already out."""
        self.write({"error": line, "exit_status": status})


def _plain(value: Any) -> Any:
    """numpy scalars and arrays, paths and sets, as JSON has them."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return str(value)


_answer = JsonAnswer(None)


@contextlib.contextmanager
def json_on_stdout(wanted: bool) -> Iterator[JsonAnswer]:
    """Keeps standard output for the answer; everything else goes to standard error meanwhile."""
    global _answer
    if not wanted:
        yield JsonAnswer(None)
        return
    sys.stdout.flush()
    outer, sys.stdout, previous = sys.stdout, sys.stderr, _answer
    kept = os.dup(1)
    real = _is_descriptor_one(outer)
    try:
        os.dup2(2, 1)
        with os.fdopen(os.dup(kept), "w", encoding="utf-8") as stream:
            # In a test runner sys.stdout is not descriptor 1, and the answer belongs to it.
            _answer = JsonAnswer(stream if real else outer)
            yield _answer
    finally:
        sys.stdout, _answer = outer, previous
        os.dup2(kept, 1)
        os.close(kept)


def _is_descriptor_one(stream: TextIO) -> bool:
    try:
        return stream.fileno() == 1
    except (OSError, ValueError):
        return False


def _console(*, stderr: bool) -> Console:
    """Into a file or pipe nothing is folded: a line there is for grep, not for a window."""
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH_WITHOUT_TERMINAL
    return console


class Output:
    """Handed to each command by json_option."""

    def __init__(self, as_json: bool, answer: JsonAnswer) -> None:
        self.as_json = as_json
        self._answer = answer
        self.console = _console(stderr=as_json)
        self.errors = _console(stderr=True)

    def result(self, data: Any, render: Callable[[Any], Any] | None = None) -> None:
        """The command's result: the object with --json, else what `render(data)` makes of it.

        render may return something rich can print, or print by itself and return None.
        """
        if self.as_json:
            self._answer.write(data)
        else:
            shown = render(data) if render else data
            if shown is not None:
                plain = isinstance(shown, (str, Text))
                self.console.print(shown, markup=False, soft_wrap=plain)

    def note(self, text: str) -> None:
        """A remark that is no result: standard error, always."""
        self.errors.print(text, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def progress(self, title: str, total: float | None) -> Iterator[Callable[[float], None]]:
        """A progress bar on a terminal, nothing elsewhere. Call the function with what is done."""
        title_column = TextColumn("{task.description}", markup=False)
        columns = (title_column, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.errors, transient=True,
                      disable=not self.errors.is_terminal) as bar:
            task = bar.add_task(title, total=total)
            yield lambda done: bar.update(task, completed=done)


def json_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --json, and hands the command an Output as its first argument `out`."""

    @click.option("--json", "as_json", is_flag=True,
                  help="One JSON object on standard output, everything else on standard error.")
    @functools.wraps(function)
    def wrapper(*args: Any, as_json: bool, **options: Any) -> Any:
        if as_json and _answer._stream is None:
            # Called without main(), by click's own runner in a test.
            with json_on_stdout(True) as answer:
                return function(Output(True, answer), *args, **options)
        return function(Output(as_json, _answer), *args, **options)

    return wrapper


def table(title: str | None, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A plain table. Numbers stand to the right with separators; a first word ok/warn/fail has
    its colour. Cell text is data, never markup."""
    made = Table(title=Text(title) if title else None, title_justify="left", header_style="bold",
                 box=None, pad_edge=False)
    listed = [list(row) for row in rows]
    for index, column in enumerate(columns):
        numeric = bool(listed) and all(_number(row[index]) for row in listed)
        made.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in listed:
        made.add_row(*(_cell(value) for value in row))
    return made


def state_line(state: str, name: str, found: str, fix: str = "") -> Text:
    """One finding as one line for people: state, name, what was found, and how to mend it."""
    line = Text()
    line.append(f"{state:<5}", style=STATE_STYLE.get(state, ""))
    line.append(f" {name:<16}", style="bold")
    line.append(f" {found}", style="")
    if fix and state != "ok":
        line.append(f"\n{'':22} fix: {fix}", style="cyan")
    return line


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _cell(value: object) -> Text:
    if isinstance(value, bool):
        return Text("yes" if value else "no")
    if isinstance(value, int):
        return Text(f"{value:,}")
    if isinstance(value, float):
        return Text(f"{value:,.3f}")
    text = one_line("" if value is None else value)
    return Text(text, style=STATE_STYLE.get(text, ""))
