# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True
"""The worker: one pinned thread that owns one UMEM and runs the inline consumers without the GIL.

A round, for each of its queues: take a burst (replacement first), hand every packet to the
consumers of its rule, gather what is to be sent, recycle the rest, send, reap completions. When no
queue had anything for a while it sleeps in poll(), unless the port polls busily. It owns the frames
of its UMEM; nobody else moves them while it runs. Starting, pinning and stopping the thread is the
engine's; so is everything that a round does not need. A recording consumer copies into a spool
(spool.pxd) and is asked once a round whether its open block is old; a sharing one lends to members
in other processes (sharing.pxd). A little longer than other rooms: the round and what starts it
belong together.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset
from posix.unistd cimport usleep

import os
import numpy as np

from cython_ext.atomics cimport (count_u64, likely, load_acquire_u32,
                                 store_release_u32, store_release_u64, unlikely)
from cython_ext.frames cimport frame_free, frames_free, oc_umem
from cython_ext.bursts cimport reap
from cython_ext.filling cimport frames_home
from cython_ext.histogram cimport record_latency
from cython_ext.poll cimport POLLIN, poll, pollfd
from cython_ext.queue cimport (BURST, FRAGS_MAX, Queue, burst_alloc, burst_dispose, now_ns,
                               oc_burst, oc_queue)
from cython_ext.share_members cimport Share
from cython_ext.sharing cimport (WORKER_SHARES_MAX, share_free_rest, share_packets, share_tick)
from cython_ext.spool cimport Spool, spool_packets, spool_tick

cdef extern from "oc_xdp.h":
    enum:
        XDP_PKT_CONTD

cdef enum:
    TX_MAX = 1024                 # descriptors gathered for one lane in one round
    SPIN_NS = 20000               # look again for this long before sleeping: a wake-up costs ~5 us
    NAPS_NS = 2000000             # so long after the last packet; then poll() waits for the next
    NAP_US = 50                   # a ring of 2,048 fills in 200 us at 10 Mpps
    SLOW_SLACK_NS = 50000000      # tests only: how much lateness a slowed worker makes up for
    SLEEP_MS = 100                # longest sleep; stop is noticed sooner, through the eventfd

KINDS = {"count": COUNT, "drop": DROP, "reflect": REFLECT, "forward": FORWARD,
         "record": RECORD, "share": SHARE}


def bucket_upper_ns(uint32_t bucket):
    """The largest latency in nanoseconds that falls into this bucket."""
    if bucket < 16:
        return bucket
    power = bucket // 16 + 3
    return (((16 + bucket % 16) + 1) << (power - 4)) - 1


cdef inline oc_route* route_of(oc_routes* table, uint32_t rule_id) noexcept nogil:
    cdef uint32_t i
    if table == NULL:
        return NULL
    i = rule_id & table.mask
    while table.slots[i].rule_id:
        if table.slots[i].rule_id == rule_id:
            return &table.slots[i]
        i = (i + 1) & table.mask
    return NULL


cdef inline void swap_macs(uint8_t* packet) noexcept nogil:
    cdef uint8_t[6] mac
    memcpy(mac, packet, 6)
    memcpy(packet, packet + 6, 6)
    memcpy(packet + 6, mac, 6)


cdef inline void gather(oc_lane* to, const oc_burst* b, uint32_t first, uint32_t last,
                        uint32_t consumer) noexcept nogil:
    """Puts the fragments of one packet into the lane's TX list; the caller checked the room."""
    cdef uint32_t f
    for f in range(first, last):
        to.frame[to.pending] = b.frame[f]
        to.addr[to.pending] = b.addr[f]
        to.bytes[to.pending] = b.bytes[f]
        to.options[to.pending] = XDP_PKT_CONTD if f + 1 < last else 0
        to.consumer[to.pending] = consumer
        to.pending += 1


cdef void deliver(oc_worker* w, oc_lane* lane, const oc_burst* b, uint64_t when) noexcept nogil:
    """Every packet of the burst to the consumers of its rule; then home, or to a TX list.

    Packets come in runs of one rule (a flow, a feed): the route is looked up and the accounts are
    written once a run.
    """
    cdef uint32_t i = 0, end, n = b.packets, rule
    cdef uint64_t total
    cdef const uint32_t* rules = b.rule_id
    cdef const uint32_t* lengths = b.length
    record_latency(w.latency, &w.latency_max, b.timestamp_ns, n, when)
    while i < n:
        rule = rules[i]
        end = i
        total = 0
        while end < n and rules[end] == rule:
            total += lengths[end]
            end += 1
        deliver_run(w, lane, b, route_of(lane.routes, rule), i, end, total)
        i = end


cdef void deliver_run(oc_worker* w, oc_lane* lane, const oc_burst* b, const oc_route* route,
                      uint32_t start, uint32_t end, uint64_t total) noexcept nogil:
    """Packets start..end-1 to the consumers of one route."""
    cdef oc_umem* um = lane.q.um
    cdef oc_lane* to = NULL
    cdef oc_consumer* c
    cdef bint reflect = False, lent = False
    cdef uint32_t i, k, first, last, sender = 0, n = end - start
    cdef uint32_t frags_end = b.first[end] if end < b.packets else b.frags
    if unlikely(route == NULL or route.n == 0):
        count_u64(&lane.dropped_no_consumer, n)
    else:
        for k in range(route.n):
            c = &w.consumers[route.consumer[k]]
            count_u64(&c.frames, n)
            count_u64(&c.bytes, total)
            if c.kind == DROP:
                count_u64(&lane.dropped_consumer, n)
            elif c.kind == RECORD:
                spool_packets(c.spool, um, b, start, end, route.rule_id, lane.port,
                              lane.q.queue_id)
            elif c.kind == REFLECT:
                to = lane
                reflect = True
                sender = route.consumer[k]
            elif c.kind == FORWARD:
                to = &w.lanes[c.target]
                sender = route.consumer[k]
            elif c.kind == SHARE:
                lent |= c.share.live != 0
        if lent:                  # once it is known whether the frames are sent on
            lend_run(w, route, b, start, end, lane.q.queue_id, to != NULL)
    if to == NULL and lent:
        share_free_rest(lane.q, b.frame + b.first[start], frags_end - b.first[start])
        return
    if to == NULL:
        frames_home(lane.q, b.frame + b.first[start], frags_end - b.first[start])
        return
    for i in range(start, end):
        first = b.first[i]
        last = b.first[i + 1] if i + 1 < b.packets else b.frags
        if reflect and b.bytes[first] >= 12:
            swap_macs(um.base + b.addr[first])
        if likely(to.pending + (last - first) <= TX_MAX):
            gather(to, b, first, last, sender)
            continue
        frames_free(um, b.frame + first, last - first)
        count_u64(&w.consumers[sender].dropped, 1)
        count_u64(&lane.dropped_forward, 1)


cdef void lend_run(oc_worker* w, const oc_route* route, const oc_burst* b, uint32_t start,
                   uint32_t end, uint32_t queue, bint sent_on) noexcept nogil:
    cdef uint32_t k
    cdef uint64_t now = now_ns()
    for k in range(route.n):
        if w.consumers[route.consumer[k]].kind == SHARE:
            share_packets(w.consumers[route.consumer[k]].share, b, start, end, queue, sent_on, now)


cdef void send_gathered(oc_worker* w, oc_lane* lane) noexcept nogil:
    """Sends the TX list; what does not fit goes home and is counted against its consumer."""
    cdef oc_queue* q = lane.q
    cdef uint32_t i, sent
    if lane.pending == 0:
        return
    sent = q.tx_burst(q, lane.frame, lane.addr, lane.bytes, lane.options, lane.pending)
    if sent < lane.pending:
        q.kick(q)
        reap(q)
        sent += q.tx_burst(q, lane.frame + sent, lane.addr + sent, lane.bytes + sent,
                           lane.options + sent, lane.pending - sent)
    for i in range(sent, lane.pending):
        frame_free(q.um, lane.frame[i])
        if not lane.options[i] & XDP_PKT_CONTD:
            count_u64(&w.consumers[lane.consumer[i]].dropped, 1)
            count_u64(&lane.dropped_forward, 1)
    lane.pending = 0


cdef uint32_t one_round(oc_worker* w, oc_burst* b) noexcept nogil:
    """A burst from every lane; returns the packets taken."""
    cdef uint32_t i, got, packets = 0
    cdef uint64_t when
    cdef oc_lane* lane
    for i in range(w.n_lanes):
        lane = &w.lanes[i]
        lane.q.nudge(lane.q)
        when = now_ns()
        got = lane.q.rx_burst(lane.q, b, BURST, 0, when)
        lane.rounds += 1
        w.now = when
        if got or b.frags:
            lane.rounds_with_packets += 1
            deliver(w, lane, b, when)
            packets += got
    for i in range(w.n_lanes):
        lane = &w.lanes[i]
        send_gathered(w, lane)
        if lane.q.sending:
            lane.q.kick(lane.q)
            reap(lane.q)
    if w.n_shares:
        when = now_ns()
        for i in range(w.n_shares):
            share_tick(w.shares[i], when)
    store_release_u32(&w.round, w.round + 1)
    return packets


cdef uint64_t run_worker(oc_worker* w, oc_burst* b, pollfd* waits, uint32_t n_waits,
                         uint64_t limit) noexcept nogil:
    cdef uint64_t packets = 0, idle_since = 0, now
    cdef uint32_t got
    while not load_acquire_u32(&w.stop) and packets < limit:
        got = one_round(w, b)
        packets += got
        if w.n_spools:
            tick_spools(w, now_ns() if got == 0 else w.now)
        if unlikely(w.slow_ns != 0) and got:
            take_time(w, got)
        if got or w.lanes[0].q.busy:
            idle_since = 0
            continue
        now = now_ns()
        if idle_since == 0:
            idle_since = now
        if w.nap_us and now - idle_since < NAPS_NS:
            # Who only stores packets need not look at each of them at once: looking again and
            # again took three quarters of a core at 470,000 packets/s, naps take a tenth.
            usleep(w.nap_us)
        elif now - idle_since > SPIN_NS:
            w.sleeps += 1
            if n_waits == 1:
                usleep(NAP_US)    # nothing would wake us: loop and DPDK ports
                continue          # completions wake nobody: while some are due, sleep shortly
            poll(waits, n_waits, 1 if anything_sending(w) else w.sleep_ms)
            idle_since = 0
    return packets


cdef void take_time(oc_worker* w, uint32_t packets) noexcept nogil:
    """Fault injection: sleeps until these packets had their time; lateness is made up for."""
    cdef uint64_t now = now_ns()
    w.slow_due = max(w.slow_due, now - SLOW_SLACK_NS) + <uint64_t>packets * w.slow_ns
    if w.slow_due > now:
        usleep(<uint32_t>((w.slow_due - now) // 1000))


cdef void tick_spools(oc_worker* w, uint64_t now) noexcept nogil:
    """Hands old blocks over, and says how long the worker may sleep before the next is."""
    cdef uint32_t i
    cdef uint64_t due, soonest = <uint64_t>SLEEP_MS * 1000000
    for i in range(w.n_spools):
        due = spool_tick(w.spools[i], now)
        if due and due < soonest:
            soonest = due
    w.sleep_ms = <uint32_t>(soonest // 1000000) + (1 if soonest % 1000000 else 0)


cdef bint anything_sending(oc_worker* w) noexcept nogil:
    cdef uint32_t i, total = 0
    for i in range(w.n_lanes):
        total |= w.lanes[i].q.sending
    return total != 0


cdef class Worker:
    """`Worker(queues, consumers, ports)`: queues share one Frames; consumers is a list of
    (kind, target), target being the index in `queues` that a forward consumer sends on, the Spool
    of one that records, the Share of one that shares, or -1. ports: the number of each queue's
    port in a recording (0).
    """
    cdef oc_worker w
    cdef oc_burst b
    cdef readonly list queues
    cdef pollfd[WORKER_QUEUES_MAX + 1] waits
    cdef uint32_t n_waits
    cdef int wake_fd
    cdef list kept                        # spools and shares among them outlive the worker
    cdef list retired                     # (route table that was replaced, round of that moment)

    def __cinit__(self, list queues, list consumers, ports=None):
        cdef Queue queue
        cdef uint32_t i = 0
        memset(&self.w, 0, sizeof(oc_worker))
        self.wake_fd = -1
        self.retired = []
        if not 1 <= len(queues) <= WORKER_QUEUES_MAX:
            raise ValueError(f"{len(queues)} queues on one UMEM: 1 to {WORKER_QUEUES_MAX}")
        if len(consumers) > CONSUMERS_MAX:
            raise ValueError(f"{len(consumers)} consumers: at most {CONSUMERS_MAX}")
        self.queues = queues
        self.wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.waits[0].fd = self.wake_fd
        self.waits[0].events = POLLIN
        self.n_waits = 1
        for queue in queues:
            if queue.frames is not queues[0].frames:
                raise ValueError("the queues of a worker share one UMEM")
            self._lane(&self.w.lanes[i], queue)
            self.w.lanes[i].port = ports[i] if ports is not None else 0
            i += 1
        self.w.n_lanes = i
        self.w.sleep_ms = SLEEP_MS
        self.kept = consumers
        for kind, target in consumers:
            if kind == "forward" and not 0 <= target < len(queues):
                raise ValueError(f"forward: queue {target} is not this worker's")
            self.w.consumers[self.w.n_consumers].kind = KINDS[kind]
            if kind == "share":
                self._share(&self.w.consumers[self.w.n_consumers], target)
            elif kind == "record":
                self._record(&self.w.consumers[self.w.n_consumers], target)
            else:
                self.w.consumers[self.w.n_consumers].target = target
            self.w.n_consumers += 1
        burst_alloc(&self.b, BURST, BURST * 4 + FRAGS_MAX)

    cdef int _share(self, oc_consumer* consumer, Share share) except -1:
        if self.w.n_shares == WORKER_SHARES_MAX:
            raise ValueError(f"more than {WORKER_SHARES_MAX} sharing consumers of one worker")
        consumer.share = &share.s
        self.w.shares[self.w.n_shares] = &share.s
        self.w.n_shares += 1
        return 0

    cdef int _record(self, oc_consumer* consumer, Spool spool) except -1:
        if self.w.n_spools == WORKER_SPOOLS_MAX:
            raise ValueError(f"more than {WORKER_SPOOLS_MAX} recording consumers of one worker")
        consumer.spool = &spool.s
        self.w.spools[self.w.n_spools] = &spool.s
        self.w.n_spools += 1
        return 0

    cdef int _lane(self, oc_lane* lane, Queue queue) except -1:
        lane.q = &queue.q
        lane.frame = <uint32_t*>calloc(TX_MAX, 4)
        lane.addr = <uint64_t*>calloc(TX_MAX, 8)
        lane.bytes = <uint32_t*>calloc(TX_MAX, 4)
        lane.options = <uint32_t*>calloc(TX_MAX, 4)
        lane.consumer = <uint32_t*>calloc(TX_MAX, 4)
        if (lane.frame == NULL or lane.addr == NULL or lane.bytes == NULL
                or lane.options == NULL or lane.consumer == NULL):
            raise MemoryError("a TX list")
        if queue.q.fd >= 0:
            self.waits[self.n_waits].fd = queue.q.fd
            self.waits[self.n_waits].events = POLLIN
            self.n_waits += 1
        return 0

    def set_routes(self, uint32_t lane, dict routes):
        """Which consumers get the packets of which rule: {rule_id: [consumer number, ...]}.

        The table is replaced whole, while the worker runs. Publish new rules here before the
        steering program that knows them, and keep old ones for as long as their packets are
        under way.
        """
        cdef uint32_t size = 8, i, k
        cdef oc_routes* table
        if lane >= self.w.n_lanes:
            raise ValueError(f"lane: {lane}: 0 to {self.w.n_lanes - 1}")
        while size < 4 * len(routes):
            size *= 2
        table = <oc_routes*>calloc(1, sizeof(oc_routes) + size * sizeof(oc_route))
        if table == NULL:
            raise MemoryError("a route table")
        table.mask = size - 1
        for rule_id, numbers in routes.items():
            if len(numbers) > ROUTE_CONSUMERS_MAX or any(
                    not 0 <= n < self.w.n_consumers for n in numbers):
                free(table)
                raise ValueError(f"rule {rule_id}: consumers {numbers}")
            i = <uint32_t>rule_id & table.mask
            while table.slots[i].rule_id:
                i = (i + 1) & table.mask
            table.slots[i].rule_id = rule_id
            table.slots[i].n = len(numbers)
            for k in range(len(numbers)):
                table.slots[i].consumer[k] = numbers[k]
        old = <uintptr_t>self.w.lanes[lane].routes
        store_release_u64(<uint64_t*>&self.w.lanes[lane].routes, <uint64_t>table)
        self._prune()
        if old:
            self.retired.append((old, load_acquire_u32(&self.w.round)))

    cdef _prune(self):
        """Frees replaced tables that no round can be looking at: two have ended since.

        The first may have begun before the new table could be seen; the second began after.
        """
        cdef uint32_t now = load_acquire_u32(&self.w.round)
        kept = []
        for address, then in self.retired:
            if (now - <uint32_t>then) < <uint32_t>2:
                kept.append((address, then))
            else:
                free(<void*><uintptr_t>address)
        self.retired = kept

    def run(self, uint64_t limit=<uint64_t>-1, cpu=None):
        """Runs on the calling thread until stop(), or until `limit` packets were taken.

        The GIL is not held. `cpu` pins the thread. Returns the packets taken.
        """
        cdef uint64_t packets
        if cpu is not None:
            os.sched_setaffinity(0, {cpu})
        with nogil:
            packets = run_worker(&self.w, &self.b, self.waits, self.n_waits, limit)
        return packets

    def nap(self, uint32_t microseconds):
        """How long to nap when nothing is there, instead of looking again; 0: look again."""
        self.w.nap_us = microseconds

    def slow(self, uint32_t ns_per_packet):
        """Fault injection: consumers that take so long for each packet; 0 ends it."""
        self.w.slow_ns = ns_per_packet

    def stop(self):
        """Makes run() return after its round; may be called from any thread."""
        store_release_u32(&self.w.stop, 1)
        os.eventfd_write(self.wake_fd, 1)

    def statistics(self):
        """Live figures: consumers in order, drops by reason, rounds, sleeps."""
        cdef uint32_t i
        cdef oc_worker* w = &self.w
        return {
            "consumers": [{"frames": w.consumers[i].frames, "bytes": w.consumers[i].bytes,
                           "dropped": w.consumers[i].dropped} for i in range(w.n_consumers)],
            "drops": [{"no_consumer": w.lanes[i].dropped_no_consumer,
                       "consumer": w.lanes[i].dropped_consumer,
                       "forward_ring_full": w.lanes[i].dropped_forward}
                      for i in range(w.n_lanes)],
            "rounds": sum(w.lanes[i].rounds for i in range(w.n_lanes)),
            "rounds_with_packets": sum(w.lanes[i].rounds_with_packets for i in range(w.n_lanes)),
            "sleeps": w.sleeps,
        }

    def latencies(self):
        """The histogram of XDP timestamp to worker: (counts by bucket, largest in ns)."""
        cdef uint64_t[::1] out
        counts = np.zeros(HISTOGRAM, np.uint64)
        out = counts
        memcpy(&out[0], self.w.latency, sizeof(self.w.latency))
        return counts, self.w.latency_max

    def __dealloc__(self):
        cdef uint32_t i
        for i in range(self.w.n_lanes):
            free(self.w.lanes[i].routes)
            free(self.w.lanes[i].frame)
            free(self.w.lanes[i].addr)
            free(self.w.lanes[i].bytes)
            free(self.w.lanes[i].options)
            free(self.w.lanes[i].consumer)
        for address, _ in self.retired or ():
            free(<void*><uintptr_t>address)
        burst_dispose(&self.b)
        if self.wake_fd >= 0:
            os.close(self.wake_fd)
