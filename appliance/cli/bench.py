"""`openclaw bench`: measures us beside whoever is installed. The work is appliance.bench's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from appliance import bench
from appliance.bench.page import number
from appliance.cli import output
from appliance.errors import ConfigError

ALL = "all"


@click.command()
@click.argument("name", type=click.Choice([*bench.BENCHMARKS, ALL]))
@click.option("--against", metavar="PEER,...",
              help="Only these peers (default: every one that is installed; none: ours alone).")
@click.option("--reps", default=5, show_default=True, type=click.IntRange(1, 100),
              help="How often each is measured, in turn.")
@click.option("--seconds", default=1.0, show_default=True, type=click.FloatRange(0.05, 60),
              help="How long each measurement lasts.")
@click.option("--size", "sizes", multiple=True, type=click.IntRange(60, 1514),
              help="Packet size in bytes; may be repeated (default: 64 and 1514; record: 256 "
                   "and 1514).")
@click.option("--poll", type=click.Choice(["irq", "defer", "busy"]),
              help="Our polling profile (default: irq; rx and forward: busy; latency: all).")
@click.option("--load", "loads", multiple=True, type=click.Choice(bench.LOADS),
              help="Who sends, for rx and forward: our AF_XDP sender (default), or the kernel's "
                   "generator; may be repeated.")
@click.option("--page", type=click.Path(dir_okay=False, path_type=Path),
              help="Also write a Markdown page to this file.")
@output.json_option
def command(out: output.Output, name: str, against: str | None, reps: int, seconds: float,
            sizes: tuple[int, ...], poll: str | None, loads: tuple[str, ...],
            page: Path | None) -> None:
    """Measure NAME, or all, alternating with peers in one run.

    A ratio above 1 always means that ours is better.
    """
    names = list(bench.BENCHMARKS) if name == ALL else [name]
    peers = _peers(against, names)
    reports = []
    with out.progress(f"bench {name}", None):
        for one in names:
            usual = bench.SIZES.get(one, bench.SIZES_USUAL)
            options = bench.Options(peers, reps, seconds, sizes or usual, loads or ("afxdp",),
                                    progress=out.note if not out.errors.is_terminal else _quiet)
            reports.append(bench.run(one, options, poll))
    if page is not None:
        page.write_text(bench.markdown(reports), encoding="utf-8")
    data = reports[0] if len(reports) == 1 else {"name": ALL, "reports": reports}
    out.result(data, lambda _: _render(out, reports))


def _quiet(_text: str) -> None:
    """On a terminal the progress bar tells enough."""


def _peers(against: str | None, names: list[str]) -> list[str] | None:
    if against is None:
        return None
    known = sorted({peer for one in names for peer in bench.PEERS[one]})
    wanted = [word.strip() for word in against.split(",") if word.strip()]
    for peer in wanted:
        if peer not in known and peer != "none":
            raise ConfigError(f"--against: {peer!r}: none, {', '.join(known)}")
    return [peer for peer in wanted if peer != "none"]


def _render(out: output.Output, reports: list[dict[str, Any]]) -> None:
    for report in reports:
        machine = report["machine"]
        out.console.print(
            f"{report['name']}: {machine['cpu']}, {machine['cpu_mhz_measured']} MHz measured, "
            f"Linux {report['kernel']}", markup=False, soft_wrap=True)
        rows = [_row(result, who) for result in report["results"]
                for who in ("ours", *result["peers"])]
        out.console.print(output.table(
            None,
            ("case", "who", "unit", "min", "median", "max", "ratio", "CPU ns/packet", "drops"),
            rows))
        for peer, fix in report["absent"].items():
            out.note(f"{peer} is not installed: {fix}")


def _row(result: dict[str, Any], who: str) -> tuple[str, ...]:
    figures = result["ours"] if who == "ours" else result["peers"][who]
    ratio = result["ratio"].get(who)
    cpu = result["cpu_ns_per_packet"].get(who)
    return (result["case"] if who == "ours" else "", who, result["unit"],
            *(number(figures[key]) for key in ("min", "median", "max")),
            f"{ratio['median']:.2f}" if ratio else "",
            number(cpu["median"]) if cpu else "",
            f"{sum(result['drops'].get(who, {}).values()):,}")
