"""The playbook over SSH on the booted image: a second run changes nothing, a wrong variable nothing
at all, and SSH stays, also while a rule takes every packet of the interface that carries it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
VARIABLES = {
    "openclaw_ports": [{"name": "mgmt", "interface": "enp0s3", "mode": "copy"}],
    "openclaw_rules": [
        {"port": "mgmt", "match": "", "action": "consume", "consumers": ["all"]}],
    "openclaw_consumers": [{"name": "all", "kind": "count"}],
}


@pytest.fixture
def play(guest, tmp_path):
    """play(variables, *options): Ansible's result and the recap's figures."""
    place = Path(sys.executable).parent
    if not (place / "ansible-playbook").exists():
        pytest.skip("probe ansible-playbook: not beside this Python (tools/setup image)")
    options = " ".join(guest.ssh_options())
    inventory = {"appliance": {"hosts": {"guest": {
        "ansible_host": "127.0.0.1", "ansible_port": guest.port, "ansible_user": "root",
        "ansible_ssh_common_args": options}}}}
    (tmp_path / "inventory.json").write_text(json.dumps(inventory))

    def run(variables, *more):
        (tmp_path / "variables.json").write_text(json.dumps(variables))
        done = subprocess.run(
            [place / "ansible-playbook", "-i", tmp_path / "inventory.json",
             "-e", f"@{tmp_path}/variables.json", *more, ROOT / "ansible/site.yml"],
            capture_output=True, text=True, timeout=2400,
            env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible/ansible.cfg"),
                 "ANSIBLE_PIPELINING": "true", "ANSIBLE_TIMEOUT": "120"})
        recap = dict(re.findall(r"(\w+)=(\d+)", done.stdout.rpartition("PLAY RECAP")[2]))
        return done, {name: int(count) for name, count in recap.items()}

    yield run
    guest.run("systemctl stop openclaw; rm -f /etc/openclaw/openclaw.toml")
    shutil.rmtree(tmp_path, ignore_errors=True)


def test_a_wrong_variable_fails_before_anything_is_touched(guest, play):
    before = guest.run("find /data/etc -newer /etc/machine-id -type f | sort").stdout
    wrong = {**VARIABLES, "openclaw_memory": {"frame_bytes": 1024}}
    done, recap = play(wrong, "--check")
    assert done.returncode != 0 and "frame_bytes" in done.stdout, done.stdout[-3000:]
    assert recap["changed"] == 0
    # What no type can say is said by the command itself, also in --check.
    rules = [{**VARIABLES["openclaw_rules"][0], "match": "udp prot 53"}]
    done, recap = play({**VARIABLES, "openclaw_rules": rules}, "--check")
    assert done.returncode != 0 and "rule[0].match" in done.stdout, done.stdout[-3000:]
    assert recap["changed"] == 0
    assert guest.run("find /data/etc -newer /etc/machine-id -type f | sort").stdout == before


def test_the_second_run_changes_nothing_and_ssh_stays(guest, play, ask):
    done, recap = play(VARIABLES)
    assert done.returncode == 0 and recap["changed"] > 0, done.stdout[-3000:]
    done, recap = play(VARIABLES)
    assert done.returncode == 0, done.stdout[-3000:]
    assert recap["changed"] == 0, [
        line for line in done.stdout.splitlines() if "changed:" in line or "TASK" in line]
    stats = ask("stats")
    # All of this came in through the interface whose every packet a rule takes.
    assert stats["steering"]["management"] > 0, stats["steering"]
    assert guest.run("hostname").stdout.strip() == "openclaw"
