"""Consumers of kind share: who their members are, what each may hold, and what became of it.

Owns the members: admission, the division among them, their figures and events. Frames are the
workers' (cython_ext/sharing.pyx); sockets and messages are share_socket.py's. A member gets an
equal part of `quota_frames`, so that one who stalls takes nothing from the others.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from appliance.config import Config, ConsumerConfig
from appliance.dataplane import Frames, Share, ShareMember, SlabCache, pcap
from appliance.engine.buckets import BUCKETS, NOBODY, dealt
from appliance.errors import ConfigError, MemoryExhausted, PortError
from appliance.limits import SHARE_COPIES_MAX, SHARE_MATCH_INSTRUCTIONS_MAX
from appliance.memory import EventLog, MidTier
from appliance.steering.filters import compile_foreign

JUMP = 0x05  # BPF_JMP | BPF_JA: its k is signed, and only protochain jumps back
FORMER_SHOWN = 8  # members that have ended; their sums stay in the consumer's own figures
LIVE_S = 5.0  # a worker that sleeps looks up after 0.1 s; one without a core, later
LIVE_STEP_S = 0.001
SUMS = ("offered", "frames", "bytes", "copied", "dropped", "bad_returns", "reclaimed", "overdues")
ENTRY = (*SUMS, "leased", "copies", "overruns")


@dataclass
class Membership:
    """One attached process: its side of every worker."""

    consumer: str
    policy: str
    pid: int
    uid: int
    match: str
    place: int
    lanes: list[ShareMember]
    ended: bool = False
    told: Counter[str] = field(default_factory=Counter)  # what events have said already

    @property
    def name(self) -> str:
        return f"{self.consumer} (pid {self.pid})"

    def figures(self) -> dict[str, Any]:
        """Its entry of "members"."""
        found = [lane.figures() for lane in self.lanes]
        total = {key: sum(one[key] for one in found) for key in ENTRY}
        return {
            "pid": self.pid, "uid": self.uid, "policy": self.policy, "match": self.match,
            **total,
            "oldest_lease_ms": max(one["oldest_lease_ms"] for one in found),
            "overdue": any(one["overdue"] for one in found),
        }


@dataclass
class _Consumer:
    """One share consumer over all workers."""

    config: ConsumerConfig
    shares: list[Share] = field(default_factory=list)
    members: dict[int, Membership] = field(default_factory=dict)  # by place
    former: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=FORMER_SHOWN))
    sums: Counter[str] = field(default_factory=Counter)  # of former members
    table: bytes = bytes([NOBODY]) * BUCKETS

    def deal(self) -> None:
        """Before a member is declared gone, so that no flow is without one for a round."""
        if self.config.members == "flow":
            live = [place for place, one in self.members.items() if not one.ended]
            self.table = dealt(self.table, live)
            for share in self.shares:
                share.aim(self.table)


class Sharing:
    """make() for every worker, then join() and part() as processes come and go; beat() now and
    then; close() once the workers have ended."""

    def __init__(self, config: Config, events: EventLog) -> None:
        self._events = events
        self._lock = threading.Lock()
        self._mid: MidTier | None = None
        self._seed = secrets.randbits(64)
        self._consumers = {
            one.name: _Consumer(one) for one in config.consumers if one.kind == "share"
        }
        self._numbers = {one.name: 1 + at % 255 for at, one in enumerate(config.consumers)}
        self._workers = 1

    def __bool__(self) -> bool:
        return bool(self._consumers)

    def prepare(self, mid: MidTier | None, workers: int) -> None:
        """Before the first make(): the tier that copies go to, and how many workers divide it."""
        self._mid, self._workers = mid, workers

    def cache(self, number: int) -> SlabCache | None:
        """Of the mid tier, for one worker's thread."""
        return self._mid.cache(f"worker {number} copies") if self and self._mid else None

    def make(self, name: str, frames: Frames, cache: SlabCache | None) -> Share:
        """The consumer's share of one worker."""
        consumer = self._consumers[name]
        config = consumer.config
        cap = (self._mid.cap_mib if self._mid is not None else 0) << 20
        copies = min(config.mid_mib << 20, cap) if config.mid_mib is not None else cap // 4
        share = Share(frames, self._numbers[name], config.effective_policy == "reliable",
                      config.members, config.quota_frames, cache, copies // self._workers,
                      config.max_hold_ms * 1_000_000, self._seed)
        # Whoever has a descriptor may open the file again through /proc, for writing too, where
        # the file's own mode allows it; a memfd is born 0777.
        for fd in (frames.arena.fd, frames.ledger_arena.fd):
            os.fchmod(fd, 0o600)
        consumer.shares.append(share)
        return share

    # ------------------------------------------------------------------------ who may, who does

    def config(self, name: object) -> ConsumerConfig:
        """The consumer of this name; one line for whoever asked for another."""
        if not isinstance(name, str) or name not in self._consumers:
            known = ", ".join(sorted(self._consumers))
            raise ConfigError(f"consumer: {str(name)[:40]!r}: one of {known}")
        return self._consumers[name].config

    def quota(self, name: str) -> int:
        """Frames that one member may hold, of each worker; of a lossy consumer its window."""
        config = self._consumers[name].config
        if config.effective_policy == "lossy":
            return config.quota_frames
        return max(1, config.quota_frames // config.max_members)

    def slab_fds(self) -> dict[str, int]:
        """Descriptors of the mid tier for a member, for reading only; the caller closes them."""
        if self._mid is None:
            return {}
        fds = self._mid.slabs.read_only_fds()
        for fd in fds.values():
            os.fchmod(fd, 0o600)
        return fds

    def join(self, name: str, pid: int, uid: int, match: str, wake_fd: int) -> Membership:
        """A new member; from the next round of each worker on it gets packets."""
        filters = _filters(match, len(self._consumers[name].shares))
        with self._lock:
            consumer = self._consumers[name]
            config = consumer.config
            free = [place for place in range(config.max_members) if place not in consumer.members]
            if not free:
                raise PortError(
                    f'"{name}" has {config.max_members} members already (max_members)'
                )
            quota = self.quota(name)
            copies = SHARE_COPIES_MAX if self._mid is not None else 0
            try:
                lanes = [
                    ShareMember(share, free[0], quota, copies, config.max_hold_ms * 1_000_000,
                                one, wake_fd)
                    for share, one in zip(consumer.shares, filters, strict=True)
                ]
            except MemoryError as error:
                raise MemoryExhausted(f"rings for a member of {name!r}: {error}") from None
            for lane in lanes:
                for fd in (lane.down.fd, lane.up.fd):
                    os.fchmod(fd, 0o600)
            one = Membership(name, config.effective_policy, pid, uid, match, free[0], lanes)
            consumer.members[one.place] = one
            for share, lane in zip(consumer.shares, lanes, strict=True):
                share.admit(lane)
            consumer.deal()
        self._await(one)
        self._events.note(one.name, "attached", 0)
        return one

    def _await(self, one: Membership) -> None:
        """Whoever is told that it has attached gets every packet from then on."""
        until = time.monotonic() + LIVE_S
        while not all(lane.live for lane in one.lanes) and time.monotonic() < until:
            time.sleep(LIVE_STEP_S)

    def leave(self, one: Membership) -> None:
        """It asked for nothing new. What it looks at stays its own until the connection ends."""
        with self._lock:
            if not one.ended:
                one.ended = True
                self._consumers[one.consumer].deal()
                for lane in one.lanes:
                    lane.leave()

    def part(self, one: Membership) -> None:
        """Its connection has ended: the workers bring home what it had."""
        with self._lock:
            if not one.ended:
                one.ended = True
                self._consumers[one.consumer].deal()
            for lane in one.lanes:
                lane.die()

    # ----------------------------------------------------------------------------- looking after

    def beat(self) -> None:
        """Says what happened since the last one, and clears away who is gone."""
        with self._lock:
            for consumer in self._consumers.values():
                for one in list(consumer.members.values()):
                    self._tell(one)
                    if all(lane.gone for lane in one.lanes):
                        self._forget(consumer, one)

    def _tell(self, one: Membership) -> None:
        found = one.figures()
        held = found["leased"] + found["copies"]
        for key, action in (
            ("overdues", "holds past the deadline: copies only"),
            ("copied", "copied out at the quota or deadline"),
            ("dropped", "dropped: no room for copies"),
            ("bad_returns", "gave back what it did not have"),
        ):
            fresh = found[key] - one.told[key]
            if fresh > 0:
                one.told[key] = found[key]
                if key == "copied" and one.policy == "lossy":
                    continue  # of packets of several frames, or sent on: nobody's fault
                amount = held if key == "overdues" else fresh
                self._events.note(one.name, action, amount, found["oldest_lease_ms"])

    def _forget(self, consumer: _Consumer, one: Membership) -> None:
        for share, lane in zip(consumer.shares, one.lanes, strict=True):
            share.forget(lane)
        found = one.figures()
        consumer.sums.update({key: found[key] for key in SUMS})
        consumer.former.append({key: found[key] for key in ("pid", "uid", "policy", *SUMS)})
        del consumer.members[one.place]
        self._events.note(one.name, "left; its frames are home", found["reclaimed"])

    def figures(self, name: str) -> dict[str, Any]:
        """What the consumer's entry of the statistics says beyond the workers' counts."""
        with self._lock:
            consumer = self._consumers[name]
            members = [one.figures() for one in consumer.members.values()]
            kept = [share.figures() for share in consumer.shares]
            sums = Counter(consumer.sums)
            for one in members:
                sums.update({key: one[key] for key in SUMS})
            return {
                "leased": sum(one["leased"] for one in members) + sum(k["kept"] for k in kept),
                "oldest_lease_ms": max((one["oldest_lease_ms"] for one in members), default=0),
                "dropped": sums["dropped"],
                "copied": sums["copied"],
                "copied_bytes": sum(k["copied_bytes"] for k in kept),
                "reclaimed": sums["reclaimed"],
                "bad_returns": sums["bad_returns"],
                "violations": sum(k["violations"] for k in kept),
                "members": members,
                "former": list(consumer.former),
            }

    def complete(self, entries: Iterable[dict[str, Any]]) -> None:
        """Puts the figures of shares into the entries of "consumers"."""
        for entry in entries:
            if entry["name"] in self._consumers:
                entry.update(self.figures(entry["name"]))

    def close(self) -> None:
        """Once the workers have ended: everything comes home, and the figures stay."""
        with self._lock:
            for consumer in self._consumers.values():
                for share in consumer.shares:
                    share.close()
                for one in list(consumer.members.values()):
                    self._forget(consumer, one)


def _filters(match: str, count: int) -> list[pcap.Filter | None]:
    """A member's own filter, once for each worker. It is a stranger's text: a child compiles."""
    if not match:
        return [None] * count
    code = compile_foreign(match)
    if len(code) > SHARE_MATCH_INSTRUCTIONS_MAX:
        raise ConfigError(
            f"match: {len(code)} instructions: at most {SHARE_MATCH_INSTRUCTIONS_MAX}, "
            f"since the worker runs them for every packet"
        )
    if any(kind == JUMP and k >> 31 for kind, _, _, k in code):
        raise ConfigError("match: protochain: a loop over headers is not run for every packet")
    return [pcap.Filter(code) for _ in range(count)]


__all__ = ["Membership", "Sharing"]
