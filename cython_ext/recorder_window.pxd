# A recorder's window: packets that stay in memory and are written on demand; recorder_window.pyx.
from libc.stdint cimport uint64_t
from cython_ext.recorder_types cimport oc_recorder
from cython_ext.spool cimport oc_block

cdef void window_take(oc_recorder* w, const oc_block* b) noexcept nogil
cdef bint window_expire(oc_recorder* w) noexcept nogil
cdef void window_round(oc_recorder* w, uint64_t now) noexcept nogil
cdef void window_forget(oc_recorder* w) noexcept nogil
