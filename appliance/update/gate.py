"""The health gate: asked once at each boot of the image, before the boot counts as a good one.

A gate that only looks whether services run lets a broken data path through, so this one sends
packets: doctor, a veth pair, XDP attached, AF_XDP bound, a compiled consumer that counts, and
metrics that answer with that count. Owns the questions and the exit status (0 good, 1 not); what
follows from it is systemd's (openclaw-health.service) and systemd-boot's business.

    python3 -m appliance.update.gate
"""

from __future__ import annotations

import socket
import struct
import sys
import time
import urllib.request
from collections.abc import Iterator

from appliance import config, doctor
from appliance.engine.accounts import problems
from appliance.engine.engine import Engine
from appliance.engine.metrics import Metrics
from appliance.errors import OpenClawError
from appliance.net import Lab, in_netns
from appliance.update import slots

PACKETS = 256  # veth's ring holds as many
WAIT_S = 60.0  # an emulated machine of two cores took 3
CONFIGURATION = """
[[port]]
name = "gate"
interface = "{interface}"
netns = "{netns}"
[[rule]]
port = "gate"
match = "udp port 9"
action = "consume"
consumers = ["gate"]
[[consumer]]
name = "gate"
kind = "count"
"""


def failures() -> Iterator[str]:
    """What is wrong, one line each, as it is found."""
    for check in doctor.examine()["checks"]:  # type: ignore[attr-defined]
        if check["state"] == "fail":
            yield f"doctor: {check['name']}: {check['found']}"
    try:
        yield from _data_path()
    except (OpenClawError, OSError) as error:
        yield f"data path: {error}"


def _data_path() -> Iterator[str]:
    with Lab.temporary(queues=1) as lab:
        engine = Engine(config.parse(CONFIGURATION.format(
            interface=lab.b.interface, netns=lab.b.netns)))
        metrics = Metrics("127.0.0.1:0")
        try:
            engine.start()
            try:
                metrics.serve(engine.statistics, engine.rules)
                in_netns(lab.a.netns, _send, lab.a.interface)
                yield from _arrived(metrics.port)
            finally:
                metrics.close()
                final = engine.stop()
        finally:
            metrics.close()
        for line in problems(final):
            yield f"accounts: {line}"


def _send(interface: str) -> None:
    """UDP to port 9 (discard), as frames, so that no neighbour needs to answer."""
    payload = b"openclaw"
    udp = struct.pack(">HHHH", 9, 9, 8 + len(payload), 0) + payload
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0,
                     bytes([10, 111, 0, 1]), bytes([10, 111, 0, 2]))
    frame = b"\xff" * 6 + b"\x02" + b"\0" * 5 + b"\x08\0" + ip + udp
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind((interface, 0))
        for _ in range(PACKETS):
            raw.send(frame)


def _arrived(port: int) -> Iterator[str]:
    """Waits until the consumer's count is in the metrics, for metrics are how people look."""
    wanted = f'openclaw_consumer_frames_total{{consumer="gate"}} {PACKETS}.0'
    until = time.monotonic() + WAIT_S
    line = "no answer"
    while time.monotonic() < until:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=WAIT_S) as answer:
            lines = answer.read().decode().splitlines()
        line = next((one for one in lines if one.startswith("openclaw_consumer_frames_")), line)
        if line == wanted:
            return
        time.sleep(0.2)
    yield f"metrics say {line!r}, and {PACKETS} packets were sent"


def main() -> int:
    wrong = list(failures())
    for line in wrong:
        print(f"openclaw health: {line}", file=sys.stderr)
    slots.note_boot(good=not wrong)
    if wrong and slots.running().counted:
        print("openclaw health: this version is on trial; booting again", file=sys.stderr)
        return 1
    if wrong:
        # Nothing to go back to: a machine that can be reached beats one that boots for ever.
        print("openclaw health: FAILED; this version is not on trial, going on", file=sys.stderr)
        return 0
    print("openclaw health: ok")
    return 0


if __name__ == "__main__":
    sys.exit(main())
