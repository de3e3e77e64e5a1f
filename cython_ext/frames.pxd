# Frames of one UMEM: the ledger that knows who has each frame, and the two pools of free frames.
#
#   state       who has it                                  who may write its entry
#   FREE        the pool                                    the UMEM's owner
#   CACHED      a thread's magazine                         that thread
#   FILL        the kernel, waiting for a packet            the UMEM's owner, at post and at burst
#   RX          the worker, between burst and consumer      the UMEM's owner
#   LEASED      a named consumer                            the UMEM's owner (under its lock)
#   TX          the kernel, to be sent                      the UMEM's owner
#   COMPLETION  sent, not yet back in the pool              the UMEM's owner
#
# The owner of a UMEM is one worker thread, or whoever holds `lock` (ports opened from Python).
# Everyone else reads entries as whole 64-bit words and never writes. RX frames are numbers
# [0, rx_frames), TX frames the rest: two disjoint pools, since one shared free list has silently
# corrupted packets in other projects. A frame goes home to the pool that its number says.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from cython_ext.atomics cimport (OC_CHECKS_ON, OC_LEDGER_ON, count_u64, load_relaxed_u64, likely,
                                 store_relaxed_u64, unlikely)
from cython_ext.arena cimport Arena
from cython_ext.history cimport HOME, History, oc_history
from cython_ext.mutex cimport (pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock,
                               pthread_mutex_t, pthread_mutex_unlock)

cdef enum:
    FREE = 0
    CACHED = 1
    FILL = 2
    RX = 3
    LEASED = 4
    TX = 5
    COMPLETION = 6
    STATES = 7

cdef enum:
    OWNERS_MAX = 256          # consumers one UMEM can lend to; 0 is the engine itself
    NO_QUEUE = 0xffff         # in the history: of the memory, not of a queue on it

# One entry per frame, 16 bytes: four to a cache line, and one store for each transition.
cdef struct oc_entry:
    uint64_t word             # generation:32 | owner:16 | references:8 | state:8
    uint64_t since_ns         # CLOCK_MONOTONIC of the lease (0: never leased)

cdef struct oc_umem:
    uint8_t* base
    uint64_t bytes            # frames * frame_bytes: what is registered
    uint32_t frames
    uint32_t rx_frames
    uint32_t frame_shift
    uint32_t frame_bytes
    oc_entry* ledger
    uint32_t* rx_free         # stack: the frame freed last is the warmest in the cache
    uint32_t rx_free_n
    uint32_t* tx_free
    uint32_t tx_free_n
    uint64_t violations       # a frame freed twice, or delivered while not posted: never silent
    pthread_mutex_t lock
    oc_history* history       # of frames, while it is switched on; NULL: off


cdef extern from *:
    """
    #define OC_GENERATION_MASK 0xffffffff00000000ULL
    """
    const uint64_t GENERATION_MASK "OC_GENERATION_MASK"


# For the history, while it is on: an operation of each of n frames. Cold, and out of the way.
cdef void frames_note(oc_umem* um, const uint32_t* frames, uint32_t n, uint32_t what,
                      uint32_t queue) noexcept nogil


cdef inline uint64_t word_of(uint32_t generation, uint32_t owner, uint32_t references,
                             uint32_t state) noexcept nogil:
    return (<uint64_t>generation << 32) | (owner << 16) | (references << 8) | state

cdef inline uint32_t word_state(uint64_t word) noexcept nogil:
    return word & 0xff

cdef inline uint32_t word_references(uint64_t word) noexcept nogil:
    return (word >> 8) & 0xff

cdef inline uint32_t word_owner(uint64_t word) noexcept nogil:
    return (word >> 16) & 0xffff

cdef inline uint32_t word_generation(uint64_t word) noexcept nogil:
    return word >> 32


cdef inline void frame_mark(oc_umem* um, uint32_t frame, uint32_t owner, uint32_t references,
                            uint32_t state) noexcept nogil:
    """A transition that keeps the generation: one load, one store."""
    cdef uint64_t* word
    if OC_LEDGER_ON:
        word = &um.ledger[frame].word
        store_relaxed_u64(word, (word[0] & GENERATION_MASK)
                          | (owner << 16) | (references << 8) | state)


cdef inline void frame_free(oc_umem* um, uint32_t frame) noexcept nogil:
    """Home to its pool, with the next generation: every older view of it is stale from here on."""
    cdef uint64_t word
    if OC_LEDGER_ON:
        word = um.ledger[frame].word
        if unlikely(word_state(word) == FREE):
            um.violations += 1
            return
        store_relaxed_u64(&um.ledger[frame].word,
                          (word & GENERATION_MASK) + (<uint64_t>1 << 32))
    if likely(frame < um.rx_frames):
        um.rx_free[um.rx_free_n] = frame
        um.rx_free_n += 1
    else:
        um.tx_free[um.tx_free_n] = frame
        um.tx_free_n += 1


cdef inline void frames_free(oc_umem* um, const uint32_t* frames, uint32_t n) noexcept nogil:
    """frame_free for a burst: the stack pointers stay in registers."""
    cdef oc_entry* ledger = um.ledger
    cdef uint32_t* rx = um.rx_free + um.rx_free_n
    cdef uint32_t* tx = um.tx_free + um.tx_free_n
    cdef uint32_t i, frame, rx_frames = um.rx_frames
    cdef uint64_t word
    if unlikely(um.history != NULL):
        frames_note(um, frames, n, HOME, NO_QUEUE)
    for i in range(n):
        frame = frames[i]
        if OC_LEDGER_ON:
            word = ledger[frame].word
            if unlikely(word_state(word) == FREE):
                um.violations += 1
                continue
            store_relaxed_u64(&ledger[frame].word, (word & GENERATION_MASK) + (<uint64_t>1 << 32))
        if likely(frame < rx_frames):
            rx[0] = frame
            rx += 1
        else:
            tx[0] = frame
            tx += 1
    um.rx_free_n = <uint32_t>(rx - um.rx_free)
    um.tx_free_n = <uint32_t>(tx - um.tx_free)


cdef inline bint frame_release_leased(oc_umem* um, uint32_t frame,
                                      uint32_t generation) noexcept nogil:
    """Drops one reference of a lease; the last one frees. False if the lease is not this one."""
    cdef uint64_t word = um.ledger[frame].word
    if unlikely(word_generation(word) != generation or word_state(word) != LEASED):
        return False
    if likely(word_references(word) == 1):
        frame_free(um, frame)
    else:
        store_relaxed_u64(&um.ledger[frame].word, word - (1 << 8))
    return True


cdef inline bint frame_is(oc_umem* um, uint32_t frame, uint32_t generation) noexcept nogil:
    """Is this lease still alive?"""
    cdef uint64_t word = load_relaxed_u64(&um.ledger[frame].word)
    return word_generation(word) == generation and word_state(word) == LEASED


cdef class Frames:
    cdef oc_umem um
    cdef History past
    cdef readonly Arena arena
    cdef readonly Arena ledger_arena
