# The port contract, one queue of it: open, rx_burst, tx_burst, stats, info, close. Consumers, the
# worker and Python's batches know a queue only by `oc_queue`; a back-end fills in the four verbs.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from cython_ext.frames cimport Frames, oc_umem
from cython_ext.rings cimport oc_ring

cdef enum:
    BURST = 64                # packets a verb moves at once: 64 descriptors are 1 KiB, 16 lines
    FRAGS_MAX = 18            # MAX_SKB_FRAGS + 1: what the kernel itself can hand over or take

cdef extern from "openclaw_abi.h":
    """
    #include <stddef.h>
    """
    cdef struct oc_meta:
        uint16_t magic
        uint8_t version
        uint8_t flags
        uint32_t rule_id
        uint64_t timestamp_ns
    enum:
        OC_META_MAGIC
        OC_META_VERSION
        OC_META_SAMPLED
        OC_META_FRAGS

# What one rx_burst gives: columns over packets, and columns over the frames that carry them.
# Memory belongs to whoever allocated it (burst_alloc); capacity is fixed at that time.
cdef struct oc_burst:
    uint32_t packets
    uint32_t frags            # >= packets
    uint32_t packets_max
    uint32_t frags_max
    uint64_t* timestamp_ns    # by packet; CLOCK_MONOTONIC, from the metadata record
    uint32_t* length          # by packet, bytes, all fragments
    uint32_t* rule_id         # by packet
    uint32_t* flags           # by packet, OC_META_*
    uint32_t* first           # by packet: its first row in the columns below
    uint32_t plain            # rows of `first` that hold their own number: nobody writes them again
    uint64_t* addr            # by fragment: offset of its first byte in the UMEM
    uint32_t* bytes           # by fragment
    uint32_t* frame           # by fragment: frame number
    uint32_t* generation      # by fragment: the lease this burst holds
    void* block

cdef struct oc_queue:
    oc_umem* um
    oc_ring fill
    oc_ring completion
    oc_ring rx
    oc_ring tx
    int fd                    # what poll() waits on; -1: nothing to wait on
    uint32_t queue_id
    bint multi_buffer
    bint busy                 # never sleep: look again at once
    bint drive                # the application drives the NIC's NAPI, by a system call
    uint32_t fill_target      # frames to keep in the kernel's hands for receiving
    uint32_t filled           # frames there now
    uint32_t sending          # frames in TX, not yet completed
    uint32_t tx_headroom      # what the back-end keeps in front of a packet that is to be sent
    uint32_t tx_fault         # tests only: next descriptors to spoil (see Queue.spoil)
    # verbs of the back-end
    uint32_t (*rx_burst)(oc_queue*, oc_burst*, uint32_t, uint32_t, uint64_t) noexcept nogil
    uint32_t (*tx_burst)(oc_queue*, const uint32_t*, const uint64_t*, const uint32_t*,
                         const uint32_t*, uint32_t) noexcept nogil
    int (*kick)(oc_queue*) noexcept nogil       # makes the kernel send what was queued
    int (*nudge)(oc_queue*) noexcept nogil      # makes the kernel receive, where it must be asked
    void* backend
    # figures; one writer (the UMEM's owner), relaxed readers
    uint64_t rx_frames
    uint64_t rx_bytes
    uint64_t tx_frames
    uint64_t tx_bytes
    uint64_t starved          # bursts cut short because no replacement frame was free
    uint64_t invalid_metadata
    uint64_t bad_descriptors  # addresses from the kernel that we had not given it
    uint64_t too_many_fragments
    uint64_t wakeups          # system calls made to move packets

cdef Py_ssize_t burst_alloc(oc_burst* b, uint32_t packets_max, uint32_t frags_max) except -1
cdef void burst_dispose(oc_burst* b) noexcept nogil
cdef uint32_t burst_free(oc_umem* um, const oc_burst* b) noexcept nogil

cdef uint64_t now_ns() noexcept nogil

cdef class Queue:
    cdef oc_queue q
    cdef readonly Frames frames
    cdef readonly bint closed
