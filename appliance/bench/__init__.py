"""Measurements of ourselves beside others, alternating in one run, in the words of the contract.

    report = bench.run("rx", bench.Options(reps=5))      # a dict: contract.md, `bench`
    page = bench.markdown([report, ...])                 # BENCHMARKS.md

Owns the list of benchmarks. Everything here runs in namespaces of its own and takes all down.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

from appliance.bench.contest import Options
from appliance.bench.page import markdown

POLL = "irq"  # what open_port gives; rx and forward are busy, because the peer's driver is
LOADS = ("afxdp", "kernel")


def _loop(options: Options, poll: str | None) -> list[dict[str, Any]]:
    from appliance.bench import cycle

    return cycle.run(options)


def _rx(options: Options, poll: str | None) -> list[dict[str, Any]]:
    from appliance.bench import receive

    return receive.run(options, poll or "busy")


def _tx(options: Options, poll: str | None) -> list[dict[str, Any]]:
    from appliance.bench import transmit

    return transmit.run_tx(options, poll or POLL)


def _forward(options: Options, poll: str | None) -> list[dict[str, Any]]:
    from appliance.bench import transmit

    return transmit.run_forward(options, poll or "busy")


def _latency(options: Options, poll: str | None) -> list[dict[str, Any]]:
    from appliance.bench import delay

    return delay.run(options, poll)


def _python(options: Options, poll: str | None) -> list[dict[str, Any]]:
    from appliance.bench import pyloop

    return pyloop.run(options, poll or POLL)


def _slab(options: Options, poll: str | None) -> list[dict[str, Any]]:
    from appliance.bench import slab

    return slab.run(options)


def _ring(options: Options, poll: str | None) -> list[dict[str, Any]]:
    from appliance.bench import ring

    return ring.run(options)


def _share(options: Options, poll: str | None) -> list[dict[str, Any]]:
    from appliance.bench import share

    return share.run(options, poll or POLL)


def _record(options: Options, poll: str | None) -> list[dict[str, Any]]:
    from appliance.bench import disk, record

    return record.run(options, poll or POLL) + disk.run(options)


BENCHMARKS: dict[str, Callable[[Options, str | None], list[dict[str, Any]]]] = {
    "loop": _loop,
    "rx": _rx,
    "tx": _tx,
    "forward": _forward,
    "latency": _latency,
    "python": _python,
    "slab": _slab,
    "ring": _ring,
    "share": _share,
    "record": _record,
}

# Who each can be compared with, by the names that --against takes.
PEERS = {
    "loop": ("testpmd-null",),
    "rx": ("testpmd",),
    "tx": ("testpmd",),
    "forward": ("testpmd",),
    "latency": ("udp-socket",),
    "python": ("inline-count", "raw-socket", "scapy"),
    "slab": ("rte_mempool",),
    "ring": ("rte_ring",),
    "share": ("inline-count",),
    "record": ("tcpdump", "dumpcap", "netsniff-ng", "fio"),
}
SIZES = {"record": (256, 1514)}  # packet sizes where none are asked for
SIZES_USUAL = (64, 1514)


def run(name: str, options: Options, poll: str | None = None) -> dict[str, Any]:
    """One benchmark, whole. HostError if the host cannot, ConfigError for a name it has not."""
    from appliance.bench import host

    machine = host.machine()
    options.absent.clear()
    results = BENCHMARKS[name](options, poll)
    return {
        "name": name,
        "machine": machine,
        "kernel": platform.release(),
        "versions": host.versions(),
        "results": results,
        "absent": dict(options.absent),
    }


__all__ = ["BENCHMARKS", "LOADS", "PEERS", "Options", "markdown", "run"]
