# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True
"""The worker's end of a recorder: each packet copied once, with its checksum, into an open block.

Owns the encoding of packet records (numbers and chain are the writer's), the cutoffs per packet and
per flow, and the account of what found no block. See spool.pxd for who has which block. It waits
for nothing: neither memory nor the writer nor the disk.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from cython_ext.atomics cimport count_u64, load_acquire_u32, prefetch, unlikely
from cython_ext.lending cimport Batch
from cython_ext.log_format cimport (OC_LOG_FRAGMENTS, OC_LOG_HEAD_BYTES, OC_LOG_PACKET,
                                    OC_LOG_RECORD_BYTES, log_append, log_begin, log_finish,
                                    log_fit, oc_log_record)
from cython_ext.parser cimport oc_packet, oc_parse
from cython_ext.queue cimport now_ns
from cython_ext.shm_ring cimport ShmRing, spsc_dequeue, spsc_enqueue

cdef extern from *:
    """
    #include <sys/eventfd.h>
    static inline void oc_rouse(int fd) { eventfd_write(fd, 1); }
    """
    void rouse "oc_rouse"(int fd) noexcept nogil

cdef enum:
    # What of a packet fits into a block of its own; longer ones are cut (IPv4's largest is not).
    PACKET_MAX = BLOCK_BYTES - 112 - 48
    AHEAD = 4                     # packets: their lines are on another core, 100 ns and more away
    FLOW_ROWS = 16384             # 65,536 flows, 1 MiB; the row's oldest place goes when it is full

assert OC_LOG_HEAD_BYTES + OC_LOG_RECORD_BYTES + PACKET_MAX == BLOCK_BYTES
assert sizeof(oc_block) == 64


cdef inline void fetch_ahead(const uint8_t* packet, uint32_t nbytes) noexcept nogil:
    """The first lines; the processor sees by then where it goes on."""
    prefetch(packet)
    if nbytes > 64:
        prefetch(packet + 64)
    if nbytes > 128:
        prefetch(packet + 128)
        prefetch(packet + 192)


cdef inline bint open_block(oc_spool* s, uint64_t when_ns) noexcept nogil:
    """An empty block from the writer; it carries the losses before it."""
    cdef uint64_t address = 0
    if spsc_dequeue(s.free, &address, 1, 1) == 0:
        return False
    memset(&s.open, 0, sizeof(oc_block))
    s.open.data = <uint8_t*>address
    s.open.used = OC_LOG_HEAD_BYTES
    s.open.first_ns = s.open.last_ns = when_ns
    s.open.lost, s.open.lost_bytes, s.open.lost_ns = s.lost, s.lost_bytes, s.lost_ns
    s.lost = s.lost_bytes = s.lost_ns = 0
    s.due_ns = now_ns() + s.half_commit_ns
    return True


cdef void spool_hand_over(oc_spool* s) noexcept nogil:
    """The open block, or the losses without one, to the writer. A full ring: they stay."""
    cdef oc_block only
    if s.open.data == NULL:
        if s.lost == 0:
            return
        memset(&only, 0, sizeof(oc_block))
        only.lost, only.lost_bytes, only.lost_ns = s.lost, s.lost_bytes, s.lost_ns
        only.first_ns = only.last_ns = now_ns() + s.to_realtime
        if spsc_enqueue(s.full, &only, 1, 1):
            s.lost = s.lost_bytes = s.lost_ns = 0
        return
    # There are never more blocks than the ring has places; losses alone may fill it.
    if spsc_enqueue(s.full, &s.open, 1, 1) == 0:
        return
    s.open.data = NULL
    if load_acquire_u32(s.writer_sleeps) and (
            s.full.mine - load_acquire_u32(s.full.shared_theirs) >= ROUSE_BLOCKS):
        s.roused += 1
        rouse(s.wake_fd)


cdef inline void lose(oc_spool* s, uint32_t length, uint64_t when_ns) noexcept nogil:
    count_u64(&s.no_memory, 1)
    if s.lost == 0:
        s.lost_ns = when_ns
        s.due_ns = now_ns() + s.half_commit_ns
    s.lost += 1
    s.lost_bytes += length


cdef void spool_packets(oc_spool* s, const oc_umem* um, const oc_burst* b, uint32_t start,
                        uint32_t end, uint32_t rule, uint16_t port,
                        uint16_t queue) noexcept nogil:
    """Packets start..end-1 of a burst, all of one rule, into blocks."""
    cdef uint32_t i, f, last, want, piece, done = 0, cut = 0
    cdef uint64_t place, when_ns, bytes_in = 0, bytes_kept = 0
    cdef oc_log_record* r
    for i in range(start, end):
        if i + AHEAD < end:
            fetch_ahead(um.base + b.addr[b.first[i + AHEAD]], b.bytes[b.first[i + AHEAD]])
        last = b.first[i + 1] if i + 1 < b.packets else b.frags
        bytes_in += b.length[i]
        when_ns = b.timestamp_ns[i] + s.to_realtime
        want = b.length[i] if b.length[i] < s.snap_bytes else s.snap_bytes
        if want > PACKET_MAX:
            want = PACKET_MAX
        if s.flow_bytes and not flow_takes(s, um.base + b.addr[b.first[i]],
                                           b.bytes[b.first[i]], want):
            count_u64(&s.flow_cut, 1)
            continue
        place = log_fit(s.open.used, want, BLOCK_BYTES) if s.open.data != NULL else 0
        if unlikely(place == 0):
            if s.open.data != NULL:
                spool_hand_over(s)
            if s.open.data != NULL or not open_block(s, when_ns):
                lose(s, b.length[i], when_ns)
                continue
            place = OC_LOG_HEAD_BYTES
        r = log_begin(s.open.data, s.open.used, place, OC_LOG_PACKET)
        r.port = port
        r.queue = queue
        r.rule = rule
        r.original = b.length[i]
        r.timestamp_ns = when_ns
        if unlikely(last - b.first[i] > 1):
            r.flags = OC_LOG_FRAGMENTS
        cut += want < b.length[i]
        bytes_kept += want
        f = b.first[i]
        while want:
            piece = b.bytes[f] if b.bytes[f] < want else want
            log_append(r, um.base + b.addr[f], piece)
            want -= piece
            f += 1
        s.open.used = log_finish(s.open.data, r)
        s.open.records += 1
        s.open.last_ns = when_ns
        s.open.bytes += r.captured
        done += 1
    count_u64(&s.packets, end - start)
    count_u64(&s.packet_bytes, bytes_in)
    count_u64(&s.recorded, done)
    count_u64(&s.recorded_bytes, bytes_kept)
    if cut:
        count_u64(&s.cut_packets, cut)


# ------------------------------------------------------------------ the cutoff per flow

cdef inline uint64_t mixed(uint64_t h, uint64_t word) noexcept nogil:
    h = (h ^ word) * <uint64_t>0x9e3779b97f4a7c15
    return h ^ (h >> 29)


cdef uint64_t flow_key(const uint8_t* packet, uint32_t length) noexcept nogil:
    """The same for both directions; 0: no IP. Two flows in 2^64 share one."""
    cdef oc_packet p
    cdef uint64_t a = 0, b = 0
    cdef uint32_t i, n
    cdef const uint8_t* source
    oc_parse(packet, packet + length, &p)
    if p.ip_version == 4 and p.l3_offset + 20 <= length:
        source = packet + p.l3_offset + 12
        n = 4
    elif p.ip_version == 6 and p.l3_offset + 40 <= length:
        source = packet + p.l3_offset + 8
        n = 16
    else:
        return 0
    for i in range(n):
        a = mixed(a, source[i])
        b = mixed(b, source[n + i])
    if p.has_ports:
        a = mixed(a, p.sport)
        b = mixed(b, p.dport)
    a = mixed(a + b, p.ip_proto)
    return a if a else 1


cdef bint flow_takes(oc_spool* s, const uint8_t* packet, uint32_t length,
                     uint32_t want) noexcept nogil:
    """Whether the flow may keep `want` bytes more. The last packet goes over the limit whole."""
    cdef uint64_t key = flow_key(packet, length)
    cdef oc_flow* row
    cdef oc_flow found
    cdef uint32_t i, k
    if key == 0:
        return True
    row = &s.flows[(key & s.flows_mask) * FLOW_WAYS]
    found.key, found.bytes = key, 0
    for i in range(FLOW_WAYS):
        if row[i].key == key:
            found = row[i]
            break
    else:
        i = FLOW_WAYS - 1                        # the one that was seen longest ago
    for k in range(i, 0, -1):                    # what is seen moves to the front
        row[k] = row[k - 1]
    cdef bint takes = found.bytes < s.flow_bytes
    if takes:
        found.bytes += want
    row[0] = found
    return takes


# ------------------------------------------------------------------ for Python

cdef uint32_t _power(uint64_t n):
    """The smallest power of two that is not less."""
    cdef uint32_t size = 2
    while size < n:
        size *= 2
    return size


cdef class Spool:
    """Made by Recorder.spool(); given to the worker that fills it. hand_over() when it has
    stopped."""

    def __cinit__(self, owner, uint32_t blocks, int wake_fd, uint64_t commit_ns,
                  uint32_t snap_bytes, uint64_t flow_bytes, int64_t to_realtime):
        self.owner = owner
        self.full = ShmRing.new("spsc", _power(2 * blocks), 64)
        self.free = ShmRing.new("spsc", _power(blocks), 8)
        self.s.full = &self.full.producer
        self.s.free = &self.free.consumer
        self.s.half_commit_ns = commit_ns // 2
        self.s.snap_bytes = snap_bytes if snap_bytes else BLOCK_BYTES
        self.s.wake_fd = wake_fd
        self.s.to_realtime = to_realtime
        self.s.flow_bytes = flow_bytes
        if flow_bytes:
            self.s.flows_mask = FLOW_ROWS - 1
            self.s.flows = <oc_flow*>calloc(FLOW_ROWS * FLOW_WAYS, sizeof(oc_flow))
            if self.s.flows == NULL:
                raise MemoryError("a table of flows")

    def hand_over(self):
        """The open block to the writer, from whatever thread, once the worker has stopped. False:
        the ring is full; again when the writer has taken some."""
        spool_hand_over(&self.s)
        return self.s.open.data == NULL and self.s.lost == 0

    @property
    def room(self):
        """Empty blocks that stand ready."""
        return load_acquire_u32(self.s.free.shared_theirs) - self.s.free.mine

    def add(self, Batch batch not None, uint16_t port=0):
        """The packets of a batch, for who receives in Python: this thread is the worker."""
        cdef oc_burst* b = batch.block.b
        cdef uint32_t i = 0, end
        batch.alive()
        # Of a batch the times are since the epoch already.
        self.s.to_realtime = 0
        while i < batch.count:
            end = i + 1
            while end < batch.count and b.rule_id[end] == b.rule_id[i]:
                end += 1
            spool_packets(&self.s, batch.queue.q.um, b, i, end, b.rule_id[i], port,
                          batch.queue.q.queue_id)
            i = end
        spool_tick(&self.s, now_ns())

    def figures(self):
        """What came, what went into blocks, and what did not, by reason."""
        return {"packets": self.s.packets, "bytes": self.s.packet_bytes,
                "recorded": self.s.recorded, "recorded_bytes": self.s.recorded_bytes,
                "no_memory": self.s.no_memory, "cut_packets": self.s.cut_packets,
                "flow_cut": self.s.flow_cut, "roused": self.s.roused}

    def __dealloc__(self):
        free(self.s.flows)
