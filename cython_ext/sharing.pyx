# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True
"""Lending to consumers in other processes, the worker's half; see sharing.pxd for who owns what.

Owns the decisions per packet: who gets it, as a frame, as a copy in the mid tier, or not at all;
and per round: what came back, who was away too long, who died. It waits for nobody and believes
nobody. A little longer than other rooms: what is lent, and how it comes home, belong together.
"""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from cython_ext.atomics cimport (count_u64, likely, load_acquire_u32, load_acquire_u64,
                                 load_relaxed_u32, load_relaxed_u64, store_relaxed_u32,
                                 store_relaxed_u64, store_release_u32, store_release_u64, unlikely)
from cython_ext.filling cimport frames_home
from cython_ext.flow cimport bucket_of
from cython_ext.frames cimport (LEASED, NO_QUEUE, RX, frame_release_leased, frames_note,
                                pthread_mutex_lock, pthread_mutex_unlock, word_generation,
                                word_of, word_references, word_state)
from cython_ext.history cimport HELD, LET_GO
from cython_ext.pcap cimport bpf_filter
from cython_ext.queue cimport BURST, oc_queue
from cython_ext.slab cimport slabs_alloc, slabs_free
from cython_ext.slab_types cimport class_of_bytes, name_one

cdef enum:
    REFERENCES_MAX = 250      # of one frame: the ledger counts to 255
    RETURNS_MAX = 512         # read in one round from one member: eight bursts
    RECLAIM_MAX = 1024        # brought home in one round: some 20 us, while the RX ring holds 2 ms
    FRAMES_LOW = 128          # two bursts of replacements: below, the window gives way
    SLAB_BYTES_MAX = 65536
    BACKING_2M = 1            # in the tier's table of arenas: backing + 1


# ---------------------------------------------------------------------------------- a packet

cdef inline bint take_reference(oc_umem* um, uint32_t frame, uint32_t owner,
                                uint32_t queue) noexcept nogil:
    """One more holder of a frame that the worker has in hand."""
    cdef uint64_t word = um.ledger[frame].word
    if word_state(word) == RX:
        word = word_of(word_generation(word), owner, 0, LEASED)
    elif unlikely(word_references(word) >= REFERENCES_MAX):
        return False
    store_relaxed_u64(&um.ledger[frame].word, word + (1 << 8))
    if unlikely(um.history != NULL):
        frames_note(um, &frame, 1, HELD, queue)
    return True


cdef inline void drop_reference(oc_share* s, uint32_t frame, uint32_t generation) noexcept nogil:
    if unlikely(s.um.history != NULL):
        frames_note(s.um, &frame, 1, LET_GO, NO_QUEUE)
    if unlikely(not frame_release_leased(s.um, frame, generation)):
        s.violations += 1


cdef void* copy_out(oc_share* s, const oc_burst* b, uint32_t first, uint32_t last,
                    uint32_t length, uint64_t held, uint32_t* nbytes) noexcept nogil:
    """The packet in one slab; NULL when there is no room for who holds `held` bytes already.

    One member never gets more than what is left for all others: the first that stalls may have a
    half, the second a quarter. (Choudhury and Hahne's dynamic thresholds, as switches do it.)
    """
    cdef uint32_t cls, f
    cdef uint64_t left = s.copy_bytes - s.copied_bytes
    cdef void* p = NULL
    cdef uint8_t* at
    if s.cache == NULL or length == 0 or length > SLAB_BYTES_MAX:
        return NULL
    cls = class_of_bytes(length)
    nbytes[0] = <uint32_t>64 << cls
    if held + nbytes[0] > left or slabs_alloc(s.cache, cls, &p, 1) < 0:
        return NULL
    s.copied_bytes += nbytes[0]
    at = <uint8_t*>p
    for f in range(first, last):
        memcpy(at, s.um.base + b.addr[f], b.bytes[f])
        at += b.bytes[f]
    return p


cdef inline void drop_copy(oc_share* s, void* slab, uint32_t nbytes) noexcept nogil:
    s.violations += slabs_free(s.cache, &slab, 1)
    s.copied_bytes -= nbytes


cdef inline void describe(oc_member* m, const oc_burst* b, uint32_t i, uint32_t queue,
                          uint64_t place, uint32_t kind, uint32_t frame, uint32_t generation,
                          uint32_t slot, uint32_t serial) noexcept nogil:
    """The next entry of a member; visible to it when the round publishes."""
    cdef oc_lent* e = &m.entries[m.produced & m.mask]
    store_relaxed_u64(&e.seq, 0)
    fence_release()
    e.timestamp_ns = b.timestamp_ns[i]
    e.place = place
    e.length = b.length[i]
    e.rule_id = b.rule_id[i]
    e.slot = slot
    e.serial = serial
    e.frame = frame
    e.generation = generation
    e.kind = kind
    e.queue = queue
    e.flags = b.flags[i]
    e.missed = <uint32_t>m.dropped
    m.produced += 1
    store_release_u64(&e.seq, m.produced)
    count_u64(&m.frames, 1)
    count_u64(&m.bytes, b.length[i])


cdef inline void place_of(oc_share* s, void* slab, uint64_t* place, uint32_t* kind) noexcept nogil:
    place[0] = <uint64_t>slab - <uint64_t>s.cache.tier.base
    kind[0] = IN_SLAB_2M if s.cache.tier.backings[place[0] >> 21] == BACKING_2M else IN_SLAB_4K


cdef void lend(oc_share* s, oc_member* m, const oc_burst* b, uint32_t i, uint32_t queue,
               uint32_t bucket, bint sent_on, uint64_t now) noexcept nogil:
    """One packet to a reliable member: the frame, or a copy, or nothing and a count."""
    cdef uint32_t first = b.first[i]
    cdef uint32_t last = b.first[i + 1] if i + 1 < b.packets else b.frags
    cdef uint32_t slot = m.free, nbytes = 0, kind = IN_FRAME
    cdef uint64_t place
    cdef oc_lease* lease
    count_u64(&m.offered, 1)
    if unlikely(slot == NONE):
        count_u64(&m.dropped, 1)
        return
    lease = &m.leases[slot]
    if likely(not sent_on and last - first == 1 and not m.overdue and m.frames_held < m.quota
              and take_reference(s.um, b.frame[first], s.owner, queue)):
        lease.slab = NULL
        place = b.addr[first]
        store_relaxed_u32(&m.frames_held, m.frames_held + 1)
    else:
        lease.slab = copy_out(s, b, first, last, b.length[i], m.copied_bytes, &nbytes)
        if lease.slab == NULL:
            count_u64(&m.dropped, 1)
            return
        place_of(s, lease.slab, &place, &kind)
        store_relaxed_u32(&m.copies_held, m.copies_held + 1)
        count_u64(&m.copied_bytes, nbytes)
        count_u64(&m.copied, 1)
    m.free = lease.newer
    lease.frame = b.frame[first]
    lease.generation = b.generation[first]
    lease.bytes = nbytes
    lease.bucket = bucket
    lease.serial += 1
    store_relaxed_u64(&lease.since_ns, now)
    lease.older = m.newest
    lease.newer = NONE
    if m.newest != NONE:
        m.leases[m.newest].newer = slot
    else:
        store_relaxed_u32(&m.oldest, slot)
    m.newest = slot
    m.by_bucket[bucket] += 1
    describe(m, b, i, queue, place, kind, lease.frame, lease.generation, slot, lease.serial)


cdef void give_home(oc_share* s, oc_member* m, uint32_t slot) noexcept nogil:
    """Ends a lease that is known to be one."""
    cdef oc_lease* lease = &m.leases[slot]
    if lease.slab != NULL:
        drop_copy(s, lease.slab, lease.bytes)
        store_relaxed_u32(&m.copies_held, m.copies_held - 1)
        count_u64(&m.copied_bytes, -<int64_t>lease.bytes)
    else:
        drop_reference(s, lease.frame, lease.generation)
        store_relaxed_u32(&m.frames_held, m.frames_held - 1)
    if lease.older != NONE:
        m.leases[lease.older].newer = lease.newer
    else:
        store_relaxed_u32(&m.oldest, lease.newer)
    if lease.newer != NONE:
        m.leases[lease.newer].older = lease.older
    else:
        m.newest = lease.older
    m.by_bucket[lease.bucket] -= 1
    lease.serial += 1
    lease.newer = m.free
    m.free = slot


cdef bint share_let_go(oc_share* s) noexcept nogil:
    """The oldest packet of the window goes home; False if there is none."""
    cdef oc_kept* k = &s.kept[s.kept_from & s.kept_mask]
    if s.kept_n == 0:
        return False
    if k.slab != NULL:
        drop_copy(s, k.slab, k.bytes)
    else:
        drop_reference(s, k.frame, k.generation)
    s.kept_from += 1
    store_relaxed_u32(&s.kept_n, s.kept_n - 1)
    return True


cdef void keep(oc_share* s, const oc_burst* b, uint32_t i, uint32_t queue, uint32_t wanted,
               bint sent_on) noexcept nogil:
    """One packet into the window, and an entry to each member in `wanted`."""
    cdef uint32_t first = b.first[i]
    cdef uint32_t last = b.first[i + 1] if i + 1 < b.packets else b.frags
    cdef uint32_t kind = IN_FRAME, nbytes = 0, generation = b.generation[first], k
    cdef uint64_t place = b.addr[first]
    cdef void* slab = NULL
    cdef oc_kept* kept
    cdef bint there = (not sent_on and last - first == 1
                       and take_reference(s.um, b.frame[first], s.owner, queue))
    if not there:
        slab = copy_out(s, b, first, last, b.length[i], 0, &nbytes)
        if slab != NULL:
            there = True
            generation = <uint32_t>name_one(
                &s.cache.tier.classes[class_of_bytes(b.length[i])].ledger, slab)
            place_of(s, slab, &place, &kind)
    if there:
        if s.kept_n == s.window:
            share_let_go(s)
        kept = &s.kept[(s.kept_from + s.kept_n) & s.kept_mask]
        kept.slab = slab
        kept.frame = b.frame[first]
        kept.generation = b.generation[first]
        kept.bytes = nbytes
        store_relaxed_u32(&s.kept_n, s.kept_n + 1)
    for k in range(MEMBERS_MAX):
        if wanted >> k & 1:
            count_u64(&s.members[k].offered, 1)
            if not there:
                count_u64(&s.members[k].dropped, 1)
                continue
            count_u64(&s.members[k].copied, slab != NULL)
            describe(s.members[k], b, i, queue, place, kind, b.frame[first], generation, NONE, 0)


# ------------------------------------------------------------------------------- who gets it

cdef inline bint wants(oc_share* s, oc_member* m, const oc_burst* b, uint32_t i) noexcept nogil:
    """Does its own filter take the packet? Of several fragments it sees the first."""
    cdef uint32_t f = b.first[i]
    return m.code == NULL or bpf_filter(m.code, s.um.base + b.addr[f], b.length[i],
                                        b.bytes[f]) != 0


cdef void share_packets(oc_share* s, const oc_burst* b, uint32_t start, uint32_t end,
                        uint32_t queue, bint sent_on, uint64_t now) noexcept nogil:
    """Packets start..end-1 to the members. Of frames that are sent on, which end in another's
    hands, and of packets of several frames, they get copies."""
    cdef uint32_t active = s.live, i, k, wanted, bucket = 0
    cdef oc_member* m
    if active == 0:
        return
    for i in range(start, end):
        wanted = active
        if s.mode == BY_FLOW:
            bucket = bucket_of(s.seed, s.um.base + b.addr[b.first[i]], b.bytes[b.first[i]])
            k = s.to[bucket]
            wanted = active & (<uint32_t>1 << k) if k != NOBODY else 0
        elif s.mode == IN_TURN:
            k = s.turn
            while not active >> k & 1:
                k = (k + 1) & (MEMBERS_MAX - 1)
            s.turn = (k + 1) & (MEMBERS_MAX - 1)
            wanted = <uint32_t>1 << k
        for k in range(MEMBERS_MAX):
            if wanted >> k == 0:
                break
            if not wanted >> k & 1:
                continue
            m = s.members[k]
            if m.code != NULL and not wants(s, m, b, i):
                wanted &= ~(<uint32_t>1 << k)
            elif s.reliable:
                lend(s, m, b, i, queue, bucket, sent_on, now)
        if wanted and not s.reliable:
            keep(s, b, i, queue, wanted, sent_on)


cdef void share_free_rest(oc_queue* q, const uint32_t* frames, uint32_t n) noexcept nogil:
    """Home with those frames of a burst that nobody was lent."""
    cdef uint32_t[BURST] rest
    cdef uint32_t i, k = 0
    for i in range(n):
        if word_state(q.um.ledger[frames[i]].word) == RX:
            rest[k] = frames[i]
            k += 1
            if k == BURST:
                frames_home(q, rest, k)
                k = 0
    frames_home(q, rest, k)


# ------------------------------------------------------------------------------------ a round

cdef void take_returns(oc_share* s, oc_member* m) noexcept nogil:
    """What the member gave back. Each index is read once; a lease is ended only if it is one."""
    cdef uint32_t said = load_acquire_u32(&m.up.returned)
    cdef uint32_t n = said - m.returned, i, slot, serial
    cdef uint64_t element
    if n == 0:
        return
    if unlikely(n > m.mask + 1):
        count_u64(&m.bad_returns, 1)
        m.returned = said
        return
    if n > RETURNS_MAX:
        n = RETURNS_MAX
    for i in range(n):
        element = load_relaxed_u64(&m.returns[(m.returned + i) & m.mask])
        slot = <uint32_t>element
        serial = <uint32_t>(element >> 32)
        if likely(slot < m.n_leases and serial & 1 and m.leases[slot].serial == serial):
            give_home(s, m, slot)
        else:
            count_u64(&m.bad_returns, 1)
    m.returned += n


cdef bint share_reclaim(oc_share* s, oc_member* m, uint32_t most) noexcept nogil:
    """Up to `most` leases of a member that is gone come home; True when there are no more. What it
    gave back before it went is read first: that is no loss of its."""
    if s.reliable:
        take_returns(s, m)
    while m.oldest != NONE and most:
        give_home(s, m, m.oldest)
        count_u64(&m.reclaimed, 1)
        most -= 1
    return m.oldest == NONE


cdef void publish(oc_member* m) noexcept nogil:
    cdef uint32_t asleep
    m.published = m.produced
    store_release_u64(&m.down.produced, m.produced)
    # The member says that it sleeps and then looks again; we write and then look whether it sleeps.
    # One of the two sees the other, because of a fence on both sides.
    fence()
    asleep = load_relaxed_u32(&m.up.sleeping)
    if asleep and asleep != m.woken:
        m.woken = asleep
        wake(m.wake_fd)


cdef void share_shrink(oc_share* s, uint32_t live) noexcept nogil:
    """The window gives way when frames run low, and ends with its last member."""
    while s.kept_n and (live == 0 or s.um.rx_free_n < FRAMES_LOW):
        share_let_go(s)


cdef void move_buckets(oc_share* s, uint32_t live, uint64_t now) noexcept nogil:
    """Flows go over to who shall have them, when the old member has given back all it had of them,
    so that their order holds; or when its time is up."""
    cdef uint32_t k, moving = 0
    cdef oc_member* old
    if load_acquire_u32(&s.retarget):
        pthread_mutex_lock(&s.lock)
        memcpy(s.wanted, s.target, BUCKETS)
        store_release_u32(&s.retarget, 0)
        pthread_mutex_unlock(&s.lock)
        s.move_ns = now + s.hand_over_ns
        s.moving = 1
    if not s.moving:
        return
    for k in range(BUCKETS):
        if s.to[k] == s.wanted[k]:
            continue
        old = s.members[s.to[k]] if s.to[k] != NOBODY and live >> s.to[k] & 1 else NULL
        if old != NULL and old.by_bucket[k]:
            if now < s.move_ns:
                moving += 1
                continue
            count_u64(&s.moved_late, 1)
        s.to[k] = s.wanted[k]
    store_relaxed_u32(&s.moving, moving)


cdef void share_tick(oc_share* s, uint64_t now) noexcept nogil:
    """Once a round: entries become visible, returns come home, the dead are cleared away.

    States are read before `target`: who marks a member dead has written the new target first, so
    no flow is without a member for a round.
    """
    cdef uint32_t k, live = 0
    cdef uint32_t[MEMBERS_MAX] state
    cdef oc_member* m
    cdef bint late
    for k in range(MEMBERS_MAX):
        m = <oc_member*>load_acquire_u64(<uint64_t*>&s.members[k])
        state[k] = load_acquire_u32(&m.state) if m != NULL else 0
        if state[k] == ACTIVE:
            live |= <uint32_t>1 << k
    if s.mode == BY_FLOW:
        move_buckets(s, live, now)
    store_relaxed_u32(&s.live, live)
    for k in range(MEMBERS_MAX):
        m = s.members[k]
        if state[k] == 0 or state[k] == GONE:
            continue
        if unlikely(state[k] == DEAD):
            if share_reclaim(s, m, RECLAIM_MAX):
                store_release_u64(<uint64_t*>&s.members[k], 0)
                store_release_u32(&m.state, GONE)
            continue
        if m.produced != m.published:
            publish(m)
        if s.reliable:
            take_returns(s, m)
            late = (m.oldest != NONE and now > m.leases[m.oldest].since_ns
                    and now - m.leases[m.oldest].since_ns > m.max_hold_ns)
            if late and not m.overdue:
                count_u64(&m.overdues, 1)
            if late != m.overdue:
                store_relaxed_u32(&m.overdue, late)
    if s.kept_n and (live == 0 or s.um.rx_free_n < FRAMES_LOW):
        share_shrink(s, live)
