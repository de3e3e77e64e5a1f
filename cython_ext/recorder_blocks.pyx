# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True
"""A recorder's entries and blocks: taken from spools, held, released, or given up and counted.

Owns the memory of one recorder within its limit: who gets empty blocks, when some go back to the
mid tier, and which entries go first when no device takes them. recorder_types.pxd says what an
entry is.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset
from cython_ext.atomics cimport count_u64, load_acquire_u32, unlikely
from cython_ext.recorder_types cimport oc_held, oc_recorder
from cython_ext.recorder_window cimport window_expire, window_take
from cython_ext.shm_ring cimport spsc_dequeue, spsc_enqueue
from cython_ext.slab cimport slabs_alloc_one, slabs_free_one
from cython_ext.spool cimport BLOCK_CLASS, oc_block

cdef enum:
    TAKE = 64                     # entries of a spool at once
    TIDY_NS = 1000000000
    WINDOW_SPARE = 2


cdef uint32_t take_blocks(oc_recorder* w) noexcept nogil:
    """Everything that the workers have handed over; how many entries."""
    cdef uint32_t i, k, n, taken = 0
    cdef oc_block[TAKE] blocks
    for i in range(w.n_spools):
        # What there is no place for stays in the ring: blocks always find one, losses may not.
        while w.last - w.first + TAKE <= w.mask:
            n = spsc_dequeue(w.full[i], blocks, TAKE, 1)
            for k in range(n):
                if w.window_ns:
                    window_take(w, &blocks[k])
                else:
                    take_one(w, &blocks[k])
            taken += n
            if n < TAKE:
                break
    return taken


cdef void take_one(oc_recorder* w, const oc_block* b) noexcept nogil:
    """One more entry to be written."""
    cdef oc_held* e = &w.held[(w.last - 1) & w.mask]
    count_u64(&w.taken_packets, b.records)
    if b.data == NULL and w.last > w.next and e.b.data == NULL:
        e.b.lost += b.lost                       # two losses with nothing between them are one
        e.b.lost_bytes += b.lost_bytes
        return
    e = &w.held[w.last & w.mask]
    memset(e, 0, sizeof(oc_held))
    e.b = b[0]
    if unlikely(w.loss.dropped + w.loss.b.lost != 0):
        inherit(e, &w.loss)
        memset(&w.loss, 0, sizeof(oc_held))
    w.last += 1


cdef void inherit(oc_held* e, const oc_held* before) noexcept nogil:
    """The losses in front of an entry that is no more are now in front of this one."""
    if before.dropped:
        if e.dropped == 0 or before.dropped_ns < e.dropped_ns:
            e.dropped_ns = before.dropped_ns
        e.dropped += before.dropped
        e.dropped_bytes += before.dropped_bytes
    if before.b.lost:
        if e.b.lost == 0 or before.b.lost_ns < e.b.lost_ns:
            e.b.lost_ns = before.b.lost_ns
        e.b.lost += before.b.lost
        e.b.lost_bytes += before.b.lost_bytes


cdef void own_up(oc_recorder* w) noexcept nogil:
    """A loss that no packet followed gets an entry of its own."""
    cdef oc_held* e
    if w.first == w.last and w.loss.dropped + w.loss.b.lost:
        e = &w.held[w.last & w.mask]
        e[0] = w.loss
        memset(&w.loss, 0, sizeof(oc_held))
        w.last += 1


cdef uint8_t* get_block(oc_recorder* w) noexcept nogil:
    """An empty block within the limit, or NULL."""
    cdef uint8_t* block
    if w.n_spare:
        w.n_spare -= 1
        if w.n_spare < w.spare_low:
            w.spare_low = w.n_spare
        return w.spare[w.n_spare]
    if w.blocks >= w.blocks_max:
        return NULL
    block = <uint8_t*>slabs_alloc_one(w.cache, BLOCK_CLASS)
    if block == NULL:
        count_u64(&w.refused, 1)
        return NULL
    w.blocks += 1
    if w.blocks > w.blocks_peak:
        w.blocks_peak = w.blocks
    return block


cdef void put_block(oc_recorder* w, uint8_t* block) noexcept nogil:
    w.spare[w.n_spare] = block
    w.n_spare += 1


cdef void supply(oc_recorder* w, bint nowhere) noexcept nogil:
    """Keeps the workers in blocks. With nowhere to write, the oldest packets make room.

    How many a spool is kept at doubles when it was found nearly without: what counts is how long
    this thread can be away, which no constant knows.
    """
    cdef uint32_t i, have
    cdef uint64_t block
    for i in range(w.n_spools):
        have = w.free[i].mine - load_acquire_u32(w.free[i].shared_theirs)
        if have * 4 < w.stock[i] and w.stocked[i] and not w.window_ns and (
                w.stock[i] * 2 <= w.blocks_max // w.n_spools):
            w.stock[i] *= 2
        while have < w.stock[i]:
            # A window keeps some blocks back, for the copies that a request begins with.
            if w.window_ns and w.n_spare + w.blocks_max - w.blocks <= WINDOW_SPARE:
                if window_expire(w):
                    continue
                break
            block = <uint64_t>get_block(w)
            if block == 0:
                if not nowhere or have * 4 >= w.stock[i] or w.first == w.last:
                    break
                give_up_oldest(w)
                continue
            spsc_enqueue(w.free[i], &block, 1, 1)
            have += 1
        w.stocked[i] = have >= w.stock[i]


cdef void release(oc_recorder* w, uint64_t upto) noexcept nogil:
    """These entries are durable."""
    cdef oc_held* e
    while w.first < upto:
        e = &w.held[w.first & w.mask]
        count_u64(&w.durable_packets, e.b.records)
        count_u64(&w.durable_bytes, e.b.bytes)
        w.durable_seq = e.last_seq
        if e.b.lost + e.dropped:
            count_u64(&w.gaps, 1)
            count_u64(&w.gap_packets, e.b.lost + e.dropped)
        drop_block(w, e)
        w.first += 1


cdef void drop_block(oc_recorder* w, oc_held* e) noexcept nogil:
    if e.b.data == NULL:
        return
    if e.stuck:
        w.stuck += 1
    else:
        put_block(w, e.b.data)
    e.b.data = NULL


cdef void give_up_oldest(oc_recorder* w) noexcept nogil:
    """The oldest entry goes; the next one, or the recorder, remembers how many packets that was.
    Only when nothing is under way: first == next."""
    cdef oc_held* e = &w.held[w.first & w.mask]
    count_u64(&w.dropped_packets, e.b.records)
    count_u64(&w.dropped_bytes, e.b.bytes)
    if e.b.records:
        if e.dropped == 0:
            e.dropped_ns = e.b.first_ns
        e.dropped += e.b.records
        e.dropped_bytes += e.b.bytes
    w.first += 1
    w.next = w.written = w.first
    inherit(&w.held[w.first & w.mask] if w.first < w.last else &w.loss, e)
    drop_block(w, e)


cdef void lose_everything(oc_recorder* w) noexcept nogil:
    """At the end, with nowhere to write to."""
    w.next = w.written = w.first
    while w.first < w.last:
        give_up_oldest(w)


cdef void tidy(oc_recorder* w, uint64_t now) noexcept nogil:
    """Once a second: half of what was not needed all that time goes back to the tier."""
    cdef uint32_t n
    if now - w.tidied_ns < TIDY_NS:
        return
    w.tidied_ns = now
    n = w.spare_low // 2
    while n:
        w.n_spare -= 1
        slabs_free_one(w.cache, BLOCK_CLASS, w.spare[w.n_spare])
        w.blocks -= 1
        n -= 1
    w.spare_low = w.n_spare
