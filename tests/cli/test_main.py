"""The gate of the command line: exit statuses, one line for errors, one object with --json."""

import json
import os
import signal
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from appliance.cli import main as entry
from appliance.cli import output
from appliance.errors import ConfigError, HostError, PortError

OPENCLAW = [sys.executable, "-m", "appliance.cli.main"]


def openclaw(*words, **options):
    command = [*OPENCLAW, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def one_line_of(done, status):
    assert done.returncode == status, done.stderr
    lines = done.stderr.lstrip("\n").splitlines()  # click ends the line where ^C was typed
    assert len(lines) == 1 and lines[0].startswith("openclaw: "), done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"], ["--nonsense"], ["lab"], ["lab", "up"], ["lab", "up", "x", "--mtu", "nine"],
        ["lab", "up", "x", "--queues", "0"], ["lab", "up", "a/b"], ["lab", "up", "a\nb"],
        ["doctor", "a", "b"], ["lab", "list", "--json=3"],
    ],
)
def test_bad_usage_exits_2_with_one_line(words):
    assert one_line_of(openclaw(*words), 2)


def test_what_the_host_lacks_exits_3_with_the_command_that_provides_it():
    line = one_line_of(openclaw("lab", "down", "none-of-that-name"), 3)
    assert line.endswith("fix: openclaw lab up none-of-that-name")


def test_help_lists_only_commands_that_can_be_run():
    done = openclaw("--help")
    assert done.returncode == 0
    listed = [line.split()[0] for line in done.stdout.split("Commands:")[1].splitlines() if line]
    assert {"doctor", "lab"} <= set(listed) <= set(entry.COMMANDS)
    for name in listed:
        assert openclaw(name, "--help").returncode == 0


def test_without_a_command_the_help_is_shown():
    done = openclaw()
    assert done.returncode == 0 and "Commands:" in done.stdout


def test_an_error_with_json_is_one_object_too():
    done = openclaw("lab", "down", "none-of-that-name", "--json")
    answer = json.loads(done.stdout)
    assert answer["exit_status"] == done.returncode == 3
    assert answer["error"] in done.stderr


def test_a_usage_error_with_json_is_one_object_too():
    done = openclaw("lab", "up", "--json")
    assert json.loads(done.stdout)["exit_status"] == done.returncode == 2


def test_a_reader_that_goes_away_causes_no_traceback():
    shell = f"{sys.executable} -m appliance.cli.main --help | true"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr and "Error" not in done.stderr


def run_with(function, *words, env=None):
    """main() in a child, with one more command that does `function`."""
    program = (
        "import sys, click, os, time\n"
        "from appliance.cli import main as entry, output\n"
        "from appliance.errors import *\n"
        "@click.command()\n@output.json_option\ndef command(out):\n"
        + "".join(f"    {line}\n" for line in function.splitlines())
        + "entry.Commands.get_command = lambda *_: command\n"
        "sys.exit(entry.main(sys.argv[1:]))\n"
    )
    return subprocess.run([sys.executable, "-c", program, "x", *words], capture_output=True,
                          text=True, timeout=60, env={**os.environ, **(env or {})})


@pytest.mark.parametrize(
    ("raised", "status"),
    [
        ("ConfigError('a: 1: 2')", 2), ("HostError('no x', fix='get x')", 3), ("PortError('x')", 1),
        ("MemoryExhausted('x')", 1), ("LogDamaged('x')", 1), ("StaleFrame('x')", 1),
        ("OpenClawError('two\\nlines')", 1), ("ZeroDivisionError('x')", 1), ("MemoryError()", 1),
        ("KeyboardInterrupt()", 130), ("click.Abort()", 130), ("click.BadParameter('x')", 2),
        ("RecursionError('deep\\nand deeper')", 1),
    ],
)
def test_each_kind_of_error_has_its_exit_status_and_one_line(raised, status):
    one_line_of(run_with(f"raise {raised}"), status)


def test_the_debug_switch_shows_where_an_error_came_from():
    done = run_with("1 / 0", env={"OPENCLAW_DEBUG": "1"})
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_whatever_is_printed_the_answer_is_alone_on_standard_output():
    noisy = (
        "print('from python')\n"
        "os.write(1, b'from a library\\n')\n"
        "os.system('echo from a child')\n"
        "out.note('a note')\n"
        "out.result({'n': 1})\n"
        "print('after')"
    )
    done = run_with(noisy, "--json")
    assert done.stdout == '{"n": 1}\n'
    for word in ("from python", "from a library", "from a child", "a note", "after"):
        assert word in done.stderr


def test_only_the_first_answer_counts():
    done = run_with("out.result({'n': 1})\nraise PortError('late')", "--json")
    assert done.stdout == '{"n": 1}\n' and done.returncode == 1 and "late" in done.stderr


def test_a_command_states_failure_after_its_answer_by_its_exit_status():
    done = run_with("out.result({'ok': False})\nraise SystemExit(1)", "--json")
    assert done.stdout == '{"ok": false}\n' and done.returncode == 1 and done.stderr == ""


def test_numpy_values_and_paths_are_plain_json():
    code = "import numpy, pathlib\nout.result({'a': numpy.uint64(3), 'b': numpy.arange(2), " \
           "'c': pathlib.Path('/x'), 'd': {1}})"
    assert json.loads(run_with(code, "--json").stdout) == {"a": 3, "b": [0, 1], "c": "/x", "d": [1]}


def test_the_table_shows_data_and_never_markup():
    done = run_with("out.result({}, lambda _: output.table('t', ('a', 'b'), "
                    "[('[red]x[/red]', 1234567), ('\\x1b[2Jy\\nz', 8)]))")
    assert done.returncode == 0
    assert "[red]x[/red]" in done.stdout and "1,234,567" in done.stdout
    assert "\x1b" not in done.stdout and len(done.stdout.splitlines()) == 4


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_unwind_like_exceptions(number, status):
    code = f"try:\n    os.kill(os.getpid(), {int(number)}); time.sleep(5)\n" \
           "finally:\n    out.note('taken down')"
    done = run_with(code)
    assert done.returncode == status and "taken down" in done.stderr


def test_a_command_works_under_clicks_own_runner():
    @click.command()
    @output.json_option
    def command(out):
        print("noise")
        out.result({"n": 2}, lambda data: f"n is {data['n']}")

    runner = CliRunner()
    assert json.loads(runner.invoke(command, ["--json"]).stdout) == {"n": 2}
    assert runner.invoke(command, []).stdout == "noise\nn is 2\n"


@pytest.mark.parametrize("kind", [ConfigError, HostError, PortError])
def test_an_error_message_is_always_one_printable_line(kind):
    text = str(kind("first\nsecond\r\n\x1b[31mthird\x00\u2028fourth"))
    assert text.isprintable() and "first" in text and "fourth" in text
