"""`openclaw update DIR`: the image's next version. The work is appliance.update's."""

from __future__ import annotations

from typing import Any

import click

from appliance import update
from appliance.cli import output


@click.command()
@click.argument("directory", metavar="DIR")
@output.json_option
def command(out: output.Output, directory: str) -> None:
    """Install the version in DIR into the other slot; a version that fails goes back by itself."""
    out.result(update.install(directory), _line)


def _line(done: dict[str, Any]) -> str:
    return f"{done['to']} is written beside {done['from']}; reboot to try it"
