# Lending to consumers in other processes: one oc_share for each consumer and worker.
#
#   thing                     who writes it
#   leases, lists, figures    the worker that owns the UMEM (figures are read by anybody)
#   `down` (oc_share.h)       the worker; members map it read-only
#   `up`                      the member; every word is checked
#   members[], state, target  the engine's control side; the worker looks once a round
#
# A *reliable* member has a lease for each packet: a slot of a private table, which its entry names
# and its return must name again, with a serial that is good once. A frame has one ledger reference
# per member. A *lossy* consumer has one window: the newest packets, kept alive for all its members
# together; what falls out of it goes home, whoever looks.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from cython_ext.frames cimport oc_umem
from cython_ext.mutex cimport pthread_mutex_t
from cython_ext.pcap cimport bpf_insn
from cython_ext.queue cimport oc_burst, oc_queue
from cython_ext.slab_types cimport oc_cache, oc_slabs

cdef extern from "oc_share.h" nogil:
    uint64_t SHARE_MAGIC "OC_SHARE_MAGIC"
    uint32_t NONE "OC_NONE"
    enum:
        SHARE_VERSION "OC_SHARE_VERSION"
        SHARE_HEADER "OC_SHARE_HEADER"
        IN_FRAME "OC_IN_FRAME"
        IN_SLAB_2M "OC_IN_SLAB_2M"
        IN_SLAB_4K "OC_IN_SLAB_4K"
    struct oc_lent:
        uint64_t seq
        uint64_t timestamp_ns
        uint64_t place
        uint32_t length
        uint32_t rule_id
        uint32_t slot
        uint32_t serial
        uint32_t frame
        uint32_t generation
        uint16_t kind
        uint16_t queue
        uint32_t flags
        uint32_t missed
    struct oc_down:
        uint64_t magic
        uint32_t version
        uint32_t size
        uint32_t reliable
        uint32_t window
        uint64_t produced
    struct oc_up:
        uint32_t sleeping
        uint32_t returned
        uint64_t overruns
    void fence "oc_fence"() noexcept
    void fence_acquire "oc_fence_acquire"() noexcept
    void fence_release "oc_fence_release"() noexcept
    void wake "oc_wake"(int fd) noexcept

cdef enum:
    MEMBERS_MAX = 16              # of one consumer; a frame counts up to 255 references
    WORKER_SHARES_MAX = 16        # sharing consumers of one worker
    BUCKETS = 256                 # of flows, for members that divide them
    NOBODY = 255                  # a bucket without a member

cdef enum:                        # how the members of a consumer divide its packets
    TO_ALL = 0
    BY_FLOW = 1
    IN_TURN = 2

cdef enum:                        # of a member; the control side moves it on, the worker to GONE
    ACTIVE = 1
    LEAVING = 2                   # gets nothing new, still gives back
    DEAD = 3                      # its connection is closed: everything comes home
    GONE = 4                      # nothing of it is in use any more

cdef struct oc_lease:
    uint64_t since_ns
    void* slab                    # NULL: a frame
    uint32_t frame
    uint32_t generation
    uint32_t serial               # odd: lent
    uint32_t older                # all that are lent, in the order of lending
    uint32_t newer                # of a free slot: the next free one
    uint32_t bytes                # of the slab
    uint32_t bucket

cdef struct oc_member:
    uint32_t state
    uint32_t mask                 # of the entries
    oc_down* down
    oc_lent* entries
    oc_up* up
    uint64_t* returns             # as many as entries: there are never more leases
    uint64_t produced
    uint64_t published
    uint32_t returned
    uint32_t woken                # the number of the sleep that was ended last
    int wake_fd
    const bpf_insn* code          # its own filter, or NULL
    # leases
    oc_lease* leases
    uint32_t n_leases
    uint32_t free
    uint32_t oldest
    uint32_t newest
    uint32_t quota                # frames at once
    uint32_t frames_held
    uint32_t copies_held
    uint64_t copied_bytes         # of the slabs that it has now
    uint64_t max_hold_ns
    uint32_t overdue              # gets copies only, until it gives back
    uint32_t[BUCKETS] by_bucket   # leases, for the hand-over of flows
    # figures
    uint64_t offered              # = frames + dropped
    uint64_t frames
    uint64_t bytes
    uint64_t copied               # of these, as copies
    uint64_t dropped
    uint64_t bad_returns
    uint64_t reclaimed
    uint64_t overdues

cdef struct oc_kept:              # of the window
    void* slab
    uint32_t frame
    uint32_t generation
    uint32_t bytes

cdef struct oc_share:
    oc_umem* um
    oc_cache* cache               # of the worker's thread; NULL: no mid tier, no copies
    uint32_t owner                # its number in the ledger
    uint32_t reliable
    uint32_t mode
    uint32_t turn
    uint32_t live                 # who gets packets: the worker's own, renewed once a round
    uint64_t seed                 # of the flow hash: nobody outside can aim at one member
    oc_member* members[MEMBERS_MAX]
    uint64_t copy_bytes           # of the mid tier, for all members together
    uint64_t copied_bytes
    oc_kept* kept                 # the window, a ring
    uint32_t window
    uint32_t kept_mask
    uint32_t kept_from
    uint32_t kept_n
    # by flow
    pthread_mutex_t lock          # of `target`
    uint32_t retarget             # `target` is new
    uint8_t[BUCKETS] target
    uint8_t[BUCKETS] wanted       # the worker's copy of it
    uint8_t[BUCKETS] to           # in force
    uint32_t moving               # buckets where `to` is not `wanted` yet
    uint64_t move_ns              # by then they move, returned or not
    uint64_t hand_over_ns
    uint64_t moved_late           # buckets that had to
    uint64_t violations           # a lease that the ledger did not know: never

cdef void share_packets(oc_share* s, const oc_burst* b, uint32_t start, uint32_t end,
                        uint32_t queue, bint sent_on, uint64_t now) noexcept nogil
cdef void share_tick(oc_share* s, uint64_t now) noexcept nogil
cdef void share_free_rest(oc_queue* q, const uint32_t* frames, uint32_t n) noexcept nogil
cdef bint share_reclaim(oc_share* s, oc_member* m, uint32_t most) noexcept nogil
cdef bint share_let_go(oc_share* s) noexcept nogil
