"""MidTier: allocation in Python, and what it says when nothing is left.

Owns one tier of slabs (cython_ext/slab_tier.pyx) and the account of what was asked for. Releasing
belongs to the allocation objects; who may hold how much belongs to the governor.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from appliance.dataplane import Slab, SlabCache, Slabs, slab_object
from appliance.errors import ConfigError, HostError, MemoryExhausted
from appliance.limits import MID_CAP_MIB_MAX
from appliance.memory import explain, history

OBJECT_BYTES_MAX = 65536
_HUGEPAGES = ("auto", "require", "off")


def _hugepages_now() -> int:
    """How many the host has, used ones too."""
    try:
        return int(Path("/proc/sys/vm/nr_hugepages").read_text())
    except (OSError, ValueError):
        return 0


class MidTier:
    """`MidTier(cap_mib=256, hugepages="auto"|"require"|"off", numa=None, strict_numa=False)`.

    numa is None or "auto" (wherever the kernel likes), a node, or several nodes; preferred unless
    strict_numa. Memory is taken in arenas of 2 MiB when it is needed, and given back when arenas
    stand empty. Safe to use from several Python threads: each has a cache of its own.
    """

    def __init__(
        self,
        cap_mib: int = 256,
        hugepages: str = "auto",
        numa: int | str | Iterable[int] | None = None,
        *,
        strict_numa: bool = False,
    ) -> None:
        if not 2 <= cap_mib <= MID_CAP_MIB_MAX:
            raise ConfigError(f"mid_cap_mib: {cap_mib}: 2 to {MID_CAP_MIB_MAX}")
        if hugepages not in _HUGEPAGES:
            raise ConfigError(f"hugepages: {hugepages!r}: {', '.join(_HUGEPAGES)}")
        nodes = None if numa in (None, "auto") else numa
        try:
            self.slabs = Slabs(cap_mib, hugepages, nodes, strict_numa)
        except MemoryError as error:
            raise MemoryExhausted(f"mid tier of {cap_mib} MiB: {error}") from None
        self.cap_mib = cap_mib
        self.hugepages = hugepages
        self.nodes = nodes
        # Bytes asked for by live allocations of Python, per class: the rest of an object is waste.
        self._asked = [0] * 11
        if hugepages == "require":
            self._prove_hugepages()

    def _prove_hugepages(self) -> None:
        """One arena now, rather than a refusal at the first packet."""
        cache = self.cache("proof")
        one = cache.alloc_bulk(64, 1)
        if one is None:
            raise HostError(
                "hugepages = require: no hugepage of 2 MiB is free for the mid tier",
                fix=f"sysctl -w vm.nr_hugepages={_hugepages_now() + self.cap_mib // 2}",
            )
        cache.free_bulk(one)
        cache.drain()

    def alloc(self, nbytes: int) -> Slab:
        """One allocation of 1 to 65,536 bytes; its content is whatever was there."""
        return self.alloc_bulk(nbytes, 1)[0]

    def alloc_bulk(self, nbytes: int, count: int) -> list[Slab]:
        """`count` allocations, all or none."""
        if not 1 <= nbytes <= OBJECT_BYTES_MAX:
            raise ValueError(f"nbytes: {nbytes}: 1 to {OBJECT_BYTES_MAX}")
        if not 0 <= count <= self.cap_mib << 14:
            raise ValueError(f"count: {count}: 0 to {self.cap_mib << 14}")
        made = slab_object.alloc_bulk(self.slabs, nbytes, count, self._asked)
        if made is None:
            raise MemoryExhausted(*explain.refusal(self, nbytes, count))
        return made

    def release_bulk(self, slabs: Sequence[Slab]) -> None:
        """Releases all of them, and gives empty arenas back if there are too many."""
        slab_object.release_bulk(self.slabs, list(slabs))

    def cache(self, owner: str) -> SlabCache:
        """Magazines for one thread of the data plane; drained when the object is gone."""
        return SlabCache(self.slabs, owner)

    def trim(self) -> int:
        """Gives every empty arena back to the system; how many. What caches hold stays theirs."""
        return self.slabs.trim(True)

    def tidy(self) -> None:
        """Gives empty arenas back where a class has too many of them (the governor's beat)."""
        slab_object.tidy(self.slabs)

    def keep_history(self, on: bool) -> None:
        """Notes the last 16 operations of each slab from now on: who, when, which. Or no more."""
        self.slabs.keep_history(on)

    def history(self, slab: Slab | int) -> dict[str, Any]:
        """What was done with a slab; also one that is gone, by its address or handle."""
        return history.of_slab(self.slabs, slab.handle if isinstance(slab, Slab) else slab)

    def explain(self) -> dict[str, Any]:
        """Who has what: see explain.page."""
        return explain.page(self)

    def summary(self) -> dict[str, Any]:
        """The tier in a few figures, for the statistics: see explain.summary."""
        return explain.summary(self)

    def pressure(self) -> tuple[int, int, str, tuple[str, ...]]:
        """(bytes in use, bytes of the cap, state, reasons): what the governor looks at.

        Arenas count whole, and empty ones not at all. Whether the pages are the ones that were
        asked for is no pressure: that is in summary().
        """
        used, capacity = self.slabs.pressure()
        return used, capacity, "ok", ()

    @property
    def refusals(self) -> int:
        """How often a slab was asked for in vain, by C callers too."""
        return int(self.slabs.refusals)

    @property
    def asked(self) -> list[int]:
        return list(self._asked)
