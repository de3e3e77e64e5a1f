# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True
"""Rings in shared memory: made, joined, left and deleted here; see shm_ring.pxd for the protocol.

    ring = ShmRing.new("spsc", size=1024, element_bytes=16)     # a memfd; ring.fd travels
    same = ShmRing.join(fd)                                     # another process, or this one
    ring.enqueue(data); same.dequeue(64); same.leave(); ring.delete()

Joining believes nothing: magic, version, mode, geometry and length must agree with each other and
with the file, and the indices with the size. What is checked once is copied and never read again.
"""
cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from posix.unistd cimport close, dup
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cython_ext.arena cimport fault
from cython_ext.atomics cimport load_acquire_u64

import os

cdef extern from "<sys/mman.h>" nogil:
    void* mmap(void* addr, size_t length, int prot, int flags, int fd, long offset)
    int munmap(void* addr, size_t length)
    int PROT_READ, PROT_WRITE, MAP_SHARED
    void* MAP_FAILED

cdef enum:
    VERSION = 1
    SIZE_MIN = 2
    SIZE_MAX = 1 << 24        # of 64-byte elements: 1 GiB

cdef uint64_t MAGIC = 0x31676e69724c434f      # "OCLring1" in memory

MODES = {"spsc": SPSC, "mpmc": MPMC}


def footprint(uint32_t size, uint32_t element_bytes):
    """Bytes that a ring of this geometry takes, before pages."""
    return HEADER_BYTES + <uint64_t>size * element_bytes


def _geometry(uint64_t size, uint64_t element_bytes):
    """"" if a ring can have this geometry, else what is wrong."""
    if size < SIZE_MIN or size > SIZE_MAX or size & (size - 1):
        return f"size: {size}: a power of two, {SIZE_MIN} to {SIZE_MAX}"
    if element_bytes not in (8, 16, 32, 64):
        return f"element_bytes: {element_bytes}: 8, 16, 32 or 64"
    return ""


# The cycle collector must not clear it: a ring whose arena was gone looked like one that had
# joined, and whatever had been mapped at its address meanwhile was unmapped with it.
@cython.no_gc_clear
cdef class ShmRing:
    """Made by `new` or `join`. Batches are bytes-like, a multiple of element_bytes long."""

    def __cinit__(self):
        self.fd = -1

    @staticmethod
    def new(str mode, uint32_t size, uint32_t element_bytes=8, *, str hugepages="off",
            uint32_t start_index=0):
        """A ring of our own. start_index is where the indices begin: they wrap at 2**32."""
        cdef ShmRing r = ShmRing.__new__(ShmRing)
        if mode not in MODES:
            raise ValueError(f"mode: {mode!r}: spsc or mpmc")
        wrong = _geometry(size, element_bytes)
        if wrong:
            raise ValueError(wrong)
        r.arena = Arena(footprint(size, element_bytes), "openclaw-ring", hugepages)
        r.fd = r.arena.fd
        r.header = <oc_ring_header*>r.arena.base
        r.bytes = r.arena.bytes
        r.header.version = VERSION
        r.header.mode = MODES[mode]
        r.header.size = size
        r.header.element_bytes = element_bytes
        r.header.bytes = r.bytes
        r.header.producer = start_index
        if r.header.mode == MPMC:
            r.header.producer |= <uint64_t>start_index << 32
        r.header.consumer = r.header.producer
        r.header.producer_saw = r.header.consumer_saw = start_index
        r.header.magic = MAGIC
        r._adopt()
        return r

    @staticmethod
    def join(int fd):
        """The ring behind a descriptor, which stays the caller's. ValueError says what is wrong."""
        cdef ShmRing r = ShmRing.__new__(ShmRing)
        cdef uint64_t length = os.fstat(fd).st_size
        cdef void* where = MAP_FAILED
        if length < HEADER_BYTES:
            raise ValueError(f"not a ring: {length} bytes")
        if not fault():
            where = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
        if where == MAP_FAILED:
            raise MemoryError(f"{length} bytes for a ring")
        r.header = <oc_ring_header*>where
        r.joined = True
        r.bytes = length
        r.fd = dup(fd)
        if r.fd < 0:
            raise OSError("dup")
        if r.header.magic != MAGIC:
            raise ValueError(f"not a ring: magic {r.header.magic:#x}")
        if r.header.version != VERSION:
            raise ValueError(f"a ring of version {r.header.version}; this is {VERSION}")
        r._adopt()
        return r

    def _adopt(self):
        """Reads the geometry once, checks it, and keeps a copy; afterwards the indices."""
        cdef oc_ring_header h = self.header[0]
        cdef uint32_t used
        wrong = _geometry(h.size, h.element_bytes)
        if h.mode not in (SPSC, MPMC):
            wrong = f"mode: {h.mode}"
        elif not wrong and (h.bytes != self.bytes
                            or footprint(h.size, h.element_bytes) > self.bytes):
            wrong = f"bytes: {h.bytes} in a file of {self.bytes}"
        used = <uint32_t>(h.producer >> 32 if h.mode == MPMC else h.producer) - (
            <uint32_t>(h.consumer >> 32 if h.mode == MPMC else h.consumer))
        if not wrong and used > h.size:
            wrong = f"{used} elements in a ring of {h.size}"
        if wrong:
            raise ValueError(f"a damaged ring: {wrong}")
        self.mode, self.size, self.element_bytes = h.mode, h.size, h.element_bytes
        shift = (<int>h.element_bytes).bit_length() - 1
        entries = <uint8_t*>self.header + HEADER_BYTES
        self.producer.shared_mine = self.consumer.shared_theirs = <uint32_t*>&self.header.producer
        self.producer.shared_theirs = self.consumer.shared_mine = <uint32_t*>&self.header.consumer
        self.producer.mine = self.consumer.theirs = <uint32_t>h.producer
        self.producer.theirs = self.consumer.mine = <uint32_t>h.consumer
        self.producer.entries = self.consumer.entries = self.both.entries = entries
        self.producer.size = self.consumer.size = self.both.size = h.size
        self.producer.shift = self.consumer.shift = self.both.shift = shift
        self.both.producer = &self.header.producer
        self.both.consumer = &self.header.consumer

    cdef int alive(self) except -1:
        if self.header == NULL:
            raise ValueError("the ring was left or deleted")
        return 0

    def enqueue(self, elements, bint whole=False):
        """Puts in as many elements as fit (whole: all or none); returns how many."""
        cdef Py_buffer view
        cdef uint32_t n, done
        self.alive()
        PyObject_GetBuffer(elements, &view, PyBUF_SIMPLE)
        try:
            if view.len % self.element_bytes or view.len // self.element_bytes > SIZE_MAX:
                raise ValueError(f"{view.len} bytes are not elements of {self.element_bytes}")
            n = view.len // self.element_bytes
            if n == 0:
                return 0
            if self.mode == MPMC:
                with nogil:
                    done = mpmc_enqueue(&self.both, view.buf, n, n if whole else 1)
            else:
                done = spsc_enqueue(&self.producer, view.buf, n, n if whole else 1)
            return done
        finally:
            PyBuffer_Release(&view)

    def dequeue(self, uint32_t most):
        """Takes out up to `most` elements, as bytes."""
        cdef uint32_t got
        self.alive()
        if most > self.size:
            most = self.size
        cdef bytes out = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>most * self.element_bytes)
        cdef char* where = PyBytes_AS_STRING(out)
        if most == 0:
            return out
        if self.mode == MPMC:
            with nogil:
                got = mpmc_dequeue(&self.both, where, most, 1)
        else:
            got = spsc_dequeue(&self.consumer, where, most, 1)
        return out if got == most else out[:got * self.element_bytes]

    def count(self):
        """Elements inside, as of now."""
        self.alive()
        cdef uint64_t producer = load_acquire_u64(&self.header.producer)
        cdef uint64_t consumer = load_acquire_u64(&self.header.consumer)
        if self.mode == MPMC:
            producer >>= 32
            consumer >>= 32
        cdef uint32_t used = <uint32_t>producer - <uint32_t>consumer
        return used if used <= self.size else 0

    @property
    def info(self):
        """{"mode", "size", "element_bytes", "bytes"}."""
        self.alive()
        return {"mode": "mpmc" if self.mode == MPMC else "spsc", "size": self.size,
                "element_bytes": self.element_bytes, "bytes": self.bytes}

    def leave(self):
        """Unmaps; the ring lives on for the others."""
        self._unmap()
        self.header = NULL
        self.arena = None
        self.fd = -1
        self.joined = False

    def delete(self):
        """Leaves, and takes the magic away: nobody can join any more."""
        self.alive()
        self.header.magic = 0
        self.leave()

    cdef void _unmap(self) noexcept:
        """What join took; a ring of our own is its arena's to give back."""
        if self.joined and self.header != NULL:
            munmap(self.header, self.bytes)
        if self.joined and self.fd >= 0:
            close(self.fd)

    def __dealloc__(self):
        self._unmap()
