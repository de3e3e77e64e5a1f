# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True
"""Bursts between a DPDK driver and our rings: the kernel's part of them, played for one queue.

In: what the driver received goes past the rules and becomes descriptors in RX; what they do not
want goes back to FILL. Out: what lies in TX becomes mbufs; what the driver frees comes back over
COMPLETION (dpdk_pool.pyx). No packet is copied, but for one that arrives in memory that is not ours
(net_ring hands over the sender's own mbufs). Everything runs without the GIL, by the owner of the
memory. Opening and closing is dpdk_port.pyx's.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from cython_ext.atomics cimport (OC_LEDGER_ON, count_u64, likely, load_acquire_u32,
                                 load_acquire_u64, prefetch, store_release_u32, unlikely)
from cython_ext.bursts cimport rings_rx_burst
from cython_ext.dpdk cimport (OC_BUFFER_AT, OC_DATA_AT, OC_MBUF_AT, oc_mbuf_send,
                              rte_eth_rx_burst, rte_eth_tx_burst, rte_eth_tx_done_cleanup,
                              rte_mbuf, rte_pktmbuf_free, rte_pktmbuf_read)
from cython_ext.dpdk_pool cimport (NOBODY, oc_dpdk, oc_pool, pool_collect, pool_enter, pool_leave,
                                   pool_take)
from cython_ext.frames cimport TX, oc_umem, word_state
from cython_ext.queue cimport (FRAGS_MAX, OC_META_FRAGS, OC_META_MAGIC, OC_META_VERSION, oc_burst,
                               oc_meta, oc_queue)
from cython_ext.rings cimport oc_desc, ring_addr, ring_desc
from cython_ext.user_rules cimport LINEAR_MAX, oc_rules, rules_decide

cdef extern from "openclaw_abi.h":
    enum:
        OC_VERDICT_BITS
        OC_VERDICT_CONSUME

cdef extern from "oc_xdp.h":
    enum:
        XDP_PKT_CONTD

cdef enum:
    DEVICE_BURST = 64             # packets asked of a driver at once; vectors want 32 or more


# ------------------------------------------------------------------------------------ receiving

cdef inline void put(oc_queue* q, uint32_t* producer, rte_mbuf* m, bint more) noexcept nogil:
    cdef oc_desc* d = ring_desc(&q.rx, producer[0])
    d.addr = <uint64_t>(<uint8_t*>m.buf_addr + m.data_off - q.um.base)
    d.len = m.data_len
    d.options = XDP_PKT_CONTD if more else 0
    producer[0] += 1


cdef inline void record(rte_mbuf* m, uint32_t rule_id, uint32_t flags,
                        uint64_t when) noexcept nogil:
    """The metadata record in front of the packet, as the steering program writes it."""
    cdef oc_meta* meta = <oc_meta*>(<uint8_t*>m.buf_addr + m.data_off - sizeof(oc_meta))
    meta.magic = OC_META_MAGIC
    meta.version = OC_META_VERSION
    meta.flags = flags
    meta.rule_id = rule_id
    meta.timestamp_ns = when


cdef inline bint is_ours(oc_dpdk* d, rte_mbuf* m) noexcept nogil:
    """In a frame that FILL offered: not another port's memory, nor one that is being sent."""
    cdef oc_pool* pool = d.pool
    return m.pool == pool.mp and pool.sender[
        (<uint8_t*>m - pool.um.base) >> pool.um.frame_shift] == NOBODY


cdef rte_mbuf* copy_in(oc_queue* q, oc_dpdk* d, rte_mbuf* m) noexcept nogil:
    """The packet in frames of ours, chained; the original goes back. NULL: no room, or too long."""
    cdef rte_mbuf* fresh[FRAGS_MAX]
    cdef uint32_t room = q.um.frame_bytes - OC_DATA_AT, length = m.pkt_len, at = 0, i, piece
    cdef uint32_t n = (length + room - 1) // room if length else 1
    cdef const uint8_t* found
    if n > FRAGS_MAX or (n > 1 and not q.multi_buffer):
        count_u64(&q.too_many_fragments, 1)
        n = 0
    elif pool_take(q, fresh, n) < 0:
        d.no_frame += 1
        n = 0
    for i in range(n):
        piece = length - at if length - at < room else room
        oc_mbuf_send(fresh[i], OC_DATA_AT, <uint16_t>piece)
        # read() copies only what does not lie in one piece: else it points into the packet
        found = <const uint8_t*>rte_pktmbuf_read(m, at, piece,
                                                 <uint8_t*>fresh[i].buf_addr + fresh[i].data_off)
        if found != NULL and found != <uint8_t*>fresh[i].buf_addr + fresh[i].data_off:
            memcpy(<uint8_t*>fresh[i].buf_addr + fresh[i].data_off, found, piece)
        if i:
            fresh[i - 1].next = fresh[i]
        at += piece
    rte_pktmbuf_free(m)
    if n == 0:
        return NULL
    fresh[0].pkt_len = length
    fresh[0].nb_segs = <uint16_t>n
    d.copied += 1
    return fresh[0]


cdef inline uint32_t decide(oc_rules* rules, rte_mbuf* m, uint32_t* flags) noexcept nogil:
    """Rule id and verdict; a packet of several segments is shown to the filters in one piece."""
    cdef const uint8_t* data = <const uint8_t*>m.buf_addr + m.data_off
    cdef uint32_t length = m.pkt_len
    if unlikely(m.nb_segs > 1):
        length = length if length < LINEAR_MAX else LINEAR_MAX
        data = <const uint8_t*>rte_pktmbuf_read(m, 0, length, rules.linear)
        if data == NULL:          # shorter than it says: a driver's fault, and not ours to crash on
            return rules_decide(rules, <const uint8_t*>m.buf_addr + m.data_off, m.data_len,
                                m.data_len, flags)
    return rules_decide(rules, data, m.data_len, length, flags)


cdef void device_receive(oc_queue* q, oc_dpdk* d, uint64_t when) noexcept nogil:
    """What the driver has: past the rules, and into RX; what they do not want back to FILL."""
    cdef rte_mbuf* packets[DEVICE_BURST]
    cdef rte_mbuf* m
    cdef rte_mbuf* following
    cdef oc_rules* rules = <oc_rules*>load_acquire_u64(<uint64_t*>&d.rules)
    cdef uint32_t producer = q.rx.producer[0], i, n, decided, flags, most = DEVICE_BURST
    cdef uint32_t room = q.rx.size - (producer - load_acquire_u32(q.rx.consumer))
    if q.multi_buffer:
        room //= FRAGS_MAX
    if room < most:
        most = room
    if most == 0:
        return
    pool_enter(q)
    n = rte_eth_rx_burst(d.port, <uint16_t>q.queue_id, packets, <uint16_t>most)
    for i in range(n):
        m = packets[i]
        if i + 4 < n:
            prefetch(packets[i + 4])
        flags = 0
        decided = decide(rules, m, &flags) if rules != NULL else 0
        if rules == NULL or (decided & ((1 << OC_VERDICT_BITS) - 1)) != OC_VERDICT_CONSUME:
            rte_pktmbuf_free(m)
            continue
        if unlikely(not is_ours(d, m)):
            m = copy_in(q, d, m)
            if m == NULL:
                continue
        if likely(m.nb_segs == 1):
            record(m, decided >> OC_VERDICT_BITS, flags, when)
            put(q, &producer, m, False)
            continue
        if not q.multi_buffer or m.nb_segs > FRAGS_MAX:
            count_u64(&q.too_many_fragments, 1)
            rte_pktmbuf_free(m)
            continue
        record(m, decided >> OC_VERDICT_BITS, flags | OC_META_FRAGS, when)
        while m != NULL:
            following = m.next
            put(q, &producer, m, following != NULL)
            m.next = NULL         # as DPDK wants every mbuf that lies in a mempool
            m.nb_segs = 1
            m = following
    pool_leave()
    store_release_u32(q.rx.producer, producer)


cdef uint32_t dpdk_rx_burst(oc_queue* q, oc_burst* b, uint32_t packets_max, uint32_t owner,
                            uint64_t when) noexcept nogil:
    cdef oc_dpdk* d = <oc_dpdk*>q.backend
    count_u64(&d.bursts, 1)
    pool_collect(d.pool)
    if d.open and load_acquire_u32(q.rx.producer) - q.rx.mine < packets_max:
        device_receive(q, d, when)
    return rings_rx_burst(q, b, packets_max, owner, when)


# -------------------------------------------------------------------------------------- sending

cdef inline bint is_being_sent(oc_umem* um, uint64_t addr) noexcept nogil:
    """A frame of ours that somebody queued; anything else was written by a test."""
    return addr < um.bytes and (
        not OC_LEDGER_ON or word_state(um.ledger[addr >> um.frame_shift].word) == TX)


cdef inline void unsendable(oc_queue* q, uint32_t first, uint32_t n) noexcept nogil:
    """Descriptors that no device can send: their frames go home as if they had been."""
    cdef oc_pool* pool = (<oc_dpdk*>q.backend).pool
    cdef uint32_t i, producer = q.completion.producer[0]
    cdef uint64_t addr
    for i in range(n):
        addr = ring_desc(&q.tx, first + i).addr
        if is_being_sent(q.um, addr):
            pool.sender[addr >> q.um.frame_shift] = NOBODY
        ring_addr(&q.completion, producer + i)[0] = addr
    store_release_u32(q.completion.producer, producer + n)


cdef rte_mbuf* next_packet(oc_queue* q, oc_dpdk* d, uint32_t at, uint32_t end,
                           uint32_t* taken) noexcept nogil:
    """The mbuf chain of the packet whose first descriptor is `at`; NULL if it cannot be sent."""
    cdef oc_umem* um = q.um
    cdef rte_mbuf* head = NULL
    cdef rte_mbuf* last = NULL
    cdef rte_mbuf* m
    cdef oc_desc* entry
    cdef uint32_t n = 0, inside, frame
    cdef bint good = True, more = True
    while more and at + n != end:
        entry = ring_desc(&q.tx, at + n)
        more = entry.options & XDP_PKT_CONTD
        inside = entry.addr & (um.frame_bytes - 1)
        n += 1
        if (not is_being_sent(um, entry.addr) or inside < OC_BUFFER_AT
                or inside + entry.len > um.frame_bytes or entry.len == 0):
            good = False
            continue
        frame = <uint32_t>(entry.addr >> um.frame_shift)
        m = <rte_mbuf*>(um.base + (<uint64_t>frame << um.frame_shift) + OC_MBUF_AT)
        oc_mbuf_send(m, <uint16_t>inside, <uint16_t>entry.len)
        d.pool.sender[frame] = <uint8_t>d.place
        if head == NULL:
            head = m
        else:
            last.next = m
            head.nb_segs += 1
            head.pkt_len += entry.len
        last = m
    taken[0] = n
    return head if good and (n == 1 or d.chains) else NULL


cdef void device_send(oc_queue* q, oc_dpdk* d) noexcept nogil:
    """The kernel's side of TX: whole packets to the driver, as many as it takes."""
    cdef rte_mbuf* packets[DEVICE_BURST]
    cdef uint32_t[DEVICE_BURST] frames
    cdef uint32_t at = q.tx.consumer[0], end = load_acquire_u32(q.tx.producer)
    cdef uint32_t n, sent, i, taken = 0, room, gathered, ahead
    while at != end:
        # What the driver has and what waits in COMPLETION together fit there: home() never waits.
        room = q.completion.size - (q.completion.producer[0]
                                    - load_acquire_u32(q.completion.consumer)) - d.sending
        n = gathered = 0
        ahead = at
        while n < DEVICE_BURST and ahead != end and room - gathered >= FRAGS_MAX:
            packets[n] = next_packet(q, d, ahead, end, &taken)
            if packets[n] == NULL:
                break
            frames[n] = taken
            gathered += taken
            ahead += taken
            n += 1
        d.sending += gathered
        pool_enter(q)
        sent = rte_eth_tx_burst(d.port, <uint16_t>q.queue_id, packets, <uint16_t>n) if n else 0
        pool_leave()
        for i in range(n):
            if i < sent:
                at += frames[i]
            else:
                d.sending -= frames[i]
        if sent == n and ahead != end and room - gathered >= FRAGS_MAX and n < DEVICE_BURST:
            d.tx_invalid += 1     # next_packet() found it: nothing but a test writes such
            unsendable(q, ahead, taken)
            at += taken
        elif sent < n or n == 0:
            break                 # the device is full: the rest waits in TX
    store_release_u32(q.tx.consumer, at)


cdef int dpdk_kick(oc_queue* q) noexcept nogil:
    """Sends what is queued; asks the driver for what it has sent."""
    cdef oc_dpdk* d = <oc_dpdk*>q.backend
    if not d.started:
        return 0
    pool_collect(d.pool)
    if q.tx.consumer[0] != load_acquire_u32(q.tx.producer):
        device_send(q, d)
    elif d.sending:
        # Drivers look for completions when they are given packets; some also when given none.
        pool_enter(q)
        if rte_eth_tx_done_cleanup(d.port, <uint16_t>q.queue_id, 0) < 0:
            rte_eth_tx_burst(d.port, <uint16_t>q.queue_id, NULL, 0)
        pool_leave()
    return 0


cdef int dpdk_nudge(oc_queue* q) noexcept nogil:
    return 0
