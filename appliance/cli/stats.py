"""`openclaw stats`: the figures of the running appliance, once."""

from __future__ import annotations

import click

from appliance.cli import output
from appliance.cli.run import render
from appliance.engine import client


@click.command()
@click.option("--socket", default=client.SOCKET, show_default=True, help="The control socket.")
@output.json_option
def command(out: output.Output, socket: str) -> None:
    """The figures of the running appliance."""
    out.result(client.ask(socket, "stats"), render)
