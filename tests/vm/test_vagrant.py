"""The commands of images/README.md, "With Vagrant": two machines, provisioned twice, traffic
between them steered, and nothing left after destroy.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.full
ROOT = Path(__file__).resolve().parent.parent.parent
STEERED = """
[[port]]
name = "in0"
interface = "{interface}"
[[rule]]
port = "in0"
match = "udp port 53 or tcp port 443"
action = "consume"
consumers = ["seen"]
[[consumer]]
name = "seen"
kind = "count"
[control]
socket = "/run/openclaw/vagrant.sock"
metrics = ""
"""


def vagrant(*words: str, wait_s: float = 2400, given: str | None = None) -> str:
    path = f"{ROOT}/.venv-image/bin:{os.environ['PATH']}"
    done = subprocess.run(["vagrant", *words], cwd=ROOT, capture_output=True, text=True,
                          timeout=wait_s, input=given, env={**os.environ, "PATH": path})
    assert done.returncode == 0, f"vagrant {words}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def inside(name: str, command: str, wait_s: float = 900) -> str:
    return vagrant("ssh", name, "--no-tty", "-c", command, wait_s=wait_s)


@pytest.fixture
def host(image):
    if shutil.which("vagrant") is None:
        pytest.skip("probe vagrant: not installed (make vagrant-host)")
    subprocess.run([ROOT / "images/vagrant-host"], check=True, timeout=900)
    yield
    subprocess.run(["vagrant", "destroy", "-f"], cwd=ROOT, timeout=600)
    subprocess.run([ROOT / "images/vagrant-host", "stop"], timeout=60)


def test_two_machines_are_provisioned_and_steer_each_others_traffic(host):
    vagrant("up")
    again = vagrant("provision")
    recaps = re.findall(r"^(dut|peer)\s*:.*changed=(\d+).*failed=(\d+)", again, re.M)
    assert sorted(recaps) == [("dut", "0", "0"), ("peer", "0", "0")], again[-3000:]
    for name in ("dut", "peer"):
        inside(name, "openclaw demo")
    # The data NIC is the second one.
    interface = inside("dut", "ls /sys/class/net | grep ^en | sed -n 2p").strip()
    vagrant("ssh", "dut", "--no-tty", "-c", "cat > /tmp/steered.toml",
            given=STEERED.format(interface=interface))
    inside("dut", "nohup openclaw run --config /tmp/steered.toml --json >/tmp/final.json"
           " 2>/tmp/run.log </dev/null & echo $! >/tmp/run.pid;"
           " until grep -q 'running; stop' /tmp/run.log; do sleep 2; done")
    inside("peer", f"ip link set {interface} up; openclaw replay --interface {interface} --loop 20"
           " --rate 500 /usr/lib/python3/dist-packages/appliance/demo/sample.pcap")
    stats = inside("dut", "openclaw stats --json --socket /run/openclaw/vagrant.sock;"
                   " kill $(cat /tmp/run.pid)")
    assert int(re.search(r'"consumed": ?(\d+)', stats)[1]) > 100, stats[:2000]
