# The last operations of each object (a frame, a slab): who, when, which. Switched on at run time.
#
# Off, a UMEM or tier has no history (a NULL pointer), which is looked at once per burst and in cold
# halves of the slab calls; nothing that happens per packet or per object knows of it. On, every
# operation takes a lock: it is a tool for finding who lost an object, not a way to run.
#
# A table of fixed size, four objects to a set: the object that has been still for the longest makes
# room for another one, so what moves now is always there with its last sixteen operations.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from cython_ext.mutex cimport pthread_mutex_t

cdef enum:
    OPERATIONS = 16               # kept of each object
    WAYS = 4
    SETS = 4096                   # 16,384 objects: 4.5 MiB, taken when it is first switched on
    NAMES_MAX = 64                # of those who take and give slabs; more are one

cdef enum:                        # operations
    POSTED = 1                    # of a frame: to FILL
    RECEIVED = 2                  # with a packet, by the worker or the program (owner)
    HELD = 3                      # or looked at, past its batch
    LET_GO = 4
    QUEUED = 5                    # to TX
    COMPLETED = 6                 # sent, and home
    HOME = 7                      # given back to the pool
    TAKEN = 8                     # of a slab
    GIVEN = 9
    REFUSED = 10                  # given back by somebody who had not got it

cdef struct oc_operation:
    uint64_t time_ns              # CLOCK_REALTIME
    uint32_t generation           # as it was then
    uint16_t who                  # the queue of a frame; a number in `names` for slabs
    uint8_t what
    uint8_t owner                 # of a lease

cdef struct oc_past:              # of one object
    uint64_t key                  # its number + 1; 0: unused
    uint64_t last_ns
    uint32_t n                    # operations so far
    uint32_t unused
    oc_operation[OPERATIONS] operations

cdef struct oc_history:
    oc_past* table
    uint64_t displaced            # objects that made room for others
    uint32_t names_n
    char[32][NAMES_MAX] names
    pthread_mutex_t lock

# One operation of one object.
cdef void history_note(oc_history* h, uint64_t number, uint32_t generation, uint8_t what,
                       uint16_t who, uint8_t owner) noexcept nogil
# The number of a name, for `who`.
cdef uint16_t history_name(oc_history* h, const char* name) noexcept nogil

cdef class History:
    cdef oc_history h
