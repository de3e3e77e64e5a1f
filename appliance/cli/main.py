"""`openclaw`: finds the commands, and is the one gate through which every error leaves.

Owns exit statuses and the form of errors: one line on standard error, no traceback (unless
OPENCLAW_DEBUG=1). Commands are imported when they are asked for, so that `openclaw doctor` works on
a host where half of the rest cannot even be imported. No command's logic is here.

    0  done                             1  it ran, and what it checks does not hold
    2  bad usage or configuration       3  the host lacks something
    130  interrupted (SIGINT)           143  terminated (SIGTERM)
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import signal
import sys
import traceback
from types import FrameType
from typing import Any

import click

from appliance.cli import output
from appliance.errors import HostError, OpenClawError, one_line

# The order is that of the manual; a command whose module this build has not got is not listed.
COMMANDS = (
    "doctor", "demo", "lab", "run", "stats", "top", "rules", "replay", "mem", "log", "update",
    "bench",
)


class Commands(click.Group):
    """The group whose commands are modules of appliance.cli."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name in COMMANDS if importlib.util.find_spec(f"appliance.cli.{name}")]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        try:
            command: click.Command = importlib.import_module(f"appliance.cli.{cmd_name}").command
        except ImportError as error:
            return _cannot_be_loaded(cmd_name, str(error))
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """As click's, with the list of what there is: a typing error is the usual reason."""
        name = args[0] if args else ""
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            known = ", ".join(self.list_commands(ctx))
            raise click.UsageError(f"unknown command {name!r}: one of {known}", ctx)
        return super().resolve_command(ctx, args)


def _cannot_be_loaded(name: str, reason: str) -> click.Command:
    """Stands in for a command that lacks a library, so that help and doctor still work."""

    def refuse() -> None:
        raise HostError(f"{name} cannot be loaded: {reason}", fix="make build")

    anything = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
    return click.Command(
        name, callback=refuse, context_settings=anything, short_help="(cannot be loaded)"
    )


@click.group(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="openclaw-appliance", prog_name="openclaw")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """A packet appliance that is programmed in Python and runs at the speed of C."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns the exit status; never raises."""
    words = sys.argv[1:] if arguments is None else arguments
    signal.signal(signal.SIGTERM, _terminate)
    try:
        with output.json_on_stdout("--json" in words) as answer:
            return _gate(words, answer)
    except BrokenPipeError:
        # The reader went away (`| head`); point stdout elsewhere so that exit does not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 128 + signal.SIGPIPE


def _gate(words: list[str], answer: output.JsonAnswer) -> int:
    """Every way that a command can end, as an exit status and at most one line."""
    try:
        status = cli.main(args=words, prog_name="openclaw", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        if status:
            answer.error("terminated" if status == 143 else f"ended with {status}", status)
        return status
    except OpenClawError as error:
        return _fail(answer, str(error), error.exit_status, error)
    except click.exceptions.Abort:
        return _fail(answer, "interrupted", 130)
    except click.ClickException as error:
        return _fail(answer, _usage(error), 2)
    except KeyboardInterrupt:
        return _fail(answer, "interrupted", 130)
    except BrokenPipeError:
        raise
    except MemoryError as error:
        return _fail(answer, "out of memory", 1, error)
    except Exception as error:
        what = f"internal error: {type(error).__name__}: {error} (OPENCLAW_DEBUG=1 shows where)"
        return _fail(answer, what, 1, error)


def _usage(error: click.ClickException) -> str:
    """click's message with the command whose help explains it."""
    context: click.Context | None = getattr(error, "ctx", None)
    message = error.format_message().rstrip(".")
    bare = type(error).__name__ == "NoArgsIsHelpError"  # click 8.2 and later
    if bare and context is not None and isinstance(context.command, click.Group):
        message = f"missing command: one of {', '.join(context.command.list_commands(context))}"
    path = context.command_path if context is not None else "openclaw"
    return f"{message}; see {path} --help"


def _fail(
    answer: output.JsonAnswer, line: str, status: int, error: BaseException | None = None
) -> int:
    if error is not None and os.environ.get("OPENCLAW_DEBUG") == "1":
        traceback.print_exception(error, file=sys.stderr)
    line = one_line(line)
    print(f"openclaw: {line}", file=sys.stderr, flush=True)
    answer.error(line, status)
    return status


def _terminate(_number: int, _frame: FrameType | None) -> None:
    """SIGTERM unwinds like an exception, so that every context takes its things down."""
    raise SystemExit(128 + signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
