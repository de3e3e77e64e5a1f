# The writer of a log: blocks from spools, held until they are durable, into segments.
#
#   held      entries          who has the block
#   first..   in [first, next) written or on their way to the device; kept until the flush
#   next..    in [next, last)  waiting
#
# An entry is given up only when a flush that began after its write has ended. So whatever a device
# does, all that it did not acknowledge is still here, and goes into the next segment under the same
# sequence numbers (FRESH: see oc_log_format.h). One thread runs all of it without the GIL; Python
# hands it segments (`given`), takes `events`, and reads figures.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from cython_ext.log_device cimport DEPTH, oc_device, oc_request, oc_target
from cython_ext.log_format cimport oc_log_chain, oc_log_segment, oc_log_state, oc_log_tally
from cython_ext.pcap cimport bpf_insn
from cython_ext.shm_ring cimport oc_spsc
from cython_ext.slab_types cimport oc_cache
from cython_ext.spool cimport oc_block, oc_spool

cdef enum:
    SPOOLS_MAX = 64               # workers of one recorder
    STATES_MAX = 16               # limits.DIRECTORIES_MAX
    EVENTS_MAX = 64
    WRITES_MAX = 8                # under way at once: what a disk of one queue is busy with

cdef enum:                        # kinds of oc_note
    RETIRED = 1                   # sealed and flushed
    FAILED = 2                    # abandoned: error says why
    HUNG = 3                      # abandoned, and the kernel may still be writing to it
    BEGUN = 4                     # its header is written: the device takes writes

cdef struct oc_held:
    oc_block b
    uint64_t last_seq             # of its records, once it is numbered
    uint64_t dropped              # packets of older entries that were given up in front of it
    uint64_t dropped_bytes
    uint64_t dropped_ns
    bint stuck                    # the kernel may read the block for ever: never used again

cdef struct oc_given:             # a segment to write to, from Python
    oc_target target
    uint32_t place                # which directory or device
    oc_log_segment* header        # a page; chain, first_seq and crc are the writer's

cdef struct oc_live:              # a segment that is written
    bint used
    bint sealed                   # its SEAL is on its way or written
    oc_target target
    uint32_t place
    uint64_t serial               # its index in the log
    uint64_t epoch
    uint32_t outstanding          # writes under way
    uint64_t written              # bytes of ended writes
    uint64_t synced               # of these flushed
    uint64_t dirty_ns             # when the first unflushed write ended
    uint64_t end                  # entries before this one are in it, or earlier

cdef struct oc_note:
    uint32_t kind
    uint32_t place
    uint64_t serial
    int error
    uint32_t operation            # WRITE or SYNC
    uint64_t synced               # bytes of it that are flushed

cdef struct oc_recorder:
    # from and to the workers
    uint32_t n_spools
    oc_spool* spools[SPOOLS_MAX]
    oc_spsc* full[SPOOLS_MAX]
    oc_spsc* free[SPOOLS_MAX]
    uint32_t[SPOOLS_MAX] stock    # free blocks that a spool is kept at
    bint[SPOOLS_MAX] stocked      # it had that many after the last round
    # entries
    oc_held* held
    uint64_t mask
    uint64_t first, next, last
    uint64_t written              # entries before: their writes have ended
    oc_held loss                  # given up, with no entry left to say so
    # the window: blocks that are only kept in memory, oldest first (recorder_window.pyx)
    uint64_t window_ns            # 0: none, everything is written
    oc_block* window
    uint64_t window_first, window_last
    uint64_t expired_packets
    # a request to write what is in it: Python sets `keep_asked`, the writer answers
    uint32_t keep_asked, keep_done    # release/acquire
    const bpf_insn* keep_filter   # NULL: everything
    uint64_t keep_since_ns
    uint64_t keep_at              # the entry that is looked at next
    uint64_t keep_place           # ... and the record in it
    bint keeping
    oc_block keep_open            # what is being filled with copies
    uint64_t kept_packets
    # blocks
    oc_cache* cache
    uint32_t blocks, blocks_max, blocks_peak, stuck
    uint8_t** spare
    uint32_t n_spare, spare_low
    uint8_t* pages                # one for each request: GAP writes and headers
    uint8_t* seal
    # the log
    oc_log_chain chain
    oc_log_tally* tally
    oc_log_state state
    uint8_t[1024] state_shadow    # the writer's copy; publishers carry it to the files
    void* state_pages[STATES_MAX]
    uint32_t n_states
    bint fresh                    # the next segment begins after a fault
    uint64_t durable_seq
    oc_live live, old
    oc_given given
    uint32_t is_given             # release/acquire
    # the device
    oc_device* device
    uint32_t engine
    oc_request* order[DEPTH]      # writes, as they were submitted
    uint32_t order_head, order_n
    oc_request* syncing
    int failing                   # errno: nothing more is submitted until all has come back
    uint32_t fail_operation
    uint64_t fail_serial
    uint64_t hang_ns
    # time
    uint64_t commit_bytes, commit_ns
    int64_t to_realtime
    int wake_fd, helper_fd
    uint32_t sleeps
    uint32_t stop                 # release/acquire
    uint64_t stop_by_ns
    bint done
    uint32_t closing              # the last state is there to be carried
    uint64_t tidied_ns
    # the way back to Python
    oc_note[EVENTS_MAX] notes
    uint32_t notes_head, notes_tail
    # figures
    uint64_t taken_packets, durable_packets, durable_bytes, dropped_packets, dropped_bytes
    uint64_t gaps, gap_packets, writes, write_bytes, syncs, sync_ns, sync_worst_ns, rounds, naps
    uint64_t refused              # blocks that the mid tier did not have
