"""The examples do what they say, as another user, and stop cleanly."""

from __future__ import annotations

import importlib.util
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from appliance.engine import accounts
from tests.engine.support import consumed, feed, open_sender, started, udp, wait_for
from tests.sharing.support import NOBODY, share, shared, socket_of

pytestmark = pytest.mark.usefixtures("needs_xdp_socket", "needs_namespaces")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
# As a program that has given up root, also where the sources can only be read by root.
AS_NOBODY = f"""
import os, runpy, sys
import appliance.attaching, appliance.asynchronous, appliance.dataplane, asyncio, numpy
try:
    import pyarrow.parquet
except ImportError:
    pass
source = open(sys.argv[1]).read()
sys.argv = sys.argv[1:]
os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
exec(compile(source, sys.argv[0], "exec"), {{"__name__": "__main__"}})
"""


def example(name: str, *words: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", AS_NOBODY, str(EXAMPLES / name), *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )


def attached(engine) -> bool:
    """Seen by every worker: listed it is a little earlier, and would miss our few packets."""
    return any(event["action"] == "attached" for event in engine.statistics()["events"])


def said(process: subprocess.Popen, number: int = signal.SIGINT) -> tuple[str, str]:
    if process.poll() is None:
        process.send_signal(number)
    return process.communicate(timeout=20)


def dns(name: str) -> bytes:
    question = b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0"
    message = struct.pack("!6H", 7, 0x100, 1, 0, 0, 0) + question + b"\0\1\0\1"
    packet = udp(0, 8 + len(message), port=53)
    return packet[:42] + message + packet[42 + len(message) :]


def test_top_talkers_names_the_sender(lab, home):
    with started(shared(lab, home, share("taps"))) as engine:
        process = example("top_talkers.py", socket_of(home), "taps")
        assert wait_for(lambda: attached(engine) or process.poll() is not None, 20)
        with open_sender(lab.a) as sender:
            feed(engine, "in0", sender, [udp(i) for i in range(500)])
        time.sleep(1.3)
        out, err = said(process)
        assert accounts.problems(engine.stop()) == []
    assert "10.0.0.1" in out, err


def test_the_dns_logger_logs_what_was_asked(lab, home):
    with started(shared(lab, home, share("taps"))) as engine:
        process = example("dns_logger.py", socket_of(home), "taps")
        assert wait_for(lambda: attached(engine) or process.poll() is not None, 20)
        with open_sender(lab.a) as sender:
            feed(engine, "in0", sender, [dns("www.example.org"), udp(1), dns("a\x1b[2J.example")])
        assert wait_for(lambda: consumed(engine.statistics(), "taps")["members"][0]["frames"] == 2)
        time.sleep(0.5)
        out, err = said(process)
        assert accounts.problems(engine.stop()) == []
    assert "10.0.0.1 www.example.org\n" in out, err
    assert "\x1b" not in out and "a\\x1b[2J.example" in out


def test_the_exporter_writes_a_table_or_says_what_it_lacks(lab, home):
    out = home / "out"
    out.mkdir()
    os.chown(out, NOBODY, NOBODY)
    with started(shared(lab, home, share("taps", policy="reliable"))) as engine:
        process = example("to_parquet.py", str(out / "p.parquet"), socket_of(home), "taps", "1.5")
        assert wait_for(lambda: attached(engine) or process.poll() is not None, 20)
        with open_sender(lab.a) as sender:
            feed(engine, "in0", sender, [udp(i) for i in range(500)])
        printed, err = process.communicate(timeout=30)
        assert accounts.problems(engine.stop()) == []
    if importlib.util.find_spec("pyarrow") is None:
        assert "pyarrow is missing" in err
        pytest.skip("probe pyarrow: not installed")
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(out / "p.parquet")
    assert table.num_rows == 500, (printed, err)
    assert table["length"].to_pylist() == [len(udp(i)) for i in range(500)]
    assert table["head"][3].as_py() == udp(3)[:64]
