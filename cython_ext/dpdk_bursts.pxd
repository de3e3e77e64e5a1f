# The verbs of a DPDK queue; see dpdk_bursts.pyx.
from libc.stdint cimport uint32_t, uint64_t

from cython_ext.queue cimport oc_burst, oc_queue

cdef uint32_t dpdk_rx_burst(oc_queue* q, oc_burst* b, uint32_t packets_max, uint32_t owner,
                            uint64_t when) noexcept nogil
cdef int dpdk_kick(oc_queue* q) noexcept nogil
cdef int dpdk_nudge(oc_queue* q) noexcept nogil
