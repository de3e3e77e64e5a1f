"""Who may attach, and what the configuration of a share refuses: no host needed."""

from __future__ import annotations

import os
import socket

import pytest

from appliance.config import parse
from appliance.engine import permission
from appliance.engine.share_socket import _let_others_through
from appliance.errors import ConfigError, PortError
from appliance.handshake import share_path
from tests.engine.support import consumer_table

LOOP = ('[[port]]\nname = "in0"\nbackend = "loop"\n'
        '[[rule]]\nport = "in0"\nmatch = ""\naction = "consume"\nconsumers = ["x"]\n')


def config(kind: str = "share", **more):
    return parse(LOOP + consumer_table("x", kind, **more))


def peer(uid: int, *groups: int) -> permission.Peer:
    return permission.Peer(1, uid, frozenset(groups))


def test_users_and_groups_are_names_or_numbers_and_nobody_else_may():
    one = config(allow_users=["nobody", 4001], allow_groups=["nogroup", 4002]).consumer("x")
    for who in (peer(0), peer(os.geteuid()), peer(65534), peer(4001), peer(9, 65534),
                peer(9, 4002)):
        permission.check(one, who)
    for who in (peer(9), peer(9, 4001), peer(4002), peer(9, 0)):
        with pytest.raises(PortError, match="may not attach"):
            permission.check(one, who)


def test_without_lists_only_root_and_the_appliances_own_user_may():
    one = config().consumer("x")
    permission.check(one, peer(0))
    with pytest.raises(PortError, match="user daemon may not attach"):
        permission.check(one, peer(1))


@pytest.mark.parametrize(("more", "words"), [
    ({"allow_users": ["no-such-user-here"]}, r"allow_users: 'no-such-user-here': one that this"),
    ({"allow_groups": ["no-such-group"]}, r"allow_groups: 'no-such-group': one that this"),
])
def test_names_that_the_host_does_not_know_are_named(more, words):
    with pytest.raises(ConfigError, match=words):
        permission.known(config(**more))


@pytest.mark.parametrize(("kind", "more", "words"), [
    ("count", {"allow_users": ["root"]}, "allow_users.*only with kind share"),
    ("count", {"members": "flow"}, "members.*only with kind share"),
    ("count", {"mid_mib": 3}, "mid_mib.*only with kind share"),
    ("share", {"members": "some"}, "one of all, flow, robin"),
    ("share", {"max_members": 17}, r"max_members.*1\.\.16"),
    ("share", {"allow_users": [True]}, "allow_users"),
    ("share", {"policy": "reliable", "quota_frames": 3}, r"at least max_members \(4\)"),
])
def test_what_a_share_cannot_be_is_refused_with_its_field(kind, more, words):
    with pytest.raises(ConfigError, match=words):
        config(kind, **more)


def test_the_kernel_says_who_is_at_the_other_end():
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with here, there:
        who = permission.peer(here)
    assert (who.pid, who.uid) == (os.getpid(), os.getuid())
    assert who.groups == {os.getgid(), *os.getgroups()}


def test_each_appliance_has_a_share_socket_of_its_own():
    assert share_path("/run/openclaw/control.sock") == "/run/openclaw/share.sock"
    assert share_path("/run/openclaw/two.sock") == "/run/openclaw/two.sock.share"


def test_a_directory_outside_run_keeps_its_mode(tmp_path):
    tmp_path.chmod(0o700)
    _let_others_through(tmp_path)
    assert tmp_path.stat().st_mode & 0o777 == 0o700
