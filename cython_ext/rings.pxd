# The four rings of an AF_XDP socket, from user space's side: FILL and TX we produce, RX and
# COMPLETION we consume. Indices run freely over 32 bits and are masked on use. Each side keeps a
# private copy of the other's index and reads the shared one only when the copy says "empty" or
# "full": the cache line of the other side then moves once a burst instead of once a packet.
from libc.stdint cimport uint32_t, uint64_t
from cython_ext.atomics cimport load_acquire_u32, load_relaxed_u32, store_release_u32

cdef struct oc_desc:              # struct xdp_desc
    uint64_t addr
    uint32_t len
    uint32_t options

cdef struct oc_ring:
    uint32_t* producer            # shared
    uint32_t* consumer            # shared
    uint32_t* flags               # shared: XDP_RING_NEED_WAKEUP
    void* entries                 # uint64_t (FILL, COMPLETION) or oc_desc (RX, TX)
    uint32_t size
    uint32_t mask
    uint32_t mine                 # our own index, not yet published
    uint32_t theirs               # last seen index of the other side


cdef inline uint32_t ring_free(oc_ring* r, uint32_t wanted) noexcept nogil:
    """Producer: entries that can be written now (looks at the kernel only if short of `wanted`)."""
    cdef uint32_t n = r.size - (r.mine - r.theirs)
    if n < wanted:
        r.theirs = load_acquire_u32(r.consumer)
        n = r.size - (r.mine - r.theirs)
        if n > r.size:            # a consumer index ahead of ours: not a ring we can write to
            n = 0
    return n

cdef inline uint32_t ring_ready(oc_ring* r, uint32_t wanted) noexcept nogil:
    """Consumer: entries that can be read now (looks at the kernel only if short of `wanted`)."""
    cdef uint32_t n = r.theirs - r.mine
    if n < wanted:
        r.theirs = load_acquire_u32(r.producer)
        n = r.theirs - r.mine
        if n > r.size:            # never trust an index for more than the ring holds
            n = 0
    return n

cdef inline void ring_publish(oc_ring* r) noexcept nogil:
    """Producer: everything written up to `mine` is the kernel's."""
    store_release_u32(r.producer, r.mine)

cdef inline void ring_release(oc_ring* r) noexcept nogil:
    """Consumer: everything read up to `mine` may be overwritten."""
    store_release_u32(r.consumer, r.mine)

cdef inline uint64_t* ring_addr(oc_ring* r, uint32_t index) noexcept nogil:
    return &(<uint64_t*>r.entries)[index & r.mask]

cdef inline oc_desc* ring_desc(oc_ring* r, uint32_t index) noexcept nogil:
    return &(<oc_desc*>r.entries)[index & r.mask]
