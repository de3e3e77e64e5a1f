# A member's mappings of what the engine lends. See member_lane.pyx.
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from cython_ext.sharing cimport oc_down, oc_lent, oc_up


cdef class Mapping:
    cdef uint8_t* base
    cdef uint64_t bytes


cdef class Lane:
    cdef Mapping umem
    cdef Mapping ledger
    cdef Mapping down_map
    cdef Mapping up_map
    cdef oc_down* down
    cdef oc_up* up
    cdef oc_lent* entries
    cdef uint64_t* returns
    cdef uint64_t mask
    cdef uint64_t mine            # entries taken so far
    cdef uint32_t returned
    cdef readonly bint reliable
    cdef uint32_t window
    cdef uint64_t ready(self) noexcept nogil
    cdef bint alive(self, const oc_lent* e) noexcept nogil
    cdef bint inside(self, const oc_lent* e) noexcept nogil
    cdef uint32_t take(self, oc_lent* to, uint64_t n) noexcept nogil
    cdef void give_back(self, const oc_lent* e) noexcept nogil
    cdef void say_returned(self) noexcept nogil
