"""`openclaw demo`: runs appliance.demo and shows what it found. Exit status 1 if anything fails."""

from __future__ import annotations

from typing import Any

import click
from rich.console import Group
from rich.text import Text

from appliance import capture, demo
from appliance.cli import output

LISTED_MAX = 20
_SKIPPED = {
    "shorter_than_ethernet_header": "shorter than an Ethernet header (14 bytes)",
    "longer_than_link": "longer than any link can carry (65,549 bytes)",
    "longer_than_frame": "longer than a frame, and this kernel has no multi-buffer AF_XDP",
}


@click.command()
@click.option("--pcap", "files", multiple=True, metavar="FILE",
              help="Capture to replay (pcap, pcapng; - is standard input); may be repeated.")
@click.option("--repeat", default=1, show_default=True, type=click.IntRange(1, 1_000_000_000),
              help="Replay each capture this often.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True, max=1e9), metavar="PPS",
              help="Packets per second; as fast as it goes if absent.")
@click.option("--keep", metavar="DIR", help="Leave the recording of what was received in DIR.")
@output.json_option
def command(out: output.Output, files: tuple[str, ...], repeat: int, rate: float | None,
            keep: str | None) -> None:
    """Replay captures over a veth pair, receive them through AF_XDP, verify every byte.

    Makes two namespaces, steers by XDP, receives in UMEM, accounts for every packet, and takes all
    of it down again. Without --pcap it replays a small capture of its own.
    """
    captures = [capture.read_capture(name) for name in files or (demo.SAMPLE,)]
    for one in captures:
        capture.ethernet_only(one)
        if one.truncated:
            out.note(f"{one.name} is damaged further in ({one.truncated}); "
                     "what precedes it is sent")
    with out.progress("packets", repeat * sum(map(len, captures))) as progress:
        found = demo.run(captures, repeat=repeat, rate=rate, keep=keep,
                         progress=progress)
    out.result(found, _show)
    if found["faults"]:
        more = len(found["faults"]) - 1
        out.note(f"openclaw: {found['faults'][0]}" + (f" (and {more} more)" if more else ""))
        raise SystemExit(1)


def _show(found: dict[str, Any]) -> Any:
    parts: list[Any] = [_captures(found), "", _rules(found), "", _figures(found), _verdict(found)]
    return Group(*parts)


def _captures(found: dict[str, Any]) -> Any:
    """One line for each capture, narrow enough for 80 columns; the rest of a long list as one."""
    listed = found["captures"]
    shown, rest = listed[:LISTED_MAX], listed[LISTED_MAX:]
    rows = [(_title(one), *_counts([one])) for one in shown]
    if rest:
        rows.append((f"and {len(rest)} more", *_counts(rest)))
    columns = ("replayed", "sent", "received", "to kernel", "dropped", "skipped")
    return output.table(None, columns, rows)


def _title(one: dict[str, Any]) -> str:
    times = f" x {one['repeat']:,}" if one["repeat"] > 1 else ""
    return one["name"].rsplit("/", 1)[-1] + times


def _counts(entries: list[dict[str, Any]]) -> tuple[int, ...]:
    sums = [sum(one[key] for one in entries) for key in ("sent", "received", "passed")]
    sums += [sum(sum(one[key].values()) for one in entries) for key in ("drops", "skipped")]
    return tuple(sums)


def _rules(found: dict[str, Any]) -> Any:
    steering = found["steering"]
    rows = [(f"rule {number}", match or "(everything else)", "to UMEM",
             steering["by_rule"].get(number, 0)) for number, match in found["rules"].items()]
    rows.append(("management", "ARP, ND, DHCP, SSH", "to the kernel", steering["passed"]))
    return output.table(None, ("XDP", "match", "verdict", "packets"), rows)


def _figures(found: dict[str, Any]) -> Any:
    latency, frames, memory = found["latency_ns"], found["frames"], found["memory"]
    drops = ", ".join(f"{reason} {count:,}" for reason, count in found["drops"].items()) or "none"
    skipped = "; ".join(f"{count:,} {_SKIPPED[reason]}" for reason, count in
                        found["skipped"].items()) or "none"
    port = found["ports"][1]
    fast = memory["fast"]
    times = "nothing arrived" if latency["p50"] is None else (
        f"p50 {latency['p50'] / 1000:,.0f} us, p99 {latency['p99'] / 1000:,.0f} us "
        "(XDP to Python, in bursts)"
    )
    mode = "zero-copy" if port["zero_copy"] else "copy mode"
    rows = (
        ("dropped", drops),
        ("skipped", skipped),
        ("verified", f"{found['verified']:,} of {found['received']:,} byte for byte and in order; "
                     f"{found['mismatched']:,} differ"),
        ("frames", f"{frames['total']:,}, of which {frames['free']:,} came home and "
                   f"{frames['leaked']:,} leaked"),
        ("latency", times),
        ("throughput", f"{found['pps']:,} packets/s, "
                       f"{_gigabits(found):.2f} Gbit/s, in {found['elapsed_s']:.2f} s"),
        ("memory", f"{fast['bytes'] >> 20} MiB in {memory['backing']} pages, {memory['state']}"),
        ("attached", f"{port['attach_mode']} XDP, {mode}, {len(port['queues'])} queues"
                     f"{', jumbo' if port['jumbo'] else ''}"),
        *_recorded(found),
        *(("note", reason) for reason in found["notes"]),
    )
    return output.table(None, ("", ""), rows)


def _recorded(found: dict[str, Any]) -> list[tuple[str, str]]:
    return [("recorded", f"{one['record']['durable']:,} packets, {one['record']['durable_bytes']:,}"
                         f" bytes in {one['record']['devices'][0]['path']}")
            for one in found["consumers"] if "record" in one]


def _gigabits(found: dict[str, Any]) -> float:
    return found["sent_bytes"] * 8e-9 / found["elapsed_s"] if found["elapsed_s"] else 0.0


def _verdict(found: dict[str, Any]) -> Text:
    if found["faults"]:
        return Text(f"\nfail  {found['faults'][0]}", style=output.STATE_STYLE["fail"])
    total = sum(found["drops"].values())
    return Text(
        f"\nok    sent {found['sent']:,} = received {found['received']:,} + passed "
        f"{found['passed']:,} + dropped {total:,}; 0 leaked",
        style=output.STATE_STYLE["ok"],
    )
