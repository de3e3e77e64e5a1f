"""The benchmark page: reports in, Markdown out. Pure; it measures nothing, and omits nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_HEAD = """# Benchmarks

Written by `make bench`. Ours and each peer alternate within one run; ratios are taken pair by pair,
and a ratio above 1 always means that ours is better. A comparison that we lose stays here. CPU time
is that of the whole machine (/proc/stat), so it holds the load's own share, which is the same for
all. Commands of our own take `--reps` and `--seconds`; namespaces have other names in each run.
"""


def markdown(reports: Sequence[dict[str, Any]]) -> str:
    """The whole page."""
    if not reports:
        return _HEAD
    parts = [_HEAD, _machine(reports[0])]
    parts += [_report(report) for report in reports]
    return "\n".join(parts)


def _machine(report: dict[str, Any]) -> str:
    machine = report["machine"]
    versions = ", ".join(
        f"{name} {version or 'not installed'}" for name, version in report["versions"].items()
    )
    rows = [
        ("Processor", f"{machine['cpu']}, {machine['cores']} cores"
                      f"{', virtual' if machine['virtual'] else ''}"),
        ("Clock", f"{machine['cpu_mhz_measured']} MHz measured, "
                  f"{machine['cpu_mhz_cpuinfo']} MHz in /proc/cpuinfo"),
        ("Memory", f"{machine['memory_mib']} MiB"),
        ("Kernel", report["kernel"]),
        ("Versions", versions),
        ("Load before", ", ".join(str(value) for value in machine["load_before"])),
    ]
    return _table(("", ""), rows)


def _report(report: dict[str, Any]) -> str:
    parts = [f"## {report['name']}\n"]
    rows = []
    for result in report["results"]:
        for who in ("ours", *result["peers"]):
            rows.append(_row(result, who))
    parts.append(_table(
        ("case", "who", "unit", "min", "median", "max", "ratio (min, median, max)",
         "CPU ns/packet", "drops", "per packet"),
        rows,
    ))
    for peer, fix in report.get("absent", {}).items():
        parts.append(f"Not compared: {peer} is not installed (`{fix}`).\n")
    notes = dict.fromkeys(note for result in report["results"] for note in result["notes"])
    parts += [f"{note}.\n" for note in notes]
    parts.append(_commands(report))
    return "\n".join(parts)


def _row(result: dict[str, Any], who: str) -> tuple[str, ...]:
    figures = result["ours"] if who == "ours" else result["peers"][who]
    ratio = result["ratio"].get(who)
    cpu = result["cpu_ns_per_packet"].get(who)
    drops = result["drops"].get(who, {})
    extra = result["per_packet"].get(who, {})
    return (
        result["case"],
        who,
        result["unit"],
        *(number(figures[key]) for key in ("min", "median", "max")),
        ", ".join(f"{ratio[key]:.2f}" for key in ("min", "median", "max")) if ratio else "",
        number(cpu["median"]) if cpu else "",
        ", ".join(f"{name} {count:,}" for name, count in drops.items()) or "0",
        ", ".join(f"{name.replace('_', ' ')} {number(value)}" for name, value in extra.items()),
    )


def _commands(report: dict[str, Any]) -> str:
    lines = []
    for result in report["results"]:
        for figures in (result["ours"], *result["peers"].values()):
            if figures["command"]:
                lines.append(figures["command"])
    return "```\n" + "\n".join(dict.fromkeys(lines)) + "\n```\n"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join("| " + " | ".join(_cell(cell) for cell in line) + " |\n" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def number(value: float) -> str:
    """Four significant digits, with separators."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"
