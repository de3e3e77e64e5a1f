# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True
"""The DPDK back-end: one queue of a DPDK device behind the port contract.

It plays the kernel's part of the four rings, as loop.pyx does, with a driver in place of the wire:
what the driver received becomes descriptors in RX (after the rules), what lies in TX becomes mbufs
for the driver, and what it frees comes back over COMPLETION (dpdk_pool.pyx). So bursts, ledger,
batches, workers and consumers are the very code that AF_XDP uses, and no packet is copied, but for
one that arrives in memory that is not ours (net_ring hands over the sender's own mbufs).

The order of life: DpdkQueue (FILL is filled), Device.start, set_rules, open; shut, close. The rules
run here, since no kernel does it: what is not consumed goes back to FILL at once.
"""
cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from cython_ext.atomics cimport (OC_LEDGER_ON, count_u64, likely, load_acquire_u32, load_acquire_u64, prefetch,
                                 store_release_u32, store_release_u64, unlikely)
from cython_ext.bursts cimport fill_up, reap, rings_rx_burst, rings_tx_burst
from cython_ext.dpdk cimport (OC_BUFFER_AT, OC_DATA_AT, OC_MBUF_AT, oc_mbuf_send,
                              rte_eth_rx_burst, rte_eth_tx_burst, rte_eth_tx_done_cleanup,
                              rte_mbuf, rte_pktmbuf_free, rte_pktmbuf_read)
from cython_ext.dpdk_pool cimport (NOBODY, Pool, oc_pool, pool_collect, pool_enter, pool_leave,
                                   pool_take)
from cython_ext.dpdk_rules cimport Decisions, oc_rules, rules_decide
from cython_ext.frames cimport (TX, Frames, oc_umem, pthread_mutex_lock, pthread_mutex_unlock,
                                word_state)
from cython_ext.queue cimport (FRAGS_MAX, OC_META_FRAGS, OC_META_MAGIC, OC_META_VERSION, Queue,
                               oc_burst, oc_meta, oc_queue)
from cython_ext.rings cimport oc_desc, oc_ring, ring_addr, ring_desc

cdef extern from "openclaw_abi.h":
    enum:
        OC_VERDICT_BITS
        OC_VERDICT_CONSUME

cdef extern from "oc_xdp.h":
    enum:
        XDP_PKT_CONTD

cdef enum:
    DEVICE_BURST = 64             # packets asked of a driver at once; vector drivers want 32 or more


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
    """The packet in frames of ours, chained; the original goes back. NULL: no frame, or too long."""
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
        decided = rules_decide(rules, m, &flags) if rules != NULL else 0
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


# --------------------------------------------------------------------------------- Python's view

@cython.no_gc_clear
cdef class DpdkQueue(Queue):
    """`DpdkQueue(frames, pool, device, queue_id, rx_ring=2048, tx_ring=2048, fill_ring=4096,
    fill_target=None, multi_buffer=False)`; FILL is filled. The device is started afterwards.
    """

    def __cinit__(self, Frames frames not None, Pool pool not None, device, uint32_t queue_id,
                  uint32_t rx_ring=2048, uint32_t tx_ring=2048, uint32_t fill_ring=4096,
                  fill_target=None, bint multi_buffer=False):
        memset(&self.q, 0, sizeof(oc_queue))
        memset(&self.d, 0, sizeof(oc_dpdk))
        if pool.frames is not frames:
            raise ValueError("pool: it is made of other frames")
        self.frames = frames
        self.pool = pool
        self.device = device
        self.retired = []
        self.folded = {}
        self.closed = True
        self.q.um = &frames.um
        self.q.fd = -1
        self.q.queue_id = queue_id
        self.q.multi_buffer = multi_buffer
        self.q.rx_burst = dpdk_rx_burst
        self.q.tx_burst = rings_tx_burst
        self.q.kick = dpdk_kick
        self.q.nudge = dpdk_nudge
        self.q.backend = &self.d
        self.q.tx_headroom = OC_DATA_AT
        self.q.fill_target = fill_ring if fill_target is None else min(fill_target, fill_ring)
        self.d.pool = &pool.pool
        self.d.spare = <uint32_t*>calloc(frames.um.frames, sizeof(uint32_t))
        if self.d.spare == NULL:
            raise MemoryError("a list of frames")
        self._ring(&self.q.fill, 0, fill_ring, 8)
        # As many completions as can be under way: TX once over, and a driver's ring as large.
        self._ring(&self.q.completion, 1, 2 * tx_ring, 8)
        self._ring(&self.q.rx, 2, rx_ring, sizeof(oc_desc))
        self._ring(&self.q.tx, 3, tx_ring, sizeof(oc_desc))
        self.d.place = pool.join(&self.q)
        fill_up(&self.q, self.q.fill_target)
        self.closed = False

    cdef int _ring(self, oc_ring* r, int which, uint32_t size, size_t entry) except -1:
        if size == 0 or size & (size - 1):
            raise ValueError(f"ring size: {size}: a power of two")
        r.producer = &self.d.indices[which * 4]
        r.consumer = &self.d.indices[which * 4 + 1]
        r.flags = &self.d.indices[which * 4 + 2]
        r.entries = calloc(size, entry)
        if r.entries == NULL:
            raise MemoryError("a ring")
        r.size = size
        r.mask = size - 1
        return 0

    def rewind(self):
        """A driver took frames, failed, and is gone: FILL offers all of them again.

        Only before the device was started once: FILL has been written once over at most.
        """
        self.q.fill.consumer[0] = 0
        self.d.spare_n = self.d.pool.strays_n = 0

    # --------------------------------------------------------------------------------- the rules

    def set_rules(self, Decisions decisions not None):
        """These rules decide from the next burst on; what the old ones counted is kept."""
        self.counters()           # folds what is settled
        if self.decisions is not None:
            self.retired.append((self.decisions, load_acquire_u64(&self.d.bursts)))
        self.decisions = decisions
        store_release_u64(<uint64_t*>&self.d.rules, <uint64_t>&decisions.r)

    def counters(self):
        """What all rules of this queue counted, by the names of Decisions.counters()."""
        cdef uint64_t now = load_acquire_u64(&self.d.bursts)
        waiting = []
        for old, then in self.retired:
            # The burst that was under way may still count; the second after it cannot.
            if now - <uint64_t>then < 2 and not self.closed:
                waiting.append((old, then))
            else:
                add(self.folded, old.counters())
        self.retired = waiting
        total = dict(self.folded)
        for old, _ in waiting:
            add(total, old.counters())
        if self.decisions is not None:
            add(total, self.decisions.counters())
        return total

    # ------------------------------------------------------------------------------ start and stop

    def never_sleep(self, bint busy=True):
        """Profile busy: who waits for packets looks again at once instead of napping."""
        self.q.busy = busy

    def open(self):
        """From here on packets are taken from the device."""
        self.d.open = True

    def shut(self):
        """No more packets are taken. What was taken stays, and sending goes on."""
        self.d.open = False

    @property
    def zero_copy(self):
        """Whether the device itself writes into our frames: PCI devices do."""
        return bool(self.device.pci)

    @property
    def copied(self):
        """Packets that came in memory of somebody else's and had to be copied."""
        return self.d.copied

    @property
    def with_driver(self):
        """Frames that the driver has for receiving: posted, and neither in FILL nor come back."""
        return (self.q.filled - self.d.spare_n
                - ((self.q.fill.producer[0] - self.q.fill.consumer[0]) & 0xffffffff)
                - ((self.q.rx.producer[0] - self.q.rx.mine) & 0xffffffff))

    def kernel_statistics(self):
        """The six counters, told of the device by its first queue; zero where DPDK has no such.

        imissed is what AF_XDP calls rx_dropped: the device had no buffer for a packet.
        """
        if self.closed and self.last_statistics is not None:
            return dict(self.last_statistics)
        first = self.device.statistics() if self.q.queue_id == 0 else {}
        return {"rx_dropped": first.get("imissed", 0),
                "rx_invalid_descs": self.d.fill_invalid,
                "tx_invalid_descs": self.d.tx_invalid,
                "rx_ring_full": self.d.no_frame,
                "rx_fill_ring_empty_descs": self.d.no_buffers,
                "tx_ring_empty_descs": 0}

    def close(self):
        """Closes the device (with it all its queues end), and takes back what it gives back."""
        if self.closed:
            return
        self.shut()
        self.d.started = False
        self.device.close()
        pthread_mutex_lock(&self.frames.um.lock)
        pool_collect(self.d.pool)
        reap(&self.q)
        pthread_mutex_unlock(&self.frames.um.lock)
        self.last_statistics = self.kernel_statistics()
        self.closed = True
        self.pool.part()

    def __dealloc__(self):
        free(self.d.spare)
        free(self.q.fill.entries)
        free(self.q.completion.entries)
        free(self.q.rx.entries)
        free(self.q.tx.entries)


cdef add(dict total, dict more):
    for name, count in more.items():
        total[name] = total.get(name, 0) + count
