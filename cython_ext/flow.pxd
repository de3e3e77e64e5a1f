# Flows as numbers. See flow.pyx.
from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum:
    FLOW_BUCKETS = 256

cdef uint32_t bucket_of(uint64_t seed, const uint8_t* packet, uint32_t length) noexcept nogil
