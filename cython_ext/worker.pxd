# The worker of one UMEM: queues, consumers, routes. See worker.pyx for the order of a round.
from libc.stdint cimport int32_t, uint16_t, uint32_t, uint64_t
from cython_ext.queue cimport oc_burst, oc_queue
from cython_ext.sharing cimport WORKER_SHARES_MAX, oc_share
from cython_ext.spool cimport oc_spool

cdef enum:
    CONSUMERS_MAX = 256           # of one worker; one that forwards counts for each queue
    ROUTE_CONSUMERS_MAX = 8       # of one rule
    WORKER_QUEUES_MAX = 8         # ports that share one UMEM (forwarding between them)
    WORKER_SPOOLS_MAX = 16        # recording consumers of one worker
    HISTOGRAM = 1024              # 64 powers of two, 16 steps each: 6 % resolution

cdef enum:
    COUNT = 0
    DROP = 1
    REFLECT = 2
    FORWARD = 3
    SHARE = 5
    RECORD = 4

cdef struct oc_consumer:
    uint32_t kind
    int32_t target                # FORWARD: which of the worker's queues sends
    oc_share* share               # SHARE: its members in other processes
    oc_spool* spool               # RECORD: where the packets are copied to
    uint64_t frames
    uint64_t bytes
    uint64_t dropped              # taken, but could not be passed on

cdef struct oc_route:
    uint32_t rule_id              # 0: empty slot
    uint32_t n
    uint32_t[ROUTE_CONSUMERS_MAX] consumer

cdef struct oc_routes:            # open addressing; built whole, published by pointer, never edited
    uint32_t mask
    oc_route slots[1]

cdef struct oc_lane:              # one queue as the worker sees it
    oc_queue* q
    oc_routes* routes
    uint16_t port                 # its number in recordings
    uint32_t pending              # descriptors gathered for its TX in this round
    uint32_t* frame
    uint64_t* addr
    uint32_t* bytes
    uint32_t* options
    uint32_t* consumer            # who sent it: the account for what does not fit
    uint64_t dropped_no_consumer
    uint64_t dropped_consumer
    uint64_t dropped_forward
    uint64_t rounds
    uint64_t rounds_with_packets

cdef struct oc_worker:
    oc_lane[WORKER_QUEUES_MAX] lanes
    uint32_t n_lanes
    oc_consumer[CONSUMERS_MAX] consumers
    uint32_t n_consumers
    oc_share* shares[WORKER_SHARES_MAX]
    uint32_t n_shares
    uint32_t stop                 # set by others, release/acquire
    uint32_t nap_us               # when nothing is there; 0: look again at once
    uint32_t slow_ns              # tests only: time that each packet takes (see Worker.slow)
    oc_spool* spools[WORKER_SPOOLS_MAX]
    uint32_t n_spools
    uint32_t sleep_ms             # at most, until the next block is old
    uint64_t now                  # of the last burst
    uint64_t slow_due             # when what was taken so far will have had its time
    uint32_t round                # advanced every round: others wait for it to move
    uint64_t sleeps
    uint64_t[HISTOGRAM] latency
    uint64_t latency_max
