"""The workers of a layout: made, given their routes, run on pinned threads, stopped.

Owns the compiled workers and their threads. Each worker owns its UMEM while it runs; from here it
is only told which consumers get which rule, and when to stop.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from appliance.attachment import Attachment
from appliance.dataplane import Frames, Share, Spool, Worker
from appliance.engine.build import Group, Layout
from appliance.engine.sharing import Sharing
from appliance.errors import PortError
from appliance.steering import Rule

# Consumers that nobody waits for: their worker naps instead of looking again at once. A ring of
# 2,048 holds 4 ms of 500,000 packets/s, of which a nap is a tenth; half of it costs 40 ns a packet.
STORING = {"record", "count", "drop"}
NAP_US = 300
STOP_S = 5.0  # a round takes microseconds; a thread that is not back by then has lost its core


class Crew:
    """One worker, and so one thread, for each group of the layout."""

    def __init__(
        self,
        layout: Layout,
        ports: Mapping[str, Attachment],
        spool: Callable[[str], Spool] | None = None,
        sharing: Sharing | None = None,
    ) -> None:
        """`spool` makes one more spool of the recording consumer of that name."""
        self.layout = layout
        self.sharing = sharing
        self.workers: list[Worker] = []
        self.cpus: list[int] = []
        self._threads: list[threading.Thread] = []
        self._failed: dict[int, str] = {}
        for number, group in enumerate(layout.groups):
            queues = [ports[lane.port].queues[lane.place] for lane in group.lanes]
            shares = self._shares(number, group, queues[0].frames)
            consumers: list[tuple[str, Any]] = [
                (one.kind, spool(one.name) if one.kind == "record" and spool
                 else shares.get(one.name, one.target))
                for one in group.instances
            ]
            numbers = [layout.port_number(lane.port) for lane in group.lanes]
            worker = Worker(queues, consumers, numbers)
            kinds = {one.kind for one in group.instances}
            if "record" in kinds and kinds <= STORING:
                worker.nap(NAP_US)
            self.workers.append(worker)

    def _shares(self, number: int, group: Group, frames: Frames) -> dict[str, Share]:
        """What this worker lends to other processes, by consumer."""
        names = [instance.name for instance in group.instances if instance.kind == "share"]
        if self.sharing is None or not names:
            return {}
        cache = self.sharing.cache(number)
        return {name: self.sharing.make(name, frames, cache) for name in names}

    def routes(self, group: Group, port: str, rules: Iterable[tuple[int, Rule]]) -> dict[int, Any]:
        """By lane of the group: the routes of these rules of the port.

        Lanes of other ports are not in it. ConfigError for a consumer that cannot be reached.
        """
        listed = list(rules)
        return {
            index: {
                number: self.layout.route(group, lane, rule.consumers)
                for number, rule in listed
                if rule.consumers
            }
            for index, lane in enumerate(group.lanes)
            if lane.port == port
        }

    def publish(self, port: str, rules: Iterable[tuple[int, Rule]]) -> None:
        """From now on the packets of these rules of the port go to their consumers."""
        listed = list(rules)
        found = [self.routes(group, port, listed) for group in self.layout.groups]
        for worker, lanes in zip(self.workers, found, strict=True):
            for lane, routes in lanes.items():
                worker.set_routes(lane, routes)

    def start(self, cpus: list[int]) -> None:
        """Starts every worker on its core."""
        self.cpus = cpus
        for number, (worker, cpu) in enumerate(zip(self.workers, cpus, strict=True)):
            thread = threading.Thread(
                target=self._run,
                args=(number, worker, cpu),
                name=f"worker {number}",
                daemon=True,
            )
            self._threads.append(thread)
            thread.start()

    def _run(self, number: int, worker: Worker, cpu: int) -> None:
        try:
            worker.run(cpu=cpu)
        except BaseException as error:
            self._failed[number] = f"worker {number}: {error}"

    def troubles(self) -> list[str]:
        """Workers that do not run although they should."""
        return list(self._failed.values())

    def stop(self) -> None:
        """Ends every worker after its round, and waits for its thread."""
        for worker in self.workers:
            worker.stop()
        for number, thread in enumerate(self._threads):
            thread.join(STOP_S)
            if thread.is_alive():
                # Its frames must not be touched by anybody else: better stop here than guess.
                raise PortError(f"worker {number} does not stop")
        self._threads.clear()
