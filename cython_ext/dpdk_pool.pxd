# Our frames as DPDK's mbufs: one mempool over the memory of one Frames, and the four rings of each
# queue as its stock. See dpdk_pool.pyx for the picture.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from cython_ext.dpdk cimport rte_mbuf, rte_mempool
from cython_ext.user_rules cimport oc_rules
from cython_ext.frames cimport Frames, oc_umem, pthread_mutex_t
from cython_ext.queue cimport oc_queue

cdef enum:
    POOL_QUEUES_MAX = 8           # WORKER_QUEUES_MAX: queues that share one memory
    NOBODY = 255                  # in oc_pool.sender: the frame is not being sent

cdef struct oc_pool:
    rte_mempool* mp
    oc_umem* um
    oc_queue* queues[POOL_QUEUES_MAX]
    uint32_t n
    uint8_t* sender               # by frame: which of the queues sends it, or NOBODY
    uint32_t* strays              # frames freed by a thread that does not own this memory
    uint32_t strays_n
    pthread_mutex_t stray_lock

cdef struct oc_dpdk:              # one queue, what is DPDK's about it: oc_queue.backend
    oc_pool* pool
    uint32_t place                # in pool.queues
    uint16_t port                 # ethdev's number
    bint open                     # packets are taken from the device
    bint started                  # the device runs: packets can be sent
    bint chains                   # the device sends packets of several segments
    uint32_t* spare               # frames in FILL that the driver had and gave back unused
    uint32_t spare_n
    uint32_t sending              # frames that the driver has for sending
    oc_rules* rules
    uint64_t bursts               # begun: two more, and nobody looks at replaced rules
    uint64_t no_buffers           # mbufs that the driver wanted and FILL had not
    uint64_t fill_invalid
    uint64_t tx_invalid
    uint64_t no_frame             # to be copied, and no frame was there to copy into
    uint64_t copied               # came in memory that is not ours
    uint32_t[16] indices          # of the four rings, both sides

cdef void pool_enter(oc_queue* q) noexcept nogil
cdef void pool_leave() noexcept nogil
cdef int pool_take(oc_queue* q, rte_mbuf** into, uint32_t n) noexcept nogil
cdef void pool_collect(oc_pool* pool) noexcept nogil

cdef class Pool:
    cdef oc_pool pool
    cdef readonly Frames frames
    cdef readonly bint closed
    cdef uint64_t registered
    cdef uint32_t parted
    cdef int join(self, oc_queue* q) except -1
    cdef void part(self) noexcept
    cdef void _release(self) noexcept
