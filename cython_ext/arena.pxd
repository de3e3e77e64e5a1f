# An arena: one shared mapping of a sealed memfd, with the best pages that the host has.
from libc.stdint cimport uint8_t, uint64_t


cdef class Arena:
    cdef uint8_t* base
    cdef readonly uint64_t bytes        # mapped length, a multiple of the page size
    cdef readonly int fd                # memfd; -1 after close
    cdef readonly str backing           # "2M" | "thp" | "4k": what was granted
    cdef readonly int numa_node         # -1: wherever the kernel put it
    cdef readonly str reason            # why backing is not what was asked for; "" if it is

    cdef int _map(self, uint64_t nbytes, uint64_t page, str name, bint strict_numa) except -1
