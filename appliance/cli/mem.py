"""`openclaw mem`: what a configuration needs, before anything is touched; who holds what now."""

from __future__ import annotations

from typing import Any

import click
from rich.console import Group

from appliance import config as configuration
from appliance.cli import memory_page, output
from appliance.engine import check, client
from appliance.plan import plan as make_plan


@click.group()
def command() -> None:
    """Memory: sizes before the start, and who holds what now."""


@command.command()
@click.option("--config", "file", required=True, help="The configuration (TOML).")
@output.json_option
def plan(out: output.Output, file: str) -> None:
    """Compute frames, rings and arenas of FILE, with reasons; exit 1 if it would stall."""
    config = configuration.load(file)
    facts, notes = check.facts_here(config)
    made: dict[str, Any] = make_plan(config, facts, check.hugepages_free()).as_dict()
    made["reasons"] = notes + list(made["reasons"])
    out.result(made, _render)
    if not made["ok"]:
        raise SystemExit(1)


@command.command()
@click.option("--socket", default=client.SOCKET, show_default=True, help="The control socket.")
@output.json_option
def explain(out: output.Output, socket: str) -> None:
    """Who holds what in the running appliance, for how long, and what was done about it."""
    out.result(client.ask(socket, "mem.explain"), memory_page.render)


@command.command()
@click.argument("action", type=click.Choice(["on", "off", "show"]))
@click.argument("what", metavar="[OBJECT]", default="")
@click.option("--socket", default=client.SOCKET, show_default=True, help="The control socket.")
@output.json_option
def history(out: output.Output, action: str, what: str, socket: str) -> None:
    """The last 16 operations of OBJECT: a frame (in0/0:123), or a slab's address or handle.

    Kept from `on` to `off`; it costs a lock for each operation, so switch it off again.
    """
    found = client.ask(socket, "mem.history", action=action, object=what)
    out.result(found, memory_page.history)


def _render(made: dict[str, Any]) -> Any:
    frames, arenas = made["frames"], made["arenas"]
    sizes = ("frames", "rx_frames", "tx_frames", "spare_frames", "rx_ring", "tx_ring", "fill_ring",
             "fill_target")
    rows = [
        [f"{queue['port']}/{queue['queue']}", *(queue[name] for name in sizes),
         queue["arena_bytes"] >> 20]
        for queue in arenas["per_queue"]
    ]
    total = (f"{frames['total']:,} frames, {arenas['bytes'] >> 20} MiB, "
             f"{arenas['hugepages_2m']} hugepages of 2 MiB")
    return Group(
        output.table(None, ["queue", "frames", "rx", "tx", "spare", "RX ring", "TX ring",
                            "FILL ring", "posted", "MiB"], rows),
        "\n".join([total, *made["reasons"]]),
        "ok" if made["ok"] else "it would stall",
    )
