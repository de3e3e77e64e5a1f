"""`openclaw top`: the running appliance's rates, live."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator
from typing import Any

import click
from rich.console import Group
from rich.live import Live

from appliance.cli import memory_page, output
from appliance.engine import client
from appliance.engine.rates import rates


@click.command()
@click.option("--interval", type=click.FloatRange(0.1, 3600), default=1.0, show_default=True,
              help="Seconds between two looks.")
@click.option("--count", type=click.IntRange(min=1),
              help="So many looks; without it, until Ctrl-C.")
@click.option("--socket", default=client.SOCKET, show_default=True, help="The control socket.")
@output.json_option
def command(out: output.Output, interval: float, count: int | None, socket: str) -> None:
    """Rates of the running appliance by port, rule, consumer and drop reason, live.

    Without a terminal it prints lines. With --json it looks `count` times (once without it) and
    prints the last rates.
    """
    if out.as_json:
        out.result(list(_looks(socket, interval, count or 1))[-1])
        return
    with contextlib.suppress(KeyboardInterrupt):
        if not out.console.is_terminal:
            for found in _looks(socket, interval, count):
                out.console.print(_lines(found), markup=False, soft_wrap=True)
            return
        with Live(console=out.console, screen=count is None, auto_refresh=False) as live:
            for found in _looks(socket, interval, count):
                live.update(_tables(found), refresh=True)


def _looks(socket: str, interval: float, count: int | None) -> Iterator[dict[str, Any]]:
    """Rates over each interval, `count` of them."""
    before = client.ask(socket, "stats")
    for _ in range(count) if count is not None else itertools.count():
        time.sleep(interval)
        now, rules = client.ask(socket, "stats"), client.ask(socket, "rules.list")
        yield rates(before, now, rules)
        before = now


def _lines(found: dict[str, Any]) -> str:
    """One line for each port, rule, consumer and reason: for grep and for files."""
    at = f"{found['uptime_s']:.1f}s"
    lines = [
        f"{at} port {port['name']} {port['link']} rx {port['rx_pps']:.0f} pps "
        f"{port['rx_bps']:.0f} bps tx {port['tx_pps']:.0f} pps"
        for port in found["ports"]
    ]
    lines += [
        f"{at} rule {rule['id']} {rule['port']} {rule['action']} {rule['pps']:.0f} pps"
        for rule in found["rules"]
    ]
    lines += [
        f"{at} consumer {entry['name']} {entry['kind']} {entry['pps']:.0f} pps"
        for entry in found["consumers"]
    ]
    lines += [f"{at} drop {entry['reason']} {entry['pps']:.0f} pps" for entry in found["drops"]]
    lines += [
        f"{at} event {event['culprit']}: {event['action']} ({event['why']})"
        for event in found["events"][-3:]
    ]
    lines.append(" ".join([at, found["state"], "; ".join(found["reasons"])]).rstrip())
    return "\n".join(lines)


def _tables(found: dict[str, Any]) -> Group:
    latency = found["latency_ns"]
    parts: list[Any] = [
        output.state_line(found["state"], f"up {found['uptime_s']:,.0f} s",
                          "; ".join(found["reasons"])),
        output.table(None, ["port", "link", "rx pps", "rx Mbit/s", "tx pps", "rx frames",
                            "tx frames"],
                     [[port["name"], port["link"], round(port["rx_pps"]), port["rx_bps"] / 1e6,
                       round(port["tx_pps"]), port["rx_frames"], port["tx_frames"]]
                      for port in found["ports"]]),
        output.table(None, ["rule", "port", "action", "pps", "packets", "match"],
                     [[rule["id"], rule["port"], rule["action"], round(rule["pps"]),
                       rule["packets"], rule["match"][:60]] for rule in found["rules"]]),
        output.table(None, ["consumer", "kind", "pps", "frames", "dropped"],
                     [[entry["name"], entry["kind"], round(entry["pps"]), entry["frames"],
                       entry["dropped"]] for entry in found["consumers"]]),
    ]
    if found["drops"]:
        parts.append(output.table(None, ["drops", "pps", "packets"],
                                  [[entry["reason"], round(entry["pps"]), entry["packets"]]
                                   for entry in found["drops"]]))
    parts.append(output.table(None, [f"latency {name}, us" for name in latency],
                              [[ns / 1000 for ns in latency.values()]]))
    if found["events"]:
        parts.append(memory_page.events(found["events"][-5:]))
    return Group(*parts)
