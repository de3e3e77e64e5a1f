# A queue of a DPDK device; see dpdk_port.pyx.
from libc.stdint cimport uint32_t

from cython_ext.dpdk_pool cimport Pool, oc_dpdk
from cython_ext.queue cimport Queue
from cython_ext.rings cimport oc_ring

cdef class DpdkQueue(Queue):
    cdef oc_dpdk d
    cdef readonly Pool pool
    cdef readonly object device           # the Device, whose close() ends all its queues
    cdef object decisions                 # what the worker uses now
    cdef list retired                     # (what it used before, bursts at that moment)
    cdef dict folded                      # counters of those that nobody uses any more
    cdef readonly object last_statistics

    cdef int _ring(self, oc_ring* r, int which, uint32_t size, size_t entry) except -1
