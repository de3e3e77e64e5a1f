# The worker's end of a recorder: packets into blocks, full or old blocks to the writer.
#
#   block     64 KiB of the mid tier, aligned to its size; room for a HEAD in front, then records
#   ring      who produces      who consumes     what
#   full      the worker        the writer       oc_block: blocks to write, and losses
#   free      the writer        the worker       addresses of empty blocks
#
# One spool belongs to one worker (and one recorder): no lock, nothing to wait for. Without a free
# block a packet is counted, and the next block says how many are missing in front of it; the
# writer makes a GAP of that. Order within a spool is the order of its queues. A block goes over
# when it is full, or when its first packet is half of commit_ms old; the other half is the flush's.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from cython_ext.queue cimport oc_burst, oc_umem
from cython_ext.shm_ring cimport ShmRing, oc_spsc

cdef enum:
    BLOCK_BYTES = 65536           # the mid tier's largest class
    BLOCK_CLASS = 10              # of slab_types.pxd: 64 B << 10
    ROUSE_BLOCKS = 8              # so many waiting: worth a system call to wake the writer
    FLOW_WAYS = 4

cdef struct oc_block:             # one element of the ring of full blocks
    uint8_t* data                 # NULL: only a loss
    uint32_t used                 # bytes, HEAD's room included
    uint32_t records
    uint64_t first_ns             # CLOCK_REALTIME, of its packets
    uint64_t last_ns
    uint64_t bytes                # captured
    uint64_t lost                 # packets that are missing in front of it
    uint64_t lost_bytes
    uint64_t lost_ns              # when the first of them came

cdef struct oc_flow:              # bytes kept of a flow; a table of FLOW_WAYS places a row
    uint64_t key
    uint64_t bytes

cdef struct oc_spool:
    oc_block open                 # data NULL: none is
    uint64_t due_ns               # CLOCK_MONOTONIC: when it has to go
    uint64_t half_commit_ns
    oc_spsc* full
    oc_spsc* free
    int64_t to_realtime           # CLOCK_REALTIME less CLOCK_MONOTONIC
    uint32_t snap_bytes           # of a packet; BLOCK_BYTES: all
    uint64_t flow_bytes           # of a flow; 0: all
    oc_flow* flows
    uint64_t flows_mask           # rows - 1
    int wake_fd
    uint32_t* writer_sleeps
    uint64_t lost                 # not yet told to the writer
    uint64_t lost_bytes
    uint64_t lost_ns
    # figures; one writer, relaxed readers
    uint64_t packets              # that came
    uint64_t packet_bytes
    uint64_t recorded             # into blocks
    uint64_t recorded_bytes       # captured
    uint64_t no_memory            # no free block
    uint64_t cut_packets          # recorded shorter than they were
    uint64_t flow_cut             # not recorded: their flow has had its bytes
    uint64_t roused

cdef void spool_packets(oc_spool* s, const oc_umem* um, const oc_burst* b, uint32_t start,
                        uint32_t end, uint32_t rule, uint16_t port,
                        uint16_t queue) noexcept nogil
cdef void spool_hand_over(oc_spool* s) noexcept nogil


cdef inline uint64_t spool_tick(oc_spool* s, uint64_t now) noexcept nogil:
    """Hands an old block over. ns until the next has to go; 0: none is open."""
    if s.open.data == NULL and s.lost == 0:
        return 0
    if now >= s.due_ns:
        spool_hand_over(s)
        if s.open.data == NULL and s.lost == 0:
            return 0
        s.due_ns = now + s.half_commit_ns        # the writer's ring is full: try again
    return s.due_ns - now


cdef class Spool:
    cdef oc_spool s
    cdef ShmRing full
    cdef ShmRing free
    cdef readonly object owner            # the recorder: its memory is what the blocks are
