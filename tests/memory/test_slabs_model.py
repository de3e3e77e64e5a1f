"""Slabs against a plain Python model: any order of taking, giving, draining, trimming, misuse and
refused memory keeps contents intact, objects apart, and every object accounted for.

Two caches and the Python objects share one tier of three arenas, so that the cap is reached.
Hypothesis prints the steps of a failure and keeps its seed; OPENCLAW_FULL=1 asks for the long form.
"""

from __future__ import annotations

import ctypes
import os

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from appliance.dataplane import arena
from appliance.errors import MemoryExhausted, StaleFrame
from appliance.memory import MidTier, SlabReader

FULL = bool(os.environ.get("OPENCLAW_FULL"))
CAP_MIB = 6
SIZES = st.sampled_from((1, 64, 65, 1500, 2048, 9000, 32768, 65536))


def class_bytes(nbytes: int) -> int:
    return max(64, 1 << (nbytes - 1).bit_length())


class SlabModel(RuleBasedStateMachine):
    """The model: address -> (class, mark) of what C callers hold, and the live Python objects."""

    @initialize()
    def open(self):
        self.tier = MidTier(CAP_MIB, "off")
        self.reader = SlabReader(self.tier.slabs.read_only_fds())
        self.caches = [self.tier.cache(f"model {n}") for n in range(2)]
        self.raw: dict[int, tuple[int, int]] = {}
        self.objects = []  # (slab, mark)
        self.views = []  # (memoryview, mark), of released slabs
        self.handles = []  # stale ones
        self.given: list[int] = []  # addresses that were given back
        self.wrong = 0
        self.mark = 0

    def next_mark(self) -> bytes:
        self.mark += 1
        return self.mark.to_bytes(8, "little")

    @rule(nbytes=SIZES, count=st.integers(0, 140), which=st.integers(0, 1))
    def take_addresses(self, nbytes, count, which):
        got = self.caches[which].alloc_bulk(nbytes, count)
        if got is None:
            return
        size = class_bytes(nbytes)
        assert len(set(got)) == len(got) == count
        for address in got:
            assert address not in self.raw and address % 64 == 0
            mark = self.next_mark()
            ctypes.memmove(address, mark, 8)
            ctypes.memmove(address + size - 8, mark, 8)
            self.raw[address] = (size, int.from_bytes(mark, "little"))

    @precondition(lambda self: self.raw)
    @rule(data=st.data(), which=st.integers(0, 1), count=st.integers(1, 140))
    def give_addresses(self, data, which, count):
        live = list(self.raw)
        start = data.draw(st.integers(0, len(live) - 1))
        step = data.draw(st.sampled_from((1, -1, 3)))
        chosen = live[start::step][:count]
        for address in chosen:
            size, mark = self.raw.pop(address)
            assert ctypes.string_at(address, 8) == mark.to_bytes(8, "little")
            assert ctypes.string_at(address + size - 8, 8) == mark.to_bytes(8, "little")
        assert self.caches[which].free_bulk(chosen) == 0
        self.given = chosen[-20:]

    @precondition(lambda self: self.given)
    @rule(data=st.data(), which=st.integers(0, 1))
    def give_once_more(self, data, which):
        again = data.draw(st.sampled_from(self.given))
        good = next(iter(self.raw), None)
        live = {slab.address for slab, _ in self.objects}
        if again in self.raw or again in live:
            return  # somebody else has it by now; only a generation can tell
        if any(again == address for address, _ in self.view_addresses()):
            return
        batch = [again] if good is None else [again, good, again]
        self.wrong += len(batch) - (good is not None)
        assert self.caches[which].free_bulk(batch) == len(batch) - (good is not None)
        if good is not None:
            del self.raw[good]

    def view_addresses(self):
        return [(address, view) for address, view, _ in self.views]

    @rule(which=st.integers(0, 1), offset=st.sampled_from((1, 8, 63)), data=st.data())
    def give_what_is_not_ours(self, which, offset, data):
        bad = [1, self.tier.slabs.address - 64, 1 << 62]
        if self.raw:
            bad.append(data.draw(st.sampled_from(list(self.raw))) + offset)
        self.wrong += len(bad)
        assert self.caches[which].free_bulk(bad) == len(bad)

    @rule(nbytes=SIZES, count=st.integers(1, 20))
    def allocate_objects(self, nbytes, count):
        try:
            made = self.tier.alloc_bulk(nbytes, count)
        except MemoryExhausted as error:
            assert "\n" not in str(error) and f"{CAP_MIB} MiB" in str(error)
            return
        for slab in made:
            mark = self.next_mark()[: min(8, nbytes)]
            assert len(slab) == nbytes and slab.address not in self.raw
            memoryview(slab)[: len(mark)] = mark
            self.objects.append((slab, mark))

    @precondition(lambda self: self.objects)
    @rule(data=st.data(), keep_view=st.booleans())
    def release_object(self, data, keep_view):
        slab, mark = self.objects.pop(data.draw(st.integers(0, len(self.objects) - 1)))
        handle, address = slab.handle, slab.address
        assert self.reader.read(handle, len(mark)) == mark
        view = memoryview(slab)
        assert bytes(view[: len(mark)]) == mark
        slab.release()
        with pytest.raises(StaleFrame):
            memoryview(slab)
        if keep_view:
            self.views.append((address, view, mark))
        else:
            view.release()
            self.handles.append(handle)

    @precondition(lambda self: self.views)
    @rule()
    def end_a_view(self):
        _, view, mark = self.views.pop()
        assert bytes(view[: len(mark)]) == mark
        view.release()

    @precondition(lambda self: self.handles)
    @rule()
    def a_stale_handle_reads_nothing(self):
        for handle in self.handles:
            with pytest.raises(StaleFrame):
                self.reader.read(handle, 8)
        self.handles.clear()

    @rule(which=st.integers(0, 1))
    def drain(self, which):
        self.caches[which].drain()

    @rule(everything=st.booleans())
    def trim(self, everything):
        self.tier.slabs.trim(everything)

    @rule(site=st.integers(0, 6), nbytes=SIZES)
    def the_host_refuses_once(self, site, nbytes):
        arena.fail_allocation(site)
        try:
            got = self.caches[0].alloc_bulk(nbytes, 70)
        finally:
            arena.fail_allocation(-1)
        if got is not None:
            assert self.caches[0].free_bulk(got) == 0

    @invariant()
    def every_object_is_somewhere(self):
        page = self.tier.explain()
        assert sum(page["violations"].values()) == self.wrong
        assert len(page["arenas"]) * 2 == page["mapped_mib"] <= CAP_MIB
        live: dict[int, int] = {}
        for size, _ in self.raw.values():
            live[size] = live.get(size, 0) + 1
        held = [len(slab) for slab, _ in self.objects] + [len(view) for _, view, _ in self.views]
        for nbytes in held:
            live[class_bytes(nbytes)] = live.get(class_bytes(nbytes), 0) + 1
        for one in page["classes"]:
            assert one["used"] == live.pop(one["bytes"], 0), one
            assert one["total"] == one["used"] + one["cached"] + one["depot"]
        assert not live

    def teardown(self):
        if not hasattr(self, "tier"):
            return
        for _, view, _ in self.views:
            view.release()
        for slab, _ in self.objects:
            slab.release()
        assert self.caches[0].free_bulk(list(self.raw)) == 0
        self.caches.clear()
        self.reader.close()
        page = self.tier.explain()
        assert page["used_bytes"] == 0
        assert sum(page["violations"].values()) == self.wrong


SlabModel.TestCase.settings = settings(
    max_examples=1000 if FULL else 40,
    stateful_step_count=1000 if FULL else 40,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
test_any_order_of_taking_and_giving_keeps_contents_and_accounts_intact = SlabModel.TestCase
