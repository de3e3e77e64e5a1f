# Writes and flushes of the log, never waited for: submit a request, go on, collect it when done.
#
#   engine      who works                              when
#   io_uring    the kernel                             liburing at build time, allowed at run time
#   threads     IO_THREADS threads of ours             otherwise, and always for a mapping (DAX)
#
# One thread (the recorder's writer) submits and collects. A request belongs to the device from
# submit until it is collected; its memory must stay as it is for that long. A device that hangs is
# abandoned with its requests and all of their memory: nobody knows when the kernel will be done
# with them.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef enum:
    DEPTH = 16                # requests at once: 8 writes, a sync, the rest is spare
    WRITE_BLOCKS = 16         # pieces of one write: 16 blocks of 64 KiB are 1 MiB
    IO_THREADS = 4

cdef enum:
    URING = 0
    THREADS = 1

cdef enum:
    IDLE = 0
    WRITE = 1
    SYNC = 2

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void* iov_base
        size_t iov_len

cdef struct oc_target:        # where a segment lies
    int fd
    uint8_t* map              # DAX: of the whole file or device; NULL: by write calls
    uint64_t map_bytes
    uint64_t base             # of the segment, from the start of fd or map
    uint64_t bytes
    bint persistent_stores    # MAP_SYNC: a fence is the flush

cdef struct oc_request:
    uint32_t kind
    bint done                 # collected, in any order; the writer takes them in order
    oc_target target          # by value: the segment may be retired before this ends
    uint64_t offset           # within the segment
    uint64_t bytes
    iovec[WRITE_BLOCKS] iov
    uint32_t n_iov
    uint32_t first_iov        # before it: written (a write may be cut short)
    int64_t result            # 0, or -errno
    uint64_t submitted_ns
    uint32_t slot             # its number: memory that belongs to a request goes by it
    # the submitter's own
    uint64_t covers           # up to which entry this reaches
    uint64_t end              # of what it writes, in the segment
    uint64_t serial           # of the segment
    oc_request* next

cdef struct oc_device

cdef oc_device* device_open(uint32_t engine, int wake_fd, int* error) noexcept nogil
# Ends it; False: requests are still under way, and it was abandoned instead.
cdef bint device_close(oc_device* d) noexcept nogil
cdef oc_request* device_request(oc_device* d) noexcept nogil
cdef void device_submit(oc_device* d, oc_request* r, uint64_t now) noexcept nogil
cdef oc_request* device_collect(oc_device* d) noexcept nogil
cdef void device_release(oc_device* d, oc_request* r) noexcept nogil
cdef uint64_t device_oldest_ns(oc_device* d) noexcept nogil
cdef uint32_t device_in_flight(oc_device* d) noexcept nogil
