# Caches of slabs: taking and giving back, one thread's side. See slab_types.pxd for the picture.
#
# Bulk calls are the primary interface; one at a time has calls of its own. The hot
# halves are here to be inlined: a handful of instructions per object, ledger included.
from libc.stdint cimport uint32_t
from cython_ext.atomics cimport OC_CHECKS_ON, unlikely
from cython_ext.slab_types cimport (ALL_RUNS, BATCH_MAX, CLASSES, TAKEN_TWICE, class_of, give_one,
                                    ledger_give, ledger_take, oc_cache, oc_class, oc_magazine,
                                    oc_slabs, take_one, violation)


cdef inline int slabs_alloc(oc_cache* cache, uint32_t cls, void** out,
                            uint32_t n) noexcept nogil:
    """n objects of a class, all or none: 0, or -1 (the cap, or the host has no memory)."""
    cdef oc_magazine* m = &cache.magazines[cls]
    cdef uint32_t done
    if unlikely(m.n < n):
        if n > BATCH_MAX:
            return slabs_alloc_slowly(cache, cls, out, n)
        if slabs_refill(cache, cls, n) < 0:
            return -1
    m.n -= n
    done = ledger_take(&cache.tier.classes[cls].ledger, &m.objects[m.n], out, n,
                       0 if m.n & 15 else m.runs >> (m.n >> 4))
    if unlikely(done < n):
        return slabs_alloc_again(cache, cls, out, n, done)
    if OC_CHECKS_ON:
        slabs_check_poison(cache, cls, out, n)
    return 0


cdef inline uint32_t slabs_free_class(oc_cache* cache, uint32_t cls, void* const* objects,
                                      uint32_t n) noexcept nogil:
    """slabs_free for who knows the class: what belongs to another one still goes to its own."""
    cdef oc_magazine* m = &cache.magazines[cls]
    cdef oc_class* c = &cache.tier.classes[cls]
    cdef uint32_t done, slots
    if unlikely(m.n + n > c.cache_most):
        if n > c.batch or c.cache_most == 0:    # 0: with a history (slab_types.pxd)
            return slabs_free_slowly(cache, objects, n)
        slabs_flush(cache, cls)
    done = ledger_give(&c.ledger, objects, &m.objects[m.n], n,
                       0 if m.n & 15 else m.runs >> (m.n >> 4))
    # Which sixteens of slots were written: (first, last] as bits.
    slots = (<uint32_t>2 << ((m.n + n - 1) >> 4)) - (<uint32_t>1 << (m.n >> 4))
    if done & ALL_RUNS and m.n & 15 == 0:
        if m.runs & slots != slots:
            m.runs |= slots
    elif m.runs & slots:
        m.runs &= ~slots
    done &= ~ALL_RUNS
    m.n += done
    if OC_CHECKS_ON:
        slabs_poison(cache, cls, objects, done)
    if unlikely(done < n):
        return slabs_free_slowly(cache, objects + done, n - done)
    return 0


cdef inline uint32_t slabs_free(oc_cache* cache, void* const* objects, uint32_t n) noexcept nogil:
    """Gives back n objects of any class. Returns how many were not live objects of this tier:
    those are counted as violations and otherwise left alone."""
    cdef uint32_t cls
    if unlikely(n == 0):
        return 0
    cls = class_of(cache.tier, objects[0])
    if unlikely(cls >= CLASSES):
        return slabs_free_slowly(cache, objects, n)
    return slabs_free_class(cache, cls, objects, n)


cdef inline void* slabs_alloc_one(oc_cache* cache, uint32_t cls) noexcept nogil:
    """One object, or NULL."""
    cdef oc_magazine* m = &cache.magazines[cls]
    cdef void* p = m.hot
    if p == NULL or OC_CHECKS_ON:
        return slabs_alloc_one_slowly(cache, cls)
    m.hot = NULL
    if unlikely(not take_one(&cache.tier.classes[cls].ledger, p)):
        violation(cache.tier, TAKEN_TWICE, p)
        return slabs_alloc_one_slowly(cache, cls)
    return p


cdef inline bint slabs_free_one(oc_cache* cache, uint32_t cls, void* p) noexcept nogil:
    """Gives back one object of a class that is known; False if it is not live."""
    cdef oc_magazine* m = &cache.magazines[cls]
    if m.hot != NULL or OC_CHECKS_ON or not give_one(&cache.tier.classes[cls].ledger, p):
        return slabs_free_one_slowly(cache, cls, p)
    m.hot = p
    return True


# Cold halves of the above.
cdef int slabs_refill(oc_cache* cache, uint32_t cls, uint32_t n) noexcept nogil
cdef void slabs_flush(oc_cache* cache, uint32_t cls) noexcept nogil
cdef int slabs_alloc_slowly(oc_cache* cache, uint32_t cls, void** out, uint32_t n) noexcept nogil
cdef int slabs_alloc_again(oc_cache* cache, uint32_t cls, void** out, uint32_t n,
                           uint32_t taken) noexcept nogil
cdef void* slabs_alloc_one_slowly(oc_cache* cache, uint32_t cls) noexcept nogil
cdef bint slabs_free_one_slowly(oc_cache* cache, uint32_t cls, void* p) noexcept nogil
cdef void slabs_poison(oc_cache* cache, uint32_t cls, void* const* objects,
                       uint32_t n) noexcept nogil
cdef void slabs_check_poison(oc_cache* cache, uint32_t cls, void** out, uint32_t n) noexcept nogil
cdef uint32_t slabs_free_slowly(oc_cache* cache, void* const* objects,
                                uint32_t n) noexcept nogil

# A cache is some memory of its owner; open it before use, close it to give back what it holds.
cdef void cache_open(oc_cache* cache, oc_slabs* tier) noexcept nogil
cdef void cache_drain(oc_cache* cache) noexcept nogil
cdef void cache_close(oc_cache* cache) noexcept nogil
# Without a cache, from any thread: False if the object is not live, or not of that generation.
cdef bint slabs_free_directly(oc_slabs* t, void* one, uint32_t generation) noexcept nogil
# Its generation, and whether it is live; False: not ours either.
cdef bint slabs_is_live(oc_slabs* t, const void* one, uint32_t* generation) noexcept nogil
