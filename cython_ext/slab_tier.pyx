# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True
"""A tier of slabs as a Python object: its reservation, its files, its caches, its figures.

Owns the address space, the three memory files (hugepages, small pages, ledger) and their end: they
go when the last object that refers to the tier is gone, so a view never points at nothing. A Cache
belongs to one thread; each Python thread has one of its own, drained when the thread ends.
"""
cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free
from libc.string cimport memcpy
from posix.unistd cimport close
from cython_ext.atomics cimport (load_relaxed_u32, store_relaxed_u32, store_relaxed_u64,
                                 store_release_u64)
from cython_ext.arena cimport fault, memory_file, nodes_of, reserve_addresses
from cython_ext.frames cimport (pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock,
                                pthread_mutex_unlock)
from cython_ext.history cimport History
from cython_ext.slab cimport cache_close, cache_drain, cache_open, slabs_alloc, slabs_free
from cython_ext.slab_arenas cimport slabs_trim
from cython_ext.slab_types cimport (ARENA_SHIFT, BATCH_MAX, CLASSES, EVENTS, OPEN,
                                    SHIFT_MIN, VIOLATIONS, oc_arena, oc_cache, oc_class, oc_event,
                                    oc_header, class_of_bytes, ledger_open)

import os
import threading

from cython_ext.arena import shmem_thp_enabled

cdef extern from "<sys/mman.h>" nogil:
    void* mmap(void* addr, size_t length, int prot, int flags, int fd, long offset)
    int munmap(void* addr, size_t length)
    int PROT_READ, PROT_WRITE, MAP_SHARED, MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE
    void* MAP_FAILED

cdef extern from "<stdlib.h>" nogil:
    int posix_memalign(void** p, size_t alignment, size_t nbytes)

cdef enum:
    ARENA_BYTES = 2097152
    PAGE = 4096
    BATCH_BYTES = 131072      # one batch of a class: as many objects as fit in this, 2 to 64
    VERSION = 1

cdef uint64_t MAGIC = 0x3162616c734c434f      # "OCLslab1" in memory

BACKINGS = ("2M", "thp", "4k")
VIOLATION_NAMES = ("foreign", "not_live", "taken_twice", "written_free")


# Views reach their memory through this object: the cycle collector must never clear it first.
@cython.no_gc_clear
cdef class Slabs:
    """`Slabs(cap_mib, hugepages="auto"|"require"|"off", nodes=None, strict_numa=False)`.

    Nothing but addresses and tables is taken before the first allocation.
    """

    def __cinit__(self, uint64_t cap_mib=256, str hugepages="auto", nodes=None,
                  bint strict_numa=False):
        if not 2 <= cap_mib <= 1 << 20:
            raise ValueError(f"cap_mib: {cap_mib}: 2 to {1 << 20}")
        if hugepages not in ("auto", "require", "off"):
            raise ValueError(f"hugepages: {hugepages!r}: auto, require or off")
        self.t.fd_huge = self.t.fd_small = self.t.fd_ledger = -1
        nodes_of(&self.t.nodes, nodes, strict_numa)
        pthread_mutex_init(&self.t.lock, NULL)
        for i in range(CLASSES):
            pthread_mutex_init(&self.t.classes[i].lock, NULL)
        self.local = threading.local()
        self.t.hugepages = ("off", "auto", "require").index(hugepages)
        self.t.thp = hugepages == "auto" and shmem_thp_enabled()
        self.t.arenas_max = cap_mib // 2
        self.t.region_shift = max(ARENA_SHIFT, (cap_mib * 1048576 - 1).bit_length())
        self._reserve()
        self._tables()

    def _reserve(self):
        """Addresses and files; MemoryError names what the host refused."""
        cdef uint64_t region = <uint64_t>1 << self.t.region_shift
        cdef uint32_t i
        cdef uint64_t at = PAGE
        self.t.bytes = region * CLASSES
        if self.t.hugepages:
            # No hugetlb in the kernel is one more reason to be on small pages, not an error.
            self.t.fd_huge = memory_file(b"openclaw-slabs-2M", self.t.bytes, ARENA_BYTES)
            if self.t.fd_huge < 0 and self.t.hugepages == 2:
                raise MemoryError(f"hugepages for slabs: {os.strerror(-self.t.fd_huge)}")
        self.t.fd_small = memory_file(b"openclaw-slabs", self.t.bytes, PAGE)
        # Three bytes per object: region / 64 of them in the first class, then half, and so on.
        self.t.ledger_bytes = (PAGE + region // 32 * 3 + 2 * PAGE * CLASSES
                               + (self.t.bytes >> ARENA_SHIFT))
        self.t.fd_ledger = memory_file(b"openclaw-slabs-ledger", self.t.ledger_bytes, PAGE)
        for fd in (self.t.fd_small, self.t.fd_ledger):
            if fd < 0:
                raise MemoryError(f"files for slabs: {os.strerror(-fd)}")
        self.t.base = <uint8_t*>reserve_addresses(self.t.bytes)
        if self.t.base == NULL:
            raise MemoryError(f"{self.t.bytes} bytes of addresses for slabs")
        cdef void* ledger = MAP_FAILED
        if not fault():
            ledger = mmap(NULL, self.t.ledger_bytes, PROT_READ | PROT_WRITE, MAP_SHARED,
                          self.t.fd_ledger, 0)
        if ledger == MAP_FAILED:
            raise MemoryError("the ledger of slabs")
        self.t.header = <oc_header*>ledger
        for i in range(CLASSES):
            self.t.header.states_at[i] = at
            at += max(<uint64_t>PAGE, region >> (SHIFT_MIN + i))
            self.t.header.generations_at[i] = at
            at += max(<uint64_t>PAGE, (region >> (SHIFT_MIN + i)) * 2)
        self.t.header.backings_at = at
        self.t.backings = <uint8_t*>ledger + at
        self.t.header.magic = MAGIC
        self.t.header.version = VERSION
        self.t.header.region_shift = self.t.region_shift

    def _tables(self):
        """The arenas' entries and the depot's bitmaps: private, zero until they are used."""
        cdef uint64_t places = <uint64_t>1 << (self.t.region_shift - ARENA_SHIFT)
        cdef uint64_t words = (places + 63) // 64
        cdef uint64_t over = (words + 63) // 64
        cdef uint32_t i, batch
        cdef oc_class* c
        cdef void* got = MAP_FAILED
        self.t.tables_bytes = CLASSES * (places * sizeof(oc_arena) + (words + over) * 8)
        if not fault():
            got = mmap(NULL, self.t.tables_bytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        if got == MAP_FAILED:
            raise MemoryError("the tables of slabs")
        self.t.arenas = <oc_arena*>got
        self.t.bits = <uint64_t*>(self.t.arenas + CLASSES * places)
        for i in range(CLASSES):
            c = &self.t.classes[i]
            c.shift = SHIFT_MIN + i
            c.base = self.t.base + (<uint64_t>i << self.t.region_shift)
            ledger_open(&c.ledger, c.base, <uint8_t*>self.t.header + self.t.header.states_at[i],
                        <uint16_t*>(<uint8_t*>self.t.header + self.t.header.generations_at[i]),
                        <uint64_t>1 << (self.t.region_shift - c.shift), c.shift)
            c.exact = c.ledger
            c.arena_objects_shift = ARENA_SHIFT - c.shift
            batch = BATCH_BYTES >> c.shift
            c.batch = BATCH_MAX if batch > BATCH_MAX else batch
            c.cache_most = 2 * c.batch
            c.arenas = self.t.arenas + i * places
            c.available = self.t.bits + i * words
            c.summary = self.t.bits + CLASSES * words + i * over

    def __dealloc__(self):
        cdef uint32_t i, k
        cdef oc_class* c
        if self.t.arenas != NULL:
            for i in range(CLASSES):
                c = &self.t.classes[i]
                for k in range(c.top):
                    free(c.arenas[k].free)
            munmap(self.t.arenas, self.t.tables_bytes)
        if self.t.header != NULL:
            munmap(self.t.header, self.t.ledger_bytes)
        if self.t.base != NULL:
            munmap(self.t.base, self.t.bytes)
        for fd in (self.t.fd_huge, self.t.fd_small, self.t.fd_ledger):
            if fd >= 0:
                close(fd)
        for i in range(CLASSES):
            pthread_mutex_destroy(&self.t.classes[i].lock)
        pthread_mutex_destroy(&self.t.lock)

    cdef Cache thread_cache(self):
        """The cache of the calling Python thread."""
        try:
            return <Cache>self.local.cache
        except AttributeError:
            cache = Cache(self, threading.current_thread().name)
            self.local.cache = cache
            return cache

    def trim(self, bint all=False):
        """Gives empty arenas back to the system; returns how many."""
        cdef uint32_t given
        with nogil:
            given = slabs_trim(&self.t, all)
        return given

    def keep_history(self, bint on):
        """The last operations of each object, from now on; or not any more. See slab_types.pxd.

        What lies in magazines when it is switched on is first seen when it is given back.
        """
        cdef uint32_t i
        cdef oc_class* c
        if self.past is None:
            if not on:
                return
            self.past = History()
        if on and self.t.history == NULL:
            self.past.clear()
        # Each word is whole, and either way of each call is right, whatever another thread sees.
        store_release_u64(<uint64_t*>&self.t.history, <uint64_t>&self.past.h if on else 0)
        for i in range(CLASSES):
            c = &self.t.classes[i]
            store_relaxed_u32(&c.cache_most, 0 if on else 2 * c.batch)
            store_relaxed_u64(&c.ledger.objects_max, 0 if on else c.exact.objects_max)

    @property
    def history(self):
        """The History of the objects, by place; None if it was never switched on."""
        return self.past

    @property
    def history_is_on(self):
        return self.t.history != NULL

    def place_of(self, uint64_t name):
        """The number in the history of the object with this address or handle; -1: no object."""
        cdef uint64_t base = <uint64_t>self.t.base, offset = name - base
        cdef uint32_t cls
        if offset >= self.t.bytes:
            offset = (name & ((<uint64_t>1 << 38) - 1)) << SHIFT_MIN     # a handle: slab_object.pyx
        if offset >= self.t.bytes:
            return -1
        cls = offset >> self.t.region_shift
        return (offset >> (SHIFT_MIN + cls) << (SHIFT_MIN + cls)) >> SHIFT_MIN

    def read_only_fds(self):
        """{"2M", "4k", "ledger"}: descriptors for reading and mapping only; the caller closes."""
        return {name: os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
                for name, fd in (("2M", self.t.fd_huge), ("4k", self.t.fd_small),
                                 ("ledger", self.t.fd_ledger)) if fd >= 0}

    # -------------------------------------------------------------- figures, read live

    def pressure(self):
        """(bytes of arenas that hold something, bytes of the cap): cheap enough for every look."""
        cdef uint32_t i
        cdef uint64_t empty = 0, mapped
        with nogil:
            for i in range(CLASSES):
                empty += load_relaxed_u32(&self.t.classes[i].empty)
            mapped = load_relaxed_u32(&self.t.arenas_open)
        return ((mapped - min(empty, mapped)) * ARENA_BYTES,
                <uint64_t>self.t.arenas_max * ARENA_BYTES)

    def figures(self):
        """Counts of the whole tier and of each class that was ever used; see MidTier.explain."""
        cdef uint32_t i
        cdef oc_class* c
        cdef oc_cache* cache
        cached = [0] * CLASSES
        magazines = []
        pthread_mutex_lock(&self.t.lock)
        cache = self.t.caches
        while cache != NULL:
            counts = {}
            for i in range(CLASSES):
                n = cache.magazines[i].n + (1 if cache.magazines[i].hot != NULL else 0)
                if n:
                    cached[i] += n
                    counts[64 << i] = n
            magazines.append({"owner": cache.owner.decode("utf-8", "replace"), "objects": counts})
            cache = cache.next
        pthread_mutex_unlock(&self.t.lock)
        classes = []
        for i in range(CLASSES):
            c = &self.t.classes[i]
            pthread_mutex_lock(&c.lock)
            top, arenas, empty, depot = c.top, c.open, c.empty, c.depot
            pthread_mutex_unlock(&c.lock)
            if top:
                classes.append({"bytes": 64 << i, "arenas": arenas, "empty": empty,
                                "total": arenas << c.arena_objects_shift, "depot": depot,
                                "cached": cached[i]})
        return {"classes": classes, "magazines": magazines, "arenas": self.t.arenas_open,
                "arenas_max": self.t.arenas_max, "arenas_peak": self.t.arenas_peak,
                "fallbacks": self.t.fallbacks, "refusals": self.t.refusals,
                "unbound": bool(self.t.unbound),
                "error": os.strerror(self.t.error) if self.t.error > 0 else "",
                "violations": {VIOLATION_NAMES[i]: self.t.violations[i]
                               for i in range(VIOLATIONS)},
                "violation_address": self.t.violation_address}

    @property
    def refusals(self):
        """Allocations that failed, so far."""
        return self.t.refusals

    def arenas(self):
        """[(class bytes, number, backing, node, free objects)] of the arenas that are mapped."""
        cdef uint32_t i, k
        cdef oc_class* c
        out = []
        for i in range(CLASSES):
            c = &self.t.classes[i]
            pthread_mutex_lock(&c.lock)
            for k in range(c.top):
                if c.arenas[k].state == OPEN:
                    out.append((64 << i, k, BACKINGS[c.arenas[k].backing], c.arenas[k].node,
                                c.arenas[k].free_n))
            pthread_mutex_unlock(&c.lock)
        return out

    def events(self):
        """Growth and give-back, the last EVENTS of them: [(time_ns, grown, class bytes, number,
        backing, arenas of the tier afterwards)]."""
        cdef uint64_t i
        cdef oc_event* e
        out = []
        pthread_mutex_lock(&self.t.lock)
        for i in range(self.t.events_n - min(self.t.events_n, <uint64_t>EVENTS), self.t.events_n):
            e = &self.t.events[i % EVENTS]
            out.append((e.time_ns, bool(e.grown), 64 << e.cls, e.number, BACKINGS[e.backing],
                        e.arenas))
        pthread_mutex_unlock(&self.t.lock)
        return out

    @property
    def address(self):
        return <uintptr_t>self.t.base


@cython.no_gc_clear
cdef class Cache:
    """`Cache(slabs, owner)`: magazines that one thread owns; drained when it is gone."""

    def __cinit__(self, Slabs slabs not None, str owner=""):
        self.slabs = slabs
        self.owner = owner
        label = owner.encode()[:31]
        cdef const char* clabel = label
        if fault() or posix_memalign(<void**>&self.c, 64, sizeof(oc_cache)):
            self.c = NULL
            raise MemoryError("a cache of slabs")
        cache_open(self.c, &slabs.t)
        memcpy(self.c.owner, clabel, len(label))

    def drain(self):
        """What is cached goes to the depot."""
        with nogil:
            cache_drain(self.c)

    def alloc_bulk(self, uint32_t nbytes, uint32_t n):
        """Addresses of n objects, for tests and for C callers that are set up from Python."""
        cdef void* got[4096]
        cdef int error
        if not 1 <= nbytes <= 65536:
            raise ValueError(f"nbytes: {nbytes}: 1 to 65536")
        if n > 4096:
            raise ValueError(f"n: {n}: at most 4096")
        error = slabs_alloc(self.c, class_of_bytes(nbytes), got, n)
        if error < 0:
            return None
        return [<uintptr_t>got[i] for i in range(n)]

    def free_bulk(self, addresses):
        """Gives objects back; returns how many were not live objects of this tier."""
        cdef void* given[4096]
        cdef uint32_t n = len(addresses)
        if n > 4096:
            raise ValueError(f"n: {n}: at most 4096")
        for i in range(n):
            given[i] = <void*><uintptr_t>addresses[i]
        return slabs_free(self.c, given, n)

    def __dealloc__(self):
        if self.c != NULL:
            cache_close(self.c)
            free(self.c)
