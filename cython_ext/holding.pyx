# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True
"""Holds under a quota and a deadline, and the ways out: so that who is slow starves nobody.

    policy      the quota is used up                    a hold is older than max_hold_ms
    reliable    the packet is copied to the mid tier    the same, at the next look
    lossy       the oldest holds end, this one stands   the hold ends
    strict      MemoryExhausted                         (no deadline)

Owns the list of pinned frames, oldest first, and the accounts. A frame with a live view stays
where it is, whatever the policy: somebody has its address. It keeps counting against the quota,
and when nothing else can make room the answer is MemoryExhausted. Everything here runs with the
GIL; asking for a slab runs Python, so what was true before is looked at again after.
"""
cimport cython
from libc.stdint cimport uint32_t, uint64_t, uintptr_t, uint8_t
from libc.string cimport memcpy

from cython_ext.lending cimport Frame, Lender
from cython_ext.queue cimport now_ns

from cython_ext import lending

POLICIES = ("reliable", "lossy", "strict")


@cython.no_gc_clear
cdef class Holder(Lender):
    """A Lender whose holds have a policy; `rule_holds` sets it. Strict until then."""

    def __cinit__(self, *args, **kwargs):
        self.policy = "strict"

    def rule_holds(self, str policy, spill, tell, uint64_t max_hold_ns=0):
        """spill(nbytes) gives a slab or raises MemoryExhausted; tell(action, packets, age_ns)."""
        if policy not in POLICIES:
            raise ValueError(f"policy: {policy!r}: {', '.join(POLICIES)}")
        if max_hold_ns and policy == "strict":
            raise ValueError("max_hold_ms: policy reliable or lossy says what happens then")
        self.policy, self.spill, self.tell = policy, spill, tell
        self.max_hold_ns = max_hold_ns

    # ----------------------------------------------------------------------------- the list

    cdef void enlist(self, Frame frame) noexcept:
        frame.since_ns = now_ns()
        frame.pinned = True
        frame.newer = NULL
        frame.older = self.newest
        if self.newest != NULL:
            (<Frame>self.newest).newer = <void*>frame
        else:
            self.oldest = <void*>frame
        self.newest = <void*>frame

    cdef void delist(self, Frame frame) noexcept:
        if not frame.pinned:
            return
        frame.pinned = False
        if frame.older != NULL:
            (<Frame>frame.older).newer = frame.newer
        else:
            self.oldest = frame.newer
        if frame.newer != NULL:
            (<Frame>frame.newer).older = frame.older
        else:
            self.newest = frame.older
        frame.older = frame.newer = NULL

    # ------------------------------------------------------------------------- Lender's verbs

    cdef int pin(self, Frame frame) except -1:
        while self.pinned + frame.pieces > self.quota:
            if self.make_room(frame):
                return 0
            # Python has run: others may have pinned it, recycled it, or taken the room.
            if frame.pinned:
                return 0
            frame.check()
        Lender.pin(self, frame)
        self.enlist(frame)
        return 0

    cdef void unpin(self, Frame frame) noexcept:
        slab = frame.slab
        if slab is not None:
            self.copies -= 1
            self.copied_bytes -= frame.length
            frame.slab = None
            frame.copy = NULL
            slab.release()
        if frame.pinned:
            self.delist(frame)
            Lender.unpin(self, frame)

    cdef void moved(self, Frame frame) noexcept:
        self.delist(frame)
        Lender.moved(self, frame)

    # ------------------------------------------------------------------------- the ways out

    cdef object refuse(self, str why, str more=""):
        """The exception of a hold for which there is no room anywhere."""
        self.refused += 1
        if self.tell is not None:
            self.tell("refused", 1, 0)
        return lending.ExhaustedError(
            f"the quota of {self.quota} held frames is used up{why}: release some, "
            "or raise quota_frames", self.summary() + more)

    def summary(self):
        """One line for the exception: what this program has, and for how long."""
        now = self.holds()
        return (f"held {now['held']} ({now['viewed']} looked at), oldest {now['oldest_hold_ms']} "
                f"ms; copied out {now['copies']} ({now['copied_bytes'] / 1048576:.1f} MiB)")

    cdef int make_room(self, Frame frame) except -1:
        """The quota has no room for this frame. 1: it was copied out; 0: there is room now."""
        cdef uint32_t freed = 0
        cdef void* at = self.oldest
        cdef Frame other
        cdef uint32_t needed = self.pinned + frame.pieces - self.quota
        if self.policy == "strict" or self.spill is None and self.policy == "reliable":
            raise self.refuse("")
        if self.policy == "reliable":
            if self.copy_out(frame, False):
                self.escaped += 1
                self.tell("copied out at the quota", 1, 0)
            return 1
        while at != NULL and freed < needed:
            other = <Frame>at
            freed += other.pieces if other.exports == 0 else 0
            at = other.newer
        if freed < needed:
            raise self.refuse(", and no hold can end for it: somebody looks at them")
        freed = ended = age = 0
        at = self.oldest
        while freed < needed:
            other = <Frame>at
            at = other.newer
            if other.exports == 0:
                freed += other.pieces
                age = max(age, now_ns() - other.since_ns)
                self.end_hold(other)
                ended += 1
        self.overrun += ended
        self.tell("dropped at the quota", ended, age)
        return 0

    cdef void end_hold(self, Frame frame) noexcept:
        """Whoever held it finds it stale, once its batch is gone too."""
        frame.holds = 0
        self.unpin(frame)

    cdef bint copy_out(self, Frame frame, bint pinned) except -1:
        """The mid tier takes the packet over. False if that was not necessary any more."""
        cdef uint8_t* to
        cdef uint32_t i
        try:
            slab = self.spill(frame.length)
        except (lending.ExhaustedError, ValueError) as error:
            more = getattr(error, "summary", "")
            raise self.refuse(f", and {error.args[0]}", f"; {more}" if more else "") from None
        # Python has run meanwhile: others may have released it, looked at it or copied it out.
        # Who asked for the hold is told that the frame is stale; a sweep has nobody to tell.
        if (frame.slab is not None or frame.pinned != pinned or frame.exports
                or (pinned and frame.holds == 0) or not frame.is_alive()):
            slab.release()
            if not pinned:
                frame.check()
            return False
        to = <uint8_t*><uintptr_t>slab.address
        frame.copy = to
        for i in range(frame.pieces):
            memcpy(to, frame.shown(i), frame.piece(i).bytes)
            to += frame.piece(i).bytes
        if pinned:
            self.delist(frame)
            Lender.unpin(self, frame)
        else:
            frame.since_ns = now_ns()
        frame.slab = slab
        self.copies += 1
        self.copied_bytes += frame.length
        return True

    def sweep(self):
        """Ends or copies out the holds that are past the deadline; returns how many.

        Looked-at frames stay. When the mid tier is full the rest stays too, and is counted.
        """
        cdef uint64_t now = now_ns()
        cdef uint64_t age = 0
        cdef Frame frame
        cdef void* at = self.oldest
        cdef uint64_t done = 0
        if not self.max_hold_ns:
            return 0
        while at != NULL:
            frame = <Frame>at
            if now < frame.since_ns + self.max_hold_ns:
                break
            if frame.exports or frame.holds == 0:
                at = frame.newer
                continue
            age = max(age, now - frame.since_ns)
            if self.policy == "lossy":    # no Python runs here, so `at` stays true
                at = frame.newer
                self.end_hold(frame)
                done += 1
                continue
            try:
                done += self.copy_out(frame, True)
            except lending.ExhaustedError:
                break
            at = self.oldest
        if done and self.policy == "lossy":
            self.overdue_dropped += done
            self.tell("dropped past the deadline", done, age)
        elif done:
            self.overdue_copied += done
            self.tell("copied out past the deadline", done, age)
        return done

    def holds(self):
        """Live figures of the holds: held, viewed, copied, the oldest, and what was done."""
        cdef void* at = self.oldest
        cdef Frame frame
        cdef uint64_t oldest = 0, now = now_ns()
        viewed = 0
        if at != NULL and now > (<Frame>at).since_ns:
            oldest = now - (<Frame>at).since_ns
        while at != NULL:
            frame = <Frame>at
            viewed += 1 if frame.exports else 0
            at = frame.newer
        return {
            "policy": self.policy, "quota_frames": self.quota, "held": self.pinned,
            "viewed": viewed, "oldest_hold_ms": oldest // 1000000,
            "max_hold_ms": self.max_hold_ns // 1000000 or None,
            "copies": self.copies, "copied_bytes": self.copied_bytes,
            "escaped": self.escaped, "overrun": self.overrun,
            "overdue_copied": self.overdue_copied, "overdue_dropped": self.overdue_dropped,
            "refused": self.refused,
        }
