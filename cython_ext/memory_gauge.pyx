# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True
"""What slabs and rings cost, and what they do under stress: loops without the GIL.

For `openclaw bench slab|ring` and the stress tests: called from as many Python threads as are to
take part. It owns nothing but a cache for the length of a call, and is no part of the packet path.
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t
from posix.time cimport CLOCK_MONOTONIC, CLOCK_THREAD_CPUTIME_ID, clock_gettime, timespec
from cython_ext.atomics cimport OC_CHECKS_ON, cpu_relax, load_relaxed_u32, store_relaxed_u32
from cython_ext.shm_ring cimport (MPMC, ShmRing, mpmc_dequeue, mpmc_enqueue, spsc_dequeue,
                                  spsc_enqueue, yield_cpu)
from cython_ext.slab cimport (slabs_alloc, slabs_alloc_one, slabs_free, slabs_free_class,
                              slabs_free_one)
from cython_ext.slab_tier cimport Cache, Slabs
from cython_ext.slab_types cimport (CLASSES, class_of, class_of_bytes, object_number, oc_cache,
                                    oc_class)

cdef enum:
    HELD_MAX = 512
    BULK_MAX = 128
    ROUNDS = 4096             # between two looks at the clock: 0.1 to 1 ms


cdef inline int64_t _now(int clock) noexcept nogil:
    cdef timespec t
    clock_gettime(clock, &t)
    return <int64_t>t.tv_sec * 1000000000 + t.tv_nsec


def checks_on():
    """Is this the debug build, with poison in free objects?"""
    return bool(OC_CHECKS_ON)


def slab_ns(Slabs slabs not None, uint32_t nbytes, uint32_t bulk, double seconds):
    """ns per object for taking and giving back `bulk` at a time, one thread's own cache.

    In CPU time of the thread: it never sleeps, and what else runs on the core is not its cost.
    """
    cdef Cache owner = Cache(slabs, "gauge")
    cdef oc_cache* cache = owner.c
    cdef uint32_t cls = class_of_bytes(nbytes)
    cdef uint64_t objects = 0
    cdef void* space[BULK_MAX + 8]
    # Begins a cache line, as an array of frames does: vectors that are not split.
    cdef void** held = <void**>((<uint64_t>space + 63) & ~<uint64_t>63)
    cdef int64_t begin, took = 0
    if not 1 <= bulk <= BULK_MAX:
        raise ValueError(f"bulk: {bulk}: 1 to {BULK_MAX}")
    with nogil:
        begin = _now(CLOCK_THREAD_CPUTIME_ID)
        while took < seconds * 1e9:
            for _ in range(ROUNDS):
                if slabs_alloc(cache, cls, held, bulk) < 0:
                    break
                slabs_free_class(cache, cls, held, bulk)
            objects += <uint64_t>ROUNDS * bulk
            took = _now(CLOCK_THREAD_CPUTIME_ID) - begin
    return took / <double>objects


def slab_single_ns(Slabs slabs not None, uint32_t nbytes, double seconds):
    """ns of CPU time per object for taking and giving back one at a time."""
    cdef Cache owner = Cache(slabs, "gauge")
    cdef oc_cache* cache = owner.c
    cdef uint32_t cls = class_of_bytes(nbytes)
    cdef uint64_t objects = 0
    cdef void* one
    cdef int64_t begin, took = 0
    with nogil:
        begin = _now(CLOCK_THREAD_CPUTIME_ID)
        while took < seconds * 1e9:
            for _ in range(ROUNDS):
                one = slabs_alloc_one(cache, cls)
                if one == NULL:
                    break
                slabs_free_one(cache, cls, one)
            objects += ROUNDS
            took = _now(CLOCK_THREAD_CPUTIME_ID) - begin
    return took / <double>objects


def slab_shuffle(Slabs slabs not None, uint32_t nbytes, uint32_t seed):
    """Frees some thousand objects in random order: what is given out afterwards lies scattered."""
    cdef Cache cache = slabs.thread_cache()
    cdef void* held[HELD_MAX]
    cdef void* swap
    cdef uint32_t cls = class_of_bytes(nbytes)
    cdef uint32_t i, k
    cdef uint64_t x = seed * 2654435761 + 88172645463325252
    if slabs_alloc(cache.c, cls, held, HELD_MAX) < 0:
        return False
    for i in range(HELD_MAX):
        x ^= x << 13
        x ^= x >> 7
        x ^= x << 17
        k = x % HELD_MAX
        swap = held[i]
        held[i] = held[k]
        held[k] = swap
    slabs_free(cache.c, held, HELD_MAX)
    cache.drain()
    return True


def slab_stress(Slabs slabs not None, uint32_t seed, uint64_t operations):
    """Random sizes and bulks; every object is filled with its owner's mark and looked at before it
    goes back. Returns (objects, refusals, spoiled, refused frees); the last two must be 0."""
    cdef Cache cache = Cache(slabs, f"stress {seed}")
    cdef uint64_t x = seed * 2654435761 + 88172645463325252
    cdef uint64_t objects = 0, refusals = 0, spoiled = 0, wrong = 0, mark
    cdef void* held[HELD_MAX]
    cdef uint64_t marks[HELD_MAX]
    cdef uint32_t sizes[HELD_MAX]
    cdef uint32_t n = 0, bulk, cls, i, words
    with nogil:
        for _ in range(operations):
            x ^= x << 13
            x ^= x >> 7
            x ^= x << 17
            bulk = 1 + (x >> 8) % 40
            if n + bulk <= HELD_MAX and (x & 1 or n < bulk):
                cls = (x >> 20) % 11
                if slabs_alloc(cache.c, cls, held + n, bulk) < 0:
                    refusals += 1
                    continue
                words = 8 << cls
                for i in range(n, n + bulk):
                    marks[i] = x + i
                    sizes[i] = words
                    (<uint64_t*>held[i])[0] = marks[i]
                    (<uint64_t*>held[i])[words // 2] = marks[i]
                    (<uint64_t*>held[i])[words - 1] = marks[i]
                n += bulk
                objects += bulk
            else:
                if bulk > n:
                    bulk = n
                for i in range(n - bulk, n):
                    mark = marks[i]
                    if (<uint64_t*>held[i])[0] != mark or (
                            <uint64_t*>held[i])[sizes[i] // 2] != mark or (
                            <uint64_t*>held[i])[sizes[i] - 1] != mark:
                        spoiled += 1
                n -= bulk
                wrong += slabs_free(cache.c, held + n, bulk)
        wrong += slabs_free(cache.c, held, n)
    return objects, refusals, spoiled, wrong


def ring_produce(ShmRing ring not None, uint32_t bulk, uint64_t elements, uint64_t first):
    """Puts in `elements` numbers, first, first + 1, ..., at most `bulk` at once (8-byte elements
    carry the number; larger ones carry it in every word)."""
    cdef uint64_t buffer[BULK_MAX * 8]
    cdef uint64_t sent = 0
    cdef uint32_t words = ring.element_bytes // 8
    cdef uint32_t i, k, n, got
    cdef uint32_t idle = 0
    ring.alive()
    if not 1 <= bulk <= BULK_MAX:
        raise ValueError(f"bulk: {bulk}: 1 to {BULK_MAX}")
    with nogil:
        while sent < elements:
            n = <uint32_t>(elements - sent) if elements - sent < bulk else bulk
            for i in range(n):
                for k in range(words):
                    buffer[i * words + k] = first + sent + i
            if ring.mode == MPMC:
                got = mpmc_enqueue(&ring.both, buffer, n, 1)
            else:
                got = spsc_enqueue(&ring.producer, buffer, n, 1)
            sent += got
            idle = 0 if got else idle + 1
            if idle > 256:
                yield_cpu()
            elif idle:
                cpu_relax()
    return sent


def ring_consume(ShmRing ring not None, uint32_t bulk, uint64_t elements, uint32_t[::1] seen):
    """Takes out `elements` numbers; seen[number] += 1 for each. Returns (torn, backward): elements
    whose words differ, and numbers not above the one before of the same thousandth part (the order
    of one producer)."""
    cdef uint64_t buffer[BULK_MAX * 8]
    cdef uint64_t last[16]
    cdef uint64_t got = 0, torn = 0, backward = 0, number
    cdef uint32_t words = ring.element_bytes // 8
    cdef uint32_t i, k, n, idle = 0
    cdef uint64_t part = seen.shape[0] // 16 + 1
    ring.alive()
    if not 1 <= bulk <= BULK_MAX:
        raise ValueError(f"bulk: {bulk}: 1 to {BULK_MAX}")
    for i in range(16):
        last[i] = 0
    with nogil:
        while got < elements:
            n = <uint32_t>(elements - got) if elements - got < bulk else bulk
            if ring.mode == MPMC:
                n = mpmc_dequeue(&ring.both, buffer, n, 1)
            else:
                n = spsc_dequeue(&ring.consumer, buffer, n, 1)
            for i in range(n):
                number = buffer[i * words]
                for k in range(1, words):
                    if buffer[i * words + k] != number:
                        torn += 1
                if number >= <uint64_t>seen.shape[0]:
                    torn += 1
                    continue
                store_relaxed_u32(&seen[number], load_relaxed_u32(&seen[number]) + 1)
                if number + 1 <= last[number // part]:
                    backward += 1
                last[number // part] = number + 1
            got += n
            idle = 0 if n else idle + 1
            if idle > 256:
                yield_cpu()
            elif idle:
                cpu_relax()
    return torn, backward


cdef class Stop:
    """Set by one thread, seen by others that have no GIL."""
    cdef uint32_t flag


def ring_feed(ShmRing ring not None, uint32_t bulk, Stop stop not None):
    """The producer's half of ring_ns: whole bulks until it is told to stop."""
    cdef uint64_t buffer[BULK_MAX * 8]
    cdef uint32_t i, done
    for i in range(BULK_MAX * 8):
        buffer[i] = i
    with nogil:
        while not load_relaxed_u32(&stop.flag):
            if ring.mode == MPMC:
                done = mpmc_enqueue(&ring.both, buffer, bulk, bulk)
            else:
                done = spsc_enqueue(&ring.producer, buffer, bulk, bulk)
            if done == 0:
                cpu_relax()


def ring_ns(ShmRing ring not None, uint32_t bulk, double seconds, Stop stop not None):
    """ns per element between two threads, seen by the consumer; ring_feed is the other one."""
    cdef uint64_t buffer[BULK_MAX * 8]
    cdef uint64_t elements = 0
    cdef int64_t begin, took = 0
    with nogil:
        begin = _now(CLOCK_MONOTONIC)
        while took < seconds * 1e9:
            for _ in range(ROUNDS):
                if ring.mode == MPMC:
                    while mpmc_dequeue(&ring.both, buffer, bulk, bulk) == 0:
                        cpu_relax()
                else:
                    while spsc_dequeue(&ring.consumer, buffer, bulk, bulk) == 0:
                        cpu_relax()
            elements += <uint64_t>ROUNDS * bulk
            took = _now(CLOCK_MONOTONIC) - begin
        store_relaxed_u32(&stop.flag, 1)
    return took / <double>elements


def slab_free_as_if_live(Cache cache not None, uint64_t address):
    """Gives an object back as the second of two threads does that free it at the same moment: its
    check has passed, the other's write has not been seen. For the test of what happens then."""
    cdef oc_class* c
    cdef void* p = <void*>address
    cdef uint32_t cls = class_of(cache.c.tier, p)
    if cls >= CLASSES:
        return False
    c = &cache.c.tier.classes[cls]
    c.ledger.state[object_number(&c.ledger, p)] = 1
    return slabs_free(cache.c, &p, 1) == 0
