# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True
"""Caches of slabs: the cold halves of taking and giving back, and what the ledger found wrong.

Refilling and flushing move whole batches between a cache and the depot under the class's lock. An
object that is not live is never put anywhere: it is counted, its address is kept, and the call goes
on with the others. Growth and give-back are slab_arenas.pyx; Python objects are slab_object.pyx.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset
from cython_ext.atomics cimport OC_CHECKS_ON, load_relaxed_u32
from cython_ext.frames cimport pthread_mutex_lock, pthread_mutex_unlock
from cython_ext.history cimport GIVEN, REFUSED, TAKEN, history_name, history_note, oc_history
from cython_ext.slab_arenas cimport depot_give, depot_take, slabs_grow, slabs_trim
from cython_ext.slab_types cimport (FOREIGN, NOT_LIVE, SHIFT_MIN, TAKEN_TWICE, WRITTEN_FREE,
                                    atomic_add, give_one, object_number, oc_ledger, violation)

cdef enum:
    POISON = 0x6b             # as slab_arenas.pyx fills new arenas


# ------------------------------------------------------------------ cold halves of alloc and free

cdef int slabs_refill(oc_cache* cache, uint32_t cls, uint32_t n) noexcept nogil:
    """At least n objects (at most BATCH_MAX) in the magazine, or -1 with what there was kept."""
    cdef oc_slabs* t = cache.tier
    cdef oc_class* c = &t.classes[cls]
    cdef oc_magazine* m = &cache.magazines[cls]
    cdef uint32_t want
    cdef bint trimmed = False
    _cool(m)
    m.runs = 0
    while m.n < n:
        # Whole batches, always: two threads with half of one each write the same ledger lines.
        # With a history just what was asked for, so that what is here now is what is taken.
        want = n - m.n if n > m.n + c.batch or t.history != NULL else c.batch
        pthread_mutex_lock(&c.lock)
        m.n += depot_take(c, &m.objects[m.n], want)
        pthread_mutex_unlock(&c.lock)
        if m.n >= n:
            break
        if slabs_grow(t, c) < 0:
            # At the cap, arenas that are empty in other classes can serve here.
            if not trimmed and slabs_trim(t, True):
                trimmed = True
                continue
            atomic_add(&t.refusals, 1)
            return -1
    if t.history != NULL:
        _note(t, &m.objects[m.n - n], n, TAKEN, cache.owner)
    return 0


cdef void _note(oc_slabs* t, void* const* objects, uint32_t n, uint8_t what,
                const char* who) noexcept nogil:
    """For the history, while it is on."""
    cdef oc_history* h = t.history
    cdef uint32_t i, generation
    cdef uint16_t name
    if h == NULL:
        return
    name = history_name(h, who)
    for i in range(n):
        generation = 0
        slabs_is_live(t, objects[i], &generation)
        history_note(h, (<uint64_t>objects[i] - <uint64_t>t.base) >> SHIFT_MIN, generation, what,
                     name, 0)


cdef void slabs_flush(oc_cache* cache, uint32_t cls) noexcept nogil:
    """Room for a batch: the coldest batch goes to the depot, the warmest objects stay."""
    cdef oc_class* c = &cache.tier.classes[cls]
    cdef oc_magazine* m = &cache.magazines[cls]
    cdef uint32_t i, n = c.batch if m.n > c.batch else m.n
    pthread_mutex_lock(&c.lock)
    depot_give(cache.tier, c, m.objects, n)
    pthread_mutex_unlock(&c.lock)
    m.n -= n
    m.runs = 0
    for i in range(m.n):
        m.objects[i] = m.objects[i + n]


cdef int slabs_alloc_slowly(oc_cache* cache, uint32_t cls, void** out, uint32_t n) noexcept nogil:
    """More than a batch at once."""
    cdef uint32_t done = 0, part
    while done < n:
        part = n - done if n - done < BATCH_MAX else BATCH_MAX
        if slabs_alloc(cache, cls, out + done, part) < 0:
            slabs_free(cache, out, done)
            return -1
        done += part
    return 0


cdef int slabs_alloc_again(oc_cache* cache, uint32_t cls, void** out, uint32_t n,
                           uint32_t taken) noexcept nogil:
    """Object `taken` of this call is somebody's already: two threads freed it at once, earlier.
    It stays with whoever has it; the magazine forgets it, and the call goes on with the others."""
    cdef oc_magazine* m = &cache.magazines[cls]
    cdef uint32_t i, left = n - taken - 1
    cdef void** source = &m.objects[m.n]
    violation(cache.tier, TAKEN_TWICE, source[taken])
    m.runs = 0
    for i in range(left):
        source[i] = source[i + taken + 1]
    m.n += left
    if slabs_alloc(cache, cls, out + taken, n - taken) < 0:
        slabs_free(cache, out, taken)
        return -1
    return 0


cdef void* slabs_alloc_one_slowly(oc_cache* cache, uint32_t cls) noexcept nogil:
    """Apart, and by value: a pointer whose address is taken lives on the stack."""
    cdef void* p = NULL
    return NULL if slabs_alloc(cache, cls, &p, 1) < 0 else p


cdef bint slabs_free_one_slowly(oc_cache* cache, uint32_t cls, void* p) noexcept nogil:
    return slabs_free_class(cache, cls, &p, 1) == 0


cdef inline void _cool(oc_magazine* m) noexcept nogil:
    """The hot object joins the others; there is room when fewer than a batch are there."""
    if m.hot != NULL:
        m.objects[m.n] = m.hot
        m.n += 1
        m.hot = NULL


cdef void slabs_poison(oc_cache* cache, uint32_t cls, void* const* objects,
                       uint32_t n) noexcept nogil:
    cdef uint32_t i
    for i in range(n):
        memset(objects[i], POISON, <size_t>1 << cache.tier.classes[cls].shift)


cdef void slabs_check_poison(oc_cache* cache, uint32_t cls, void** out, uint32_t n) noexcept nogil:
    cdef uint32_t i, k, size = <uint32_t>1 << cache.tier.classes[cls].shift
    cdef uint8_t* p
    for i in range(n):
        p = <uint8_t*>out[i]
        for k in range(size):
            if p[k] != POISON:
                violation(cache.tier, WRITTEN_FREE, p)
                break


cdef uint32_t slabs_free_slowly(oc_cache* cache, void* const* objects,
                                uint32_t n) noexcept nogil:
    """Mixed classes, more than a batch, or something that is not live."""
    cdef uint32_t i, cls, wrong = 0
    cdef oc_class* c
    cdef oc_magazine* m
    for i in range(n):
        cls = class_of(cache.tier, objects[i])
        if not _give(cache.tier, cls, objects[i], cache.owner):
            wrong += 1
            continue
        c = &cache.tier.classes[cls]
        if cache.tier.history != NULL:
            pthread_mutex_lock(&c.lock)
            depot_give(cache.tier, c, &objects[i], 1)
            pthread_mutex_unlock(&c.lock)
            continue
        m = &cache.magazines[cls]
        if m.n >= 2 * c.batch:
            slabs_flush(cache, cls)
        m.objects[m.n] = objects[i]
        m.n += 1
        m.runs = 0
    return wrong


cdef bint _give(oc_slabs* t, uint32_t cls, void* one, const char* who) noexcept nogil:
    """Live to free in the ledger; False, and a violation, if it is not live."""
    cdef oc_class* c
    if cls >= CLASSES:
        violation(t, FOREIGN, one)
        return False
    c = &t.classes[cls]
    if (object_number(&c.exact, one) >> c.arena_objects_shift) >= load_relaxed_u32(&c.top):
        violation(t, FOREIGN, one)
        return False
    if OC_CHECKS_ON and c.exact.state[object_number(&c.exact, one)] & 1:
        memset(one, POISON, <size_t>1 << c.shift)
    if not give_one(&c.exact, one):
        _note(t, &one, 1, REFUSED, who)
        violation(t, NOT_LIVE, one)
        return False
    _note(t, &one, 1, GIVEN, who)
    return True


cdef bint slabs_free_directly(oc_slabs* t, void* one, uint32_t generation) noexcept nogil:
    cdef uint32_t cls = class_of(t, one), now = 0
    cdef oc_class* c
    cdef bint ok = False
    if cls >= CLASSES:
        violation(t, FOREIGN, one)
        return False
    c = &t.classes[cls]
    pthread_mutex_lock(&c.lock)
    if not slabs_is_live(t, one, &now) or now != generation:
        violation(t, NOT_LIVE, one)
    elif _give(t, cls, one, b"(no cache)"):
        depot_give(t, c, &one, 1)
        ok = True
    pthread_mutex_unlock(&c.lock)
    return ok


cdef bint slabs_is_live(oc_slabs* t, const void* one, uint32_t* generation) noexcept nogil:
    cdef uint32_t cls = class_of(t, one)
    cdef uint64_t number
    cdef oc_ledger* ledger
    if cls >= CLASSES:
        return False
    ledger = &t.classes[cls].exact
    number = object_number(ledger, one)
    if number >= ledger.objects_max:
        return False
    generation[0] = ledger.generation[number]
    return ledger.state[number] & 1


# ------------------------------------------------------------------ caches

cdef void cache_open(oc_cache* cache, oc_slabs* t) noexcept nogil:
    memset(cache, 0, sizeof(oc_cache))
    cache.tier = t
    pthread_mutex_lock(&t.lock)
    cache.next = t.caches
    if t.caches != NULL:
        t.caches.previous = cache
    t.caches = cache
    pthread_mutex_unlock(&t.lock)


cdef void cache_drain(oc_cache* cache) noexcept nogil:
    cdef uint32_t cls
    cdef oc_magazine* m
    cdef oc_class* c
    for cls in range(CLASSES):
        m = &cache.magazines[cls]
        c = &cache.tier.classes[cls]
        pthread_mutex_lock(&c.lock)
        depot_give(cache.tier, c, m.objects, m.n)
        if m.hot != NULL:
            depot_give(cache.tier, c, &m.hot, 1)
        pthread_mutex_unlock(&c.lock)
        m.n = 0
        m.hot = NULL


cdef void cache_close(oc_cache* cache) noexcept nogil:
    cdef oc_slabs* t = cache.tier
    if t == NULL:
        return
    cache_drain(cache)
    pthread_mutex_lock(&t.lock)
    if cache.previous != NULL:
        cache.previous.next = cache.next
    else:
        t.caches = cache.next
    if cache.next != NULL:
        cache.next.previous = cache.previous
    pthread_mutex_unlock(&t.lock)
    cache.tier = NULL
