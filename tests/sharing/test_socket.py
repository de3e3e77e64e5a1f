"""The share socket against who speaks nonsense, says nothing, or says too much (a loop port)."""

from __future__ import annotations

import json
import os
import random
import secrets
import shutil
import socket
import tempfile
from pathlib import Path

import pytest

import appliance
from appliance import attaching, handshake
from appliance.config import parse
from appliance.engine.engine import Engine
from appliance.limits import SHARE_CLIENTS_MAX, SHARE_MESSAGE_BYTES_MAX
from tests.engine.support import Appliance, consumer_table, control_table, wait_for
from tests.sharing.support import NOBODY, MemberProcess, members

LOOP = ('[[port]]\nname = "in0"\nbackend = "loop"\n'
        '[[rule]]\nport = "in0"\nmatch = ""\naction = "consume"\nconsumers = ["x"]\n')


@pytest.fixture
def running(tmp_path):
    """(engine, control socket) of an appliance with one share consumer."""
    text = LOOP + consumer_table("x", "share", max_members=2) + control_table(tmp_path)
    with Engine(parse(text)) as engine:
        yield engine, f"{tmp_path}/control.sock"


def connect(path: str) -> socket.socket:
    return attaching._connect(handshake.share_path(path), 20)


@pytest.mark.parametrize("data", [
    b"\0", b"{", b"[]", b"null", b'{"version": 2}', b'{"version": 1}', b"\xff" * 1000,
    b'{"version": 1, "consumer": 7}', b'{"version": 1, "consumer": "x", "match": []}',
    b'{"version": 1, "consumer": "' + b"y" * 60000 + b'"}', b"[" * 50000,
    b'{"version": 1, "consumer": "x", "match": "\\u0000"}',
], ids=lambda data: repr(data[:30]))
def test_nonsense_is_answered_in_one_line_and_ends_there(running, data):
    _, path = running
    with connect(path) as client:
        client.send(data)
        answer, fds = handshake.receive(client)
        assert answer["ok"] is False and fds == []
        assert "\n" not in answer["error"] and len(answer["error"]) < 300
        assert client.recv(100) == b""
    appliance.attach(path, "x").close()


def test_random_messages_do_nothing_but_end(running):
    engine, path = running
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    words = ["version", "consumer", "match", "x", 1, 2, None, True, {}, [], "leave", "\ud800", 1e9]
    for _ in range(100):
        with connect(path) as client:
            request = {str(chance.choice(words)): chance.choice(words) for _ in range(4)}
            request.pop("consumer", None)
            client.send(chance.choice([json.dumps(request).encode(), chance.randbytes(64)]))
            answer, _ = handshake.receive(client)
            assert answer["ok"] is False, seed
    assert engine.statistics()["consumers"][0]["members"] == []


def test_silent_connections_keep_nobody_out(running):
    _, path = running
    silent = [connect(path) for _ in range(SHARE_CLIENTS_MAX + 40)]
    try:
        appliance.attach(path, "x").close()
    finally:
        for one in silent:
            one.close()


def test_who_goes_before_the_answer_leaves_no_member(running):
    engine, path = running
    for _ in range(20):
        with connect(path) as client:
            client.send(b'{"version": 1, "consumer": "x"}')
    assert wait_for(lambda: engine.statistics()["consumers"][0]["members"] == [], 20)
    assert engine.statistics()["state"] != "failed"
    assert wait_for(lambda: attaches(path), 20)


def attaches(path: str) -> bool:
    try:
        appliance.attach(path, "x").close()
    except appliance.PortError:
        return False
    return True


def test_a_member_that_says_too_much_is_hung_up_on(running):
    engine, path = running
    port = appliance.attach(path, "x")
    for _ in range(100):
        try:
            port._connection.send(b"y" * 100)
        except OSError:
            break
    assert wait_for(lambda: engine.statistics()["consumers"][0]["members"] == [])
    assert not [batch for batch in port.recv(timeout_ms=1000) if len(batch)]
    port.close()


def test_a_message_that_is_too_long_is_refused(running):
    _, path = running
    with connect(path) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * SHARE_MESSAGE_BYTES_MAX)
        client.send(b'{"version": 1, "consumer": "x", "match": "' + b" " * SHARE_MESSAGE_BYTES_MAX
                    + b'"}')
        answer, _ = handshake.receive(client)
        assert answer["ok"] is False


@pytest.mark.root
def test_another_user_reaches_the_share_socket_of_openclaw_run_and_no_other():
    directory = Path(f"/run/openclaw-{os.getpid()}-{secrets.token_hex(3)}")
    text = (LOOP + consumer_table("x", "share", allow_users=[NOBODY])
            + f'[control]\nsocket = "{directory}/control.sock"\nmetrics = ""\n')
    try:
        with tempfile.TemporaryDirectory() as files, Appliance(text, Path(files)) as running:
            running.socket = f"{directory}/control.sock"
            running.ready()
            modes = {path.name: path.stat().st_mode & 0o777 for path in directory.iterdir()}
            assert directory.stat().st_mode & 0o777 == 0o711
            assert (modes["control.sock"], modes["share.sock"]) == (0o600, 0o666)
            one = MemberProcess(running.socket, "x", "collect", quiet=0.2)
            with members(one):
                one.attached()
                assert one.end()["numbers"] == 0
            status, final, said = running.end()
        assert status == 0, said
        assert final["consumers"][0]["former"][0]["uid"] == NOBODY
        assert not (directory / "share.sock").exists()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
