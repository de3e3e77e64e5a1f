# A recorder's segments, writes and flushes; see recorder_types.pxd and recorder_segments.pyx.
from libc.stdint cimport uint64_t
from cython_ext.recorder_types cimport oc_recorder

cdef bint begin_segment(oc_recorder* w, uint64_t now) noexcept nogil
cdef bint submit_writes(oc_recorder* w, uint64_t now) noexcept nogil
cdef bint seal_live(oc_recorder* w, uint64_t now) noexcept nogil
cdef void publish(oc_recorder* w) noexcept nogil
cdef void retire(oc_recorder* w) noexcept nogil
cdef bint ready(oc_recorder* w) noexcept nogil
cdef bint submit_sync(oc_recorder* w, uint64_t now, bint urgent) noexcept nogil
cdef bint collect(oc_recorder* w, uint64_t now) noexcept nogil
cdef void settle(oc_recorder* w, uint64_t now) noexcept nogil
cdef void abandon_device(oc_recorder* w) noexcept nogil
