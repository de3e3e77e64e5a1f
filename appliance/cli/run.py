"""`openclaw run`: the appliance in the foreground. The work is appliance.engine's."""

from __future__ import annotations

import contextlib
from typing import Any

import click
from rich.console import Group

from appliance import config as configuration
from appliance.cli import memory_page, output
from appliance.engine import accounts, check
from appliance.engine.rates import rates
from appliance.engine.service import Service, end_on_signals


@click.command()
@click.option("--config", "file", required=True, help="The configuration (TOML).")
@click.option("--for", "seconds", type=click.FloatRange(min=0, min_open=True),
              help="Stop after so many seconds; without it, at SIGTERM or SIGINT.")
@click.option("--check", "only_check", is_flag=True,
              help="Validate everything, compile the rules, touch nothing.")
@output.json_option
def command(out: output.Output, file: str, seconds: float | None, only_check: bool) -> None:
    """Run the appliance that the configuration describes, and print its figures at the end."""
    config = configuration.load(file)
    if only_check:
        result = check.everything(config)
        for reason in result["reasons"]:
            out.note(reason)
        out.result(result, lambda _: "ok")
        return
    service = Service(config)
    with end_on_signals(service.ended), _progress(out) as tick:
        final = service.run(seconds, started=lambda engine: _started(out, engine), tick=tick)
    if final is None:
        out.result({"stopped": "while starting"}, lambda _: None)
        return
    wrong = accounts.problems(final)
    out.result({**final, "problems": wrong}, render)
    for line in wrong:
        out.note(f"does not add up: {line}")
    if wrong:
        raise SystemExit(1)


def _started(out: output.Output, engine: Any) -> None:
    for note in engine.notes:
        out.note(note)
    stats = engine.statistics()
    for port in stats["ports"]:
        kind = "zero-copy" if port["zero_copy"] else "copy"
        out.note(f"{port['name']}: {port['interface']} queues {port['queues']}, "
                 f"{port['attach_mode'] or port['backend']}, {kind}")
    for reason in stats["reasons"]:
        out.note(f"degraded: {reason}")
    out.note("running; stop with SIGTERM or Ctrl-C")


@contextlib.contextmanager
def _progress(out: output.Output) -> Any:
    """On a terminal a line with the present rates, else nothing."""
    if not out.errors.is_terminal:
        yield None
        return
    before: list[dict[str, Any]] = []
    with out.errors.status("starting") as line:

        def tick(stats: dict[str, Any]) -> None:
            found = rates(before[-1] if before else None, stats, [])
            before[:] = [stats]
            received = sum(port["rx_pps"] for port in found["ports"])
            sent = sum(port["tx_pps"] for port in found["ports"])
            lost = sum(entry["pps"] for entry in found["drops"])
            line.update(f"{stats['uptime_s']:,.0f} s  in {received:,.0f} pps  "
                        f"out {sent:,.0f} pps  dropped {lost:,.0f} pps  {stats['state']}")

        yield tick


def render(stats: dict[str, Any]) -> Any:
    """The figures as tables for people; also `openclaw stats`."""
    ports = [
        [port["name"], port["interface"], port["link"], port["attach_mode"],
         "zero-copy" if port["zero_copy"] else "copy", port["rx_frames"], port["rx_bytes"],
         port["tx_frames"], port["tx_bytes"]]
        for port in stats["ports"]
    ]
    consumers = [
        [entry["name"], entry["kind"], entry["frames"], entry["bytes"], entry["dropped"]]
        for entry in stats["consumers"]
    ]
    steering, frames, latency = stats["steering"], stats["frames"], stats["latency_ns"]
    parts = [
        output.table(None, ["port", "interface", "link", "attach", "mode", "rx frames", "rx bytes",
                            "tx frames", "tx bytes"], ports),
        output.table("consumers", ["name", "kind", "frames", "bytes", "dropped"], consumers),
        output.table("packets", ["seen", "consumed", "passed", "dropped"],
                     [[steering[key] for key in ("seen", "consumed", "passed", "dropped")]]),
        output.table("frames", list(frames), [list(frames.values())]),
        output.table("latency, us", list(latency), [[ns / 1000 for ns in latency.values()]]),
    ]
    if stats["drops"]:
        parts.append(output.table("drops", ["reason", "packets"], list(stats["drops"].items())))
    if stats["events"]:
        parts.append(memory_page.events(stats["events"]))
    state = output.state_line(stats["state"], "state", "; ".join(stats["reasons"]) or "ok")
    return Group(*parts, state)
