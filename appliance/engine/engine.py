"""The running appliance: ports, workers and rules, from start to the proof at the end.

Owns the order of life. Start: everything is checked, memory is reserved and filled, sockets are
bound, workers run, and only then are the programs attached. Stop: programs are detached, what is
under way is drained, workers end, sockets close, every frame is accounted for, settings are
restored. A failure on the way up takes down what stood. All methods may be called from any thread.
A little longer than other rooms: the two orders belong side by side.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from appliance.attachment import Attachment, Umem
from appliance.config import Config, PortConfig
from appliance.dataplane import Frames
from appliance.dpdk import Device, DpdkAttachment, attachment_of
from appliance.engine import build, check, cpus, governor, opening, past, places, statistics
from appliance.engine.crew import Crew
from appliance.engine.guard import Guard
from appliance.engine.recording import Recorders
from appliance.engine.share_socket import ShareSocket
from appliance.engine.sharing import Sharing
from appliance.engine.swap import Rules
from appliance.engine.tiers import Tiers
from appliance.errors import PortError
from appliance.memory import EventLog, MidTier, Reporter, report
from appliance.net import InterfaceInfo, Link, interface, recover
from appliance.steering import Rule

EVENTS_SHOWN = 16  # in the statistics; `mem explain` has all
DRAIN_S = 0.2  # a full RX ring of 2,048 is consumed in a millisecond; the rest is for the far side
DRAIN_STEP_S = 0.005  # quiet for two steps is quiet: an interrupt's poll takes far less


class Engine:
    """`Engine(config)`; start(), then statistics() and rules as often as wanted, then stop()."""

    def __init__(self, config: Config) -> None:
        check.configuration(config)
        self.config = config
        self.state = "new"
        self.notes: list[str] = []
        self._lock = threading.RLock()
        self._ports: dict[str, Attachment] = {}
        self._links: dict[str, Link] = {}
        self._devices: dict[str, Device] = {}
        self._crew: Crew | None = None
        self._rules: Rules | None = None
        self.events = EventLog()
        self.tiers = Tiers()  # what the governor watches; who adds a tier calls tiers.watch
        self.mid: MidTier | None = None  # from start to stop, unless mid_cap_mib is 0
        self.sharing = Sharing(config, self.events)
        self._share_socket: ShareSocket | None = None
        self._guard: Guard | None = None
        self._reporter: Reporter | None = None
        self._recorders: Recorders | None = None
        self._leaked = 0
        self._started = time.monotonic()
        self._final: dict[str, Any] | None = None

    # ------------------------------------------------------------------------------------ start

    def start(self) -> None:
        """Up to the moment when packets arrive; or an exception, and nothing is left."""
        with self._lock:
            if self.state != "new":
                raise PortError(f"the appliance is {self.state}; it starts once")
            self.state = "starting"
            try:
                self._open()
                for attachment in self._ports.values():
                    attachment.start()
                self._govern()
                if self._share_socket is not None:
                    self._share_socket.serve()
            except BaseException:
                self._take_down()
                self.state = "failed"
                raise
            self._started = time.monotonic()
            self.state = "running"

    def _open(self) -> None:
        if self.sharing:
            self._share_socket = ShareSocket(self.config.control.socket, self.sharing)
        # What a crashed predecessor left changed is put back before we look at the interfaces.
        self.notes += recover()
        found = {
            port.name: interface(port.interface, port.netns or None)
            for port in self.config.ports
            if port.interface is not None
        }
        facts = {name: check.facts_of(info) for name, info in found.items()}
        opening.plug(self.config, self._devices)
        facts |= {name: device.facts() for name, device in self._devices.items()}
        check.hugepages(self.config, check.planned(self.config, facts))
        layout = build.layout(self.config, facts)
        self.mid = places.mid_tier(self.config, facts)
        if self.mid is not None:
            self.tiers.watch("mid", "mid tier", self.mid)
        umems = [Umem(group.frames, group.tx_frames) for group in layout.groups]
        for port in self.config.ports:
            queues = range(len(layout.queues[port.name]))
            groups = [layout.group_of(port.name, at)[0] for at in queues]
            mode = places.mode(self.config, layout.groups[groups[0]], port.name, found)
            spec = opening.spec(self.config, port, mode, self._devices.get(port.name))
            self._ports[port.name] = attachment_of(spec)(
                spec,
                [Rule.of(entry) for entry in self.config.rules_of(port.name)],
                no_socket=port.no_socket,
                umems=[umems[place] for place in groups],
            )
            self._watch(port, found.get(port.name))
        self.sharing.prepare(self.mid, len(layout.groups))
        self._recorders = Recorders(self.config, layout, self.mid, self.events, self.tiers)
        self._crew = Crew(layout, self._ports, self._recorders.spool, self.sharing)
        self._recorders.start()
        self._rules = Rules(self.config, self._ports, self._crew)
        self._rules.publish_all()
        nodes = [places.node(self._ports[group.lanes[0].port]) for group in layout.groups]
        self._crew.start(cpus.here(nodes))

    def _govern(self) -> None:
        """Rings and frames are watched from here on."""
        self._reporter = Reporter(places.report(self.config), self._page, self.events)
        self._reporter.start()
        self._guard = Guard(self._ports, self.events, self.tiers, self._reporter.ran_out)
        self._publish_priorities()
        self._guard.start()

    def _publish_priorities(self) -> None:
        if self._guard is not None:
            for port in self.config.ports:
                rules = [Rule.of(entry) for entry in self.config.rules_of(port.name)]
                self._guard.set_rules(port.name, rules)

    def _watch(self, port: PortConfig, info: InterfaceInfo | None) -> None:
        if info is not None:
            self._links[port.name] = Link(info.ifindex, port.netns or None)

    # ------------------------------------------------------------------------------------- stop

    def stop(self) -> dict[str, Any]:
        """Ends everything in order; the final figures, in which every account must add up."""
        with self._lock:
            if self._final is None:
                if self.state != "running":
                    raise PortError(f"the appliance is {self.state}")
                self.state = "stopping"
                if self._guard is not None:
                    self._guard.stop()
                for attachment in self._ports.values():
                    attachment.stop()
                self._drain()
                self._take_down()
                self.state = "stopped"
            assert self._final is not None
            return self._final

    def _drain(self) -> None:
        """Lets workers take what has arrived and the kernel send what was queued, for a while."""
        queues = [queue for attachment in self._ports.values() for queue in attachment.queues]
        until = time.monotonic() + DRAIN_S
        quiet = 0
        while quiet < 2 and time.monotonic() < until:
            time.sleep(DRAIN_STEP_S)
            busy = any(queue.waiting or queue.outstanding for queue in queues)
            quiet = 0 if busy else quiet + 1

    def _take_down(self) -> None:
        """From any state to nothing. The figures are read when all is still and not yet gone."""
        if self._guard is not None:
            self._guard.stop()
        if self._reporter is not None:
            self._reporter.stop()
        for attachment in self._ports.values():
            attachment.stop()
        if self._crew is not None:
            self._crew.stop()
        self.sharing.close()
        if self._recorders is not None:
            self._recorders.stop()  # nobody fills a spool any more
        for attachment in self._ports.values():
            for queue in attachment.queues:
                queue.close()
        for memory in self._memories():
            self._leaked += memory.settle(
                [
                    queue
                    for attachment in self._ports.values()
                    for queue in attachment.queues
                    if queue.frames is memory
                ]
            )
        if self.state == "stopping":
            self._final = self._collect()
        for attachment in self._ports.values():
            attachment.close()
        for device in self._devices.values():
            device.close()
        for link in self._links.values():
            link.close()
        if self._share_socket is not None:
            self._share_socket.close()  # last: what members have is still there to be read
        self.tiers.forget()
        self.mid = None  # what somebody still holds of it keeps it

    def __enter__(self) -> Engine:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.state == "running":
            self.stop()

    # ---------------------------------------------------------------------------- while running

    def statistics(self) -> dict[str, Any]:
        """The figures of this moment, or the final ones."""
        with self._lock:
            return self._final if self._final is not None else self._collect()

    def explain(self) -> dict[str, Any]:
        """Who holds what now, for how long, and what was done about it."""
        with self._lock:
            self._running()
            return self._page()

    def _page(self) -> dict[str, Any]:
        """Without the lock: the reporter's thread is waited for by stop(), which has it."""
        return report.page(
            statistics.memories(self._ports.values()),
            statistics.holders(self.config, self._crew),
            self.mid,
            self.events.listed(),
            self._guard.summary() if self._guard is not None else None,
        )

    def history(self, action: object, what: object = "") -> dict[str, Any]:
        """"on", "off", or "show" with an object: what was done with a frame or a slab."""
        with self._lock:
            self._running()
            memories = statistics.memories(self._ports.values())
            return past.ask(memories, self.mid, self.events, action, what)

    def rules(self) -> list[dict[str, Any]]:
        """The rules in force with their ids and what they matched, port by port, in order."""
        with self._lock:
            return self._running().listed()

    def swap(self, tables: object) -> list[dict[str, Any]]:
        """Replaces all rules by these [[rule]] tables, without losing a packet; the new list.

        They come from outside and are checked here, as if they had been read from a file.
        When anything is wrong with them the old rules stay in force, on every port.
        """
        with self._lock:
            self.config = self._running().swap(tables)
            self._publish_priorities()
            return self._running().listed()

    def keep(self, consumer: str | None, last_s: float, match: str) -> dict[str, Any]:
        """`openclaw log keep`. Not under the lock: the disk may take its time."""
        with self._lock:
            self._running()
            recorders = self._recorders
        assert recorders is not None
        return recorders.keep(consumer, last_s, match)

    def _running(self) -> Rules:
        if self.state != "running" or self._rules is None:
            raise PortError(f"the appliance is {self.state}")
        return self._rules

    def _memories(self) -> list[Frames]:
        found: dict[int, Frames] = {}
        for attachment in self._ports.values():
            for queue in attachment.queues:
                found.setdefault(id(queue.frames), queue.frames)
        return list(found.values())

    def _collect(self) -> dict[str, Any]:
        links = {name: link.state() for name, link in self._links.items()}
        links |= {
            name: port.link()
            for name, port in self._ports.items()
            if isinstance(port, DpdkAttachment)
        }
        entries, drops = statistics.ports(self._ports.values(), links)
        consumers, worker_drops = statistics.consumers(self.config, self._crew)
        drops.update(worker_drops)
        persistent = Recorders.figures(self._recorders, consumers, drops)
        memories = self._memories()
        governed = self._guard.summary() if self._guard is not None else governor.summary({})
        memory = {**statistics.memory(self.config, memories, self.mid), "governor": governed,
                  "persistent": persistent}
        reasons = [*memory["reasons"], *persistent["reasons"]]
        reasons += self._crew.troubles() if self._crew else []
        for entry in entries:
            reasons += entry["reasons"]
        state = governor.worst_of([governed["state"], "degraded" if reasons else "ok"])
        return {
            "ports": entries,
            "steering": statistics.steering(entries),
            "drops": {reason: count for reason, count in sorted(drops.items()) if count},
            "frames": statistics.frames(memories, self._leaked),
            "consumers": consumers,
            "latency_ns": statistics.latency(self._crew),
            "memory": memory,
            "workers": statistics.workers(self._crew),
            **statistics.host(),
            "uptime_s": round(time.monotonic() - self._started, 3),
            "running": self.state == "running",
            "events": self.events.listed(EVENTS_SHOWN),
            "events_total": self.events.total,
            "state": state,
            "reasons": list(dict.fromkeys([*reasons, *governed["reasons"]])),
        }
