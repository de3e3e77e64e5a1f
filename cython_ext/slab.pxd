# Caches of slabs: taking and giving back, one thread's side. See slab_types.pxd for the picture.
#
# Bulk calls are the primary interface; with a constant n of 1 the compiler unrolls them. The hot
# halves are here to be inlined: a handful of instructions per object, ledger included.
from libc.stdint cimport uint32_t, uint64_t
from cython_ext.atomics cimport OC_CHECKS_ON, load_relaxed_u32, store_relaxed_u32, unlikely
from cython_ext.slab_types cimport (BATCH_MAX, CLASSES, class_of, oc_cache, oc_class, oc_magazine,
                                    oc_slabs)


cdef inline int slabs_alloc(oc_cache* cache, uint32_t cls, void** out,
                            uint32_t n) noexcept nogil:
    """n objects of a class, all or none: 0, or -1 (the cap, or the host has no memory)."""
    cdef oc_magazine* m = &cache.magazines[cls]
    cdef oc_class* c = &cache.tier.classes[cls]
    cdef uint32_t* ledger = c.ledger
    cdef uint32_t* word
    cdef uint32_t i, w
    cdef uint32_t shift = c.shift
    cdef uint64_t base = <uint64_t>c.base
    cdef void** source
    cdef void* p
    if unlikely(m.n < n):
        if n > BATCH_MAX:
            return slabs_alloc_slowly(cache, cls, out, n)
        if slabs_refill(cache, cls, n) < 0:
            return -1
    m.n -= n
    source = &m.objects[m.n]
    for i in range(n):
        p = source[i]
        word = &ledger[(<uint64_t>p - base) >> shift]
        w = load_relaxed_u32(word)
        if unlikely(w & 1):
            return slabs_alloc_again(cache, cls, out, n, i)
        out[i] = p
        store_relaxed_u32(word, w + 1)
    if OC_CHECKS_ON:
        slabs_check_poison(cache, cls, out, n)
    return 0


cdef inline uint32_t slabs_free(oc_cache* cache, void* const* objects, uint32_t n) noexcept nogil:
    """Gives back n objects of any class. Returns how many were not live objects of this tier:
    those are counted as violations and otherwise left alone."""
    cdef oc_slabs* t = cache.tier
    cdef uint32_t i, w, cls, shift
    cdef uint64_t number, base, most, offset
    cdef oc_class* c
    cdef oc_magazine* m
    cdef uint32_t* ledger
    cdef uint32_t* word
    cdef void** target
    cdef void* p
    if n == 0:
        return 0
    cls = class_of(t, objects[0])
    if unlikely(cls >= CLASSES or OC_CHECKS_ON):
        return slabs_free_slowly(cache, objects, n, 0)
    m = &cache.magazines[cls]
    c = &t.classes[cls]
    if unlikely(m.n + n > 2 * c.batch):
        if n > c.batch:
            return slabs_free_slowly(cache, objects, n, 0)
        slabs_flush(cache, cls)
    ledger = c.ledger
    base = <uint64_t>c.base
    shift = c.shift
    most = c.objects_max
    target = &m.objects[m.n]
    for i in range(n):
        p = objects[i]
        offset = <uint64_t>p - base
        number = (offset >> shift) | (offset << (64 - shift))
        if unlikely(number >= most):
            return slabs_free_slowly(cache, objects, n, i)
        word = &ledger[number]
        w = load_relaxed_u32(word)
        if unlikely((w & 1) == 0):
            return slabs_free_slowly(cache, objects, n, i)
        target[i] = p
        store_relaxed_u32(word, w + 1)
    m.n += n
    return 0


# Cold halves of the above.
cdef int slabs_refill(oc_cache* cache, uint32_t cls, uint32_t n) noexcept nogil
cdef void slabs_flush(oc_cache* cache, uint32_t cls) noexcept nogil
cdef int slabs_alloc_slowly(oc_cache* cache, uint32_t cls, void** out, uint32_t n) noexcept nogil
cdef int slabs_alloc_again(oc_cache* cache, uint32_t cls, void** out, uint32_t n,
                           uint32_t taken) noexcept nogil
cdef void slabs_check_poison(oc_cache* cache, uint32_t cls, void** out, uint32_t n) noexcept nogil
cdef uint32_t slabs_free_slowly(oc_cache* cache, void* const* objects, uint32_t n,
                                uint32_t done) noexcept nogil

# A cache is some memory of its owner; open it before use, close it to give back what it holds.
cdef void cache_open(oc_cache* cache, oc_slabs* tier) noexcept nogil
cdef void cache_drain(oc_cache* cache) noexcept nogil
cdef void cache_close(oc_cache* cache) noexcept nogil
# Without a cache, from any thread: False if the object is not live, or not of that generation.
cdef bint slabs_free_directly(oc_slabs* t, void* one, uint32_t generation) noexcept nogil
cdef uint32_t slabs_generation(oc_slabs* t, const void* one) noexcept nogil
