"""`openclaw replay`: transmits a capture. The work is appliance.replay's."""

from __future__ import annotations

import signal
from typing import Any

import click

from appliance import capture
from appliance.cli import output
from appliance.replay import Stop, replay


@click.command()
@click.argument("file")
@click.option("--interface", required=True, metavar="IFACE", help="Where to send.")
@click.option("--netns", default=None, help="The network namespace that the interface is in.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), metavar="PPS",
              help="Packets per second.")
@click.option("--speed", type=click.FloatRange(min=0, min_open=True), metavar="X",
              help="X times as fast as recorded; 1 is recorded speed.")
@click.option("--loop", default=1, show_default=True, type=click.IntRange(0), metavar="N",
              help="Send the capture N times; 0 until interrupted.")
@click.option("--queue", default=0, show_default=True, type=click.IntRange(0),
              help="The TX queue.")
@output.json_option
def command(out: output.Output, file: str, interface: str, netns: str | None, rate: float | None,
            speed: float | None, loop: int, queue: int) -> None:
    """Transmit the capture FILE (pcap, pcapng; - is standard input) through AF_XDP.

    As fast as it goes, unless --rate or --speed is given. SIGINT ends it after the burst at hand,
    and what was sent is reported all the same.
    """
    packets = capture.read_capture(file)
    if packets.truncated:
        out.note(f"{packets.name} is damaged further in ({packets.truncated}); "
                 "what precedes it is sent")
    stop = Stop()

    def interrupt(_number: int, _frame: object) -> None:
        stop.requested = True

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        with out.progress("packets", len(packets) * loop or None) as progress:
            found = replay(packets, interface, netns=netns, queue=queue, rate=rate, speed=speed,
                           loop=loop, stop=stop, progress=progress)
    finally:
        signal.signal(signal.SIGINT, before)
    out.result(found, _show)


def _show(found: dict[str, Any]) -> Any:
    def listed(counts: dict[str, int]) -> str:
        return ", ".join(f"{count:,} {name}" for name, count in counts.items()) or "none"

    rows = [
        ("sent", f"{found['sent']:,} packets, {found['bytes']:,} bytes"
                 f"{', interrupted' if found['interrupted'] else ''}"),
        ("skipped", listed(found["skipped"])),
        ("dropped", listed(found["drops"])),
        ("elapsed", f"{found['elapsed_s']:.3f} s"),
        ("rate", f"{found['pps']:,} packets/s"),
        ("late", f"{found['late_bursts']:,} of {found['bursts']:,} bursts"),
    ]
    return output.table(None, ("", ""), rows)
