"""Updates and power cuts: a good version is kept, a broken one goes back by itself, and what a
machine is (host keys, machine id, configuration, recordings) outlives both.

Builds two versions more than the image itself: a sound one, and one whose kernel cannot make veth
pairs, so that its data path fails and nothing else.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import time
from pathlib import Path

import pytest
from devices import Share

pytestmark = pytest.mark.full
ROOT = Path(__file__).resolve().parent.parent.parent
OUT = ROOT / "build/vm/updates"
CYCLES = 5
CUTS = 10


def build(version: str, *extra: str) -> Path:
    at = OUT / f"update_{version}"
    if not at.exists():
        subprocess.run([ROOT / "images/image", "--version", version, "--out", OUT, "--slots-only",
                        *extra], check=True, timeout=3000)
    return at


@pytest.fixture(scope="session")
def updates(image, tmp_path_factory):
    """(good, broken), both newer than the image."""
    running = re.search(r"openclaw_(.+)\.(qcow2|raw)", image.resolve().name)[1]
    sabotage = tmp_path_factory.mktemp("broken")
    (sabotage / "etc/modprobe.d").mkdir(parents=True)
    (sabotage / "etc/modprobe.d/broken.conf").write_text("install veth /bin/false\n")
    return build(f"{running}.1"), build(f"{running}.2", "--extra", str(sabotage))


def who(machine) -> dict[str, str]:
    """What must not change over an update."""
    questions = {
        "host keys": "cat /etc/ssh/ssh_host_*_key.pub",
        "machine id": "cat /etc/machine-id",
        "configuration": "cat /etc/openclaw/openclaw.toml",
        "recordings": "cat /var/lib/openclaw/mark",
    }
    return {name: machine.run(question).stdout for name, question in questions.items()}


def version(machine) -> str:
    return re.search(r"IMAGE_VERSION=\"?([^\"\n]+)", machine.run("cat /etc/os-release").stdout)[1]


def settled(machine, wait_s: float = 900) -> str:
    """Waits until the health gate has spoken; its state."""
    until = time.monotonic() + wait_s
    while True:
        done = machine.run("systemctl is-active openclaw-health boot-complete.target", check=False)
        states = done.stdout.split()
        if "activating" not in states and states[:1] != ["inactive"]:
            return states[0]
        assert time.monotonic() < until, states
        time.sleep(10)


def install(machine, at: Path, tag: str) -> dict:
    machine.run(f"mkdir -p /run/{tag} && (mountpoint -q /run/{tag} || "
                f"mount -t 9p -o ro,trans=virtio {tag} /run/{tag})")
    return json.loads(machine.run(f"openclaw update /run/{tag} --json", 1800).stdout)


def reboot(machine) -> None:
    machine.run("systemctl --no-block reboot", check=False)
    machine.wait_for_reboot()


CONFIGURATION = b"""
[[port]]
name = "in0"
interface = "lo"
attach = "generic"
[[rule]]
port = "in0"
match = "udp port 9"
action = "consume"
consumers = ["seen"]
[[consumer]]
name = "seen"
kind = "count"
"""


def test_a_good_update_is_kept_and_a_broken_one_goes_back(new_machine, updates):
    good, broken = updates
    machine = new_machine(shares=[Share(good, "good"), Share(broken, "broken")])
    machine.boot()
    assert settled(machine) == "active"
    machine.run("systemctl stop openclaw; cat > /etc/openclaw/openclaw.toml; "
                "echo 17 > /var/lib/openclaw/mark", given=CONFIGURATION)
    before, first = who(machine), version(machine)

    done = install(machine, good, "good")
    assert done["from"] == first and good.name.endswith(done["to"])
    reboot(machine)
    assert version(machine) == done["to"]
    refused = machine.run("openclaw update /nonexistent", check=False)
    assert refused.returncode == 2
    assert settled(machine) == "active"
    assert json.loads(machine.run("cat /var/lib/openclaw/update.json").stdout)["result"] == "kept"
    assert who(machine) == before

    kept = version(machine)
    for cycle in range(CYCLES):
        wrong = install(machine, broken, "broken")
        machine.run("systemctl --no-block reboot", check=False)
        # Twice the broken version, then the kept one, whose gate is content.
        machine.wait_for(re.compile(r"going back|openclaw health: ok"), 2700)
        machine.wait_for_ssh()
        assert version(machine) == kept, cycle
        assert settled(machine) == "active"
        state = json.loads(machine.run("cat /var/lib/openclaw/update.json").stdout)
        assert state == {"from": kept, "to": wrong["to"], "result": "rolled back"}, cycle
        assert "was rolled back" in machine.run("cat /run/motd.d/openclaw").stdout
        assert who(machine) == before, cycle


def test_ten_power_cuts_and_it_always_boots(new_machine):
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    machine = new_machine()
    machine.boot()
    keys = machine.run("cat /etc/ssh/ssh_host_ed25519_key.pub /etc/machine-id; sync").stdout
    for cut in range(CUTS):
        machine.run("nohup sh -c 'i=0; while :; do i=$((i+1)); head -c 65536 /dev/urandom"
                    " > /var/lib/openclaw/f$((i % 50)); done' >/dev/null 2>&1 </dev/null &")
        time.sleep(chance.uniform(0.5, 20))
        machine.cut()
        machine.boot()
        now = machine.run("cat /etc/ssh/ssh_host_ed25519_key.pub /etc/machine-id").stdout
        assert now == keys, f"seed {seed}, cut {cut}"
        assert machine.run("findmnt -no OPTIONS /data").stdout.startswith("rw"), cut
