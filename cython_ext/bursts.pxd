# Bursts over rings, for every back-end that has them; see bursts.pyx.
from libc.stdint cimport uint32_t, uint64_t
from cython_ext.queue cimport oc_burst, oc_queue

cdef uint32_t rings_rx_burst(oc_queue* q, oc_burst* b, uint32_t packets_max, uint32_t owner,
                             uint64_t now_ns) noexcept nogil
cdef uint32_t rings_tx_burst(oc_queue* q, const uint32_t* frame, const uint64_t* addr,
                             const uint32_t* length, const uint32_t* options,
                             uint32_t n) noexcept nogil
cdef uint32_t reap(oc_queue* q) noexcept nogil
