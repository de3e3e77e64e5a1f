"""Who may attach to a consumer of kind share: what the kernel says of a peer against the lists.

Owns the decision. Root and the appliance's own user always may; names are resolved when they are
asked for, so that a user who was added since the start is known.
"""

from __future__ import annotations

import array
import contextlib
import grp
import os
import pwd
import socket
import struct
from dataclasses import dataclass

from appliance.config import Config, ConsumerConfig
from appliance.errors import ConfigError, PortError

SO_PEERGROUPS = 59  # Linux 4.13; Python does not name it
GROUPS_MAX = 1024  # looked at; the kernel's limit is 65,536


@dataclass(frozen=True)
class Peer:
    """Who was at the other end when it connected."""

    pid: int
    uid: int
    groups: frozenset[int]


def peer(connection: socket.socket) -> Peer:
    size = struct.calcsize("3i")
    pid, uid, gid = struct.unpack(
        "3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    )
    groups = array.array("I")
    with contextlib.suppress(OSError):  # more groups than we look at: the first one decides
        groups.frombytes(connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 4 * GROUPS_MAX))
    return Peer(pid, uid, frozenset((gid, *groups)))


def check(consumer: ConsumerConfig, who: Peer) -> None:
    """PortError, in one line, for whoever may not."""
    if who.uid in (0, os.geteuid()):
        return
    if who.uid in (_user(one) for one in consumer.allow_users):
        return
    if who.groups & {_group(one) for one in consumer.allow_groups}:
        return
    raise PortError(
        f'"{consumer.name}": user {_name(who.uid)} may not attach: allow_users or allow_groups of '
        f"this consumer in the appliance's configuration"
    )


def known(config: Config) -> None:
    """At the start: ConfigError for a name that this host does not know."""
    for index, consumer in enumerate(config.consumers):
        for key, names, of in (("allow_users", consumer.allow_users, _user),
                               ("allow_groups", consumer.allow_groups, _group)):
            for name in names:
                if of(name) is None:
                    raise ConfigError(f"consumer[{index}].{key}: {name!r}: one that this host has")


def _user(one: str | int) -> int | None:
    try:
        return one if isinstance(one, int) else pwd.getpwnam(one).pw_uid
    except KeyError:
        return None


def _group(one: str | int) -> int | None:
    try:
        return one if isinstance(one, int) else grp.getgrnam(one).gr_gid
    except KeyError:
        return None


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
