"""The history of single objects: complete while it is on, gone without a trace when it is off."""

from __future__ import annotations

import threading

import pytest
from click.testing import CliRunner

import appliance
from appliance.cli.mem import command
from appliance.errors import ConfigError
from appliance.memory import MidTier, history
from tests.dataplane.wire import packet
from tests.engine.test_control import Running


def whats(page):
    return [one["what"] for one in page["operations"]]


def test_a_frames_way_through_a_port_is_told_step_by_step():
    with appliance.open_port("loop", backend="loop", frames=1024) as port:
        with pytest.raises(ConfigError, match="no history"):
            port.history(0)
        port.keep_history(True)
        port.send([packet(0, 100)])
        with next(port.recv(timeout_ms=0)) as batch:
            number = batch[0].number
            held = batch[0].hold()
        held.release()
        page = port.history(number)
        assert whats(page) == ["received", "held", "let go", "let go"]
        assert page["on"] and page["operations"][0]["who"] == "queue 0, consumer 1"
        times = [one["time"] for one in page["operations"]]
        assert times == sorted(times)
        # Received again and again: only the last sixteen are kept, and how many were before.
        for n in range(2000):
            port.send([packet(n, 100)])
            next(port.recv(timeout_ms=0)).release()
        busy = max((port.history(number) for number in range(768)), key=lambda p: p["earlier"])
        # (frames 768 and up are for sending)
        assert len(busy["operations"]) == 16 and busy["earlier"] > 0
        assert {"posted", "received", "let go"} <= set(whats(busy))
        port.keep_history(False)
        before = port.history(number)
        port.send([packet(0, 100)])
        next(port.recv(timeout_ms=0)).release()
        assert port.history(number)["operations"] == before["operations"]
        with pytest.raises(ConfigError, match="frame: 1024"):
            port.history(1024)
        with pytest.raises(ConfigError, match="queue: 1"):
            port.history(0, queue=1)
        assert port.ledger()["leaked"] == 0


@pytest.mark.parametrize("nbytes", [64, 1500, 65536])
def test_a_slab_remembers_who_took_it_who_gave_it_back_and_who_tried_to_again(nbytes):
    tier = MidTier(16)
    tier.keep_history(True)
    one, two = tier.cache("one"), tier.cache("two")
    for _ in range(3):
        [address] = one.alloc_bulk(nbytes, 1)
        assert two.free_bulk([address]) == 0
    assert one.free_bulk([address]) == 1, "given back twice"
    page = tier.history(address)
    assert [(op["what"], op["who"]) for op in page["operations"]] == [
        ("taken", "one"), ("given", "two")] * 3 + [("refused", "one")]
    many = one.alloc_bulk(nbytes, 100)
    assert all(whats(tier.history(address))[-1] == "taken" for address in many)
    assert one.free_bulk(many) == 0
    assert all(whats(tier.history(address))[-1] == "given" for address in many)
    assert tier.explain()["used_bytes"] == 0


def test_an_allocation_of_python_is_found_by_its_handle_also_when_it_is_gone():
    tier = MidTier(16)
    tier.keep_history(True)
    slab = tier.alloc(1000)
    handle, address = slab.handle, slab.address
    assert whats(tier.history(slab)) == ["taken"]
    slab.release()
    assert tier.history(handle)["operations"] == tier.history(address)["operations"]
    assert whats(tier.history(handle)) == ["taken", "given"]
    taken, given = tier.history(handle)["operations"]
    assert given["generation"] == taken["generation"] + 1, "its handle is stale from here on"
    assert tier.history(address)["operations"][0]["who"] == threading.current_thread().name
    for wrong in (-1, 1 << 64, (1 << 38) - 1):
        with pytest.raises(ConfigError, match="no address"):
            tier.history(wrong)
    tier.keep_history(False)
    with tier.alloc(1000):
        assert whats(tier.history(handle)) == ["taken", "given"]


def test_switching_it_while_threads_allocate_loses_and_doubles_nothing():
    tier = MidTier(64)
    until = threading.Event()
    wrong = []

    def churn(name):
        cache = tier.cache(name)
        while not until.is_set():
            held = [cache.alloc_bulk(size, n) for size in (64, 2048) for n in (1, 20, 70)]
            wrong.extend(n for part in held if (n := cache.free_bulk(part)))
        cache.drain()

    threads = [threading.Thread(target=churn, args=(f"t{n}",)) for n in range(3)]
    for thread in threads:
        thread.start()
    for n in range(60):
        tier.keep_history(n % 2 == 0)
        until.wait(0.01)
    until.set()
    for thread in threads:
        thread.join()
    page = tier.explain()
    assert wrong == [] and not any(page["violations"].values())
    assert page["used_bytes"] == 0 and page["cached_bytes"] == 0


def test_when_it_is_off_every_fast_door_is_open_again():
    tier = MidTier(16)
    cache = tier.cache("c")
    tier.keep_history(True)
    cache.free_bulk(cache.alloc_bulk(64, 32))
    assert tier.explain()["cached_bytes"] == 0, "straight to the depot"
    tier.keep_history(False)
    cache.free_bulk(cache.alloc_bulk(64, 32))
    assert tier.explain()["cached_bytes"] > 0


def test_a_table_that_is_full_forgets_who_has_been_still_for_the_longest():
    tier = MidTier(64)
    tier.keep_history(True)
    cache = tier.cache("c")
    first = cache.alloc_bulk(64, 1)
    held = [cache.alloc_bulk(64, 4096) for _ in range(10)]
    assert tier.slabs.history.displaced > 0
    assert whats(tier.history(held[-1][-1])) == ["taken"]
    for part in [first, *held]:
        assert cache.free_bulk(part) == 0


def test_the_running_appliance_is_asked_from_the_command_line(tmp_path):
    def ask(*words):
        reply = CliRunner().invoke(command, ["history", *words, "--socket", made.socket])
        return reply

    with Running(tmp_path) as made:
        engine = made.service.engine
        assert "history is on" in ask("on").stdout
        engine._ports["l0"].queues[0].inject(bytes(60))
        with engine.mid.alloc(64) as slab:
            shown = ask("show", f"{slab.address:#x}")
            assert shown.exit_code == 0 and "taken" in shown.stdout
        assert ask("show", "l0/0:5").exit_code == 0
        for wrong, words in (("l9/0:5", "one of l0/0"), ("frame", "QUEUE:NUMBER"),
                             ("l0/0:999999", "0 to 1023")):
            reply = ask("show", wrong)
            assert words in str(reply.exception), reply.output
        assert "history is off" in ask("off").stdout
        assert any(event["culprit"] == "mem history" for event in engine.explain()["events"])


def test_objects_are_named_by_queue_and_number_or_by_a_number_alone():
    assert history.parse("0x10", {}) == (None, 16)
    with pytest.raises(ConfigError, match="QUEUE:NUMBER"):
        history.parse("in0/0:abc", {})
