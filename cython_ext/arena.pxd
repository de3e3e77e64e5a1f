# An arena: one shared mapping of a sealed memfd, with the best pages that the host has. And the
# steps that it is made of, without the GIL, for who maps piece by piece (the slabs).
from libc.stdint cimport uint8_t, uint64_t

cdef enum:
    NODES_MAX = 1024              # MAX_NUMNODES of Debian's kernels

cdef struct oc_nodes:             # where memory is to come from
    unsigned long[16] mask        # NODES_MAX bits
    int count                     # 0: wherever the kernel likes
    bint strict                   # bound, or only preferred


cdef class Arena:
    cdef uint8_t* base
    cdef readonly uint64_t bytes        # mapped length, a multiple of the page size
    cdef readonly int fd                # memfd; -1 after close
    cdef readonly str backing           # "1G" | "2M" | "thp" | "4k": what was granted
    cdef readonly int numa_node         # -1: wherever the kernel put it
    cdef readonly str reason            # why backing is not what was asked for; "" if it is

    cdef int _map(self, uint64_t nbytes, uint64_t page, str name, oc_nodes* nodes) except -1


cdef bint fault() noexcept nogil
cdef void nodes_of(oc_nodes* nodes, wanted, bint strict) except *
cdef int memory_file(const char* name, uint64_t length, uint64_t page) noexcept nogil
cdef int map_pages(int fd, uint64_t offset, uint64_t length, uint64_t page, bint thp,
                   const oc_nodes* nodes, void** at, bint* unbound) noexcept nogil
cdef void unmap_pages(int fd, uint64_t offset, uint64_t length, void* where,
                      bint reserved) noexcept nogil
cdef void* reserve_addresses(uint64_t length) noexcept nogil
cdef int node_of(void* where) noexcept nogil
