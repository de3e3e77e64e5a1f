# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True
"""Arenas of slabs: growth, give-back, and the depot of free objects in them.

Owns which arenas are mapped. Grows by one arena at a time up to the cap, mapping it without holding
a lock that frees of others need; gives empty ones back when a class has more of them than its trip
level, down to one. Always takes from the lowest arena, so that the high ones become empty. Every
step is remembered (EVENTS of them). It knows neither caches nor Python.
"""
from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset
from posix.time cimport CLOCK_REALTIME, clock_gettime, timespec
from cython_ext.arena cimport fault, map_pages, node_of, unmap_pages
from cython_ext.atomics cimport (OC_CHECKS_ON, store_relaxed_u32, unlikely)
from cython_ext.frames cimport pthread_mutex_lock, pthread_mutex_unlock
from cython_ext.slab_types cimport (ABSENT, ARENA_SHIFT, EVENTS, MOVING, OPEN, CLASSES, SHIFT_MIN,
                                    TAKEN_TWICE, atomic_add, oc_arena, oc_class, oc_event, oc_slabs,
                                    violation)

cdef extern from "<sys/mman.h>" nogil:
    int madvise(void* addr, size_t length, int advice)
    int MADV_POPULATE_WRITE

cdef extern from *:
    """
    static inline int oc_ctz(unsigned long long x) { return __builtin_ctzll(x); }
    """
    int ctz "oc_ctz"(unsigned long long x) noexcept nogil

cdef enum:
    ARENA_BYTES = 2097152
    PAGE = 4096
    EMPTY_KEPT = 1            # of a class: what give-back leaves, so that one more batch is quick
    EMPTY_TRIP = 4            # with fewer empty arenas than this nothing is given back
    APART = 8                 # batches; the nearest that prefetchers do not reach
    POISON = 0x6b             # of free objects in the debug build; the kernel's own choice


# -------------------------------------------------------------- the depot, under the class's lock

cdef inline void _available(oc_class* c, uint32_t arena, bint yes) noexcept nogil:
    cdef uint64_t* word = &c.available[arena >> 6]
    if yes:
        word[0] |= <uint64_t>1 << (arena & 63)
        c.summary[arena >> 12] |= <uint64_t>1 << ((arena >> 6) & 63)
    else:
        word[0] &= ~(<uint64_t>1 << (arena & 63))
        if word[0] == 0:
            c.summary[arena >> 12] &= ~(<uint64_t>1 << ((arena >> 6) & 63))


cdef inline int64_t _lowest(oc_class* c) noexcept nogil:
    """The lowest arena with an object in the depot: the high ones are to become empty. -1: none."""
    cdef uint32_t i, word
    for i in range((c.top >> 12) + 1):
        if c.summary[i]:
            word = (i << 6) + ctz(c.summary[i])
            return (<int64_t>word << 6) + ctz(c.available[word])
    return -1


cdef uint32_t depot_take(oc_class* c, void** out, uint32_t n) noexcept nogil:
    """Up to n objects; how many."""
    cdef uint32_t got = 0, take, i
    cdef int64_t number
    cdef oc_arena* a
    cdef uint8_t* base
    while got < n:
        number = _lowest(c)
        if number < 0:
            break
        a = &c.arenas[number]
        base = c.base + (<uint64_t>number << ARENA_SHIFT)
        if a.free_n >> c.arena_objects_shift:
            c.empty -= 1
        take = a.free_n if a.free_n < n - got else n - got
        c.depot -= take
        a.free_n -= take
        # In the order in which they came, so that a run stays a run.
        for i in range(take):
            out[got + i] = base + (<uint64_t>a.free[a.free_n + i] << c.shift)
        got += take
        if a.free_n == 0:
            _available(c, number, False)
    return got


cdef void depot_give(oc_slabs* t, oc_class* c, void* const* objects, uint32_t n) noexcept nogil:
    cdef uint32_t i, arena, full = <uint32_t>1 << c.arena_objects_shift
    cdef uint64_t number
    cdef oc_arena* a
    for i in range(n):
        number = (<uint64_t>objects[i] - <uint64_t>c.base) >> c.shift
        arena = number >> c.arena_objects_shift
        a = &c.arenas[arena]
        if unlikely(a.free_n == full):    # only after two threads freed one object at once
            violation(t, TAKEN_TWICE, objects[i])
            continue
        if a.free_n == 0:
            _available(c, arena, True)
        a.free[a.free_n] = number & (full - 1)
        a.free_n += 1
        c.depot += 1
        if a.free_n == full:
            c.empty += 1


# ------------------------------------------------------------------ growth and give-back

cdef void _event(oc_slabs* t, oc_class* c, uint32_t number, uint8_t backing,
                 bint grown) noexcept nogil:
    """Under the tier's lock."""
    cdef timespec now
    cdef oc_event* e = &t.events[t.events_n % EVENTS]
    clock_gettime(CLOCK_REALTIME, &now)
    e.time_ns = <int64_t>now.tv_sec * 1000000000 + now.tv_nsec
    e.number = number
    e.arenas = t.arenas_open
    e.cls = c.shift - SHIFT_MIN
    e.backing = backing
    e.grown = grown
    t.events_n += 1


cdef int _touch_ledger(void* first, uint64_t nbytes) noexcept nogil:
    cdef uintptr_t begin = <uintptr_t>first & ~<uintptr_t>(PAGE - 1)
    if fault():
        return -1
    return madvise(<void*>begin, <uintptr_t>first + nbytes - begin, MADV_POPULATE_WRITE)


cdef void _fill_stack(oc_arena* a, uint32_t objects, uint32_t batch) noexcept nogil:
    """Within a batch ascending, but batches that follow each other lie APART batches away: two
    threads would otherwise write neighbouring lines of the ledger (0.55 instead of 0.4 ns)."""
    cdef uint32_t i = 0, k, first, group, groups = objects // batch
    for first in range(APART if APART < groups else groups):
        group = first
        while group < groups:
            for k in range(batch):
                a.free[i] = group * batch + k
                i += 1
            group += APART
    a.free_n = objects


cdef int _map_arena(oc_slabs* t, oc_class* c, uint32_t number, oc_arena* a) noexcept nogil:
    """Memory, stack and ledger of an arena: 0 or an errno."""
    cdef uint64_t offset = (<uint64_t>c.base - <uint64_t>t.base) + (<uint64_t>number << ARENA_SHIFT)
    cdef void* at = t.base + offset
    cdef uint32_t objects = <uint32_t>1 << c.arena_objects_shift
    cdef uint64_t first = <uint64_t>number << c.arena_objects_shift
    cdef int error = ENOMEM
    cdef int fd = t.fd_huge
    a.free = NULL if fault() else <uint16_t*>malloc(objects * sizeof(uint16_t))
    if a.free == NULL:
        return ENOMEM
    if (_touch_ledger(&c.ledger.state[first], objects) < 0
            or _touch_ledger(&c.ledger.generation[first], objects * 2) < 0):
        free(a.free)
        a.free = NULL
        return ENOMEM
    a.backing = 0
    if fd >= 0:
        error = map_pages(fd, offset, ARENA_BYTES, ARENA_BYTES, False, &t.nodes, &at, &t.unbound)
        if error:
            atomic_add(&t.fallbacks, 1)
    if error and t.hugepages != 2:
        a.backing = 1 if t.thp else 2
        at = t.base + offset
        error = map_pages(t.fd_small, offset, ARENA_BYTES, PAGE, t.thp, &t.nodes, &at, &t.unbound)
    if error:
        free(a.free)
        a.free = NULL
        return error
    a.node = node_of(at)
    if OC_CHECKS_ON:
        memset(at, POISON, ARENA_BYTES)
    _fill_stack(a, objects, c.batch)
    return 0


cdef int slabs_grow(oc_slabs* t, oc_class* c) noexcept nogil:
    """One more arena: 0, or -1 with t.error saying why."""
    cdef uint32_t number = 0
    cdef oc_arena* a
    cdef int error = 0
    pthread_mutex_lock(&t.lock)
    if t.arenas_open >= t.arenas_max:
        t.error = 0
        error = -1
    else:
        t.arenas_open += 1
    pthread_mutex_unlock(&t.lock)
    if error:
        return -1
    pthread_mutex_lock(&c.lock)
    # A region has at least as many places as the tier may have arenas: one is free.
    while c.arenas[number].state != ABSENT:
        number += 1
    a = &c.arenas[number]
    a.state = MOVING
    pthread_mutex_unlock(&c.lock)

    error = _map_arena(t, c, number, a)

    pthread_mutex_lock(&c.lock)
    if error:
        a.state = ABSENT
    else:
        a.state = OPEN
        if number >= c.top:
            store_relaxed_u32(&c.top, number + 1)   # read without the lock, to refuse addresses
        c.open += 1
        c.empty += 1
        c.depot += a.free_n
        c.empty_most = EMPTY_TRIP + c.open // 4
        _available(c, number, True)
        t.backings[((<uint64_t>c.base - <uint64_t>t.base) >> ARENA_SHIFT) + number] = a.backing + 1
    pthread_mutex_unlock(&c.lock)
    pthread_mutex_lock(&t.lock)
    if error:
        t.error = error
        t.arenas_open -= 1
    else:
        if t.arenas_open > t.arenas_peak:
            t.arenas_peak = t.arenas_open
        _event(t, c, number, a.backing, True)
    pthread_mutex_unlock(&t.lock)
    return -1 if error else 0


cdef bint _nothing_live(oc_class* c, uint32_t number) noexcept nogil:
    """What the counters say is empty is unmapped only if the ledger says so too."""
    cdef uint32_t i, objects = <uint32_t>1 << c.arena_objects_shift
    cdef uint8_t live = 0
    cdef uint8_t* states = &c.ledger.state[<uint64_t>number << c.arena_objects_shift]
    for i in range(objects):
        live |= states[i]
    return live == 0


cdef bint _shrink(oc_slabs* t, oc_class* c, uint32_t keep) noexcept nogil:
    """Gives one empty arena back, the highest, if the class has more than `keep` of them."""
    cdef uint32_t number, full = <uint32_t>1 << c.arena_objects_shift
    cdef uint64_t offset
    cdef oc_arena* a = NULL
    cdef oc_arena* one
    pthread_mutex_lock(&c.lock)
    number = c.top
    while c.empty > keep and number > 0:
        number -= 1
        one = &c.arenas[number]
        if one.state == OPEN and one.free_n == full and _nothing_live(c, number):
            a = one
            a.state = MOVING
            a.free_n = 0
            _available(c, number, False)
            c.depot -= full
            c.empty -= 1
            c.open -= 1
            c.empty_most = EMPTY_TRIP + c.open // 4
            break
    pthread_mutex_unlock(&c.lock)
    if a == NULL:
        return False
    offset = (<uint64_t>c.base - <uint64_t>t.base) + (<uint64_t>number << ARENA_SHIFT)
    t.backings[offset >> ARENA_SHIFT] = 0
    unmap_pages(t.fd_small if a.backing else t.fd_huge, offset, ARENA_BYTES, t.base + offset, True)
    free(a.free)
    a.free = NULL
    pthread_mutex_lock(&t.lock)
    t.arenas_open -= 1
    _event(t, c, number, a.backing, False)
    pthread_mutex_unlock(&t.lock)
    pthread_mutex_lock(&c.lock)
    a.state = ABSENT
    pthread_mutex_unlock(&c.lock)
    return True


cdef bint slabs_too_many_empty(oc_class* c) noexcept nogil:
    cdef bint yes
    pthread_mutex_lock(&c.lock)
    yes = c.empty > c.empty_most
    pthread_mutex_unlock(&c.lock)
    return yes


cdef uint32_t slabs_trim(oc_slabs* t, bint all) noexcept nogil:
    """Gives empty arenas back: of classes past their trip level, or of all. How many."""
    cdef uint32_t i, given = 0
    cdef oc_class* c
    for i in range(CLASSES):
        c = &t.classes[i]
        if all or slabs_too_many_empty(c):
            while _shrink(t, c, 0 if all else EMPTY_KEPT):
                given += 1
    return given
