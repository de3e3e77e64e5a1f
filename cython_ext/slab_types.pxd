# Slabs, their memory and their ledger: the mid tier. Objects of 64 B to 64 KiB that outlive a
# frame, in arenas of 2 MiB.
#
#   live      the user                         its state is 1, or 3 with a handle (named)
#   cached    a cache (one thread's magazines) its state is 0
#   depot     the class, under its lock        its state is 0
#
# One reservation of addresses holds a region for each class, as wide as the tier's cap; arenas are
# mapped into it as they are needed. So an address alone says class (its region), arena (2 MiB) and
# object (rotate the offset right by the class's shift: an unaligned or foreign address becomes a
# huge number). The same offset is the object's place in the memory file and, in 64 B units with
# the generation above it, its handle: other processes map the files anywhere and read it.
#
# The ledger has a state byte and a 16-bit generation per object, in a file of its own, never in the
# objects' memory; include/oc_slab_ledger.h reads and writes it. The generation advances when an
# object that has a handle is given back, so the handle is stale from then on.
#
# A cache belongs to one thread (or one lock) at a time; it exchanges whole batches with the depot.
# After Bonwick and Adams, "Magazines and Vmem" (USENIX 2001), and DPDK's mempool cache, without
# its cost of a ring: the depot is one stack per arena, so that empty arenas are known at once.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from cython_ext.atomics cimport store_relaxed_u64
from cython_ext.arena cimport oc_nodes
from cython_ext.history cimport oc_history
from cython_ext.mutex cimport pthread_mutex_t

cdef enum:
    CLASSES = 11                  # 64 B to 64 KiB
    SHIFT_MIN = 6                 # 64 B: a cache line
    ARENA_SHIFT = 21              # 2 MiB: one hugepage
    BATCH_MAX = 64                # objects that move between cache and depot at once
    CACHE_MAX = 128               # two batches: one to give away and one to keep
    EVENTS = 64                   # growth and give-back that are remembered

cdef enum:                        # states of an arena
    ABSENT = 0
    MOVING = 1                    # being mapped or unmapped, by one thread, without the lock
    OPEN = 2

cdef enum:                        # what a violation was
    FOREIGN = 0                   # not an address that this tier ever gave
    NOT_LIVE = 1                  # freed twice, or freed after somebody else was given it
    TAKEN_TWICE = 2               # two threads freed it at once: found when it was given out again
    WRITTEN_FREE = 3              # poison damaged (debug build): written after it was freed
    VIOLATIONS = 4

cdef struct oc_arena:
    uint16_t* free                # stack of object numbers that are in the depot
    uint32_t free_n
    uint32_t state
    int32_t node                  # where the kernel says it is
    uint8_t backing               # 0: 2M, 1: thp, 2: 4k

cdef extern from "oc_slab_ledger.h" nogil:
    struct oc_ledger:             # of one class
        uint8_t* base             # the region
        uint8_t* state
        uint16_t* generation
        uint64_t objects_max      # of the region, mapped or not
        uint32_t shift
    void ledger_open "oc_ledger_open"(oc_ledger* l, uint8_t* base, uint8_t* state,
                                      uint16_t* generation, uint64_t objects_max,
                                      uint32_t shift) noexcept
    uint64_t object_number "oc_object_number"(const oc_ledger* l, const void* p) noexcept
    bint take_one "oc_take_one"(const oc_ledger* l, void* p) noexcept
    bint give_one "oc_give_one"(const oc_ledger* l, void* p) noexcept
    int64_t name_one "oc_name"(const oc_ledger* l, const void* p) noexcept
    uint32_t ledger_take "oc_ledger_take"(const oc_ledger* l, void* const* source, void** to,
                                          uint32_t n, uint32_t known) noexcept
    uint32_t ledger_give "oc_ledger_give"(const oc_ledger* l, void* const* source, void** to,
                                          uint32_t n, uint32_t known) noexcept

    enum:
        ALL_RUNS "OC_ALL_RUNS"

# With a history, the fast doors are closed: `ledger.objects_max` and `cache_most` become 0, so that
# the hot halves find every object out of range and every magazine full, and leave it to the cold
# halves, which take batches of just what is asked for and give straight to the depot. They go by
# `exact`, and note each object. So a tier without a history pays nothing for it, not even a look.
cdef struct oc_class:
    oc_ledger ledger              # what the hot halves see
    oc_ledger exact               # the same, always with the region's true size
    uint8_t* base                 # the region
    uint32_t shift
    uint32_t arena_objects_shift  # objects of one arena, as a power of two
    uint32_t batch
    uint32_t cache_most           # two batches
    uint32_t open                 # arenas
    uint32_t empty                # of these, without any object in use or cached
    uint32_t empty_most           # more than this: give back down to EMPTY_KEPT
    uint32_t top                  # arenas beyond were never used
    uint64_t depot                # objects there
    oc_arena* arenas
    uint64_t* available           # bit per arena: the depot has objects of it
    uint64_t* summary             # bit per word of `available`
    pthread_mutex_t lock

cdef struct oc_event:
    int64_t time_ns               # CLOCK_REALTIME
    uint32_t number               # of the arena within its class
    uint32_t arenas               # of the tier, afterwards
    uint8_t cls
    uint8_t grown                 # or given back
    uint8_t backing

cdef struct oc_header:            # first page of the ledger's file: what a reader needs to know
    uint64_t magic
    uint32_t version
    uint32_t region_shift
    uint64_t[CLASSES] states_at   # of each class, from the start of the file
    uint64_t[CLASSES] generations_at
    uint64_t backings_at

cdef struct oc_cache

cdef struct oc_slabs:
    uint8_t* base
    uint64_t bytes                # of the reservation
    uint32_t region_shift         # class of an address
    oc_class[CLASSES] classes
    uint64_t ledger_bytes
    oc_arena* arenas
    uint64_t* bits                # `available` of all classes, then their summaries
    uint64_t tables_bytes         # of arenas and bits together
    oc_header* header             # of the ledger's file
    uint8_t* backings             # in the ledger's file: backing + 1 of each arena, 0 without
    oc_cache* caches
    int fd_huge                   # hugetlb file; -1: none
    int fd_small
    int fd_ledger
    bint thp
    uint32_t hugepages            # 0: off, 1: auto, 2: require
    oc_nodes nodes
    bint unbound
    uint32_t arenas_open
    uint32_t arenas_max
    uint32_t arenas_peak
    uint64_t fallbacks            # arenas that did not get a hugepage
    int error                     # errno of the last refusal by the host; 0: the cap
    uint64_t refusals             # allocations that failed
    uint64_t[VIOLATIONS] violations
    uint64_t violation_address    # the last one
    uint64_t events_n
    oc_event[EVENTS] events
    oc_history* history           # of objects, by their place in 64 B; NULL: off
    pthread_mutex_t lock          # arenas_open, events; taken inside a class's lock, never around

cdef struct oc_magazine:
    uint32_t n
    uint32_t runs                 # bit k: slots 16 k to 16 k + 15 hold a run of the ledger
    void* hot                     # one object more, or NULL: for takings one at a time
    uint64_t[6] gap               # the objects begin a cache line: vectors are not split
    void* objects[CACHE_MAX]

# `hot` is there because a count that goes down and up again is a chain of two stores that loads
# wait for, a third of what taking and giving one object costs.

cdef struct oc_cache:
    oc_slabs* tier
    oc_magazine[CLASSES] magazines
    char[32] owner                # a name, for figures
    oc_cache* next                # of the tier's list, under its lock
    oc_cache* previous


cdef extern from *:
    """
    static inline int oc_clz(unsigned long long x) { return __builtin_clzll(x); }
    static inline uint64_t oc_add(uint64_t* p, uint64_t n)
    { return __atomic_fetch_add(p, n, __ATOMIC_RELAXED); }
    """
    int _clz "oc_clz"(unsigned long long x) noexcept nogil
    uint64_t atomic_add "oc_add"(uint64_t* p, uint64_t n) noexcept nogil


cdef inline uint32_t class_of_bytes(uint64_t nbytes) noexcept nogil:
    """The smallest class that holds nbytes (1 to 65,536)."""
    return 0 if nbytes <= 64 else 64 - _clz(nbytes - 1) - SHIFT_MIN

cdef inline uint32_t class_of(oc_slabs* t, const void* p) noexcept nogil:
    """The class whose region p is in; CLASSES or more: not ours."""
    cdef uint64_t offset = <uint64_t>p - <uint64_t>t.base
    return <uint32_t>(offset >> t.region_shift) if offset < t.bytes else CLASSES

cdef inline void violation(oc_slabs* t, uint32_t kind, const void* p) noexcept nogil:
    atomic_add(&t.violations[kind], 1)
    store_relaxed_u64(&t.violation_address, <uint64_t>p)
