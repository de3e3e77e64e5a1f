# A filter as machine code; see filter_jit.pyx.
from libc.stdint cimport uint8_t, uint32_t

from cython_ext.pcap cimport Filter

ctypedef uint32_t (*oc_match)(const uint8_t* packet, uint32_t length) noexcept nogil

cdef class NativeFilter:
    cdef readonly Filter interpreter
    cdef oc_match function                # NULL: interpreted
    cdef void* memory
    cdef size_t bytes
    cdef _compile(self, uint32_t* where)
