# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True
"""The last sixteen operations of each frame or slab, while somebody wants to know; see history.pxd.

Owns the table and its lock. Who notes what is said where it happens; what the numbers mean to a
person is in appliance/memory/history.py.
"""
cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset, strncmp, strncpy
from posix.time cimport CLOCK_REALTIME, clock_gettime, timespec
from cython_ext.arena cimport fault
from cython_ext.mutex cimport (pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock,
                               pthread_mutex_unlock)

OPERATION_NAMES = ("", "posted", "received", "held", "let go", "queued", "completed", "home",
                   "taken", "given", "refused")


cdef inline uint64_t _set_of(uint64_t number) noexcept nogil:
    """Neighbours lie in different sets; a multiple of a power of two does not stay in a few."""
    return ((number * 0x9e3779b97f4a7c15ULL) >> 32) % SETS


cdef oc_past* _place(oc_history* h, uint64_t number) noexcept nogil:
    """The object's entry, an unused one, or that of the object that was still for the longest."""
    cdef oc_past* first = h.table + _set_of(number) * WAYS
    cdef oc_past* oldest = first
    cdef uint32_t i
    for i in range(WAYS):
        if first[i].key == number + 1:
            return &first[i]
        if first[i].last_ns < oldest.last_ns:
            oldest = &first[i]
    if oldest.key:
        h.displaced += 1
    memset(oldest, 0, sizeof(oc_past))
    oldest.key = number + 1
    return oldest


cdef void history_note(oc_history* h, uint64_t number, uint32_t generation, uint8_t what,
                       uint16_t who, uint8_t owner) noexcept nogil:
    cdef timespec now
    cdef oc_past* past
    cdef oc_operation* operation
    clock_gettime(CLOCK_REALTIME, &now)
    pthread_mutex_lock(&h.lock)
    past = _place(h, number)
    operation = &past.operations[past.n % OPERATIONS]
    past.n += 1
    past.last_ns = <uint64_t>now.tv_sec * 1000000000 + now.tv_nsec
    operation.time_ns = past.last_ns
    operation.generation = generation
    operation.what = what
    operation.who = who
    operation.owner = owner
    pthread_mutex_unlock(&h.lock)


cdef uint16_t history_name(oc_history* h, const char* name) noexcept nogil:
    cdef uint32_t i = 0
    pthread_mutex_lock(&h.lock)
    while i < h.names_n and strncmp(h.names[i], name, 31):
        i += 1
    if i == h.names_n:
        if i == NAMES_MAX:
            i = NAMES_MAX - 1
        else:
            strncpy(h.names[i], name, 31)
            h.names_n += 1
    pthread_mutex_unlock(&h.lock)
    return i


# A data path that saw it switched on may still be in it when it is switched off: it stays until
# the memory that it is about goes.
@cython.no_gc_clear
cdef class History:
    """`History()`: of(number) -> the last operations of an object, oldest first."""

    def __cinit__(self):
        pthread_mutex_init(&self.h.lock, NULL)
        if not fault():
            self.h.table = <oc_past*>calloc(SETS * WAYS, sizeof(oc_past))
        if self.h.table == NULL:
            raise MemoryError("a history of operations")

    def __dealloc__(self):
        free(self.h.table)
        pthread_mutex_destroy(&self.h.lock)

    def clear(self):
        """Forgets everything."""
        pthread_mutex_lock(&self.h.lock)
        memset(self.h.table, 0, SETS * WAYS * sizeof(oc_past))
        self.h.displaced = 0
        pthread_mutex_unlock(&self.h.lock)

    def of(self, uint64_t number):
        """[(time_ns, what, who, owner, generation)], and how many operations there were before."""
        cdef oc_past found
        cdef oc_past* past
        cdef oc_operation* one
        cdef uint32_t i, first
        memset(&found, 0, sizeof(oc_past))
        pthread_mutex_lock(&self.h.lock)
        past = self.h.table + _set_of(number) * WAYS
        for i in range(WAYS):
            if past[i].key == number + 1:
                found = past[i]
        pthread_mutex_unlock(&self.h.lock)
        first = found.n - OPERATIONS if found.n > OPERATIONS else 0
        out = []
        for i in range(first, found.n):
            one = &found.operations[i % OPERATIONS]
            out.append((one.time_ns, OPERATION_NAMES[one.what], one.who, one.owner,
                        one.generation))
        return out, first

    def name(self, uint16_t who):
        """The name behind a number of `who`."""
        if who < self.h.names_n:
            return self.h.names[who].decode("utf-8", "replace")
        return f"#{who}"

    @property
    def displaced(self):
        """Objects whose history made room for another one's."""
        return self.h.displaced
