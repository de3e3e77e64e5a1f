"""`openclaw log`: what was recorded: listed, verified, exported, recovered.

The work is appliance.record's. Several directories are one log that stripes over them.
"""

from __future__ import annotations

import datetime
import sys
from typing import Any

import click

from appliance.cli import output
from appliance.engine import client
from appliance.errors import ConfigError
from appliance.record import Store, open_log, recover, verify
from appliance.record.export import export, target
from appliance.record.listing import listing
from appliance.record.select import parse_time
from appliance.record.settings import duration

_places = click.argument("directory", nargs=-1, required=True, metavar="DIR...")


@click.group()
def command() -> None:
    """The persistent log: list, verify, export and recover what was recorded."""


@command.command("ls")
@_places
@output.json_option
def ls(out: output.Output, directory: tuple[str, ...]) -> None:
    """The segments of a log, from their headers and seals; nothing is read through."""
    out.result(listing(_log(directory)), _render_listing)


@command.command("verify")
@_places
@output.json_option
def verify_(out: output.Output, directory: tuple[str, ...]) -> None:
    """Check every record of a log against its checksums and its place in the chain.

    clean: every byte is accounted for. torn: the end is incomplete, as a crash leaves it; `recover`
    cuts it. damaged: something in the middle does not hold; exit status 1.
    """
    with _progress(out, _log(directory), "verify") as (store, progress):
        told = verify(store, progress)
    out.result(told, _render_report)
    if told["state"] == "damaged":
        raise SystemExit(1)


@command.command("recover")
@_places
@output.json_option
def recover_(out: output.Output, directory: tuple[str, ...]) -> None:
    """Cut the torn end of a log that nobody is recording to. A damaged log is left as it is.

    A recorder does the same when it starts. Doing it twice changes nothing.
    """
    with _progress(out, _log(directory), "recover") as (store, progress), store.alone():
        told = recover(store, progress)
    out.result(told, _render_report)
    if told["state"] == "damaged":
        raise SystemExit(1)


@command.command("keep")
@click.option("--last", required=True, metavar="TIME",
              help="How far back: 30s, 500ms, 2m.")
@click.option("--match", default="", metavar="EXPR", help="Only these packets (pcap filter).")
@click.option("--consumer", help="Which recording consumer, if several have a window.")
@click.option("--socket", default=client.SOCKET, show_default=True, help="The control socket.")
@output.json_option
def keep_(out: output.Output, last: str, match: str, consumer: str | None, socket: str) -> None:
    """Write what a running recorder has in its window (window_s) of the last TIME to its log."""
    told = client.ask(socket, "log.keep", last_s=duration(last), match=match, consumer=consumer)
    out.result(told, lambda found: f"{found['consumer']}: {found['packets']:,} packets "
               f"{'kept' if found['durable'] else 'on their way to the disk'}")


@command.command("export")
@_places
@click.option("--pcapng", "file", default="-", show_default=True, metavar="OUT",
              help="The file to write; - is standard output.")
@click.option("--from", "start", metavar="TIME",
              help="Packets from then on: 2026-11-20T13:00:00, seconds since 1970, -30s, -5m.")
@click.option("--to", "end", metavar="TIME", help="Packets up to then.")
@click.option("--match", metavar="EXPR", help="A pcap filter expression.")
@click.option("--flow", metavar="FLOW",
              help="A conversation, both ways: 'tcp 10.0.0.1:443 10.0.0.2:51000'.")
@click.option("--follow", is_flag=True, help="Go on with what is being recorded, until it ends.")
@output.json_option
def export_(out: output.Output, directory: tuple[str, ...], file: str, start: str | None,
            end: str | None, match: str | None, flow: str | None, follow: bool) -> None:
    """Write a log, or a part of it, as pcapng, with what each interface lost.

    openclaw log export DIR --match 'udp port 53' | tshark -r -
    """
    if file == "-" and out.as_json:
        raise ConfigError("--pcapng: '-': with --json standard output is the answer's; name a file")
    if file == "-" and sys.stdout.isatty():
        raise ConfigError("--pcapng: '-': standard output is a terminal; name a file or use a pipe")
    _log(directory)
    times = {key: parse_time(text, name=name)
             for key, text, name in (("start", start, "--from"), ("end", end, "--to")) if text}
    with (open_log(directory, match=match, flow=flow, follow=follow, **times) as log,
          target(file) as stream):
        told = export(log, stream)
    if told["state"] == "torn":
        out.note(f"the log is torn: {told['cause']}")
    if file == "-":
        out.note(_exported(told))
    else:
        out.result(told, _exported)


def _log(directory: tuple[str, ...]) -> Store:
    """A log that is there: an empty directory is more likely a wrong path than an empty log."""
    store = Store(directory)
    if not store.segments() and store.state() is None:
        raise ConfigError(f"{store.name} holds no log")
    return store


class _progress:
    """A bar over the bytes of a log, as `with` wants it."""

    def __init__(self, out: output.Output, store: Store, title: str) -> None:
        self.store = store
        total = sum(place.size for place in store.segments())
        self.bar = out.progress(title, total)

    def __enter__(self) -> tuple[Store, Any]:
        return self.store, self.bar.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.bar.__exit__(*error)


def _when(ns: int | None) -> str:
    if not ns:
        return ""
    whole = datetime.datetime.fromtimestamp(ns // 10**9).isoformat(sep=" ")
    return f"{whole}.{ns % 10**9:09d}"


def _render_listing(data: dict[str, Any]) -> Any:
    rows = [[s["index"], s["state"], s["first_seq"],
             "" if s["records"] is None else f"{s['records']:,}",
             s["bytes"], _when(s["from_ns"]), _when(s["to_ns"])] for s in data["segments"]]
    columns = ["segment", "state", "first record", "records", "bytes", "from", "to"]
    title = f"{data['name']}: {'being recorded, ' if data['live'] else ''}{data['bytes']:,} bytes"
    return output.table(title, columns, rows)


def _render_report(data: dict[str, Any]) -> str:
    lines = [f"{data['state']}: {data['records']:,} records in {data['segments']} segments, "
             f"{data['bytes']:,} bytes of packets"]
    if data["cause"]:
        lines.append(data["cause"])
    if data["records"]:
        lines.append(f"records {data['first_seq']:,} to {data['last_seq']:,}, durable to "
                     f"{data['durable_seq']:,}")
    if data["lost"]:
        lines.append(f"not recorded: {data['lost']:,} packets")
    if data.get("cut_bytes"):
        lines.append(f"cut: {data['cut_bytes']:,} bytes")
    return "\n".join(lines)


def _exported(data: dict[str, Any]) -> str:
    lost = f", {data['lost']:,} not recorded" if data["lost"] else ""
    return f"{data['packets']:,} packets of {data['interfaces']} interfaces{lost}"
