# Rings in shared memory, between threads or processes: batches of elements of 8 to 64 bytes.
#
#   line    SPSC                                       MPMC (head and tail in one 64-bit word)
#     0     header: magic, version, mode, geometry     the same
#     2     producer's index, published                producers: head | tail
#     4     consumer's index, published                consumers: head | tail
#     6     entries
#
# Head and tail stand 128 bytes apart: processors fetch cache lines in pairs. Indices run freely
# over 32 bits and are masked on use.
#
# SPSC: one producer and one consumer. Each has a private struct (oc_spsc) with its own index and
# the last it saw of the other's, which it reads again only when that copy says "full" or "empty".
#
# MPMC: head/tail sync, as DPDK's HTS mode and for its reason: virtual machines preempt. A side
# moves its head only when the tail has caught up, with one compare-and-swap on both. So at most one
# thread of a side is between head and tail; when it is preempted there the others wait (they yield)
# instead of queueing up behind each other, and go on with it. A thread that *dies* there stalls
# its side: producers that may die get an SPSC ring each.
#
# Every index read from shared memory is read once into a local, checked against the size, used.
# A ring whose indices do not add up gives nothing and takes nothing.
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy
from cython_ext.atomics cimport (cpu_relax, load_acquire_u32, load_acquire_u64,
                                 load_relaxed_u32, prefetch_write, store_release_u32,
                                 unlikely)
from cython_ext.arena cimport Arena

cdef enum:
    SPSC = 1
    MPMC = 2
    HEADER_BYTES = 768            # six pairs of cache lines, see above

cdef struct oc_ring_header:
    uint64_t magic
    uint32_t version
    uint32_t mode
    uint32_t size                 # elements, a power of two
    uint32_t element_bytes        # 8, 16, 32 or 64
    uint64_t bytes                # of the whole mapping
    uint8_t gap0[256 - 32]
    uint64_t producer             # SPSC: index; MPMC: head | tail << 32
    uint32_t producer_saw         # MPMC: the consumers' tail, when a producer last looked
    uint8_t gap1[256 - 12]
    uint64_t consumer
    uint32_t consumer_saw
    uint8_t gap2[256 - 12]

cdef struct oc_spsc:              # one side's private view
    uint32_t* shared_mine
    uint32_t* shared_theirs
    uint8_t* entries
    uint32_t mine
    uint32_t theirs
    uint32_t size
    uint32_t shift                # of an element's bytes
    uint8_t gap[256 - 40]         # two sides in one process must not share a line

cdef struct oc_mpmc:
    uint64_t* producer
    uint64_t* consumer
    uint8_t* entries
    uint32_t size
    uint32_t shift

cdef extern from *:
    """
    #include <sched.h>
    #include <stdint.h>
    static inline int oc_cas_u64(uint64_t* p, uint64_t* expected, uint64_t wanted)
    { return __atomic_compare_exchange_n(p, expected, wanted, 0, __ATOMIC_ACQ_REL,
                                         __ATOMIC_ACQUIRE); }
    static inline void oc_yield(void) { sched_yield(); }
    """
    bint cas_u64 "oc_cas_u64"(uint64_t* p, uint64_t* expected, uint64_t wanted) noexcept nogil
    void yield_cpu "oc_yield"() noexcept nogil


cdef inline void ring_write(uint8_t* entries, uint32_t size, uint32_t shift, uint32_t index,
                            const void* elements, uint32_t n) noexcept nogil:
    """n elements from `index` on, in at most two pieces."""
    cdef uint32_t at = index & (size - 1)
    cdef uint32_t first = n if n < size - at else size - at
    memcpy(entries + (<uint64_t>at << shift), elements, <size_t>first << shift)
    if unlikely(first < n):
        memcpy(entries, <const uint8_t*>elements + (<size_t>first << shift),
               <size_t>(n - first) << shift)


cdef inline void ring_read(const uint8_t* entries, uint32_t size, uint32_t shift, uint32_t index,
                           void* elements, uint32_t n) noexcept nogil:
    cdef uint32_t at = index & (size - 1)
    cdef uint32_t first = n if n < size - at else size - at
    memcpy(elements, entries + (<uint64_t>at << shift), <size_t>first << shift)
    if unlikely(first < n):
        memcpy(<uint8_t*>elements + (<size_t>first << shift), entries,
               <size_t>(n - first) << shift)


cdef inline void ring_will_write(uint8_t* entries, uint32_t size, uint32_t shift, uint32_t index,
                                 uint32_t n) noexcept nogil:
    """Asks for the lines of the next n elements, which the consumer has. The request travels while
    the producer gathers its next bulk: 0.52 ns an element instead of 0.59 (SPSC, bulk 32)."""
    cdef uint64_t at = <uint64_t>(index & (size - 1)) << shift
    cdef uint64_t end = at + (<uint64_t>n << shift)
    while at < end:
        prefetch_write(entries + at)
        at += 64


cdef inline uint32_t spsc_enqueue(oc_spsc* r, const void* elements, uint32_t n,
                                  uint32_t least) noexcept nogil:
    """Between `least` and n elements, or none; how many went in."""
    cdef uint32_t theirs, used = r.mine - r.theirs
    if r.size - used < n:
        theirs = load_acquire_u32(r.shared_theirs)
        used = r.mine - theirs
        if unlikely(used > r.size):
            return 0              # and the lie is forgotten, not kept
        r.theirs = theirs
        if r.size - used < n:
            n = r.size - used
            if n == 0 or n < least:
                return 0
    ring_write(r.entries, r.size, r.shift, r.mine, elements, n)
    r.mine += n
    store_release_u32(r.shared_mine, r.mine)
    ring_will_write(r.entries, r.size, r.shift, r.mine, n)
    return n


cdef inline uint32_t spsc_dequeue(oc_spsc* r, void* elements, uint32_t n,
                                  uint32_t least) noexcept nogil:
    """Between `least` and n elements, or none; how many came out."""
    cdef uint32_t theirs, ready = r.theirs - r.mine
    if ready < n:
        theirs = load_acquire_u32(r.shared_theirs)
        ready = theirs - r.mine
        if unlikely(ready > r.size):
            return 0
        r.theirs = theirs
        if ready < n:
            n = ready
            if n == 0 or n < least:
                return 0
    ring_read(r.entries, r.size, r.shift, r.mine, elements, n)
    r.mine += n
    store_release_u32(r.shared_mine, r.mine)
    return n


cdef inline bint mpmc_move(oc_mpmc* r, bint producing, uint32_t most, uint32_t least,
                           uint32_t* index, uint32_t* n) noexcept nogil:
    """Claims between least and most places for this thread alone; False if there are too few."""
    cdef uint64_t* ours = r.producer if producing else r.consumer
    cdef uint64_t* others = r.consumer if producing else r.producer
    # What this side last saw of the other's tail, beside our own word: looking moves a cache line.
    # Only who has claimed places writes it, so it is behind the truth by at most the ring's size.
    cdef uint32_t* saw = <uint32_t*>(ours + 1)
    cdef bint looked = False
    cdef uint64_t seen = load_acquire_u64(ours)
    cdef uint32_t head, room, theirs, spins = 0
    while True:
        head = <uint32_t>seen
        if head != <uint32_t>(seen >> 32):
            # Somebody is between head and tail. On a busy machine it may have been preempted
            # there: after some 2 us of looking, let it run.
            spins += 1
            if spins & 63:
                cpu_relax()
            else:
                yield_cpu()
            seen = load_acquire_u64(ours)
            continue
        theirs = load_acquire_u32(saw)
        room = theirs - head + (r.size if producing else 0)
        if room > r.size or room < most:
            theirs = <uint32_t>(load_acquire_u64(others) >> 32)
            room = theirs - head + (r.size if producing else 0)
            if unlikely(room > r.size):
                # Our own side has moved on since `seen` was read, or the ring is damaged.
                if looked and load_acquire_u64(ours) == seen:
                    return False
                looked = True
                seen = load_acquire_u64(ours)
                continue
        n[0] = most if room > most else room
        if n[0] < least or n[0] == 0:
            return False
        if cas_u64(ours, &seen, (seen & ~<uint64_t>0xffffffff) | <uint32_t>(head + n[0])):
            if load_relaxed_u32(saw) != theirs:
                store_release_u32(saw, theirs)
            index[0] = head
            return True


cdef inline uint32_t mpmc_enqueue(oc_mpmc* r, const void* elements, uint32_t n,
                                  uint32_t least) noexcept nogil:
    """Between `least` and n elements, or none; how many went in."""
    cdef uint32_t index = 0, got = 0
    if not mpmc_move(r, True, n, least, &index, &got):
        return 0
    ring_write(r.entries, r.size, r.shift, index, elements, got)
    store_release_u32(<uint32_t*>r.producer + TAIL, index + got)
    ring_will_write(r.entries, r.size, r.shift, index + got, got)
    return got


cdef inline uint32_t mpmc_dequeue(oc_mpmc* r, void* elements, uint32_t n,
                                  uint32_t least) noexcept nogil:
    cdef uint32_t index = 0, got = 0
    if not mpmc_move(r, False, n, least, &index, &got):
        return 0
    ring_read(r.entries, r.size, r.shift, index, elements, got)
    store_release_u32(<uint32_t*>r.consumer + TAIL, index + got)
    return got


cdef extern from *:
    """
    /* Which 32-bit half of head | tail << 32 is the tail. */
    #if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    enum { OC_TAIL = 1 };
    #else
    enum { OC_TAIL = 0 };
    #endif
    """
    enum:
        TAIL "OC_TAIL"


cdef class ShmRing:
    cdef readonly Arena arena             # of who made it; None for who joined
    cdef readonly int fd                  # -1 after delete or leave
    cdef oc_ring_header* header
    cdef bint joined                      # mapped and opened by us, not by an arena of ours
    cdef uint64_t bytes
    cdef uint32_t mode
    cdef uint32_t size
    cdef uint32_t element_bytes
    cdef oc_spsc producer                 # SPSC: the sides, used by whoever is one
    cdef oc_spsc consumer
    cdef oc_mpmc both
    cdef int alive(self) except -1
    cdef void _unmap(self) noexcept
