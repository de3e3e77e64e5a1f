# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True
"""The DPDK back-end: one queue of a DPDK device behind the port contract.

It owns the four rings of the queue, and plays the kernel's part of them as loop.pyx does, with a
driver in place of the wire (dpdk_bursts.pyx). So bursts, ledger, batches, workers and consumers are
the very code that AF_XDP uses. The order of life: DpdkQueue (FILL is filled), Device.start,
set_rules, open; shut, close.
"""
cimport cython
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from cython_ext.atomics cimport load_acquire_u64, store_release_u64
from cython_ext.bursts cimport reap, rings_tx_burst
from cython_ext.filling cimport fill_up
from cython_ext.dpdk cimport OC_DATA_AT
from cython_ext.dpdk_bursts cimport dpdk_kick, dpdk_nudge, dpdk_rx_burst
from cython_ext.dpdk_pool cimport Pool, oc_dpdk, pool_collect
from cython_ext.user_rules cimport Decisions
from cython_ext.frames cimport Frames, pthread_mutex_lock, pthread_mutex_unlock
from cython_ext.queue cimport Queue, oc_queue
from cython_ext.rings cimport oc_desc, oc_ring


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
