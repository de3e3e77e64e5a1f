"""The control socket and the metrics endpoint of a running appliance (a loop port: no root)."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import stat
import threading
import time
import urllib.request

import pytest

from appliance.config import parse
from appliance.engine import client
from appliance.engine.control import Control
from appliance.engine.metrics import Metrics
from appliance.engine.service import Service
from appliance.errors import ConfigError, HostError, PortError
from appliance.limits import CONTROL_CLIENTS_MAX, CONTROL_MESSAGE_BYTES_MAX
from tests.engine.support import consumer_table, control_table, rule_table, wait_for

LOOP = (
    '[[port]]\nname = "l0"\nbackend = "loop"\n[memory]\nframes_per_queue = 1024\n'
    + rule_table("l0", "udp", consumers=["c"])
    + consumer_table("c", "count")
)


class Running:
    """A service in a thread of its own."""

    def __init__(self, directory, metrics: str = "") -> None:
        self.socket = str(directory / "control.sock")
        self.service = Service(parse(LOOP + control_table(directory, metrics)))
        self.final: dict = {}
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        self.final = self.service.run(started=lambda _: self._up.set())

    def __enter__(self):
        self._thread.start()
        assert self._up.wait(10)
        return self

    def __exit__(self, *_):
        self.service.ended.set()
        self._thread.join()


@pytest.fixture
def running(tmp_path):
    with Running(tmp_path) as made:
        yield made


def talk(path: str, data: bytes, seconds: float = 10.0) -> bytes:
    """Everything that comes back for these bytes, until the other side closes or says a line."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(seconds)
        connection.connect(path)
        got = b""
        with contextlib.suppress(BrokenPipeError):
            connection.sendall(data)
        try:
            while not got.endswith(b"\n"):
                part = connection.recv(1 << 16)
                if not part:
                    break
                got += part
        except (ConnectionResetError, TimeoutError):
            pass
        return got


def test_statistics_have_the_names_of_the_contract(running):
    stats = client.ask(running.socket, "stats")
    assert {"ports", "steering", "drops", "frames", "consumers", "latency_ns",
            "memory"} <= set(stats)
    assert {"name", "interface", "backend", "attach_mode", "zero_copy", "queues", "rx_frames",
            "rx_bytes", "tx_frames", "tx_bytes", "kernel"} <= set(stats["ports"][0])
    assert set(stats["ports"][0]["kernel"]) == {
        "rx_dropped", "rx_invalid_descs", "tx_invalid_descs", "rx_ring_full",
        "rx_fill_ring_empty_descs", "tx_ring_empty_descs"}
    assert {"seen", "consumed", "passed", "dropped", "by_rule"} <= set(stats["steering"])
    assert set(stats["frames"]) == {"total", "free", "cached", "fill", "rx", "leased", "tx",
                                    "completion", "leaked"}
    assert set(stats["consumers"][0]) == {"name", "kind", "frames", "bytes", "leased",
                                          "oldest_lease_ms", "dropped"}
    assert set(stats["latency_ns"]) == {"p50", "p99", "p999", "max"}
    assert {"fast", "mid", "persistent", "backing", "state", "reasons"} <= set(stats["memory"])
    assert stats["memory"]["backing"] in ("2M", "thp", "4k")
    frames = stats["frames"]
    assert frames["total"] == sum(frames.values()) - frames["total"] == 1024


def test_packets_of_a_loop_port_are_counted_and_shown(running):
    queue = running.service.engine._ports["l0"].queues[0]
    for _ in range(100):
        assert queue.inject(bytes(60))
    assert wait_for(lambda: client.ask(running.socket, "stats")["consumers"][0]["frames"] == 100)
    assert client.ask(running.socket, "stats")["ports"][0]["rx_bytes"] == 6000


def test_the_socket_is_ours_alone_and_goes_with_the_appliance(tmp_path):
    with Running(tmp_path / "deep" / "er") as made:
        mode = os.stat(made.socket)
        assert stat.S_ISSOCK(mode.st_mode) and stat.S_IMODE(mode.st_mode) == 0o600
        assert stat.S_IMODE(os.stat(tmp_path / "deep" / "er").st_mode) == 0o700
        assert sorted(os.listdir(tmp_path / "deep" / "er")) == ["control.sock"]
    assert not os.path.exists(made.socket)
    with pytest.raises(HostError, match=f"no appliance is running at {made.socket}; fix: openclaw"):
        client.ask(made.socket, "stats")


def test_a_stale_socket_is_replaced_and_a_live_one_is_not(tmp_path):
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert path.is_socket()
    with Running(tmp_path) as made:
        assert client.ask(made.socket, "stats")["running"]
        with pytest.raises(PortError, match="is running at"):
            Control(made.socket)
        assert client.ask(made.socket, "stats")["running"]
    path.write_text("mine")
    with pytest.raises(ConfigError, match="no socket"):
        Control(str(path))
    assert path.read_text() == "mine"


def test_a_stop_over_the_socket_is_answered_and_ends_the_appliance(running):
    assert client.ask(running.socket, "stop") == "stopping"
    assert wait_for(lambda: running.final)
    assert running.final["frames"]["leaked"] == 0


@pytest.mark.parametrize(
    "line",
    [
        b"\n", b"{}\n", b"[]\n", b"null\n", b'"stats"\n', b'{"verb": 1}\n', b'{"verb": "reboot"}\n',
        b'{"verb": "stats"\n', b"\xff\xfe\n", b'{"verb": "\\ud800"}\n', b"[" * 200_000 + b"\n",
        b"9" * 10_000 + b"\n", b'{"verb": "rules.swap", "rules": 1}\n',
        b'{"verb": "rules.swap", "rules": [{}]}\n', b'{"verb": "rules.swap"}\n',
        b'{"verb": "rules.swap", "rules": [{"port": "l0", "match": "\\n", "action": "x"}]}\n',
    ],
    ids=lambda line: line[:24].decode("latin-1").encode("unicode_escape").decode(),
)
def test_a_bad_request_is_answered_in_one_line_and_harms_nothing(running, line):
    got = talk(running.socket, line)
    assert got.count(b"\n") == 1
    reply = json.loads(got)
    assert reply["ok"] is False and reply["exit_status"] == 2
    assert "\n" not in reply["error"] and "internal error" not in reply["error"]
    assert client.ask(running.socket, "rules.list")[0]["match"] == "udp"


def test_a_message_beyond_the_limit_is_refused_and_not_kept(running):
    got = talk(running.socket, b"x" * (CONTROL_MESSAGE_BYTES_MAX + (1 << 17)))
    assert not got or json.loads(got)["exit_status"] == 2
    with pytest.raises(ConfigError, match="bytes to send"):
        client.ask(running.socket, "rules.swap", rules=["x" * CONTROL_MESSAGE_BYTES_MAX])
    assert client.ask(running.socket, "stats")["running"]


def test_random_bytes_never_end_the_conversation_of_others(running):
    seed = random.randrange(1 << 32)
    print("seed", seed)
    source = random.Random(seed)
    words = [b'{"verb":', b'"stats"', b"}", b"\n", b"[", b'"rules.swap"', b"\x00", b"1e999", b","]
    for _ in range(300):
        data = b"".join(
            source.choice(words) if source.random() < 0.6
            else source.randbytes(source.randrange(40))
            for _ in range(source.randrange(1, 20))
        )
        for reply in talk(running.socket, data + b"\n").splitlines():
            assert isinstance(json.loads(reply)["ok"], bool)
    assert client.ask(running.socket, "stats")["running"]


def test_two_hundred_half_open_clients_keep_nobody_out_and_are_let_go(running):
    threads = threading.active_count()
    connections = []
    try:
        for place in range(200):
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(15)
            connection.connect(running.socket)
            if place % 2:
                connection.sendall(b'{"verb": ')
            connections.append(connection)
            if place % 20 == 19:
                begin = time.monotonic()
                assert client.ask(running.socket, "stats")["running"]
                assert time.monotonic() - begin < 2.0
        # All of them hear the end: evicted at once, or after the time for a request.
        begin = time.monotonic()
        for connection in connections:
            try:
                assert connection.recv(1 << 16).count(b"\n") <= 1
            except ConnectionResetError:
                continue
        assert time.monotonic() - begin < 10.0
    finally:
        for connection in connections:
            connection.close()
    assert threading.active_count() - threads < 10
    assert CONTROL_CLIENTS_MAX < 200


def test_a_client_that_does_not_read_its_answers_is_let_go(running):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(running.socket)
        with pytest.raises(OSError):
            while True:
                connection.sendall(b'{"verb": "stats"}\n' * 1000)
    assert client.ask(running.socket, "stats")["running"]


@pytest.mark.root
def test_another_user_is_refused(tmp_path):
    os.chmod(tmp_path, 0o755)
    for parent in tmp_path.parents[:2]:
        os.chmod(parent, 0o755)
    with Running(tmp_path) as made:
        os.chmod(made.socket, 0o666)  # the mode alone is not what keeps others out
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.setgid(65534)
                os.setuid(65534)
                got = talk(made.socket, b'{"verb": "stats"}\n')
                status = 0 if b"not your appliance" in got else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert client.ask(made.socket, "stats")["running"]


def scrape(metrics: str) -> dict[str, float]:
    with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    pairs = [line.rsplit(" ", 1) for line in lines if line[0] != "#"]
    return {name: float(value) for name, value in pairs}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_metrics_tell_the_same_as_the_statistics_and_have_only_known_labels(tmp_path):
    address = f"127.0.0.1:{free_port()}"
    with Running(tmp_path, address) as made:
        for _ in range(50):
            made.service.engine._ports["l0"].queues[0].inject(bytes(60))
        assert wait_for(lambda: client.ask(made.socket, "stats")["consumers"][0]["frames"] == 50)
        found = scrape(address)
        assert found['openclaw_consumer_frames_total{consumer="c"}'] == 50
        assert found['openclaw_port_rx_frames_total{port="l0"}'] == 50
        assert found['openclaw_frames{state="leaked"}'] == 0
        labels = {word.split("=")[0] for name in found if "{" in name
                  for word in name[name.index("{") + 1 : -1].split(",")}
        assert labels <= {"port", "reason", "rule", "consumer", "state", "tier", "pages"}
        # The series are the same at every scrape, whatever is swapped or counted meanwhile.
        rule = {"port": "l0", "match": "tcp", "action": "consume", "consumers": ["c"]}
        for place in range(5):
            client.ask(made.socket, "rules.swap", rules=[{**rule, "priority": place}])
        assert set(scrape(address)) == set(found)
    with pytest.raises(OSError):
        scrape(address)


def test_a_metrics_port_in_use_is_named_before_anything_is_opened(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        service = Service(parse(LOOP + control_table(tmp_path, f"127.0.0.1:{port}")))
        with pytest.raises(HostError, match=f"metrics 127.0.0.1:{port}: Address already in use"):
            service.run(1)
    assert service.engine.state == "new"
    assert os.listdir(tmp_path) == []


def test_silent_scrapers_do_not_keep_others_out_for_long():
    metrics = Metrics("127.0.0.1:0")
    metrics.serve(lambda: {}, list)
    try:
        held = [socket.create_connection(("127.0.0.1", metrics.port)) for _ in range(20)]
        time.sleep(0.1)
        assert threading.active_count() < 20
        for connection in held:
            connection.settimeout(10)
            assert connection.recv(100) == b""
            connection.close()
    finally:
        metrics.close()
