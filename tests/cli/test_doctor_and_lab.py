"""`openclaw doctor` and `openclaw lab`, run as a user runs them."""

import json
import os
import subprocess
import sys

import pytest

from appliance import doctor
from appliance.doctor.check import report, run
from appliance.net import Settings, in_netns, interface, namespaces
from appliance.net.zerocopy import verdict
from appliance.steering.peer import attach_pass

OPENCLAW = [sys.executable, "-m", "appliance.cli.main"]


def openclaw(*words, **options):
    command = [*OPENCLAW, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def findings(interface=None, netns=None):
    return {one["name"]: one for one in doctor.examine(interface, netns)["checks"]}


def test_the_doctor_answers_in_the_form_of_the_manual():
    done = openclaw("doctor", "--json")
    answer = json.loads(done.stdout)
    assert set(answer) == {"checks", "ok"}
    for check in answer["checks"]:
        assert set(check) == {"name", "state", "found", "fix"}
        assert check["state"] in ("ok", "warn", "fail")
        assert check["found"] and "\n" not in check["found"] + check["fix"]
    assert done.returncode == (0 if answer["ok"] else 3)


def test_for_people_every_finding_is_a_line_that_begins_with_its_state():
    answer = json.loads(openclaw("doctor", "--json").stdout)
    lines = [line for line in openclaw("doctor").stdout.splitlines() if "fix:" not in line]
    assert len(lines) == len(answer["checks"]) + 1
    for check, line in zip(answer["checks"], lines, strict=False):
        assert line.split()[0] == check["state"] and check["name"] in line


def test_every_failed_finding_says_how_to_mend_it():
    for check in doctor.examine("none", None)["checks"]:
        assert check["state"] != "fail" or check["fix"]


def test_a_check_that_breaks_is_a_finding_and_not_a_broken_doctor():
    def broken():
        raise ZeroDivisionError("oh\nno")

    found = report(run(broken))
    assert found["ok"] is False
    assert found["checks"][0]["found"] == "ZeroDivisionError: oh no"


def test_an_interface_that_is_not_there_fails_with_one_finding():
    done = openclaw("doctor", "none-here", "--json")
    assert done.returncode == 3
    assert "no interface none-here" in json.loads(done.stdout)["checks"][-1]["found"]


def test_a_lab_passes_the_doctors_interface_checks(lab):
    found = findings(lab.b.interface, lab.b.netns)
    names = ("link", "native xdp", "xdp program", "queues", "rings", "offloads", "mtu")
    assert {name: found[name]["state"] for name in names} == dict.fromkeys(names, "ok")


def test_gro_is_pointed_out_with_the_command_that_ends_it(lab):
    with Settings(lab.b.interface, lab.b.netns) as settings:
        assert settings.offload("gro", True)
        found = findings(lab.b.interface, lab.b.netns)["offloads"]
        assert found["state"] == "warn"
        subprocess.run(["bash", "-c", found["fix"]], check=True, capture_output=True)
        assert findings(lab.b.interface, lab.b.netns)["offloads"]["state"] == "ok"


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_a_program_that_is_attached_already_is_named_with_its_number(lab, mode):
    index = interface(lab.b.interface, lab.b.netns).ifindex
    with in_netns(lab.b.netns, attach_pass, index, mode):
        info = interface(lab.b.interface, lab.b.netns)
        assert info.xdp_mode == mode and info.xdp_prog_id
        found = findings(lab.b.interface, lab.b.netns)["xdp program"]
        assert found["state"] == "fail"
        assert f"program {info.xdp_prog_id} is attached ({mode})" in found["found"]
    assert findings(lab.b.interface, lab.b.netns)["xdp program"]["state"] == "ok"


def test_an_interface_that_is_down_fails_and_the_fix_brings_it_up(lab):
    down = ["ip", "link", "set", "veth-b", "down"]
    in_netns(lab.b.netns, lambda: subprocess.run(down, check=True))
    found = findings(lab.b.interface, lab.b.netns)["link"]
    assert found["state"] == "fail"
    subprocess.run(["bash", "-c", found["fix"]], check=True)
    assert findings(lab.b.interface, lab.b.netns)["link"]["state"] == "ok"


@pytest.mark.root
def test_a_lab_is_made_listed_and_removed_by_command():
    name = f"t{os.getpid()}"
    try:
        made = json.loads(openclaw("lab", "up", name, "--queues", "3", "--json").stdout)
        assert made["a"]["netns"] in namespaces() and made["queues"] == 3
        listed = json.loads(openclaw("lab", "list", "--json").stdout)["labs"]
        assert made in listed
        assert name in openclaw("lab", "list").stdout
        assert openclaw("lab", "up", name).returncode == 3
    finally:
        done = openclaw("lab", "down", name)
    assert done.returncode == 0
    assert not [entry for entry in namespaces() if name in entry]


@pytest.mark.parametrize(
    ("driver", "kernel", "good"),
    [
        ("virtio_net", (7, 2), True), ("virtio_net", (6, 12), False), ("veth", (7, 2), False),
        ("ice", (7, 2), False), ("ena", (7, 2), False), ("i40e", (6, 1), True),
        ("mlx5_core", (6, 1), True), ("unheard_of", (7, 2), False), (None, (7, 2), False),
    ],
)
def test_zero_copy_is_used_unasked_only_where_it_is_known_good(driver, kernel, good):
    found = verdict(driver, kernel)
    assert found.good is good and found.reason
