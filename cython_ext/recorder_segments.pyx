# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True
"""A recorder's segments: begun, filled, sealed, flushed, and abandoned when their device fails.

Owns the order of what goes to the device. Two segments can be under way, the live one and the one
before it, so a rotation waits for nothing; one flush at a time, of the older one first, so that
"durable" always means everything up to there. After a fault nothing more is submitted until all has
come back or counts as hung; then both segments are given up, and all that is held begins anew.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from cython_ext.atomics cimport count_u64, load_acquire_u32, store_release_u32, unlikely
from cython_ext.log_device cimport (DEPTH, SYNC, WRITE, WRITE_BLOCKS, device_close, device_collect,
                                    device_in_flight, device_oldest_ns, device_open,
                                    device_release, device_request, device_submit, oc_request)
from cython_ext.queue cimport now_ns
from cython_ext.recorder_blocks cimport release
from cython_ext.recorder_types cimport (BEGUN, EVENTS_MAX, FAILED, HUNG, RETIRED, WRITES_MAX,
                                        oc_held, oc_live, oc_note, oc_recorder)
from cython_ext.slab cimport slabs_alloc_one
from cython_ext.spool cimport BLOCK_CLASS
from cython_ext.log_format cimport (OC_LOG_FRESH, OC_LOG_GAP, OC_LOG_HEAD_BYTES, OC_LOG_NO_PORT,
                                    OC_LOG_PAGE, log_append, log_begin, log_begin_segment,
                                    log_close_segment, log_close_write, log_finish, log_pages,
                                    log_state_put, oc_log_gap, oc_log_record)

cdef extern from *:
    """
    #include <errno.h>
    #include <sys/eventfd.h>
    static inline void oc_tell(int fd) { eventfd_write(fd, 1); }
    """
    int ETIMEDOUT, EILSEQ
    void tell "oc_tell"(int fd) noexcept nogil

cdef enum:
    SEAL_BYTES = 49152            # 44 KiB and some: kept free at the end of every segment


cdef bint note(oc_recorder* w, uint32_t kind, const oc_live* seg, int error,
               uint32_t operation) noexcept nogil:
    """One event for Python; False if it has not taken the last ones yet."""
    cdef oc_note* n
    if w.notes_head - load_acquire_u32(&w.notes_tail) == EVENTS_MAX:
        return False
    n = &w.notes[w.notes_head % EVENTS_MAX]
    n.kind, n.place, n.serial, n.synced = kind, seg.place, seg.serial, seg.synced
    n.error, n.operation = error, operation
    store_release_u32(&w.notes_head, w.notes_head + 1)
    tell(w.helper_fd)
    return True


cdef void push(oc_recorder* w, oc_live* seg, oc_request* r, uint64_t now) noexcept nogil:
    """A write of this segment, after all others."""
    r.kind = WRITE
    r.target = seg.target
    r.serial = seg.serial
    w.order[(w.order_head + w.order_n) % DEPTH] = r
    w.order_n += 1
    seg.outstanding += 1
    count_u64(&w.writes, 1)
    count_u64(&w.write_bytes, r.bytes)
    device_submit(w.device, r, now)


cdef void add(oc_request* r, void* data, uint64_t nbytes) noexcept nogil:
    r.iov[r.n_iov].iov_base = data
    r.iov[r.n_iov].iov_len = nbytes
    r.n_iov += 1
    r.bytes += nbytes


cdef bint begin_segment(oc_recorder* w, uint64_t now) noexcept nogil:
    """Makes the segment that was given the live one; its header is the first write."""
    cdef oc_request* r
    cdef uint8_t* page
    if not load_acquire_u32(&w.is_given) or w.live.used or w.order_n >= WRITES_MAX:
        return False
    r = device_request(w.device)
    if r == NULL:
        return False
    memset(&w.live, 0, sizeof(oc_live))
    w.live.used = True
    w.live.target = w.given.target
    w.live.place = w.given.place
    w.live.serial = w.given.header.index
    w.live.epoch = w.given.header.epoch
    page = w.pages + r.slot * OC_LOG_PAGE
    w.given.header.created_ns = now + w.to_realtime
    if w.fresh:
        w.given.header.flags |= OC_LOG_FRESH
        w.fresh = False
    log_begin_segment(&w.chain, w.tally, w.given.header)
    memcpy(page, w.given.header, OC_LOG_PAGE)
    store_release_u32(&w.is_given, 0)
    tell(w.helper_fd)
    add(r, page, OC_LOG_PAGE)
    r.covers = w.next
    r.end = OC_LOG_PAGE
    w.live.end = w.next
    push(w, &w.live, r, now)
    return True


cdef uint64_t put_gap(oc_recorder* w, void* page, oc_held* e, uint64_t now) noexcept nogil:
    """A write that says what is missing in front of this entry."""
    cdef oc_log_gap gap
    cdef oc_log_record* r
    cdef uint64_t used
    memset(&gap, 0, sizeof(gap))
    gap.first_ns = e.b.lost_ns if e.b.lost else e.dropped_ns
    if e.dropped and e.dropped_ns < gap.first_ns:
        gap.first_ns = e.dropped_ns
    gap.last_ns = e.b.first_ns if e.b.first_ns > gap.first_ns else gap.first_ns
    gap.packets = e.b.lost + e.dropped
    gap.bytes = e.b.lost_bytes + e.dropped_bytes
    if e.dropped:
        memcpy(gap.reason[gap.reasons].name, b"device", 6)
        gap.reason[gap.reasons].packets = e.dropped
        gap.reasons += 1
    if e.b.lost:
        memcpy(gap.reason[gap.reasons].name, b"no_memory", 9)
        gap.reason[gap.reasons].packets = e.b.lost
        gap.reasons += 1
    r = log_begin(page, OC_LOG_HEAD_BYTES, OC_LOG_HEAD_BYTES, OC_LOG_GAP)
    r.port = OC_LOG_NO_PORT
    r.timestamp_ns = gap.first_ns
    log_append(r, &gap, 40 + 32 * gap.reasons)
    r.original = r.captured
    used = log_finish(page, r)
    return log_close_write(&w.chain, w.tally, page, used, 1, w.durable_seq, now + w.to_realtime)


cdef uint64_t needs(oc_held* e) noexcept nogil:
    return (log_pages(e.b.used) if e.b.data != NULL else 0) + (
        OC_LOG_PAGE if e.b.lost + e.dropped else 0)


cdef bint submit_writes(oc_recorder* w, uint64_t now) noexcept nogil:
    """As many waiting entries as the device should be busy with; whether any."""
    cdef bint any = False
    cdef oc_held* e
    cdef oc_request* r
    cdef uint64_t nbytes
    cdef bint bad = False
    while w.next < w.last and w.live.used and not w.live.sealed and w.order_n < WRITES_MAX:
        e = &w.held[w.next & w.mask]
        if w.chain.offset + needs(e) + SEAL_BYTES > w.live.target.bytes:
            seal_live(w, now)
            break
        r = device_request(w.device)
        if r == NULL:
            break
        r.offset = w.chain.offset
        if e.b.lost + e.dropped:
            add(r, w.pages + r.slot * OC_LOG_PAGE,
                put_gap(w, w.pages + r.slot * OC_LOG_PAGE, e, now))
        while True:
            if e.b.data != NULL:
                nbytes = log_close_write(&w.chain, w.tally, e.b.data, e.b.used, e.b.records,
                                         w.durable_seq, now + w.to_realtime)
                if unlikely(nbytes == 0):
                    bad = True                   # somebody wrote into our block
                    break
                add(r, e.b.data, nbytes)
            e.last_seq = w.chain.seq - 1
            w.next += 1
            e = &w.held[w.next & w.mask]
            if (w.next == w.last or r.n_iov == WRITE_BLOCKS or e.b.lost + e.dropped
                    or w.chain.offset + needs(e) + SEAL_BYTES > w.live.target.bytes):
                break
        r.covers = w.next
        r.end = w.chain.offset
        w.live.end = w.next
        if unlikely(bad):
            device_release(w.device, r)
            fail(w, EILSEQ, WRITE, w.live.serial)
            e.dropped += e.b.records
            count_u64(&w.dropped_packets, e.b.records)
            e.b.records = 0
            e.b.used = OC_LOG_HEAD_BYTES
            return True
        push(w, &w.live, r, now)
        any = True
    return any


cdef bint seal_live(oc_recorder* w, uint64_t now) noexcept nogil:
    """The live segment's last write; it becomes the old one when that one is done with."""
    cdef oc_request* r
    if w.live.sealed or not w.live.used:
        return False
    r = device_request(w.device)
    if r == NULL or w.old.used or w.order_n >= WRITES_MAX:
        return False
    r.offset = w.chain.offset
    add(r, w.seal, log_close_segment(&w.chain, w.tally, w.seal, w.durable_seq,
                                     now + w.to_realtime))
    r.covers = w.next
    r.end = w.chain.offset
    push(w, &w.live, r, now)
    w.live.sealed = True
    w.old = w.live
    memset(&w.live, 0, sizeof(oc_live))
    return True


cdef bint submit_sync(oc_recorder* w, uint64_t now, bint urgent) noexcept nogil:
    """A flush, if one is due and none is under way."""
    cdef oc_live* seg = &w.old if w.old.used else &w.live
    cdef oc_request* r
    if w.syncing != NULL or not seg.used or seg.written == seg.synced:
        return False
    if seg.sealed:
        if seg.outstanding:
            return False                         # once, when all of it is there
    elif not urgent and seg.written - seg.synced < w.commit_bytes and (
            now - seg.dirty_ns < w.commit_ns // 8):
        return False
    r = device_request(w.device)
    if r == NULL:
        return False
    r.kind = SYNC
    r.target = seg.target
    r.serial = seg.serial
    r.covers = w.written if seg == &w.live else min(w.written, seg.end)
    r.end = seg.written
    w.syncing = r
    device_submit(w.device, r, now)
    return True


cdef void publish(oc_recorder* w) noexcept nogil:
    """What readers may look at. Into memory of ours: run_publisher has the reason."""
    w.state.durable_seq = w.durable_seq
    w.state.updated_ns = now_ns() + w.to_realtime
    log_state_put(w.state_shadow, &w.state)


cdef void fail(oc_recorder* w, int error, uint32_t operation, uint64_t serial) noexcept nogil:
    """The first fault counts; what comes back after it is only waited for."""
    if w.failing == 0:
        w.failing = error
        w.fail_operation = operation
        w.fail_serial = serial


cdef bint collect(oc_recorder* w, uint64_t now) noexcept nogil:
    """What the device has ended: writes in their order, flushes."""
    cdef oc_request* r
    cdef bint any = False
    cdef uint64_t oldest
    if w.device == NULL:
        return False
    while True:
        r = device_collect(w.device)
        if r == NULL:
            break
        any = True
        if r.result < 0:
            fail(w, <int>-r.result, r.kind, r.serial)
        if r.kind == SYNC:
            end_sync(w, r, now)
    while w.order_n and w.order[w.order_head].done:
        r = w.order[w.order_head]
        w.order_head = (w.order_head + 1) % DEPTH
        w.order_n -= 1
        if not w.failing:
            end_write(w, r, now)
        device_release(w.device, r)
    oldest = device_oldest_ns(w.device)
    if oldest and now > oldest + w.hang_ns:
        fail(w, ETIMEDOUT, WRITE, w.old.serial if w.old.used else w.live.serial)
    return any


cdef void end_write(oc_recorder* w, oc_request* r, uint64_t now) noexcept nogil:
    cdef oc_live* seg = &w.live if w.live.used and r.serial == w.live.serial else &w.old
    seg.outstanding -= 1
    if seg.written == seg.synced:
        seg.dirty_ns = now
    seg.written = r.end
    w.written = r.covers
    if r.end == OC_LOG_PAGE:
        note(w, BEGUN, seg, 0, WRITE)
    w.state.epoch = seg.epoch
    w.state.index = seg.serial
    w.state.published = r.end
    if w.written > w.first:
        w.state.last_seq = w.held[(w.written - 1) & w.mask].last_seq
    publish(w)


cdef void end_sync(oc_recorder* w, oc_request* r, uint64_t now) noexcept nogil:
    cdef oc_live* seg = &w.old if w.old.used else &w.live
    cdef uint64_t took = now - r.submitted_ns
    w.syncing = NULL
    count_u64(&w.syncs, 1)
    count_u64(&w.sync_ns, took)
    if took > w.sync_worst_ns:
        w.sync_worst_ns = took
    # A flush that succeeds after another request failed proves nothing that the reader could tell.
    if not w.failing:
        seg.synced = r.end
        seg.dirty_ns = now
        release(w, r.covers)
        publish(w)
    device_release(w.device, r)


cdef void retire(oc_recorder* w) noexcept nogil:
    """The old segment, once all of it is flushed and Python can be told."""
    if w.old.used and w.old.outstanding == 0 and w.old.written == w.old.synced and (
            not w.failing and note(w, RETIRED, &w.old, 0, SYNC)):
        w.old.used = False


cdef bint ready(oc_recorder* w) noexcept nogil:
    """Whether there is a device, and memory for what is written beside the blocks."""
    cdef int error = 0
    if w.device == NULL:
        w.device = device_open(w.engine, w.wake_fd, &error)
    if w.pages == NULL:
        w.pages = <uint8_t*>slabs_alloc_one(w.cache, BLOCK_CLASS)
    if w.seal == NULL:
        w.seal = <uint8_t*>slabs_alloc_one(w.cache, BLOCK_CLASS)
    return w.device != NULL and w.pages != NULL and w.seal != NULL


cdef void settle(oc_recorder* w, uint64_t now) noexcept nogil:
    """After a fault: when all has come back, or hangs, both segments are given up."""
    cdef uint64_t oldest = device_oldest_ns(w.device)
    cdef bint hung = False
    cdef oc_live* seg
    cdef uint32_t kind, i
    if device_in_flight(w.device):
        if oldest == 0 or now < oldest + w.hang_ns:
            return
        hung = True
    if EVENTS_MAX - (w.notes_head - load_acquire_u32(&w.notes_tail)) < 2:
        return
    if hung:
        abandon_device(w)
    kind = HUNG if hung else FAILED
    for i in range(2):
        seg = &w.live if i else &w.old
        if seg.used:
            # The one that is not to blame is given up as well: its records come after lost ones.
            note(w, kind, seg, w.failing if seg.serial == w.fail_serial else 0, w.fail_operation)
            seg.used = False
    w.next = w.written = w.first
    w.chain.seq = w.durable_seq + 1
    w.fresh = True
    w.failing = 0
    w.state.published = 0
    publish(w)


cdef void abandon_device(oc_recorder* w) noexcept nogil:
    """The kernel may still read what is under way, whenever: none of that memory is used again."""
    cdef uint64_t i
    for i in range(w.first, w.next):
        w.held[i & w.mask].stuck = True
    device_close(w.device)
    w.device = NULL
    w.pages = NULL
    w.seal = NULL
    w.stuck += 2
    w.order_n = 0
    w.syncing = NULL
