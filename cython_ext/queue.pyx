# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True
"""One queue of a port: its bursts' memory, its accounts, and what Python may ask of it.

How packets get in and out over rings is bursts.pyx; opening and closing belong to the back-ends
(xsk.pyx, loop.pyx).
"""
cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from cython_ext.atomics cimport load_acquire_u32, unlikely
from cython_ext.frames cimport NO_QUEUE, frame_release_leased, frames_note, oc_umem
from cython_ext.history cimport LET_GO
from cython_ext.rings cimport oc_desc, ring_addr, ring_desc, ring_free, ring_publish


cdef uint64_t now_ns() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <uint64_t>t.tv_sec * 1000000000 + t.tv_nsec


# ------------------------------------------------------------------------------------- bursts

cdef Py_ssize_t burst_alloc(oc_burst* b, uint32_t packets_max, uint32_t frags_max) except -1:
    """One block for all columns, widest first so that each is aligned; returns its bytes."""
    cdef size_t per_packet = 8 + 4 * 4, per_frag = 8 + 3 * 4
    cdef uint8_t* p
    memset(b, 0, sizeof(oc_burst))
    p = <uint8_t*>calloc(1, packets_max * per_packet + frags_max * per_frag)
    if p == NULL:
        raise MemoryError(f"a burst of {packets_max} packets")
    b.block = p
    b.packets_max = packets_max
    b.frags_max = frags_max
    b.timestamp_ns = <uint64_t*>p
    b.addr = b.timestamp_ns + packets_max
    b.length = <uint32_t*>(b.addr + frags_max)
    b.rule_id = b.length + packets_max
    b.flags = b.rule_id + packets_max
    b.first = b.flags + packets_max
    b.bytes = b.first + packets_max
    b.frame = b.bytes + frags_max
    b.generation = b.frame + frags_max
    return packets_max * per_packet + frags_max * per_frag


cdef void burst_dispose(oc_burst* b) noexcept nogil:
    free(b.block)
    b.block = NULL


cdef uint32_t burst_free(oc_umem* um, const oc_burst* b) noexcept nogil:
    """Gives back every frame that the burst still holds; returns how many came home now."""
    cdef uint32_t i, before = um.rx_free_n
    if unlikely(um.history != NULL):
        frames_note(um, b.frame, b.frags, LET_GO, NO_QUEUE)
    for i in range(b.frags):
        frame_release_leased(um, b.frame[i], b.generation[i])
    return um.rx_free_n - before


# --------------------------------------------------------------------------------- Python's view

@cython.no_gc_clear
cdef class Queue:
    """What every back-end's queue has in Python: its accounts, and close."""

    @property
    def fd(self):
        """What poll() waits on; -1 if there is nothing to wait on."""
        return self.q.fd

    @property
    def queue_id(self):
        return self.q.queue_id

    @property
    def outstanding(self):
        """Frames queued for sending that have not completed."""
        return self.q.sending

    @property
    def filled(self):
        """Frames in the kernel's hands for receiving."""
        return self.q.filled

    @property
    def waiting(self):
        """Descriptors in the RX ring that nobody has taken yet."""
        return (load_acquire_u32(self.q.rx.producer) - self.q.rx.mine) & 0xffffffff \
            if not self.closed else 0

    @property
    def rx_ring(self):
        """Entries of the RX ring."""
        return self.q.rx.mask + 1

    @property
    def fill_target(self):
        """Frames that are kept posted for receiving."""
        return self.q.fill_target

    @property
    def starved(self):
        """Bursts that were cut short because no replacement frame was free."""
        return self.q.starved

    def set_fill_target(self, uint32_t frames):
        """How many frames to keep posted; lowering it withholds FILL (back-pressure)."""
        self.q.fill_target = frames

    def statistics(self):
        """The counters that we keep ourselves, by name."""
        cdef oc_queue* q = &self.q
        return {"rx_frames": q.rx_frames, "rx_bytes": q.rx_bytes, "tx_frames": q.tx_frames,
                "tx_bytes": q.tx_bytes, "starved": q.starved, "wakeups": q.wakeups,
                "invalid_metadata": q.invalid_metadata, "bad_descriptors": q.bad_descriptors,
                "too_many_fragments": q.too_many_fragments}

    def kernel_statistics(self):
        """The six drop counters of the kernel; zero where there is no kernel."""
        return dict.fromkeys(("rx_dropped", "rx_invalid_descs", "tx_invalid_descs", "rx_ring_full",
                              "rx_fill_ring_empty_descs", "tx_ring_empty_descs"), 0)

    def post_raw(self, str ring, uint64_t addr, uint32_t length=0):
        """Fault injection: writes a descriptor that belongs to no frame to "fill" or "tx".

        The kernel must count it as invalid, and no frame may be lost by it.
        """
        cdef oc_desc* d
        if ring == "fill":
            if not ring_free(&self.q.fill, 1):
                return False
            ring_addr(&self.q.fill, self.q.fill.mine)[0] = addr
            self.q.fill.mine += 1
            ring_publish(&self.q.fill)
        elif ring == "tx":
            if not ring_free(&self.q.tx, 1):
                return False
            d = ring_desc(&self.q.tx, self.q.tx.mine)
            d.addr, d.len, d.options = addr, length, 0
            self.q.tx.mine += 1
            ring_publish(&self.q.tx)
            self.q.kick(&self.q)
        else:
            raise ValueError(f"ring: {ring!r}: fill or tx")
        return True
