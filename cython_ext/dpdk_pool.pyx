# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True
"""The mempool whose objects are our frames and whose stock is our rings.

DPDK's drivers take mbufs from a mempool and give them back to it. This one holds no stock: taking
is the kernel's side of FILL, giving back is its side of COMPLETION.

    fill_up() --> FILL --take--> driver --packet--> RX --> rings_rx_burst(), as with AF_XDP
                    ^              |
                    spare <--free--+  (received, and not wanted)
    rings_tx_burst() --> TX --> driver --free--> COMPLETION --> reap()

The mbuf lies in the frame itself (include/oc_dpdk.h has the picture), so net_af_xdp can hand the
frames to the kernel as they are, and every frame keeps its number, its ledger entry and its pool.

Whoever owns the memory says so before calling a driver (pool_enter), and then frees go straight to
the rings. A free from elsewhere (another port's thread that drops a packet it got from us over
net_ring; closing) waits in `strays`, under a lock, until the owner collects it.
"""
cimport cython
from libc.errno cimport ENOBUFS
from libc.stdint cimport uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from cython_ext.atomics cimport (likely, load_acquire_u32, prefetch_write, store_release_u32,
                                 unlikely)
from cython_ext.dpdk cimport (OC_MBUF_AT, RTE_MEMPOOL_F_NO_SPREAD, SOCKET_ID_ANY, oc_enter,
                              oc_queue_inside, oc_register_ops, rte_extmem_register,
                              rte_extmem_unregister, rte_iova_t, rte_mempool_create_empty,
                              rte_mempool_free, rte_mempool_obj_iter, rte_mempool_populate_iova,
                              rte_mempool_populate_obj_cb_t, rte_mempool_set_ops_byname,
                              rte_pktmbuf_init, rte_pktmbuf_pool_init, rte_pktmbuf_pool_private)
from cython_ext.frames cimport (pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock,
                                pthread_mutex_unlock)
from cython_ext.rings cimport ring_addr

import itertools

from cython_ext import dpdk_eal

cdef uint32_t pools_made = 0
cdef const char* OPS = "openclaw"
_numbers = itertools.count()


# ----------------------------------------------------------------------------- inside a driver

cdef void pool_enter(oc_queue* q) noexcept nogil:
    """The calling thread owns the memory of this queue, and calls a driver for it."""
    oc_enter((<oc_dpdk*>q.backend).pool, q)


cdef void pool_leave() noexcept nogil:
    oc_enter(NULL, NULL)


cdef int pool_take(oc_queue* q, rte_mbuf** into, uint32_t n) noexcept nogil:
    """The kernel's side of FILL: n frames as mbufs, all or none."""
    cdef oc_dpdk* d = <oc_dpdk*>q.backend
    cdef uint8_t* base = q.um.base
    cdef uint32_t shift = q.um.frame_shift, i = 0, consumer = q.fill.consumer[0]
    cdef uint64_t addr
    if unlikely(d.spare_n + (load_acquire_u32(q.fill.producer) - consumer) < n):
        d.no_buffers += n
        return -ENOBUFS
    while i < n and d.spare_n:    # the one that came back last is the warmest
        d.spare_n -= 1
        into[i] = <rte_mbuf*>(base + (<uint64_t>d.spare[d.spare_n] << shift) + OC_MBUF_AT)
        i += 1
    while i < n:
        if unlikely(consumer == q.fill.producer[0]):
            break
        addr = ring_addr(&q.fill, consumer)[0]
        consumer += 1
        if unlikely(addr >= q.um.bytes):
            d.fill_invalid += 1   # only a test posts such; it belongs to no frame
            continue
        into[i] = <rte_mbuf*>(base + (addr >> shift << shift) + OC_MBUF_AT)
        prefetch_write(into[i])
        i += 1
    store_release_u32(q.fill.consumer, consumer)
    if unlikely(i < n):
        while i:
            i -= 1
            d.spare[d.spare_n] = <uint32_t>((<uint8_t*>into[i] - base) >> shift)
            d.spare_n += 1
        return -ENOBUFS
    return 0


cdef inline void home(oc_pool* pool, oc_queue* q, uint32_t frame) noexcept nogil:
    """One frame that a driver gave back: sent, or received and not wanted."""
    cdef oc_dpdk* d
    cdef uint32_t producer
    cdef uint8_t sender = pool.sender[frame]
    if sender == NOBODY:
        d = <oc_dpdk*>q.backend
        d.spare[d.spare_n] = frame
        d.spare_n += 1
        return
    pool.sender[frame] = NOBODY
    q = pool.queues[sender]
    d = <oc_dpdk*>q.backend
    d.sending -= 1
    producer = q.completion.producer[0]   # there is room: see device_send's bound
    ring_addr(&q.completion, producer)[0] = <uint64_t>frame << q.um.frame_shift
    store_release_u32(q.completion.producer, producer + 1)


cdef void pool_collect(oc_pool* pool) noexcept nogil:
    """The owner takes what others gave back."""
    cdef uint32_t i
    if likely(load_acquire_u32(&pool.strays_n) == 0):
        return
    pthread_mutex_lock(&pool.stray_lock)
    for i in range(pool.strays_n):
        home(pool, pool.queues[0], pool.strays[i])
    store_release_u32(&pool.strays_n, 0)
    pthread_mutex_unlock(&pool.stray_lock)


# ---------------------------------------------------------------------------- the mempool's verbs

cdef int ops_alloc(rte_mempool* mp) noexcept nogil:
    mp.pool_data = mp.pool_config
    return 0


cdef void ops_free(rte_mempool* mp) noexcept nogil:
    pass


cdef int ops_enqueue(rte_mempool* mp, void* const* objects, unsigned n) noexcept nogil:
    cdef oc_pool* pool = <oc_pool*>mp.pool_data
    cdef unsigned i
    cdef uint32_t frame, shift = pool.um.frame_shift
    cdef oc_queue* q = <oc_queue*>oc_queue_inside(pool)
    if unlikely(q == NULL):
        pthread_mutex_lock(&pool.stray_lock)
    for i in range(n):
        frame = <uint32_t>((<uint8_t*>objects[i] - pool.um.base) >> shift)
        if likely(q != NULL):
            home(pool, q, frame)
        else:
            pool.strays[pool.strays_n] = frame
            store_release_u32(&pool.strays_n, pool.strays_n + 1)
    if unlikely(q == NULL):
        pthread_mutex_unlock(&pool.stray_lock)
    return 0


cdef int ops_dequeue(rte_mempool* mp, void** objects, unsigned n) noexcept nogil:
    cdef oc_pool* pool = <oc_pool*>mp.pool_data
    cdef oc_queue* q = <oc_queue*>oc_queue_inside(pool)
    if unlikely(q == NULL):
        return -ENOBUFS           # nobody but a queue's owner can take from its FILL
    return pool_take(q, <rte_mbuf**>objects, n)


cdef unsigned ops_count(const rte_mempool* mp) noexcept nogil:
    cdef oc_pool* pool = <oc_pool*>mp.pool_data
    cdef oc_queue* q
    cdef unsigned i, total = 0
    for i in range(pool.n):
        q = pool.queues[i]
        total += (<oc_dpdk*>q.backend).spare_n + (q.fill.producer[0] - q.fill.consumer[0])
    return total


cdef int ops_populate(rte_mempool* mp, unsigned most, void* at, rte_iova_t iova, size_t length,
                      rte_mempool_populate_obj_cb_t* add, void* context) noexcept nogil:
    """Object i is frame i. They are not put into a stock: FILL is filled by who owns the queue."""
    cdef oc_pool* pool = <oc_pool*>mp.pool_data
    cdef unsigned i
    cdef uint64_t where
    for i in range(most):
        where = (<uint64_t>i << pool.um.frame_shift) + OC_MBUF_AT
        add(mp, context, <uint8_t*>at + where, iova + where)
    return <int>most


# --------------------------------------------------------------------------------- Python's view

@cython.no_gc_clear
cdef class Pool:
    """`Pool(frames)`: the memory of these Frames as a mempool. EAL runs, and outlives it.

    Queues join it; close() once they are closed. OSError when DPDK refuses.
    """

    def __cinit__(self, Frames frames not None):
        cdef rte_pktmbuf_pool_private private
        cdef bytes name = b"oc%d" % next(_numbers)
        cdef uint64_t page = (2 << 20) if frames.arena.backing == "2M" else 4096
        cdef uint32_t size = frames.um.frame_bytes - OC_MBUF_AT
        cdef int result
        self.closed = True
        self.frames = frames
        self.pool.um = &frames.um
        pthread_mutex_init(&self.pool.stray_lock, NULL)
        self.pool.sender = <uint8_t*>malloc(frames.um.frames)
        self.pool.strays = <uint32_t*>malloc(frames.um.frames * sizeof(uint32_t))
        if self.pool.sender == NULL or self.pool.strays == NULL:
            raise MemoryError("tables of a mempool")
        memset(self.pool.sender, NOBODY, frames.um.frames)
        register_ops()
        result = rte_extmem_register(frames.um.base, frames.arena.bytes, NULL, 0, page)
        if result:
            raise OSError(0, f"DPDK does not take our memory: {dpdk_eal.reason()}")
        self.registered = frames.arena.bytes
        self.pool.mp = rte_mempool_create_empty(name, frames.um.frames, size, 0, sizeof(private),
                                                SOCKET_ID_ANY, RTE_MEMPOOL_F_NO_SPREAD)
        if self.pool.mp == NULL:
            self._release()
            raise OSError(0, f"a mempool of {frames.um.frames} frames: {dpdk_eal.reason()}")
        if (self.pool.mp.header_size != OC_MBUF_AT or self.pool.mp.trailer_size
                or self.pool.mp.elt_size != size):
            self._release()
            raise OSError(0, "this DPDK lays mempool objects out in another way (a debug build?)")
        memset(&private, 0, sizeof(private))
        private.mbuf_data_room_size = <unsigned short>(size - 128)
        result = rte_mempool_set_ops_byname(self.pool.mp, OPS, &self.pool)
        if result == 0:
            rte_pktmbuf_pool_init(self.pool.mp, &private)
            result = rte_mempool_populate_iova(self.pool.mp, <char*>frames.um.base,
                                               <uintptr_t>frames.um.base, frames.um.bytes, NULL,
                                               NULL)
        if result != <int>frames.um.frames:
            self._release()
            raise OSError(0, f"frames as mbufs: {dpdk_eal.reason(result)}")
        rte_mempool_obj_iter(self.pool.mp, <void*>rte_pktmbuf_init, NULL)
        self.closed = False

    cdef int join(self, oc_queue* q) except -1:
        """Makes a queue one of those whose rings are the stock; its place."""
        if self.pool.n == POOL_QUEUES_MAX:
            raise ValueError(f"more than {POOL_QUEUES_MAX} queues on one memory")
        self.pool.queues[self.pool.n] = q
        self.pool.n += 1
        return self.pool.n - 1

    cdef void part(self) noexcept:
        """A queue has closed; after the last of them drivers have none of our frames any more."""
        self.parted += 1
        if self.parted == self.pool.n:
            self.closed = True
            self._release()

    cdef void _release(self) noexcept:
        if self.pool.mp != NULL:
            rte_mempool_free(self.pool.mp)
            self.pool.mp = NULL
        if self.registered:
            rte_extmem_unregister(self.frames.um.base, self.registered)
            self.registered = 0

    def __dealloc__(self):
        self._release()           # a pool that no queue ever joined
        free(self.pool.sender)
        free(self.pool.strays)
        pthread_mutex_destroy(&self.pool.stray_lock)


cdef register_ops():
    """Once in a process: DPDK has a table of 16."""
    global pools_made
    if pools_made == 0 and oc_register_ops(OPS, ops_alloc, ops_free, ops_enqueue, ops_dequeue,
                                           ops_count, ops_populate) < 0:
        raise OSError(0, f"DPDK does not take our mempool: {dpdk_eal.reason()}")
    pools_made += 1
