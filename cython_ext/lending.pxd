# What a program in Python holds: batches, frames, views. See lending.pyx for who keeps what alive.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from cython_ext.frames cimport Frames, oc_umem
from cython_ext.queue cimport Queue, oc_burst

cdef struct oc_piece:             # one fragment of one packet
    uint64_t addr
    uint32_t bytes
    uint32_t frame
    uint32_t generation


cdef class Lender:
    """Lends frames to one consumer: its quota, and how much of it is used."""
    cdef readonly uint32_t owner          # number in the ledger
    cdef readonly uint32_t quota          # frames that may be held or viewed past their batch
    cdef readonly uint32_t pinned         # frames held or viewed now
    cdef readonly int64_t clock_offset_ns  # CLOCK_REALTIME - CLOCK_MONOTONIC, taken once at open
    cdef list blocks                      # idle column blocks
    cdef void* batches                    # batches not yet released, a list through `next`
    cdef void register(self, Batch batch) noexcept
    cdef Block take_block(self, uint32_t packets_max, bint multi_buffer)
    cdef int pin(self, Frame frame) except -1
    cdef void unpin(self, Frame frame) noexcept
    cdef void moved(self, Frame frame) noexcept


cdef class Columns:
    cdef oc_burst b
    cdef Py_ssize_t bytes


cdef class Block:
    cdef Columns columns
    cdef oc_burst* b                      # the columns' burst
    cdef object lengths                   # numpy arrays over the columns, full capacity
    cdef object timestamps
    cdef object rule_ids
    cdef bint idle(self)
    cdef _array(self, dtype, void* where)


cdef class Batch:
    cdef Lender lender
    cdef Queue queue
    cdef Block block
    cdef uint32_t count
    cdef void* next                       # borrowed: a batch takes itself out of the list
    cdef void* previous
    cdef void give_back(self) noexcept
    cdef Frame make(self, uint32_t i)
    cdef int alive(self) except -1


cdef class Frame:
    cdef Batch batch                      # so that a batch lives while one of its frames does
    cdef Lender lender
    cdef Queue queue
    cdef readonly uint32_t length
    cdef readonly uint32_t rule_id
    cdef readonly uint64_t timestamp_ns
    cdef uint32_t pieces
    cdef oc_piece one
    cdef oc_piece* many                   # NULL unless pieces > 1
    cdef uint32_t holds
    cdef uint32_t exports
    cdef bytes gathered
    # Of the lender, while it is held or viewed (holding.pyx):
    cdef bint pinned                      # a ledger reference of each piece is ours
    cdef void* older                      # the pinned frames in the order of their pins, borrowed
    cdef void* newer
    cdef uint64_t since_ns                # of the pin or the copy
    cdef object slab                      # the mid tier has the packet: this is what we show
    cdef const uint8_t* copy              # its first byte
    cdef const uint8_t* shown(self, uint32_t i) noexcept
    cdef oc_piece* piece(self, uint32_t i) noexcept
    cdef bint is_alive(self) noexcept
    cdef int check(self) except -1
    cdef bytes _gather(self)
    cdef int export_begin(self) except -1
    cdef void export_end(self) noexcept
    cdef bint ours_alone(self) noexcept
    cdef void sent(self) noexcept
