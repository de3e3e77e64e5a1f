# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True
"""The FILL ring: frames for the kernel to receive into, from the pool or straight from a burst.

Owns what is posted and how much; taking packets is bursts.pyx. Everything here runs without the
GIL, by the owner of the UMEM, and keeps the ledger.
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t

from cython_ext.atomics cimport OC_LEDGER_ON, store_relaxed_u64, unlikely
from cython_ext.frames cimport (FILL, GENERATION_MASK, RX, frames_free, frames_note, oc_entry,
                                oc_umem, word_state)
from cython_ext.history cimport POSTED
from cython_ext.queue cimport oc_queue
from cython_ext.rings cimport oc_ring, ring_free, ring_publish


cdef uint32_t fill_up(oc_queue* q, uint32_t more) noexcept nogil:
    """Posts up to `more` free frames to FILL; returns how many there was memory and room for."""
    cdef oc_umem* um = q.um
    cdef oc_ring* r = &q.fill
    cdef uint32_t i, frame, n = more, room
    cdef uint32_t mask = r.mask, at = r.mine, shift = um.frame_shift
    cdef uint64_t* entries = <uint64_t*>r.entries
    cdef oc_entry* ledger = um.ledger
    cdef const uint32_t* stack
    if n > um.rx_free_n:
        n = um.rx_free_n
    room = ring_free(r, n)
    if n > room:
        n = room
    stack = um.rx_free + um.rx_free_n
    for i in range(n):
        frame = stack[-<int64_t>i - 1]
        if OC_LEDGER_ON:
            store_relaxed_u64(&ledger[frame].word, (ledger[frame].word & GENERATION_MASK) | FILL)
        entries[(at + i) & mask] = <uint64_t>frame << shift
    um.rx_free_n -= n
    if unlikely(um.history != NULL):
        for i in range(n):
            frame = stack[-<int64_t>i - 1]
            frames_note(um, &frame, 1, POSTED, q.queue_id)
    r.mine += n
    q.filled += n
    if n:
        ring_publish(r)
    return n


cdef void frames_home(oc_queue* q, const uint32_t* frames, uint32_t n) noexcept nogil:
    """Frames of a burst that nobody kept: to FILL, up to its target, and what is left to the pools.

    Straight to FILL is one step of the ledger instead of two and no turn through the free pool:
    1.2 ns a packet less (`bench loop`). With a history all go through the pool, step by step.
    """
    cdef oc_umem* um = q.um
    cdef oc_ring* r = &q.fill
    cdef oc_entry* ledger = um.ledger
    cdef uint64_t* entries = <uint64_t*>r.entries
    cdef uint32_t mask = r.mask, at = r.mine, shift = um.frame_shift
    cdef uint32_t target = q.fill_target         # once: the governor lowers it at any time
    cdef uint32_t i, frame, room, direct = 0
    cdef uint64_t word
    if q.filled < target and um.history == NULL:
        direct = target - q.filled
        if direct > n:
            direct = n
        room = ring_free(r, direct)
        if direct > room:
            direct = room
    for i in range(direct):
        frame = frames[i]
        if OC_LEDGER_ON:
            word = ledger[frame].word
            if unlikely(word_state(word) != RX): # not of this burst, or here twice
                um.violations += 1
                continue
            store_relaxed_u64(&ledger[frame].word,
                              (word & GENERATION_MASK) + ((<uint64_t>1 << 32) | FILL))
        entries[at & mask] = <uint64_t>frame << shift
        at += 1
    q.filled += at - r.mine
    if at != r.mine:
        r.mine = at
        ring_publish(r)
    if direct < n:
        frames_free(um, frames + direct, n - direct)
