"""`openclaw doctor`: shows what appliance.doctor finds. Exit status 3 if anything fails."""

from __future__ import annotations

from collections import Counter
from typing import Any

import click
from rich.text import Text

from appliance import doctor
from appliance.cli import output


@click.command()
@click.argument("interface", required=False, metavar="[IFACE]")
@click.option("--netns", default=None, help="The network namespace that the interface is in.")
@output.json_option
def command(out: output.Output, interface: str | None, netns: str | None) -> None:
    """Check this host, and the interface IFACE; every line ok, warn or fail with its fix."""
    found = doctor.examine(interface, netns)
    out.result(found, _lines)
    if not found["ok"]:
        raise SystemExit(3)


def _lines(found: dict[str, Any]) -> Any:
    lines = [output.state_line(**one) for one in found["checks"]]
    counts = Counter(one["state"] for one in found["checks"])
    lines.append(Text(", ".join(f"{counts[state]} {state}" for state in ("ok", "warn", "fail"))))
    return Text("\n").join(lines)
