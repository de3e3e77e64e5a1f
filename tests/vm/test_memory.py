"""Memory where the guest has it: the UMEM on the right one of two NUMA nodes, hugepages on each."""

from __future__ import annotations

import re
import time

import pytest

CONFIGURATION = """
[memory]
numa = {node}
hugepages = "off"
frames_per_queue = 4096
[[port]]
name = "in0"
interface = "veth-b"
netns = "oc-numa-b"
queues = [0]
[[rule]]
port = "in0"
match = "udp"
action = "consume"
consumers = ["seen"]
[[consumer]]
name = "seen"
kind = "count"
[control]
socket = "/run/openclaw/numa.sock"
metrics = ""
"""


@pytest.fixture
def numa_lab(guest):
    guest.run("mkdir -p /run/openclaw; openclaw lab up numa")
    yield
    guest.run("openclaw lab down numa")


@pytest.mark.parametrize("node", [0, 1])
def test_the_umem_lies_on_the_node_that_was_asked_for(guest, numa_lab, node):
    guest.run("cat > /tmp/numa.toml", given=CONFIGURATION.format(node=node).encode())
    guest.run("nohup openclaw run --config /tmp/numa.toml >/tmp/numa.log 2>&1 </dev/null &"
              " echo $! > /tmp/numa.pid")
    try:
        until = time.monotonic() + 300
        while "running; stop" not in (text := guest.run("cat /tmp/numa.log").stdout):
            assert time.monotonic() < until, text
            time.sleep(3)
        maps = guest.run("cat /proc/$(cat /tmp/numa.pid)/numa_maps").stdout.splitlines()
    finally:
        guest.run("kill $(cat /tmp/numa.pid); while kill -0 $(cat /tmp/numa.pid) 2>/dev/null;"
                  " do sleep 1; done", check=False)
    # The UMEM is the largest mapping; small ones (a page of the reporter's) may lie anywhere.
    mappings = [
        {int(at): int(count) for at, count in re.findall(r" N(\d+)=(\d+)", line)}
        for line in maps if "memfd" in line
    ]
    pages = max(mappings, key=lambda found: sum(found.values()))
    assert pages.keys() == {node} and pages[node] >= 4096, mappings  # frames of one 4 KiB page


def test_hugepages_are_reserved_on_each_node_as_the_role_says(guest):
    where = "/sys/devices/system/node/node*/hugepages/hugepages-2048kB/nr_hugepages"
    conf = "/etc/openclaw/tune.conf"
    guest.run(f"cp {conf} /tmp/tune.conf; printf 'pages=16 isolated=\"\"\\n' > {conf};"
              "systemctl restart openclaw-tune")
    try:
        assert guest.run(f"cat {where}").stdout.split() == ["16", "16"]
    finally:
        guest.run(f"cp /tmp/tune.conf {conf}; for at in {where}; do echo 0 > $at; done")
