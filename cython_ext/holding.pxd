# Holds under a quota and a deadline, and what happens past them. See holding.pyx.
from libc.stdint cimport uint32_t, uint64_t
from cython_ext.lending cimport Frame, Lender


cdef class Holder(Lender):
    cdef readonly str policy
    cdef object spill                     # bytes wanted -> a slab; None: there is no mid tier
    cdef object tell                      # (action, packets, age in ns): an event
    cdef uint64_t max_hold_ns             # 0: no deadline
    cdef void* oldest                     # pinned frames, a list through older and newer
    cdef void* newest
    cdef readonly uint64_t copies         # packets in the mid tier now
    cdef readonly uint64_t copied_bytes   # of these
    cdef readonly uint64_t escaped        # copied out because the quota was used up
    cdef readonly uint64_t overrun        # holds that ended because the quota was used up
    cdef readonly uint64_t overdue_copied  # copied out past the deadline
    cdef readonly uint64_t overdue_dropped
    cdef readonly uint64_t refused        # holds refused: no room anywhere
    cdef void enlist(self, Frame frame) noexcept
    cdef void delist(self, Frame frame) noexcept
    cdef int make_room(self, Frame frame) except -1
    cdef bint copy_out(self, Frame frame, bint pinned) except -1
    cdef void end_hold(self, Frame frame) noexcept
    cdef object refuse(self, str why, str more=*)
