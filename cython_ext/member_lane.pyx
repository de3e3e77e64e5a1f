# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True
"""A member's mappings of what the engine lends, and its place in one worker's rings.

Owns the mapped files and the two indices that are ours: what we have taken, what we have given
back. Reading is all that is done to what others write, and every place is checked against the
mapping. Batches and frames are attached.pyx's.
"""
cimport cython
from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t

import os

from cython_ext.atomics cimport (load_acquire_u64, load_relaxed_u64, store_relaxed_u64,
                                 store_release_u32, unlikely)
from cython_ext.frames cimport LEASED, oc_entry, word_generation, word_state
from cython_ext.sharing cimport (IN_FRAME, SHARE_HEADER, SHARE_MAGIC, SHARE_VERSION,
                                 fence_acquire, oc_down, oc_lent, oc_up)

cdef extern from "<sys/mman.h>" nogil:
    void* mmap(void* addr, size_t length, int prot, int flags, int fd, long offset)
    int munmap(void* addr, size_t length)
    int PROT_READ, PROT_WRITE, MAP_SHARED, MAP_NORESERVE
    void* MAP_FAILED


@cython.no_gc_clear
cdef class Mapping:
    """A whole file, mapped; read-only unless it is ours to write."""
    def __cinit__(self, int fd, bint writable=False):
        cdef void* where
        self.bytes = os.fstat(fd).st_size
        # Reserving would count hugepages that the engine has reserved already.
        where = mmap(NULL, self.bytes, PROT_READ | (PROT_WRITE if writable else 0),
                     MAP_SHARED | MAP_NORESERVE, fd, 0)
        if where == MAP_FAILED:
            raise OSError(errno, f"mapping {self.bytes} bytes: {os.strerror(errno)}")
        self.base = <uint8_t*>where

    def __dealloc__(self):
        if self.base != NULL:
            munmap(self.base, self.bytes)


@cython.no_gc_clear
cdef class Lane:
    """One worker's memory and rings, as this member sees them."""
    def __cinit__(self, int umem, int ledger, int down, int up):
        self.umem, self.ledger = Mapping(umem), Mapping(ledger)
        self.down_map, self.up_map = Mapping(down), Mapping(up, True)
        self.down = <oc_down*>self.down_map.base
        self.up = <oc_up*>self.up_map.base
        self.entries = <oc_lent*>(self.down_map.base + SHARE_HEADER)
        self.returns = <uint64_t*>(self.up_map.base + SHARE_HEADER)
        size = self.down.size
        if (self.down.magic != SHARE_MAGIC or self.down.version != SHARE_VERSION
                or size & (size - 1) or size == 0
                or SHARE_HEADER + <uint64_t>size * sizeof(oc_lent) > self.down_map.bytes
                or SHARE_HEADER + <uint64_t>size * 8 > self.up_map.bytes):
            raise ValueError(f"not a share of version {SHARE_VERSION}")
        self.mask = size - 1
        self.reliable, self.window = self.down.reliable, self.down.window

    cdef uint64_t ready(self) noexcept nogil:
        """Entries that are there; a lossy member that is too far behind goes on at the newest."""
        cdef uint64_t produced = load_acquire_u64(&self.down.produced)
        cdef uint64_t n = produced - self.mine
        if unlikely(not self.reliable and n > self.window):
            store_relaxed_u64(&self.up.overruns, self.up.overruns + n - self.window)
            self.mine = produced - self.window
            return self.window
        return n if n <= self.mask + 1 else 0

    cdef bint alive(self, const oc_lent* e) noexcept nogil:
        """Is what a lossy member was shown still what it was? True for slabs: their reader says."""
        cdef oc_entry* entry = <oc_entry*>self.ledger.base + e.frame
        cdef uint64_t word
        if e.kind != IN_FRAME:
            return True
        fence_acquire()
        word = load_relaxed_u64(&entry.word)
        return word_generation(word) == e.generation and word_state(word) == LEASED

    cdef bint inside(self, const oc_lent* e) noexcept nogil:
        return e.kind != IN_FRAME or (
            e.place < self.umem.bytes and e.length <= self.umem.bytes - e.place
            and <uint64_t>e.frame * sizeof(oc_entry) < self.ledger.bytes)

    cdef uint32_t take(self, oc_lent* to, uint64_t n) noexcept nogil:
        """Copies n entries that are ready; fewer if some have been overrun meanwhile."""
        cdef uint64_t i
        cdef uint32_t k = 0
        cdef oc_lent* e
        for i in range(n):
            e = &self.entries[(self.mine + i) & self.mask]
            if load_acquire_u64(&e.seq) == self.mine + i + 1:
                to[k] = e[0]
                fence_acquire()
                if (load_relaxed_u64(&e.seq) == self.mine + i + 1 and self.inside(&to[k])
                        and (self.reliable or self.alive(&to[k]))):
                    k += 1
        self.mine += n
        if k < n:
            store_relaxed_u64(&self.up.overruns, self.up.overruns + n - k)
        return k

    cdef void give_back(self, const oc_lent* e) noexcept nogil:
        """Written, and seen by the engine with the next `returned`."""
        store_relaxed_u64(&self.returns[self.returned & self.mask],
                          (<uint64_t>e.serial << 32) | e.slot)
        self.returned += 1

    cdef void say_returned(self) noexcept nogil:
        store_release_u32(&self.up.returned, self.returned)
