"""Namespaces, interface facts, settings and the journal."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from appliance.errors import HostError
from appliance.net import Settings, in_netns, interface, link_statistics, recover
from appliance.net.journal import Change, Journal

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("needs_namespaces")]


def test_a_function_sees_the_links_and_the_sysfs_of_its_namespace(lab):
    assert sorted(in_netns(lab.a.netns, os.listdir, "/sys/class/net")) == ["lo", "veth-a"]
    assert sorted(in_netns(lab.b.netns, os.listdir, "/sys/class/net")) == ["lo", "veth-b"]


def test_the_caller_stays_where_it_was(lab):
    before = os.readlink("/proc/thread-self/ns/net"), sorted(os.listdir("/sys/class/net"))
    in_netns(lab.a.netns, os.listdir, "/sys/class/net")
    after = os.readlink("/proc/thread-self/ns/net"), sorted(os.listdir("/sys/class/net"))
    assert before == after


def test_an_exception_inside_comes_out_with_its_type(lab):
    with pytest.raises(KeyError):
        in_netns(lab.a.netns, {}.__getitem__, "x")


def test_threads_in_different_namespaces_do_not_disturb_each_other(lab):
    seen = {lab.a: set(), lab.b: set()}

    def look(side):
        for _ in range(20):
            seen[side].add(tuple(sorted(in_netns(side.netns, os.listdir, "/sys/class/net"))))

    threads = [threading.Thread(target=look, args=(side,)) for side in (lab.a, lab.b)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {lab.a: {("lo", "veth-a")}, lab.b: {("lo", "veth-b")}}


def test_our_namespaces_are_those_of_ip_netns(lab):
    command = ["nsenter", f"--net=/run/netns/{lab.a.netns}", "ip", "-j", "link"]
    listed = subprocess.run(command, capture_output=True, check=True)
    links = {link["ifname"]: link for link in json.loads(listed.stdout)}
    found = interface(lab.a.interface, lab.a.netns)
    assert found.mac == links["veth-a"]["address"]
    assert found.mtu == links["veth-a"]["mtu"]
    assert found.ifindex == links["veth-a"]["ifindex"]


@pytest.mark.parametrize("name", ["none", "x" * 15, "x" * 200, "lo/x"])
def test_a_missing_interface_is_one_line_with_a_way_out(name):
    for ask in (interface, link_statistics):
        with pytest.raises(HostError) as caught:
            ask(name)
        assert "fix: ip link show" in str(caught.value)


def test_a_missing_namespace_is_one_line_with_a_way_out():
    with pytest.raises(HostError, match="no network namespace none; fix: ip netns add none"):
        interface("lo", "none")


def device(lab, key):
    path = Path(f"/sys/class/net/{lab.b.interface}/{key}")
    return int(in_netns(lab.b.netns, path.read_text))


def test_settings_are_as_before_when_the_context_ends(lab):
    with Settings(lab.b.interface, lab.b.netns) as settings:
        settings.polling()
        assert settings.offload("gro", True)
        assert settings.offload("ntuple", True) is False
        assert device(lab, "napi_defer_hard_irqs") == 2
        assert device(lab, "gro_flush_timeout") == 50_000
        assert interface(lab.b.interface, lab.b.netns).offloads["gro"] is True
        assert settings.changed["gro"] == 0
    assert device(lab, "napi_defer_hard_irqs") == device(lab, "gro_flush_timeout") == 0
    assert interface(lab.b.interface, lab.b.netns).offloads["gro"] is False


CHANGE_AND_DIE = """
import os, pathlib, signal, sys
from appliance.net import Settings
from appliance.net.journal import Journal
settings = Settings(sys.argv[1], sys.argv[2], using=Journal(pathlib.Path(sys.argv[3])))
settings.polling()
settings.offload("gro", True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def change_and_die(lab, directory):
    """Changes settings and is killed; the journal is its own, as another run might recover too."""
    subprocess.run(
        [sys.executable, "-c", CHANGE_AND_DIE, lab.b.interface, lab.b.netns, directory]
    )
    return Journal(directory)


def test_settings_of_a_killed_process_are_restored_by_the_next_start(lab, tmp_path):
    journal = change_and_die(lab, tmp_path / "journal")
    assert device(lab, "napi_defer_hard_irqs") == 2
    done = recover(journal)
    assert any("gro_flush_timeout" in line for line in done)
    assert device(lab, "napi_defer_hard_irqs") == device(lab, "gro_flush_timeout") == 0
    assert interface(lab.b.interface, lab.b.netns).offloads["gro"] is False
    assert recover(journal) == []


def test_an_interface_made_anew_under_the_old_name_is_left_alone(lab, tmp_path):
    journal = change_and_die(lab, tmp_path / "journal")
    in_netns(lab.b.netns, lambda: subprocess.run(
        ["ip", "link", "set", "veth-b", "down", "name", "gone"], check=True))
    in_netns(lab.b.netns, lambda: subprocess.run(
        ["ip", "link", "add", "veth-b", "type", "veth", "peer", "other"], check=True))
    path = Path("/sys/class/net/veth-b/napi_defer_hard_irqs")
    in_netns(lab.b.netns, path.write_text, "7")
    recover(journal)
    assert device(lab, "napi_defer_hard_irqs") == 7


def test_the_journal_holds_an_entry_before_the_change_and_none_after(tmp_path):
    journal = Journal(tmp_path / "journal")
    change = Change("device", "x", "y", 3, "z", 4)
    journal.remember(change)
    [file] = (tmp_path / "journal").glob("*.json")
    assert json.loads(file.read_text())["entries"][0]["old"] == 4
    journal.forget(change)
    assert not list((tmp_path / "journal").glob("*.json"))


def test_the_journal_of_a_living_process_or_a_reused_id_is_told_apart(tmp_path):
    journal = Journal(tmp_path / "journal")
    journal.remember(Change("device", "x"))
    [file] = (tmp_path / "journal").glob("*.json")
    with journal.abandoned() as pending:
        assert pending == []
    pid, start = file.stem.split("-")
    file.rename(file.with_name(f"{pid}-{int(start) - 1}.json"))
    with journal.abandoned() as pending:
        assert len(pending) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", '{"entries": 3}', '{"entries": [{"x": 1}]}'])
def test_a_damaged_journal_file_is_passed_over(tmp_path, text):
    journal = Journal(tmp_path / "journal")
    (tmp_path / "journal").mkdir(mode=0o700)
    (tmp_path / "journal" / "99999-1.json").write_text(text)
    with journal.abandoned() as pending:
        assert pending == []


def test_a_journal_that_others_can_write_is_refused(tmp_path):
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal").chmod(0o777)
    with pytest.raises(HostError, match="can be written by others"):
        Journal(tmp_path / "journal").remember(Change("device", "x"))


def test_asking_about_an_interface_is_quick_enough_to_be_done_often(lab):
    began = time.monotonic()
    for _ in range(20):
        interface(lab.b.interface, lab.b.netns)
    assert time.monotonic() - began < 5
