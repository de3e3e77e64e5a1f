# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True
"""The recorder's writer: one thread that makes what the workers hand over durable, without the GIL.

A round: collect what the device has ended, take blocks, submit writes and a flush, give the workers
empty blocks, sleep until something ends or 2 ms have gone by (longer when nothing comes). Owns the
round and what Python sees of it; recorder_types.pxd has the picture, recorder_blocks.pyx and
recorder_segments.pyx the two halves. Files, retries and recovery are appliance/record's: it gives
segments and takes events. The worker and this thread never wait for each other. A little longer
than other rooms: the class has a verb for each thing that Python does with a recording.
"""
cimport cython
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset, strncpy
from posix.unistd cimport close, read, usleep
from cython_ext.atomics cimport load_acquire_u32, load_relaxed_u64, store_release_u32
from cython_ext.log_device cimport SYNC, THREADS, URING, device_close, device_open, oc_target
from cython_ext.log_format cimport (OC_LOG_PORTS_MAX, log_state_get, log_state_put,
                                    oc_log_segment, oc_log_state, oc_log_tally)
from cython_ext.pcap cimport Filter
from cython_ext.queue cimport now_ns
from cython_ext.recorder_blocks cimport lose_everything, own_up, supply, take_blocks, tidy
from cython_ext.recorder_window cimport window_forget, window_round
from cython_ext.recorder_segments cimport (begin_segment, collect, publish, ready, retire,
                                           seal_live, settle, submit_sync, submit_writes)
from cython_ext.recorder_types cimport (BEGUN, EVENTS_MAX, FAILED, HUNG, RETIRED, SPOOLS_MAX,
                                        STATES_MAX, oc_held, oc_note, oc_recorder)
from cython_ext.shm_ring cimport spsc_dequeue
from cython_ext.slab cimport slabs_alloc_one, slabs_free_one
from cython_ext.slab_tier cimport Cache, Slabs
from cython_ext.spool cimport BLOCK_BYTES, BLOCK_CLASS, Spool, oc_block

import os

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd* fds, unsigned long n, int timeout_ms)
    short POLLIN

cdef extern from "<stdlib.h>" nogil:
    int posix_memalign(void** p, size_t alignment, size_t nbytes)

cdef enum:
    ACTIVE_MS = 2                 # 8 blocks at 250 MB/s: a write of half a megabyte
    IDLE_MS = 25
    PUBLISH_US = 5000             # how old a state page may be: a tenth of a commit
    STOCK_FIRST = 512             # 32 MiB: 130 ms at 250 MB/s; half the memory at most. With 8 MiB,
                                  # a host of 2 cores and a load of 10 lost 0.4 % of 600,000/s

NOTES = {RETIRED: "retired", FAILED: "failed", HUNG: "hung", BEGUN: "begun"}
ENGINES = ("io_uring", "threads")

# What a device that hangs may still read or write, for as long as the process lives.
_ABANDONED = []


cdef void run_recorder(oc_recorder* w) noexcept nogil:
    cdef uint64_t now
    cdef uint32_t took
    cdef bint stopping, ended
    while not w.done:
        now = now_ns()
        w.rounds += 1
        ended = collect(w, now)
        retire(w)
        if w.failing:
            settle(w, now)
        took = take_blocks(w)
        if w.window_ns:
            window_round(w, now)
        stopping = load_acquire_u32(&w.stop) != 0
        if not w.failing and ready(w):
            own_up(w)
            if not stopping or w.next < w.last:
                begin_segment(w, now)
            submit_writes(w, now)
            if stopping and took == 0 and w.next == w.last:
                seal_live(w, now)
            submit_sync(w, now, stopping)
        supply(w, not w.live.used and w.first == w.next)
        tidy(w, now)
        if stopping and took == 0:
            window_forget(w)
            w.done = finished(w, now)
        if not w.done:
            nap(w, took != 0 or ended or w.order_n or stopping)


cdef bint finished(oc_recorder* w, uint64_t now) noexcept nogil:
    """Everything is durable and sealed, or the time for it is over."""
    cdef uint64_t i
    if w.first == w.last and not w.live.used and not w.old.used and not w.failing:
        return True
    if now < w.stop_by_ns:
        return False
    for i in range(w.first, w.next):
        w.held[i & w.mask].stuck = True
    lose_everything(w)
    return True


cdef void nap(oc_recorder* w, bint active) noexcept nogil:
    cdef pollfd p
    cdef uint64_t count
    cdef uint64_t ms = ACTIVE_MS
    if not active:
        ms = w.commit_ns // 8000000
        ms = 1 if ms == 0 else IDLE_MS if ms > IDLE_MS else ms
    p.fd = w.wake_fd
    p.events = POLLIN
    w.naps += 1
    store_release_u32(&w.sleeps, 1)
    if poll(&p, 1, <int>ms) > 0:
        read(w.wake_fd, &count, 8)
    store_release_u32(&w.sleeps, 0)


cdef void run_publisher(oc_recorder* w, void* page) noexcept nogil:
    """Carries the newest state to one file, until the writer has ended.

    In a thread of its own, for each file: a store into a mapping of a file system that is frozen,
    or waits for its journal, waits too (page_mkwrite), and once stopped the writer with it.
    """
    cdef oc_log_state s
    cdef uint64_t turn = 0
    cdef uint32_t last
    while True:
        last = load_acquire_u32(&w.closing)
        if log_state_get(w.state_shadow, &s) and s.turn != turn:
            turn = s.turn
            s.turn -= 1                          # log_state_put counts
            log_state_put(page, &s)
        if last:
            return
        usleep(PUBLISH_US)


@cython.no_gc_clear
cdef class Recorder:
    """`Recorder(slabs, memory_mib, ...)`: spool() for each worker, states(), give() a segment,
    run() on a thread of its own; stop() from any other, then close().
    """
    cdef oc_recorder w
    cdef readonly Slabs slabs
    cdef readonly Cache cache
    cdef readonly str engine
    cdef readonly str engine_reason       # why it is not io_uring; "" if it is
    cdef readonly list spools
    cdef readonly uint32_t snap_bytes
    cdef uint64_t flow_bytes
    cdef list kept                        # mappings that the device writes to
    cdef list state_views
    cdef Filter matching                  # of the last keep(): the writer runs it
    cdef bint closed

    def __cinit__(self, Slabs slabs not None, uint32_t memory_mib=64, *, str name="recorder",
                  str engine="auto", uint64_t commit_ms=50, uint64_t commit_kib=1024,
                  uint32_t snap_bytes=0, uint64_t flow_bytes=0, uint64_t hang_ms=5000,
                  int64_t to_realtime=0,
                  uint64_t window_ms=0):
        cdef uint64_t places = 1
        self.w.wake_fd = self.w.helper_fd = -1
        self.slabs = slabs
        self.spools, self.kept, self.state_views = [], [], []
        self.snap_bytes, self.flow_bytes = snap_bytes, flow_bytes
        self.cache = Cache(slabs, name)
        self.w.cache = self.cache.c
        self.w.blocks_max = memory_mib * (1048576 // BLOCK_BYTES)
        while places < 2 * self.w.blocks_max + 256:
            places *= 2
        self.w.mask = places - 1
        self.w.held = <oc_held*>calloc(places, sizeof(oc_held))
        self.w.window = <oc_block*>calloc(places, sizeof(oc_block))
        self.w.window_ns = window_ms * 1000000
        self.w.spare = <uint8_t**>calloc(self.w.blocks_max + 4, sizeof(void*))
        self.w.tally = <oc_log_tally*>calloc(1, sizeof(oc_log_tally))
        if (self.w.held == NULL or self.w.window == NULL or self.w.spare == NULL
                or self.w.tally == NULL
                or posix_memalign(<void**>&self.w.given.header, 4096, sizeof(oc_log_segment))):
            raise MemoryError("a recorder's tables")
        self.w.commit_ns = commit_ms * 1000000
        self.w.commit_bytes = commit_kib * 1024
        self.w.hang_ns = hang_ms * 1000000
        self.w.to_realtime = to_realtime
        self.w.wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.w.helper_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.w.chain.seq = 1
        self._open(engine)

    def _open(self, engine):
        """io_uring where it is allowed, else threads; the reason is kept."""
        cdef int error = 0
        self.engine_reason = ""
        if engine not in ("auto", *ENGINES):
            raise ValueError(f"engine: {engine!r}: auto, io_uring or threads")
        if engine != "threads":
            self.w.engine = URING
            self.w.device = device_open(URING, self.w.wake_fd, &error)
            if self.w.device == NULL:
                if engine == "io_uring":
                    raise OSError(-error, f"io_uring: {os.strerror(-error)}")
                self.engine_reason = f"io_uring: {os.strerror(-error)}"
        if self.w.device == NULL:
            self.w.engine = THREADS
            self.w.device = device_open(THREADS, self.w.wake_fd, &error)
            if self.w.device == NULL:
                raise OSError(-error, f"threads: {os.strerror(-error)}")
        self.engine = ENGINES[self.w.engine]

    # ------------------------------------------------------------------ before run()

    def spool(self):
        """One more worker's end; before run()."""
        cdef uint32_t n = self.w.n_spools
        cdef Spool made
        if n == SPOOLS_MAX:
            raise ValueError(f"{SPOOLS_MAX} workers of one recorder at most")
        made = Spool(self, self.w.blocks_max, self.w.wake_fd, self.w.commit_ns, self.snap_bytes,
                     self.flow_bytes, self.w.to_realtime)
        made.s.writer_sleeps = &self.w.sleeps
        self.w.spools[n] = &made.s
        self.w.full[n] = &made.full.consumer
        self.w.free[n] = &made.free.producer
        self.w.n_spools = n + 1
        self.spools.append(made)
        for i in range(n + 1):
            # Of a window's memory an eighth is for what comes, the rest for what is kept.
            share = (8 if self.w.window_ns else 2) * (n + 1)
            self.w.stock[i] = max(2, min(STOCK_FIRST, self.w.blocks_max // share))
        return made

    def resume(self, uint64_t next_seq, uint32_t chain, uint64_t durable_seq):
        """Goes on where a log ended."""
        self.w.chain.seq = next_seq
        self.w.chain.crc = chain
        self.w.durable_seq = durable_seq

    def states(self, list pages, bytes uuid not None, uint64_t pid, uint64_t start,
               uint64_t slot_bytes=0, uint64_t slots=0):
        """Where to publish what is durable: writable pages, kept until close(); publish_to()."""
        cdef uint8_t[::1] view
        cdef oc_log_state before
        if len(pages) > STATES_MAX or len(uuid) != 16:
            raise ValueError("states: too many pages, or no uuid")
        memcpy(self.w.state.uuid, <const char*>uuid, 16)
        self.w.state.writer_pid, self.w.state.writer_start = pid, start
        self.w.state.slot_bytes, self.w.state.slots = slot_bytes, slots
        self.w.state.durable_seq = self.w.state.last_seq = self.w.durable_seq
        self.state_views = pages
        for page in pages:
            view = page
            if view.shape[0] < 4096:
                raise ValueError("a state page has 4,096 bytes")
            # The state with the largest turn counts: ours go on from what is there.
            if log_state_get(&view[0], &before) and before.turn > self.w.state.turn:
                self.w.state.turn = before.turn
            self.w.state_pages[self.w.n_states] = &view[0]
            self.w.n_states += 1

    # ------------------------------------------------------------------ while it runs

    @property
    def wants(self):
        """Whether a segment would be taken."""
        return not load_acquire_u32(&self.w.is_given)

    def give(self, int fd, uint64_t base, uint64_t nbytes, *, uint32_t place, uint64_t index,
             uint64_t epoch, bytes uuid not None, list ports, uint32_t stripe=0,
             uint32_t stripes=1, map=None, bint persistent_stores=False):
        """The next segment to write to. ports: (id, link type, snap bytes, name, interface)."""
        cdef oc_log_segment* h = self.w.given.header
        cdef oc_target* t = &self.w.given.target
        cdef uint8_t[::1] view
        if load_acquire_u32(&self.w.is_given):
            raise ValueError("the segment before was not taken yet")
        if len(uuid) != 16 or len(ports) > OC_LOG_PORTS_MAX:
            raise ValueError(f"give: a uuid has 16 bytes, and there are {OC_LOG_PORTS_MAX} ports")
        memset(h, 0, sizeof(oc_log_segment))
        memset(t, 0, sizeof(oc_target))
        t.fd, t.base, t.bytes, t.persistent_stores = fd, base, nbytes, persistent_stores
        if map is not None:
            view = map
            t.map, t.map_bytes = &view[0], view.shape[0]
            self.kept.append(map)
        self.w.given.place = place
        memcpy(h.uuid, <const char*>uuid, 16)
        h.epoch, h.index, h.segment_bytes = epoch, index, nbytes
        h.clock_offset_ns = self.w.to_realtime
        h.stripe, h.stripes = stripe, stripes
        for i, (number, link_type, snap_bytes, name, interface) in enumerate(ports):
            h.ports[i].id, h.ports[i].link_type = number, link_type
            h.ports[i].snap_bytes = snap_bytes
            text = name.encode()[:31]
            strncpy(h.ports[i].name, text, 32)
            text = interface.encode()[:15]
            strncpy(h.ports[i].interface, text, 16)
            h.port_count = i + 1
        store_release_u32(&self.w.is_given, 1)
        os.eventfd_write(self.w.wake_fd, 1)

    def take_back(self):
        """Takes back a segment that was given and not begun; False if there is none (any more).
        Only when run() has ended."""
        if not load_acquire_u32(&self.w.is_given):
            return False
        store_release_u32(&self.w.is_given, 0)
        return True

    @property
    def primed(self):
        """Every spool has had its first blocks, and there is a segment to write to."""
        return self.w.rounds > 1 and self.w.live.used

    def events(self):
        """[(what, place, index, errno, "write" | "sync", bytes flushed)] since the last call."""
        cdef uint32_t head = load_acquire_u32(&self.w.notes_head)
        cdef oc_note* n
        out = []
        while self.w.notes_tail != head:
            n = &self.w.notes[self.w.notes_tail % EVENTS_MAX]
            out.append((NOTES[n.kind], n.place, n.serial, n.error,
                        "sync" if n.operation == SYNC else "write", n.synced))
            store_release_u32(&self.w.notes_tail, self.w.notes_tail + 1)
        return out

    @property
    def helper_fd(self):
        """Becomes readable when there are events, or a segment is wanted."""
        return self.w.helper_fd

    def run(self, cpu=None):
        """Until everything is durable after stop(), or its time is over. The GIL is not held."""
        if cpu is not None:
            os.sched_setaffinity(0, {cpu})
        with nogil:
            run_recorder(&self.w)

    def publish_to(self, uint32_t number):
        """Carries the state to that page, on a thread of its own, until publish_last()."""
        cdef void* page = self.w.state_pages[number]
        with nogil:
            run_publisher(&self.w, page)

    def publish_last(self):
        """The state at the end, after run(): nobody writes any more."""
        self.w.state.writer_pid = self.w.state.writer_start = 0
        publish(&self.w)
        store_release_u32(&self.w.closing, 1)

    def stop(self, double seconds=5.0):
        """Hand over the spools first. run() returns within that time, and a little."""
        self.w.stop_by_ns = now_ns() + <uint64_t>(seconds * 1e9)
        store_release_u32(&self.w.stop, 1)
        os.eventfd_write(self.w.wake_fd, 1)

    def keep(self, uint64_t since_ns, Filter match=None):
        """Asks for the packets of the window since then to be written; kept_all() when it is done.
        One request at a time."""
        self.matching = match
        self.w.keep_filter = match.code if match is not None else NULL
        self.w.keep_since_ns = since_ns
        store_release_u32(&self.w.keep_asked, self.w.keep_asked + 1)
        os.eventfd_write(self.w.wake_fd, 1)

    @property
    def kept_all(self):
        return load_acquire_u32(&self.w.keep_done) == self.w.keep_asked

    @property
    def idle(self):
        """Everything that was to be written is durable."""
        return self.w.first == self.w.last

    def pressure(self):
        """(bytes waiting or not durable, most, whether there is nowhere to write to)."""
        cdef uint64_t held = self.w.last - self.w.first
        return (held * BLOCK_BYTES, <uint64_t>self.w.blocks_max * BLOCK_BYTES,
                not self.w.live.used)

    def figures(self):
        """Counts, read live; exact once run() has ended."""
        cdef oc_recorder* w = &self.w
        came = [spool.figures() for spool in self.spools]
        total = {key: sum(one[key] for one in came) for key in came[0]} if came else {
            key: 0 for key in ("packets", "bytes", "recorded", "recorded_bytes", "no_memory",
                               "cut_packets", "flow_cut", "roused")}
        # What goes on first is read last: "in memory" may be too large by what moved, never below 0
        durable = load_relaxed_u64(&w.durable_packets)
        dropped = load_relaxed_u64(&w.dropped_packets)
        expired = load_relaxed_u64(&w.expired_packets)
        return {
            **total, "taken": w.taken_packets, "durable": durable,
            "durable_bytes": w.durable_bytes, "dropped": dropped,
            "in_memory": max(0, total["recorded"] - durable - dropped - expired),
            "expired": expired, "kept": w.kept_packets, "next_seq": w.chain.seq,
            "entries": w.last - w.first, "durable_seq": w.durable_seq,
            "blocks": w.blocks, "blocks_peak": w.blocks_peak, "blocks_max": w.blocks_max,
            "blocks_stuck": w.stuck, "refused": w.refused,
            "gaps": w.gaps, "gap_packets": w.gap_packets,
            "writes": w.writes, "write_bytes": w.write_bytes, "syncs": w.syncs,
            "sync_ms_mean": w.sync_ns / w.syncs / 1e6 if w.syncs else 0.0,
            "sync_ms_worst": w.sync_worst_ns / 1e6, "rounds": w.rounds, "naps": w.naps,
            "live": bool(w.live.used), "index": w.live.serial if w.live.used else None,
            "written": w.chain.offset if w.live.used else 0,
        }

    def close(self, bint publishing=False):
        """Gives the memory back, after run() has ended. publishing: a state page still hangs."""
        cdef uint64_t block = 0
        cdef uint32_t i
        if self.closed:
            return
        self.closed = True
        idle = self.w.device == NULL or device_close(self.w.device)
        self.w.device = NULL
        if not idle or self.w.stuck or publishing:
            _ABANDONED.append((self.cache, self.kept, self.state_views, self))
        for i in range(self.w.n_spools):
            while spsc_dequeue(&(<Spool>self.spools[i]).free.consumer, &block, 1, 1):
                slabs_free_one(self.w.cache, BLOCK_CLASS, <void*>block)
        for i in range(self.w.n_spare):
            slabs_free_one(self.w.cache, BLOCK_CLASS, self.w.spare[i])
        self.w.n_spare = 0
        if idle:
            for page in (<uintptr_t>self.w.pages, <uintptr_t>self.w.seal):
                if page:
                    slabs_free_one(self.w.cache, BLOCK_CLASS, <void*><uintptr_t>page)
        self.w.pages = self.w.seal = NULL
        self.w.n_states = 0
        self.state_views, self.kept = [], []
        self.cache.drain()

    def __dealloc__(self):
        if self.w.device != NULL:
            device_close(self.w.device)
        free(self.w.held)
        free(self.w.window)
        free(self.w.spare)
        free(self.w.tally)
        free(self.w.given.header)
        for fd in (self.w.wake_fd, self.w.helper_fd):
            if fd >= 0:
                close(fd)
