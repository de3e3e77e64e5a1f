# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True
"""The frames of one UMEM: memory, ledger and free pools; see frames.pxd for states and owners.

The ledger stands in an arena of its own, never in the packets: a consumer in another process can
be shown it read-only, and no packet can overwrite it. The sum over all states equals the number of
frames at every moment, because a frame has exactly one entry and an entry exactly one state;
`audit` proves at a standstill that the pools and the rings agree with what the entries say.
"""
cimport cython
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc

from cython_ext.atomics cimport store_release_u64
from cython_ext.history cimport history_note

STATE_NAMES = ("free", "cached", "fill", "rx", "leased", "tx", "completion")


cdef void frames_note(oc_umem* um, const uint32_t* frames, uint32_t n, uint32_t what,
                      uint32_t queue) noexcept nogil:
    cdef oc_history* h = um.history
    cdef uint32_t i
    cdef uint64_t word
    if h == NULL:
        return
    for i in range(n):
        word = load_relaxed_u64(&um.ledger[frames[i]].word)
        history_note(h, frames[i], word_generation(word), what, queue, word_owner(word) & 0xff)


# Views reach their memory through these objects, so the cycle collector must never clear them while
# a view is still to be released: it once destroyed a lock that the last view then waited for.
@cython.no_gc_clear
cdef class Frames:
    """`Frames(frames, frame_bytes=4096, tx_frames=None, hugepages="auto", numa_node=-1)`.

    frame_bytes is 2048 or 4096: the kernel refuses other chunk sizes. tx_frames of the frames
    (a quarter unless given) are for sending; the rest receive.
    """

    def __cinit__(self, uint32_t frames, uint32_t frame_bytes=4096, tx_frames=None,
                  str hugepages="auto", int numa_node=-1, bint strict_numa=False):
        cdef uint32_t i, for_tx
        if frame_bytes not in (2048, 4096):
            raise ValueError(f"frame_bytes: {frame_bytes}: 2048 or 4096")
        if not 4 <= frames <= 1 << 22:
            raise ValueError(f"frames: {frames}: 4 to {1 << 22}")
        for_tx = frames // 4 if tx_frames is None else tx_frames
        if not 0 <= for_tx <= frames:
            raise ValueError(f"tx_frames: {for_tx}: 0 to {frames}")
        pthread_mutex_init(&self.um.lock, NULL)
        self.arena = Arena(<uint64_t>frames * frame_bytes, "openclaw-umem", hugepages, numa_node,
                           strict_numa)
        self.ledger_arena = Arena(<uint64_t>frames * sizeof(oc_entry), "openclaw-ledger", "off",
                                  numa_node)
        self.um.base = self.arena.base
        self.um.bytes = <uint64_t>frames * frame_bytes
        self.um.frames = frames
        self.um.rx_frames = frames - for_tx
        self.um.frame_bytes = frame_bytes
        self.um.frame_shift = 12 if frame_bytes == 4096 else 11
        self.um.ledger = <oc_entry*>self.ledger_arena.base
        self.um.rx_free = <uint32_t*>malloc((frames - for_tx + 1) * sizeof(uint32_t))
        self.um.tx_free = <uint32_t*>malloc((for_tx + 1) * sizeof(uint32_t))
        if self.um.rx_free == NULL or self.um.tx_free == NULL:
            raise MemoryError(f"free lists of {frames} frames")
        # Pushed backwards, so that the first frames handed out are the first in memory.
        for i in range(self.um.rx_frames):
            self.um.rx_free[i] = self.um.rx_frames - 1 - i
        for i in range(for_tx):
            self.um.tx_free[i] = frames - 1 - i
        self.um.rx_free_n = self.um.rx_frames
        self.um.tx_free_n = for_tx

    def __dealloc__(self):
        free(self.um.rx_free)
        free(self.um.tx_free)
        pthread_mutex_destroy(&self.um.lock)

    @property
    def total(self):
        return self.um.frames

    @property
    def violations(self):
        return self.um.violations

    def count(self):
        """Frames by state, live, without stopping anyone: {"total", "free", ... "completion"}."""
        cdef uint32_t i
        cdef uint32_t[256] by_state
        with nogil:
            for i in range(256):
                by_state[i] = 0
            for i in range(self.um.frames):
                by_state[load_relaxed_u64(&self.um.ledger[i].word) & 0xff] += 1
        out = {"total": self.um.frames}
        for i in range(STATES):
            out[STATE_NAMES[i]] = by_state[i]
        out["leaked"] = self.um.frames - sum(by_state[i] for i in range(STATES))
        return out

    def leases(self, uint64_t now_ns):
        """Who holds how many leased frames, and the oldest: {owner: (frames, oldest_ns)}."""
        cdef uint32_t[OWNERS_MAX] held
        cdef uint64_t[OWNERS_MAX] oldest
        cdef uint64_t word, since
        cdef uint32_t i, owner
        with nogil:
            for i in range(OWNERS_MAX):
                held[i] = 0
                oldest[i] = 0
            for i in range(self.um.frames):
                word = load_relaxed_u64(&self.um.ledger[i].word)
                if word_state(word) == LEASED:
                    owner = word_owner(word) & (OWNERS_MAX - 1)
                    since = load_relaxed_u64(&self.um.ledger[i].since_ns)
                    held[owner] += 1
                    if since and since < now_ns and now_ns - since > oldest[owner]:
                        oldest[owner] = now_ns - since
        return {i: (held[i], oldest[i]) for i in range(OWNERS_MAX) if held[i]}

    def audit(self, uint32_t in_fill, uint32_t in_tx):
        """At a standstill: do pools, rings and ledger tell the same story?

        in_fill and in_tx are what the rings' own tallies say is in the kernel's hands. Returns the
        number of leaked frames: those that no pool, no ring and no lease accounts for.
        """
        cdef uint32_t i, listed = 0
        cdef bytearray seen = bytearray(self.um.frames)
        for i in range(self.um.rx_free_n):
            seen[self.um.rx_free[i]] += 1
        for i in range(self.um.tx_free_n):
            seen[self.um.tx_free[i]] += 1
        states = self.count()
        for i in range(self.um.frames):
            if (seen[i] == 1) == (word_state(self.um.ledger[i].word) == FREE) and seen[i] <= 1:
                listed += 1
        wrong = self.um.frames - listed
        return (wrong + abs(<int>states["fill"] - <int>in_fill)
                + abs(<int>states["tx"] - <int>in_tx)
                + states["rx"] + states["cached"] + states["completion"] + self.um.violations)

    def keep_history(self, bint on):
        """The last operations of each frame, from now on; or not any more."""
        if self.past is None:
            if not on:
                return
            self.past = History()
        if on and self.um.history == NULL:
            self.past.clear()
        store_release_u64(<uint64_t*>&self.um.history, <uint64_t>&self.past.h if on else 0)

    @property
    def history(self):
        """The History of the frames, by number; None if it was never switched on."""
        return self.past

    @property
    def history_is_on(self):
        return self.um.history != NULL

    def reclaim(self):
        """After the sockets are closed: what the kernel had in FILL and TX comes home."""
        cdef uint32_t i, state, n = 0
        for i in range(self.um.frames):
            state = word_state(self.um.ledger[i].word)
            if state == FILL or state == TX:
                frame_free(&self.um, i)
                n += 1
        return n

    def settle(self, queues):
        """Once all queues over this memory are closed: the proof, then what the kernel had.

        Returns the leaked frames of `audit`, taken with the queues' own tallies. Frames that are
        leased stay with whoever holds them.
        """
        leaked = self.audit(sum(queue.filled for queue in queues),
                            sum(queue.outstanding for queue in queues))
        self.reclaim()
        return leaked
