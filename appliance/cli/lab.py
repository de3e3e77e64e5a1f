"""`openclaw lab`: makes, removes and lists labs. The work is appliance.net.lab's."""

from __future__ import annotations

from typing import Any

import click

from appliance import limits
from appliance.cli import output
from appliance.net import lab as labs


@click.group()
def command() -> None:
    """A veth pair between two namespaces, ready for AF_XDP."""


@command.command()
@click.argument("name")
@click.option("--queues", default=2, show_default=True,
              type=click.IntRange(1, limits.LAB_QUEUES_MAX), help="Queues of each end.")
@click.option("--mtu", default=1500, show_default=True, type=click.IntRange(68, limits.MTU_MAX),
              help="MTU of both ends.")
@click.option("--ipv6", is_flag=True, help="Keep IPv6, which sends packets of its own.")
@click.option("--gro", is_flag=True,
              help="Switch GRO on, so that a program on the other end can redirect into this one.")
@output.json_option
def up(out: output.Output, name: str, queues: int, mtu: int, ipv6: bool, gro: bool) -> None:
    """Make the lab NAME. It stays until `lab down NAME`."""
    made = labs.up(name, queues, mtu, ipv6=ipv6, gro=gro)
    out.result(_describe(made), lambda data: _table([data]))


@command.command()
@click.argument("name")
@output.json_option
def down(out: output.Output, name: str) -> None:
    """Remove the lab NAME and all that is in it."""
    labs.down(name)
    out.result({"name": name, "removed": True}, lambda data: f"lab {name} is removed")


@command.command("list")
@output.json_option
def list_(out: output.Output) -> None:
    """List the labs that exist."""
    found: list[dict[str, Any]] = []
    for name in labs.labs():
        try:
            found.append(_describe(labs.find(name)))
        except labs.HostError as error:
            found.append({"name": name, "state": str(error)})
    out.result({"labs": found}, lambda data: _table(data["labs"]) if found else "no labs")


def _describe(lab: labs.Lab) -> dict[str, Any]:
    return {
        "name": lab.name,
        "state": "ok",
        "queues": lab.queues,
        "mtu": lab.mtu,
        **{side: dict(getattr(lab, side)._asdict()) for side in ("a", "b")},
    }


def _table(found: list[dict[str, Any]]) -> Any:
    rows = [
        (one["name"], one.get("queues", ""), one.get("mtu", ""), side.get("netns", one["state"]),
         side.get("interface", ""), side.get("ipv4", ""))
        for one in found
        for side in (one.get("a", {}), one.get("b", {}))
    ]
    return output.table(None, ("lab", "queues", "mtu", "namespace", "interface", "address"), rows)
