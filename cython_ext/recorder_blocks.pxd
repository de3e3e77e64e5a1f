# A recorder's entries and blocks; see recorder_types.pxd and recorder_blocks.pyx.
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from cython_ext.recorder_types cimport oc_recorder
from cython_ext.spool cimport oc_block

cdef void take_one(oc_recorder* w, const oc_block* b) noexcept nogil
cdef uint32_t take_blocks(oc_recorder* w) noexcept nogil
cdef void supply(oc_recorder* w, bint nowhere) noexcept nogil
cdef void release(oc_recorder* w, uint64_t upto) noexcept nogil
cdef void own_up(oc_recorder* w) noexcept nogil
cdef void give_up_oldest(oc_recorder* w) noexcept nogil
cdef void lose_everything(oc_recorder* w) noexcept nogil
cdef uint8_t* get_block(oc_recorder* w) noexcept nogil
cdef void put_block(oc_recorder* w, uint8_t* block) noexcept nogil
cdef void tidy(oc_recorder* w, uint64_t now) noexcept nogil
