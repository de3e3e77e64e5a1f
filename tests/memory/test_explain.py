"""`mem explain`: one page, the same as JSON, and true to what is held."""

from __future__ import annotations

import io
import json

from click.testing import CliRunner
from rich.console import Console

import appliance
from appliance.cli.main import main
from appliance.cli.mem import command
from appliance.memory import EventLog
from tests.dataplane.wire import packet
from tests.engine.test_control import Running


def test_the_page_of_a_running_appliance_names_arenas_consumers_and_states(tmp_path):
    with Running(tmp_path) as made:
        reply = CliRunner().invoke(command, ["explain", "--socket", made.socket, "--json"])
        assert reply.exit_code == 0
        page = json.loads(reply.stdout)
        [arena] = page["arenas"]
        assert arena["queues"] == ["l0/0"] and arena["backing"] in ("2M", "thp", "4k")
        assert arena["bytes"] == 1024 * 4096 and "numa_node" in arena
        assert page["frames"]["total"] == 1024 == sum(page["frames"].values()) - 1024
        [consumer] = page["consumers"]
        assert (consumer["name"], consumer["held"], consumer["quota_frames"]) == ("c", 0, 1024)
        assert page["state"] in ("ok", "degraded") and (page["state"] == "ok") == (
            not page["reasons"])
        reply = CliRunner().invoke(command, ["explain", "--socket", made.socket])
        assert reply.exit_code == 0
        for word in ("l0/0", "who holds", "c", arena["backing"]):
            assert word in reply.stdout


def test_without_an_appliance_it_is_one_line_and_status_three(tmp_path, capfd):
    assert main(["mem", "explain", "--socket", str(tmp_path / "none")]) == 3
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1 and "no appliance is running" in err


def test_the_page_of_a_port_names_what_its_program_holds():
    with appliance.open_port("loop", backend="loop", frames=1024, quota_frames=1) as port:
        port.send([packet(n, 700) for n in range(3)])
        batch = next(port.recv(timeout_ms=0))
        held = [frame.hold() for frame in batch]
        page = port.explain()
        assert [arena["queues"] for arena in page["arenas"]] == [["loop/0"]]
        assert page["frames"]["leased"] == 3 and page["frames"]["total"] == 1024
        [program] = page["consumers"]
        assert (program["held"], program["copies"], program["quota_frames"]) == (1, 2, 1)
        [slabs] = page["mid"]["classes"]
        assert (slabs["bytes"], slabs["used"], slabs["asked_bytes"]) == (1024, 2, 1400)
        from appliance.cli.memory_page import render
        shown = io.StringIO()
        Console(file=shown, width=100).print(render(page))
        for words in ("mid tier: arenas", "mid tier: magazines", "mid tier: growth", "MainThread",
                      "grown", "1024"):
            assert words in shown.getvalue(), words
        for frame in held:
            frame.release()


def test_events_of_one_kind_within_a_second_are_one_and_push_nothing_else_out():
    log = EventLog(most=4)
    log.note("a", "shed", 1, 10)
    for age in range(1000):
        log.note("b", "dropped", 2, age)
    listed = log.listed()
    assert [(e["culprit"], e["amount"], e["age_ms"]) for e in listed] == [
        ("a", 1, 10), ("b", 2000, 999)]
    for n in range(10):
        log.note(f"c{n}", "dropped", 1)
    assert [e["culprit"] for e in log.listed()] == ["c6", "c7", "c8", "c9"]
    assert log.total == 12 and len(log.listed(2)) == 2
