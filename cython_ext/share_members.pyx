# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True
"""The control side of lending: a consumer's share of one worker, and its members.

Owns the memory of rings and lease tables, and who is a member. Leases are the worker's
(sharing.pyx); from here a member is only added, told to leave, or declared dead, and its memory
goes when the worker has said that it is done with it.
"""
cimport cython
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from posix.unistd cimport close, dup

from cython_ext.atomics cimport (OC_LEDGER_ON, load_acquire_u32, load_relaxed_u32,
                                 load_relaxed_u64, store_release_u32, store_release_u64)
from cython_ext.mutex cimport (pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock,
                               pthread_mutex_unlock)
from cython_ext.queue cimport now_ns
from cython_ext.sharing cimport (ACTIVE, BUCKETS, DEAD, GONE, LEAVING, MEMBERS_MAX, NOBODY, NONE,
                                 SHARE_HEADER, SHARE_MAGIC, SHARE_VERSION, oc_down, oc_kept,
                                 oc_lease, oc_lent, oc_up, share_let_go, share_reclaim)

MODES = ("all", "flow", "robin")


def _power_of_two(n):
    return 1 << max(1, (n - 1).bit_length())


@cython.no_gc_clear
cdef class Share:
    """`Share(frames, owner, reliable, mode, window, cache, copy_bytes, hand_over_ns, seed)`.

    window: packets that a lossy consumer keeps alive. cache: of the mid tier, the worker's own, or
    None; copy_bytes of it for all members together.
    """

    def __cinit__(self, Frames frames not None, uint32_t owner, bint reliable, str mode,
                  uint32_t window, Cache cache, uint64_t copy_bytes, uint64_t hand_over_ns,
                  uint64_t seed):
        if not OC_LEDGER_ON:
            raise ValueError("this build has no ledger: nothing can be lent")
        if not 1 <= owner <= 255 or not 1 <= window <= 1 << 20:
            raise ValueError(f"owner {owner}, window {window}: 1 to 255, 1 to {1 << 20}")
        self.frames, self.cache, self.reliable = frames, cache, reliable
        self.members = [None] * MEMBERS_MAX
        self.s.um = &frames.um
        self.s.cache = cache.c if cache is not None else NULL
        self.s.owner, self.s.reliable, self.s.mode = owner, reliable, MODES.index(mode)
        self.s.copy_bytes, self.s.hand_over_ns, self.s.seed = copy_bytes, hand_over_ns, seed
        pthread_mutex_init(&self.s.lock, NULL)
        memset(self.s.target, NOBODY, BUCKETS)
        memset(self.s.wanted, NOBODY, BUCKETS)
        memset(self.s.to, NOBODY, BUCKETS)
        if not reliable:
            self.s.window = window
            self.s.kept_mask = _power_of_two(window) - 1
            self.s.kept = <oc_kept*>calloc(self.s.kept_mask + 1, sizeof(oc_kept))
            if self.s.kept == NULL:
                raise MemoryError(f"a window of {window} packets")

    def place(self):
        """A free place for a member, or -1."""
        return self.members.index(None) if None in self.members else -1

    def admit(self, Member member not None):
        """From the next round on it gets packets."""
        if member.share is not self or self.members[member.place] is not None or self.closed:
            raise ValueError("this place is taken")
        self.members[member.place] = member
        store_release_u64(<uint64_t*>&self.s.members[member.place], <uint64_t>&member.m)

    def forget(self, Member member not None):
        """The place of a member that is gone is free again; False if it is not gone yet."""
        if not member.gone:
            return False
        if self.members[member.place] is member:
            self.members[member.place] = None
        return True

    def aim(self, bytes table not None):
        """Which member shall have each bucket of flows (255: nobody)."""
        if len(table) != BUCKETS:
            raise ValueError(f"{len(table)} buckets: {BUCKETS}")
        pthread_mutex_lock(&self.s.lock)
        for i in range(BUCKETS):
            self.s.target[i] = table[i]
        store_release_u32(&self.s.retarget, 1)
        pthread_mutex_unlock(&self.s.lock)

    def close(self):
        """Once the worker has ended: every lease comes home, whoever still looks."""
        cdef Member member
        self.closed = True
        for found in self.members:
            if found is None:
                continue
            member = found
            share_reclaim(&self.s, &member.m, NONE)
            self.s.members[member.place] = NULL
            store_release_u32(&member.m.state, GONE)
        while share_let_go(&self.s):
            pass
        # What is cached of the mid tier goes back with the cache; its arenas belong to the tier.
        if self.cache is not None:
            self.cache.drain()

    def figures(self):
        """What all members together have now."""
        return {"kept": load_relaxed_u32(&self.s.kept_n), "copied_bytes": self.s.copied_bytes,
                "moving": load_relaxed_u32(&self.s.moving), "moved_late": self.s.moved_late,
                "violations": self.s.violations}

    def __dealloc__(self):
        # Members hold a reference to their share, so none is left by now.
        free(self.s.kept)
        pthread_mutex_destroy(&self.s.lock)


@cython.no_gc_clear
cdef class Member:
    """`Member(share, place, quota, copies, max_hold_ns, filter, wake_fd)`: one consumer in another
    process, as one worker sees it. quota: frames at once; copies: packets in the mid tier at once.
    """

    def __cinit__(self, Share share not None, uint32_t place, uint32_t quota, uint32_t copies,
                  uint64_t max_hold_ns, Filter filter, int wake_fd):
        cdef uint32_t i, leases = quota + copies if share.reliable else 2 * share.s.window
        cdef uint32_t entries = _power_of_two(max(leases, 64))
        self.m.wake_fd = -1
        self.share, self.place, self.filter = share, place, filter
        if not 0 <= place < MEMBERS_MAX or not 0 < quota <= 1 << 20 or copies > 1 << 20:
            raise ValueError(f"place {place}, quota {quota}, copies {copies}")
        self.down = Arena(SHARE_HEADER + <uint64_t>entries * sizeof(oc_lent), "openclaw-down",
                          "off")
        self.up = Arena(SHARE_HEADER + <uint64_t>entries * 8, "openclaw-up", "off")
        self.m.down = <oc_down*>self.down.base
        self.m.entries = <oc_lent*>(self.down.base + SHARE_HEADER)
        self.m.up = <oc_up*>self.up.base
        self.m.returns = <uint64_t*>(self.up.base + SHARE_HEADER)
        self.m.mask = entries - 1
        self.m.down.version, self.m.down.size = SHARE_VERSION, entries
        self.m.down.reliable, self.m.down.window = share.reliable, share.s.window
        self.m.down.magic = SHARE_MAGIC
        self.m.quota, self.m.max_hold_ns = quota, max_hold_ns
        self.m.code = filter.code if filter is not None else NULL
        self.m.oldest = self.m.newest = self.m.free = NONE
        if share.reliable:
            self.m.leases = <oc_lease*>calloc(leases, sizeof(oc_lease))
            if self.m.leases == NULL:
                raise MemoryError(f"{leases} leases")
            self.m.n_leases = leases
            for i in range(leases):
                self.m.leases[i].newer = i + 1 if i + 1 < leases else NONE
            self.m.free = 0
        self.m.wake_fd = dup(wake_fd)     # of our own: the caller's number may become another's
        if self.m.wake_fd < 0:
            raise OSError("dup")
        self.m.state = ACTIVE

    def leave(self):
        """It gets nothing new; what it has it may still give back."""
        if load_acquire_u32(&self.m.state) == ACTIVE:
            store_release_u32(&self.m.state, LEAVING)

    def die(self):
        """Its process is gone: the worker brings everything home within a round."""
        if load_acquire_u32(&self.m.state) in (ACTIVE, LEAVING):
            store_release_u32(&self.m.state, DEAD)

    @property
    def live(self):
        """The worker gives it packets: it looks who there is once a round."""
        return bool(load_relaxed_u32(&self.share.s.live) >> self.place & 1)

    @property
    def gone(self):
        """The worker is done with it."""
        return load_acquire_u32(&self.m.state) == GONE

    def figures(self):
        """Live, read without stopping anybody."""
        cdef oc_member* m = &self.m
        cdef uint32_t oldest = load_relaxed_u32(&m.oldest)
        cdef uint64_t since = 0, now = now_ns()
        if oldest < m.n_leases:
            since = load_relaxed_u64(&m.leases[oldest].since_ns)
        return {
            "offered": m.offered, "frames": m.frames, "bytes": m.bytes,
            "leased": load_relaxed_u32(&m.frames_held),
            "copies": load_relaxed_u32(&m.copies_held),
            "copied_bytes": m.copied_bytes,
            "oldest_lease_ms": (now - since) // 1000000 if 0 < since < now else 0,
            "copied": m.copied, "dropped": m.dropped, "bad_returns": m.bad_returns,
            "reclaimed": m.reclaimed, "overdue": bool(load_relaxed_u32(&m.overdue)),
            "overdues": m.overdues,
            # The member's own word, of a page that it can write: shown, and believed by nobody.
            "overruns": load_relaxed_u64(&m.up.overruns) if not self.share.reliable else 0,
        }

    def __dealloc__(self):
        free(self.m.leases)
        if self.m.wake_fd >= 0:
            close(self.m.wake_fd)
