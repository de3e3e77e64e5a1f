"""What the tests of sharing share: members in processes of their own, and an engine to attach to.

Owns no expectations.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import zlib
from pathlib import Path

from tests.engine.support import consumer_table, control_table, port_table, rule_table

MEMBER = Path(__file__).with_name("member.py")
FULL = os.environ.get("OPENCLAW_FULL") == "1"
NOBODY = 65534


class MemberProcess:
    """A member; `line()` gives what it says next, `end()` its last word."""

    def __init__(self, socket: str, consumer: str, job: str, **options) -> None:
        words = [f"{key}={value}" for key, value in options.items()]
        self.process = subprocess.Popen(
            [sys.executable, str(MEMBER), socket, consumer, job, *words],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        self.pid = self.process.pid

    def line(self, seconds: float = 60) -> dict:
        """The next line; AssertionError with its standard error if there is none."""
        timer = threading.Timer(seconds, self.process.kill)
        timer.start()
        try:
            text = self.process.stdout.readline()
        finally:
            timer.cancel()
        assert text, self.process.communicate()[1]
        return json.loads(text)

    def attached(self) -> dict:
        said = self.line()
        assert "attached" in said, said
        return said

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self, seconds: float = 60) -> dict:
        found = self.line(seconds)
        self.process.communicate(timeout=10)
        return found

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def place():
    """A directory that other users can reach; pytest's own are closed to them."""
    directory = tempfile.mkdtemp(prefix="openclaw-share-")
    os.chmod(directory, 0o711)
    try:
        yield Path(directory)
    finally:
        shutil.rmtree(directory)


@contextlib.contextmanager
def members(*made: MemberProcess):
    """Ended, whatever happens."""
    try:
        yield made
    finally:
        for one in made:
            one.close()


def shared(lab, home, *consumers: str, queues=(0,), **memory) -> str:
    """An appliance whose udp packets go to these consumers; text of [[consumer]] tables."""
    names = [text.split('"')[1] for text in consumers]
    tables = "".join(f"{key} = {value}\n" for key, value in memory.items())
    return (port_table("in0", lab.b, queues=list(queues))
            + rule_table("in0", "udp", consumers=names)
            + "".join(consumers) + control_table(home) + "[memory]\n" + tables)


def share(name: str, **more) -> str:
    return consumer_table(name, "share", allow_users=[NOBODY], **more)


def socket_of(home) -> str:
    return f"{home}/control.sock"


def check_of(packets) -> int:
    """What a member sums up over these packets."""
    return sum(map(zlib.crc32, packets)) & 0xFFFFFFFFFFFF
