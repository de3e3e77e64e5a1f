# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True
"""The loop back-end: a port in memory behind the same contract, for tests and for measuring us.

It owns four rings of its own and plays the kernel's part of them, so that everything above (rings,
ledger, bursts, batches, worker) is the very code that AF_XDP uses. Packets on its wire come from
`inject`, from its own TX (what is sent comes back, or goes to `peer`), or, with generate=N, without
end: an N-byte packet that stands ready in every frame, which is what `bench loop` counts.
"""
cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer

from cython_ext.atomics cimport load_acquire_u64, store_release_u64
from cython_ext.frames cimport Frames, oc_umem
from cython_ext.bursts cimport reap, rings_rx_burst, rings_tx_burst
from cython_ext.filling cimport fill_up
from cython_ext.queue cimport (OC_META_FRAGS, OC_META_MAGIC, OC_META_VERSION, Queue, now_ns,
                               oc_burst, oc_meta, oc_queue)
from cython_ext.rings cimport oc_desc, oc_ring, ring_addr, ring_desc

cdef extern from "oc_xdp.h":
    enum:
        XDP_PKT_CONTD

cdef enum:
    HEADROOM = 256                # XDP_PACKET_HEADROOM: where the kernel would put the packet
    WIRE_BYTES = 1 << 22          # what can be under way on the wire at once
    PACKET_MAX = 1 << 16

cdef struct oc_loop:
    uint8_t* wire                 # length-prefixed packets, a plain byte ring
    uint64_t written
    uint64_t read
    oc_queue* peer                # whose wire our TX goes to
    uint32_t generate
    uint32_t rule_id
    uint64_t left                 # packets still to generate
    uint64_t dropped              # no frame in FILL, or longer than the frames allow
    uint64_t ring_full
    uint64_t fill_invalid
    uint64_t fill_empty
    uint64_t tx_invalid
    # the kernel's own indices of the four rings
    uint32_t indices[16]


cdef uint64_t wire_copy_in(oc_loop* loop, uint64_t end, const uint8_t* data,
                           uint32_t length) noexcept nogil:
    """Puts bytes at `end` of the wire; returns the new end, which the caller publishes.

    Only a whole packet is published: the other side may be a worker on another core.
    """
    cdef uint64_t at = end & (WIRE_BYTES - 1)
    cdef uint64_t first = WIRE_BYTES - at
    if first > length:
        first = length
    memcpy(loop.wire + at, data, first)
    memcpy(loop.wire, data + first, length - first)
    return end + length


cdef void wire_copy_out(oc_loop* loop, uint8_t* data, uint32_t length) noexcept nogil:
    cdef uint64_t at = loop.read & (WIRE_BYTES - 1)
    cdef uint64_t first = WIRE_BYTES - at
    if first > length:
        first = length
    memcpy(data, loop.wire + at, first)
    memcpy(data + first, loop.wire, length - first)
    loop.read += length


cdef inline bint kernel_frame(oc_queue* q, oc_loop* loop, uint64_t* addr) noexcept nogil:
    """The kernel's side of FILL: the next valid address, or False; invalid ones are counted."""
    cdef oc_ring* r = &q.fill
    cdef uint32_t consumer = r.consumer[0]
    cdef uint64_t a
    while consumer != r.producer[0]:
        a = ring_addr(r, consumer)[0]
        consumer += 1
        r.consumer[0] = consumer
        if a < q.um.bytes:
            addr[0] = a & ~<uint64_t>(q.um.frame_bytes - 1)
            return True
        loop.fill_invalid += 1
    loop.fill_empty += 1
    return False


cdef void kernel_receive(oc_queue* q, uint32_t packets) noexcept nogil:
    """The kernel's side of receiving: wire to frames of FILL, descriptors to RX."""
    cdef oc_loop* loop = <oc_loop*>q.backend
    cdef oc_umem* um = q.um
    cdef uint32_t room = um.frame_bytes - HEADROOM
    cdef uint32_t length, piece, frames, _n, _i
    cdef uint64_t addr
    cdef uint32_t producer = q.rx.producer[0]
    cdef oc_desc* d
    cdef oc_meta* meta
    for _n in range(packets):
        if load_acquire_u64(&loop.written) - loop.read < 4:
            break
        wire_copy_out(loop, <uint8_t*>&length, 4)
        frames = (length + room - 1) // room if length else 1
        if (frames > 1 and not q.multi_buffer) \
                or q.fill.producer[0] - q.fill.consumer[0] < frames:
            loop.dropped += 1
            loop.read += length
            continue
        if q.rx.size - (producer - q.rx.consumer[0]) < frames:
            loop.ring_full += 1
            loop.read += length
            continue
        for _i in range(frames):
            if not kernel_frame(q, loop, &addr):
                loop.dropped += 1
                loop.read += length
                break
            piece = length if length < room else room
            meta = <oc_meta*>(um.base + addr + HEADROOM - sizeof(oc_meta))
            meta.magic = OC_META_MAGIC
            meta.version = OC_META_VERSION
            meta.flags = OC_META_FRAGS if frames > 1 else 0
            meta.rule_id = loop.rule_id
            meta.timestamp_ns = now_ns()
            wire_copy_out(loop, um.base + addr + HEADROOM, piece)
            length -= piece
            d = ring_desc(&q.rx, producer)
            d.addr = addr + HEADROOM
            d.len = piece
            d.options = XDP_PKT_CONTD if length else 0
            producer += 1
    q.rx.producer[0] = producer


cdef void kernel_generate(oc_queue* q, uint32_t packets) noexcept nogil:
    """As kernel_receive, without the copy: the packet stands in every frame already."""
    cdef oc_loop* loop = <oc_loop*>q.backend
    cdef uint32_t i, ready = q.fill.producer[0] - q.fill.consumer[0]
    cdef uint32_t producer = q.rx.producer[0], consumer = q.fill.consumer[0]
    cdef oc_desc* d
    if packets > ready:
        packets = ready
    if packets > loop.left:
        packets = <uint32_t>loop.left
    for i in range(packets):
        d = ring_desc(&q.rx, producer + i)
        d.addr = ring_addr(&q.fill, consumer + i)[0] + HEADROOM
        d.len = loop.generate
        d.options = 0
    loop.left -= packets
    q.fill.consumer[0] = consumer + packets
    q.rx.producer[0] = producer + packets


cdef uint32_t loop_rx_burst(oc_queue* q, oc_burst* b, uint32_t packets_max, uint32_t owner,
                            uint64_t when) noexcept nogil:
    cdef oc_loop* loop = <oc_loop*>q.backend
    if loop.generate:
        kernel_generate(q, packets_max)
    elif loop.written != loop.read:
        kernel_receive(q, packets_max)
    return rings_rx_burst(q, b, packets_max, owner, when)


cdef int loop_kick(oc_queue* q) noexcept nogil:
    """The kernel's side of sending: TX to the peer's wire, completions back."""
    cdef oc_loop* loop = <oc_loop*>q.backend
    cdef oc_loop* to = <oc_loop*>loop.peer.backend
    cdef uint32_t consumer = q.tx.consumer[0], end = q.tx.producer[0]
    cdef uint32_t last, i, length
    cdef uint64_t written
    cdef oc_desc* d
    while consumer != end:
        last = consumer
        length = 0
        while True:
            d = ring_desc(&q.tx, last)
            if d.addr >= q.um.bytes or (d.addr & (q.um.frame_bytes - 1)) + d.len > q.um.frame_bytes:
                length = PACKET_MAX + 1
            else:
                length += d.len
            last += 1
            if not d.options & XDP_PKT_CONTD or last == end:
                break
        if length > PACKET_MAX:
            loop.tx_invalid += 1
            consumer = last
            continue
        if WIRE_BYTES - (to.written - to.read) < length + 4 \
                or q.completion.size - (q.completion.producer[0] - q.completion.consumer[0]) \
                < last - consumer:
            break                 # the wire is full: the descriptors wait, as in the kernel
        written = wire_copy_in(to, to.written, <uint8_t*>&length, 4)
        for i in range(last - consumer):
            d = ring_desc(&q.tx, consumer + i)
            written = wire_copy_in(to, written, q.um.base + d.addr, d.len)
            ring_addr(&q.completion, q.completion.producer[0])[0] = d.addr
            q.completion.producer[0] += 1
        store_release_u64(&to.written, written)
        consumer = last
    q.tx.consumer[0] = consumer
    return 0


cdef int loop_nudge(oc_queue* q) noexcept nogil:
    return 0


@cython.no_gc_clear
cdef class LoopQueue(Queue):
    """`LoopQueue(frames, queue_id=0, rx_ring=2048, tx_ring=2048, fill_ring=4096,
    fill_target=None, multi_buffer=False, generate=0, peer=None, rule_id=1)`."""
    cdef oc_loop loop
    cdef LoopQueue peer

    def __cinit__(self, Frames frames not None, uint32_t queue_id=0, uint32_t rx_ring=2048,
                  uint32_t tx_ring=2048, uint32_t fill_ring=4096, fill_target=None,
                  bint multi_buffer=False, uint32_t generate=0, LoopQueue peer=None,
                  uint32_t rule_id=1):
        memset(&self.q, 0, sizeof(oc_queue))
        memset(&self.loop, 0, sizeof(oc_loop))
        self.frames = frames
        self.q.um = &frames.um
        self.q.fd = -1
        self.q.queue_id = queue_id
        self.q.multi_buffer = multi_buffer
        self.q.rx_burst = loop_rx_burst
        self.q.tx_burst = rings_tx_burst
        self.q.kick = loop_kick
        self.q.nudge = loop_nudge
        self.q.backend = &self.loop
        self.q.fill_target = fill_ring if fill_target is None else min(fill_target, fill_ring)
        self.loop.rule_id = rule_id
        self.connect(self if peer is None else peer)
        if generate > frames.um.frame_bytes - HEADROOM:
            raise ValueError(f"generate: {generate}: at most {frames.um.frame_bytes - HEADROOM}")
        self.loop.wire = <uint8_t*>malloc(WIRE_BYTES)
        if self.loop.wire == NULL:
            raise MemoryError("the loop's wire")
        self._ring(&self.q.fill, 0, fill_ring, 8)
        self._ring(&self.q.completion, 1, tx_ring, 8)
        self._ring(&self.q.rx, 2, rx_ring, sizeof(oc_desc))
        self._ring(&self.q.tx, 3, tx_ring, sizeof(oc_desc))
        if generate:
            self._prepare(generate)
        fill_up(&self.q, self.q.fill_target)

    cdef int _ring(self, oc_ring* r, int which, uint32_t size, size_t entry) except -1:
        if size == 0 or size & (size - 1):
            raise ValueError(f"ring size: {size}: a power of two")
        r.producer = &self.loop.indices[which * 4]
        r.consumer = &self.loop.indices[which * 4 + 1]
        r.flags = &self.loop.indices[which * 4 + 2]
        r.entries = calloc(size, entry)
        if r.entries == NULL:
            raise MemoryError("a ring")
        r.size = size
        r.mask = size - 1
        return 0

    cdef _prepare(self, uint32_t length):
        cdef uint32_t i
        cdef oc_meta* meta
        cdef oc_umem* um = self.q.um
        # A UDP packet from 10.0.0.1:1024 to 10.0.0.2:4789, as the filters of the benchmarks expect.
        header = bytes.fromhex("0200000000020200000000010800450000320000000040112667"
                               "0a0000010a000002040012b5001e0000")
        packet = (header + bytes(4096))[:length]
        cdef const uint8_t* source = packet
        for i in range(um.rx_frames):
            meta = <oc_meta*>(um.base + (<uint64_t>i << um.frame_shift) + HEADROOM
                              - sizeof(oc_meta))
            meta.magic = OC_META_MAGIC
            meta.version = OC_META_VERSION
            meta.rule_id = self.loop.rule_id
            meta.timestamp_ns = now_ns()
            memcpy(<uint8_t*>meta + sizeof(oc_meta), source, length)
        self.loop.generate = length
        self.loop.left = <uint64_t>-1

    def generate_only(self, uint64_t packets):
        """Bounds the generator: no more than so many packets from here on."""
        self.loop.left = packets

    def connect(self, LoopQueue peer not None):
        """What this queue sends arrives at `peer` (itself, at first)."""
        self.peer = None if peer is self else peer  # a cycle would never be collected
        self.loop.peer = &peer.q

    def inject(self, data):
        """Puts one packet on the wire; False if the wire is full."""
        cdef Py_buffer view
        cdef uint32_t length
        cdef uint64_t written
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            if view.len > PACKET_MAX or WIRE_BYTES - (self.loop.written - self.loop.read) \
                    < <uint64_t>view.len + 4:
                return False
            length = view.len
            written = wire_copy_in(&self.loop, self.loop.written, <uint8_t*>&length, 4)
            written = wire_copy_in(&self.loop, written, <const uint8_t*>view.buf, length)
            store_release_u64(&self.loop.written, written)
        finally:
            PyBuffer_Release(&view)
        return True

    def kernel_statistics(self):
        return {"rx_dropped": self.loop.dropped, "rx_invalid_descs": self.loop.fill_invalid,
                "tx_invalid_descs": self.loop.tx_invalid, "rx_ring_full": self.loop.ring_full,
                "rx_fill_ring_empty_descs": self.loop.fill_empty, "tx_ring_empty_descs": 0}

    @property
    def zero_copy(self):
        return False

    def close(self):
        if not self.closed:
            reap(&self.q)
            self.closed = True

    def __dealloc__(self):
        free(self.loop.wire)
        free(self.q.fill.entries)
        free(self.q.completion.entries)
        free(self.q.rx.entries)
        free(self.q.tx.entries)
