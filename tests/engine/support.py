"""What the engine's tests share: configurations, numbered packets, a paced sender, the command.

Owns no fixtures (conftest.py has them) and no expectations.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import appliance
from appliance.config import parse
from appliance.engine.engine import Engine
from appliance.net import inside

COMMAND = Path(sys.executable).parent / "openclaw"
FULL = os.environ.get("OPENCLAW_FULL") == "1"

SOURCE = bytes.fromhex("020000000001")
TARGET = bytes.fromhex("020000000002")


def udp(number: int, payload_bytes: int = 32, port: int = 4789) -> bytes:
    """An Ethernet frame with a UDP packet whose payload begins with `number`."""
    filling = bytes((number + i) & 0xFF for i in range(payload_bytes - 8))
    payload = struct.pack("!Q", number) + filling
    length = 20 + 8 + len(payload)
    header = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, length, 0, 0, 64, 17, 0, b"\x0a\0\0\1", b"\x0a\0\0\2"
    )
    sum_ = sum(struct.unpack("!10H", header))
    sum_ = (sum_ & 0xFFFF) + (sum_ >> 16)
    header = header[:10] + struct.pack("!H", ~(sum_ + (sum_ >> 16)) & 0xFFFF) + header[12:]
    return (
        TARGET + SOURCE + b"\x08\0" + header
        + struct.pack("!HHHH", 1024, port, 8 + len(payload), 0) + payload
    )


def number_of(packet: bytes) -> int:
    return struct.unpack_from("!Q", packet, 14 + 20 + 8)[0]


def port_table(name: str, side, **more) -> str:
    lines = [f'name = "{name}"', f'interface = "{side.interface}"', f'netns = "{side.netns}"']
    return "[[port]]\n" + "\n".join([*lines, *_fields(more)]) + "\n"


def rule_table(port: str, match: str, action: str = "consume", consumers=(), **more) -> str:
    lines = [f"port = {json.dumps(port)}", f"match = {json.dumps(match)}", f'action = "{action}"']
    if consumers:
        lines.append(f"consumers = {json.dumps(list(consumers))}")
    return "[[rule]]\n" + "\n".join([*lines, *_fields(more)]) + "\n"


def consumer_table(name: str, kind: str, **more) -> str:
    lines = [f'name = "{name}"', f'kind = "{kind}"', *_fields(more)]
    return "[[consumer]]\n" + "\n".join(lines) + "\n"


def control_table(directory: Path, metrics: str = "") -> str:
    return f'[control]\nsocket = "{directory}/control.sock"\nmetrics = "{metrics}"\n'


def _fields(more) -> list[str]:
    return [f"{key} = {json.dumps(value)}" for key, value in more.items()]


def open_sender(side, **more):
    return appliance.open_port(side.interface, netns=side.netns, transmit_only=True, **more)


def send_all(port, packets, queue: int = 0, burst: int = 128, pause_s: float = 0.002) -> int:
    """Sends every packet, in bursts with pauses: 2 cores serve sender, kernel and workers."""
    at = 0
    until = time.monotonic() + 60
    while at < len(packets) and time.monotonic() < until:
        at += port.send(packets[at : at + burst], queue=queue)
        time.sleep(pause_s)
    assert port.flush(2000)
    return at


def consumed(stats, name):
    return next(entry for entry in stats["consumers"] if entry["name"] == name)


def started(text: str) -> Engine:
    return Engine(parse(text))


def receive(port, wanted: int, seconds: float = 10.0) -> list[bytes]:
    """Up to `wanted` packets of a port, as bytes, in the order of arrival."""
    got: list[bytes] = []
    until = time.monotonic() + seconds
    for batch in port.recv(timeout_ms=50):
        got += [bytes(frame) for frame in batch]
        if len(got) >= wanted or time.monotonic() > until:
            return got
    return got


def set_link(side, state: str) -> None:
    words = inside(side.netns, "ip", "link", "set", side.interface, state)
    subprocess.run(words, check=True)


def feed(engine, name: str, port, packets) -> None:
    """send_all, never further ahead of the engine's port than its rings hold (2,048 packets).

    A worker may lose its core on a busy host; what the rings overflow by then is not lost here.
    """
    attachment = engine._ports[name]

    def received() -> int:
        return sum(queue.statistics()["rx_frames"] for queue in attachment.queues)

    before = received()
    for at in range(0, len(packets), 1024):
        part = packets[at : at + 1024]
        assert send_all(port, part) == len(part)
        assert wait_for(lambda at=at, part=part: received() - before == at + len(part), 10)


class Traffic:
    """Numbered packets from a thread, until the context ends. `sent` is what left."""

    def __init__(self, side, queues: int = 1, pause_s: float = 0.001, burst: int = 16) -> None:
        self.sent = 0
        self._port = open_sender(side)
        self._stop = threading.Event()
        self._queues, self._pause_s, self._burst = queues, pause_s, burst
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.is_set():
            packets = [udp(self.sent + i) for i in range(self._burst)]
            self.sent += self._port.send(packets, queue=(self.sent // self._burst) % self._queues)
            time.sleep(self._pause_s)
        self._port.flush(2000)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.end()

    def end(self) -> int:
        if self._thread.is_alive():
            self._stop.set()
            self._thread.join()
            self._port.close()
        return self.sent


def wait_for(condition, seconds: float = 5.0, step_s: float = 0.01) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(step_s)
    return bool(condition())


def run(*words: str, timeout: float = 60) -> subprocess.CompletedProcess:
    return subprocess.run([COMMAND, *words], capture_output=True, text=True, timeout=timeout)


class Appliance:
    """`openclaw run` as a process of its own; ready() when packets can arrive."""

    def __init__(self, text: str, directory: Path, *options: str) -> None:
        self.file = directory / "openclaw.toml"
        self.file.write_text(text)
        self.socket = str(directory / "control.sock")
        # A suite that a shell runs in the background has SIGINT ignored, and so has what it starts.
        self.process = subprocess.Popen(
            [COMMAND, "run", "--config", str(self.file), "--json", *options],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def ready(self, seconds: float = 30):
        from appliance.engine import client

        def answers() -> bool:
            assert self.process.poll() is None, self.process.communicate()
            try:
                return client.ask(self.socket, "stats")["running"]
            except appliance.OpenClawError:
                return False

        assert wait_for(answers, seconds, 0.05), "the appliance does not answer"
        return self

    def end(self, number: int = signal.SIGTERM) -> tuple[int, dict, str]:
        """Exit status, final figures, standard error."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, json.loads(out) if out else {}, err

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
