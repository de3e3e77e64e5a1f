# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True
"""A recorder's window: the last seconds in memory, written only when somebody asks for them.

Owns the ring of blocks that are not (yet) to be written, and the copying of the packets that match
into blocks that are. The originals stay until they are too old or their memory is needed, so two
requests may overlap; a packet is written once. What leaves the window unasked is counted as
expired: it was not lost, nobody wanted it. All of it runs in the writer's thread, a piece a round.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from cython_ext.atomics cimport count_u64, load_acquire_u32, store_release_u32
from cython_ext.log_format cimport (OC_LOG_HEAD_BYTES, OC_LOG_RECORD_BYTES, log_after, log_fit,
                                    log_place, oc_log_record)
from cython_ext.pcap cimport bpf_filter
from cython_ext.recorder_blocks cimport get_block, put_block, take_one
from cython_ext.spool cimport BLOCK_BYTES

cdef enum:
    KEPT = 0x8000                 # in a record's flags, in memory only: it has been written
    PIECE = 64                    # blocks looked at in one round: a millisecond


cdef void window_take(oc_recorder* w, const oc_block* b) noexcept nogil:
    """One more block; a loss without one joins the next."""
    cdef oc_block* last = &w.window[(w.window_last - 1) & w.mask]
    count_u64(&w.taken_packets, b.records)
    if w.window_last - w.window_first > w.mask:
        window_expire(w)
    if b.data == NULL and w.window_last > w.window_first and last.data == NULL:
        last.lost += b.lost
        last.lost_bytes += b.lost_bytes
        last.last_ns = b.last_ns
        return
    w.window[w.window_last & w.mask] = b[0]
    w.window_last += 1


cdef bint window_expire(oc_recorder* w) noexcept nogil:
    """The oldest block goes; False if there is none, or it is being looked at."""
    cdef oc_block* b = &w.window[w.window_first & w.mask]
    cdef uint64_t at = OC_LOG_HEAD_BYTES, left
    cdef oc_log_record* r
    if w.window_first == w.window_last:
        return False
    if w.keeping and w.keep_at <= w.window_first:
        return False
    if b.data != NULL:
        left = b.records
        while left:
            at = log_place(at)
            r = <oc_log_record*>(b.data + at)
            if not r.flags & KEPT:
                count_u64(&w.expired_packets, 1)
            at = log_after(at, r.captured)
            left -= 1
        put_block(w, b.data)
        b.data = NULL
    w.window_first += 1
    return True


cdef void window_round(oc_recorder* w, uint64_t now) noexcept nogil:
    """Answers a request, a piece of it; then what is too old goes."""
    cdef uint64_t oldest = now + w.to_realtime - w.window_ns
    cdef uint32_t pieces = 0
    if not w.keeping and load_acquire_u32(&w.keep_asked) != w.keep_done:
        w.keeping = True
        w.keep_at = w.window_first
        w.keep_place = OC_LOG_HEAD_BYTES
    while w.keeping and pieces < PIECE:
        if w.keep_at == w.window_last:
            hand_over(w)
            w.keeping = False
            store_release_u32(&w.keep_done, w.keep_asked)
            break
        if not keep_block(w, &w.window[w.keep_at & w.mask]):
            break                                # no memory for copies: when some is durable
        w.keep_at += 1
        w.keep_place = OC_LOG_HEAD_BYTES
        pieces += 1
    while w.window_first < w.window_last and (
            w.window[w.window_first & w.mask].last_ns < oldest):
        if not window_expire(w):
            break


cdef void hand_over(oc_recorder* w) noexcept nogil:
    """What has been copied so far, to be written."""
    if w.keep_open.data != NULL or w.keep_open.lost:
        # take_one counts what it takes as new; these came, and were counted, once before.
        w.taken_packets -= w.keep_open.records
        take_one(w, &w.keep_open)
    memset(&w.keep_open, 0, sizeof(oc_block))


cdef bint keep_block(oc_recorder* w, oc_block* b) noexcept nogil:
    """Copies what matches in one block; False: there is no memory to copy to."""
    cdef oc_log_record* r
    cdef uint64_t at, end
    cdef uint8_t* packet
    if b.last_ns < w.keep_since_ns:
        return True
    if b.lost:
        w.keep_open.lost += b.lost
        w.keep_open.lost_bytes += b.lost_bytes
        w.keep_open.lost_ns = b.lost_ns
        b.lost = b.lost_bytes = 0
    while b.data != NULL and log_place(w.keep_place) + OC_LOG_RECORD_BYTES <= b.used:
        at = log_place(w.keep_place)
        r = <oc_log_record*>(b.data + at)
        end = log_after(at, r.captured)
        packet = b.data + at + OC_LOG_RECORD_BYTES
        if r.timestamp_ns >= w.keep_since_ns and not r.flags & KEPT and (
                w.keep_filter == NULL
                or bpf_filter(w.keep_filter, packet, r.original, r.captured) != 0):
            if not copy_record(w, r):
                return False
            r.flags |= KEPT
            count_u64(&w.kept_packets, 1)
        w.keep_place = end
    return True


cdef bint copy_record(oc_recorder* w, const oc_log_record* r) noexcept nogil:
    """As the worker wrote it: header without number, payload, padding."""
    cdef oc_block* to = &w.keep_open
    cdef uint64_t place = 0
    if to.data != NULL:
        place = log_fit(to.used, r.captured, BLOCK_BYTES)
        if place == 0:
            hand_over(w)
    if to.data == NULL:
        to.data = get_block(w)
        if to.data == NULL and window_expire(w):
            to.data = get_block(w)               # what was looked at already makes room
        if to.data == NULL:
            return False
        to.used = OC_LOG_HEAD_BYTES
        to.first_ns = r.timestamp_ns
        place = OC_LOG_HEAD_BYTES
    memset(to.data + to.used, 0, place - to.used)
    memcpy(to.data + place, r, log_after(place, r.captured) - place)
    to.used = <uint32_t>log_after(place, r.captured)
    to.records += 1
    to.bytes += r.captured
    to.last_ns = r.timestamp_ns
    return True


cdef void window_forget(oc_recorder* w) noexcept nogil:
    """At the end: what nobody asked for."""
    if w.keeping:
        return
    while window_expire(w):
        pass
