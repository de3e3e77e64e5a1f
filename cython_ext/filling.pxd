# Posting frames to FILL, for every back-end that has the ring; see filling.pyx.
from libc.stdint cimport uint32_t
from cython_ext.queue cimport BURST, oc_queue

cdef uint32_t fill_up(oc_queue* q, uint32_t more) noexcept nogil
cdef void frames_home(oc_queue* q, const uint32_t* frames, uint32_t n) noexcept nogil


cdef inline uint32_t fill_floor(const oc_queue* q) noexcept nogil:
    """What FILL holds at least while frames last. It may sink by a burst below its target: the
    frames of that burst come straight back (frames_home), or the next one posts others."""
    cdef uint32_t target = q.fill_target
    return target - BURST if target >= 4 * BURST else target
