"""The Prometheus endpoint of a running appliance: GET /metrics, on loopback unless configured.

Owns an HTTP listener with its own registry. The set of series is fixed by the configuration: labels
are port, reason, rule, consumer, state, tier and pages; a rule that was swapped out has no series
any more.
"""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from appliance.engine import governor
from appliance.engine.statistics import BACKINGS
from appliance.errors import HostError
from appliance.limits import METRICS_CLIENTS_MAX

REQUEST_S = 5.0

PORT_COUNTERS = (
    ("rx_frames", "Packets received."),
    ("rx_bytes", "Bytes received."),
    ("tx_frames", "Packets sent."),
    ("tx_bytes", "Bytes sent."),
    ("starved", "Bursts cut short because no frame was free to replace them."),
    ("wakeups", "System calls made to move packets."),
)
STEERING = ("seen", "consumed", "passed", "dropped", "management")
STATES = ("free", "cached", "fill", "rx", "leased", "tx", "completion", "leaked")


class Collector:
    """Asks for the figures at each scrape and names them."""

    def __init__(self, statistics: Callable[[], dict[str, Any]], rules: Callable[[], list]) -> None:
        self._statistics = statistics
        self._rules = rules

    def collect(self) -> Iterator[Metric]:
        stats = self._statistics()
        yield from _ports(stats)
        yield from _rules(self._rules())
        yield from _consumers(stats)
        yield from _recordings(stats)
        reasons = CounterMetricFamily(
            "openclaw_dropped_packets", "Lost packets by reason.", labels=["reason"]
        )
        for reason, count in stats["drops"].items():
            reasons.add_metric([reason], count)
        yield reasons
        frames = GaugeMetricFamily("openclaw_frames", "Frames by state.", labels=["state"])
        for state in STATES:
            frames.add_metric([state], stats["frames"][state])
        yield frames
        for name, value in stats["latency_ns"].items():
            text = "From XDP to the worker, since the start."
            yield _one(f"openclaw_latency_{name}_seconds", text, value / 1e9)
        yield _one("openclaw_memory_bytes", "The fast tier.", stats["memory"]["fast"]["bytes"])
        yield from _memory(stats["memory"])
        yield _one("openclaw_degraded", "1 while something is not as it should be.",
                   int(stats["state"] == "degraded"))
        states = GaugeMetricFamily("openclaw_state", "1 for the state it is in.", labels=["state"])
        for word in governor.STATES:
            states.add_metric([word], int(stats["state"] == word))
        yield states
        yield CounterMetricFamily("openclaw_memory_events", "What was done about scarce memory.",
                                  value=stats["events_total"])
        yield _one("openclaw_uptime_seconds", "Since the start.", stats["uptime_s"])
        if "image" in stats:
            yield from _image(stats["image"])


def _recordings(stats: dict[str, Any]) -> Iterator[Metric]:
    """The account of each recording consumer: packets = durable + in memory + expired + dropped."""
    made = [(one["name"], one["record"]) for one in stats["consumers"] if "record" in one]
    if not made:
        return
    names = ("packets", "durable", "durable_bytes", "expired", "gap_packets")
    for key in names:
        family = CounterMetricFamily(f"openclaw_record_{key}", f"Recorded: {key}.",
                                     labels=["consumer"])
        for name, record in made:
            family.add_metric([name], record[key])
        yield family
    dropped = CounterMetricFamily("openclaw_record_dropped_packets", "Not recorded, by reason.",
                                  labels=["consumer", "reason"])
    held = GaugeMetricFamily("openclaw_record_in_memory_packets", "Not yet durable.",
                             labels=["consumer"])
    device = GaugeMetricFamily("openclaw_record_device_up", "1 while the device takes writes.",
                               labels=["consumer", "path"])
    for name, record in made:
        for reason, count in record["dropped"].items():
            dropped.add_metric([name, reason], count)
        held.add_metric([name], record["in_memory"])
        for one in record["devices"]:
            device.add_metric([name, one["path"]], int(one["state"] == "ok"))
    yield from (dropped, held, device)


def _image(found: dict[str, Any]) -> Iterator[Metric]:
    version = GaugeMetricFamily(
        "openclaw_image", "1 for the version that runs.", labels=["version"])
    version.add_metric([found["version"]], 1)
    yield version
    yield _one("openclaw_image_rolled_back", "1 after an update that failed its health gate.",
               int(found["update"].get("result") == "rolled back"))


def _one(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _ports(stats: dict[str, Any]) -> Iterator[Metric]:
    for key, text in PORT_COUNTERS:
        family = CounterMetricFamily(f"openclaw_port_{key}", text, labels=["port"])
        for port in stats["ports"]:
            family.add_metric([port["name"]], port[key])
        yield family
    kernel = CounterMetricFamily(
        "openclaw_port_kernel", "The kernel's counters of the sockets.", labels=["port", "reason"]
    )
    steering = CounterMetricFamily(
        "openclaw_steering_packets", "What the programs decided.", labels=["port", "state"]
    )
    up = GaugeMetricFamily("openclaw_port_up", "1 while the link is up.", labels=["port"])
    for port in stats["ports"]:
        for reason, count in port["kernel"].items():
            kernel.add_metric([port["name"], reason], count)
        for state in STEERING:
            steering.add_metric([port["name"], state], port["steering"].get(state, 0))
        up.add_metric([port["name"]], int(port["link"] == "up"))
    yield from (kernel, steering, up)


def _memory(memory: dict[str, Any]) -> Iterator[Metric]:
    """The mid tier, and on which pages either tier is: a fallback is a state that can alarm."""
    mid = memory["mid"]
    for key, text in (("bytes", "Mapped arenas of the mid tier."), ("used_bytes", "Used slabs."),
                      ("cap_bytes", "The most that the mid tier may map.")):
        yield _one(f"openclaw_mid_{key}", text, mid[key])
    yield CounterMetricFamily("openclaw_mid_refusals", "Slabs that were asked for in vain.",
                              value=mid["refusals"])
    backing = GaugeMetricFamily(
        "openclaw_memory_backing", "1 for the worst pages of the tier.", labels=["tier", "pages"]
    )
    for tier, found in (("fast", memory["backing"]), ("mid", mid["backing"])):
        for pages in BACKINGS:
            backing.add_metric([tier, pages], int(found == pages))
    yield backing


def _rules(rules: list[dict[str, Any]]) -> Iterator[Metric]:
    family = CounterMetricFamily(
        "openclaw_rule_packets", "Packets that a rule in force decided.", labels=["port", "rule"]
    )
    for rule in rules:
        family.add_metric([rule["port"], str(rule["id"])], rule["packets"])
    yield family


def _consumers(stats: dict[str, Any]) -> Iterator[Metric]:
    for key, text in (
        ("frames", "Packets given to the consumer."),
        ("bytes", "Bytes given to the consumer."),
        ("dropped", "Packets that the consumer could not pass on."),
    ):
        family = CounterMetricFamily(f"openclaw_consumer_{key}", text, labels=["consumer"])
        for consumer in stats["consumers"]:
            family.add_metric([consumer["name"]], consumer[key])
        yield family
    leased = GaugeMetricFamily(
        "openclaw_consumer_leased_frames", "Frames that it holds.", labels=["consumer"]
    )
    shared = [consumer for consumer in stats["consumers"] if "members" in consumer]
    for consumer in stats["consumers"]:
        leased.add_metric([consumer["name"]], consumer["leased"])
    for key, text in (
        ("copied", "Packets given as copies."),
        ("reclaimed", "Frames and copies that members left behind."),
        ("bad_returns", "What members gave back and did not have."),
    ):
        family = CounterMetricFamily(f"openclaw_share_{key}", text, labels=["consumer"])
        for consumer in shared:
            family.add_metric([consumer["name"]], consumer[key])
        yield family
    members = GaugeMetricFamily(
        "openclaw_share_members", "Processes that are attached.", labels=["consumer"]
    )
    for consumer in shared:
        members.add_metric([consumer["name"]], len(consumer["members"]))
    yield members
    yield leased


class _Handler(WSGIRequestHandler):
    timeout = REQUEST_S

    def log_message(self, *_: object) -> None:
        """A scrape every few seconds is no news."""

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:
            return  # too slow, or gone


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True
    allow_reuse_address = True
    room: threading.BoundedSemaphore

    def server_bind(self) -> None:
        # WSGIServer would ask DNS for our own name here.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        if self.room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.room.release()

    def handle_error(self, *_: object) -> None:
        """Who breaks off a scrape is not worth a traceback."""


class Metrics:
    """Made (the port is ours from then on), then serve(), then close()."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        try:
            family = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0][0]
            room = threading.BoundedSemaphore(METRICS_CLIENTS_MAX)
            kind = type("Server", (_Server,), {"address_family": family, "room": room})
            self._server = kind((host, int(port)), _Handler)
        except OSError as error:
            raise HostError(
                f"metrics {address}: {error.strerror or error}",
                fix='another control.metrics, or "" for off',
            ) from None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port that was granted, where 0 was asked for."""
        return int(self._server.server_port)

    def serve(
        self, statistics: Callable[[], dict[str, Any]], rules: Callable[[], list[dict[str, Any]]]
    ) -> None:
        """Answers scrapes from here on."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(Collector(statistics, rules))  # type: ignore[arg-type]
        self._server.set_app(make_wsgi_app(registry))
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.2}, name="metrics",
            daemon=True,
        )
        self._thread.start()

    def close(self) -> None:
        if self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._thread = None
        self._server.server_close()
