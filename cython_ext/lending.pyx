# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True
"""Batches, frames and views: packets in Python without copies, and without dangling pointers.

Who keeps what alive (an arrow is a Python reference):

    memoryview -> Frame -> Lender, Queue -> Frames -> Arena (the mapping)
    Frame -> Batch -> Block (columns)

* A batch holds one ledger reference of each of its frames until it is released.
* A frame that is held, or that a view looks at, is *pinned*: one more ledger reference, counted
  against the lender's quota. A pinned frame outlives its batch; the last pin sends it home.
* A frame that was *copied out* shows a slab of the mid tier instead, and nothing of the UMEM is
  held for it. Who is copied out, and when, is holding.pyx.
* Anything else is stale once the batch is gone: the ledger's generation says so, and using it
  raises StaleFrame instead of showing the next packet.
* The arena is unmapped only after the last view: closing a port can never pull memory away.

Ledger words change under the UMEM's lock (rx and tx bursts run without the GIL). Whoever holds
that lock never waits for the GIL, so taking it with the GIL held cannot deadlock. The file is
longer than a room should be because Lender, Batch and Frame are one protocol.
"""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_FillInfo
from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

import time

import numpy as np

from cython_ext.frames cimport (frame_is, frame_release_leased, frames_note, load_relaxed_u64,
                                oc_umem, pthread_mutex_lock, pthread_mutex_unlock,
                                store_relaxed_u64, word_references)
from cython_ext.history cimport HELD, LET_GO
from cython_ext.queue cimport (FRAGS_MAX, burst_alloc, burst_dispose, burst_free, oc_burst)

# The exceptions of the package above us, put here by its facade (imports point downward only).
StaleFrameError = RuntimeError
ExhaustedError = MemoryError


def use_errors(stale, exhausted):
    """Which exceptions to raise for a stale frame and for a used-up quota."""
    global StaleFrameError, ExhaustedError
    StaleFrameError, ExhaustedError = stale, exhausted


@cython.no_gc_clear
cdef class Lender:
    def __cinit__(self, *args, **kwargs):
        self.owner = 1
        self.quota = 1024
        self.blocks = []
        # One sample: stepping the offset later would break the order of timestamps in a queue.
        self.clock_offset_ns = time.time_ns() - time.monotonic_ns()

    cdef void register(self, Batch batch) noexcept:
        """Lists a batch, so that closing the port can release it. Not a reference: a batch that
        nobody has any more must be able to end."""
        batch.next = self.batches
        if self.batches != NULL:
            (<Batch>self.batches).previous = <void*>batch
        self.batches = <void*>batch

    def release_batches(self):
        """Releases every batch that is still lent."""
        while self.batches != NULL:
            (<Batch>self.batches).release()

    cdef Block take_block(self, uint32_t packets_max, bint multi_buffer):
        cdef Block block
        for block in self.blocks:
            if block.b.packets_max == packets_max and block.idle():
                self.blocks.remove(block)
                return block
        return Block(packets_max, max(packets_max * 4, FRAGS_MAX) if multi_buffer else packets_max)

    cdef int pin(self, Frame frame) except -1:
        """One more ledger reference on every piece, if the quota allows it."""
        cdef oc_umem* um = &frame.queue.frames.um
        cdef oc_piece* p
        cdef uint32_t i
        if self.pinned + frame.pieces > self.quota:
            raise ExhaustedError(f"the quota of {self.quota} held frames is used up: release some, "
                                 "or raise quota_frames")
        pthread_mutex_lock(&um.lock)
        for i in range(frame.pieces):
            p = frame.piece(i)
            store_relaxed_u64(&um.ledger[p.frame].word, um.ledger[p.frame].word + (1 << 8))
            frames_note(um, &p.frame, 1, HELD, frame.queue.q.queue_id)
        pthread_mutex_unlock(&um.lock)
        self.pinned += frame.pieces
        return 0

    cdef void unpin(self, Frame frame) noexcept:
        cdef oc_umem* um = &frame.queue.frames.um
        cdef oc_piece* p
        cdef uint32_t i
        pthread_mutex_lock(&um.lock)
        for i in range(frame.pieces):
            p = frame.piece(i)
            frames_note(um, &p.frame, 1, LET_GO, frame.queue.q.queue_id)
            frame_release_leased(um, p.frame, p.generation)
        pthread_mutex_unlock(&um.lock)
        self.pinned -= frame.pieces

    cdef void moved(self, Frame frame) noexcept:
        """The frames of a held packet went to TX: its pins are gone with them."""
        self.pinned -= frame.pieces


cdef extern from "Python.h":
    Py_ssize_t references "Py_REFCNT"(object)


cdef class Columns:
    """The memory behind one batch's columns, as a read-only buffer of bytes."""

    def __cinit__(self, uint32_t packets_max, uint32_t frags_max):
        self.bytes = burst_alloc(&self.b, packets_max, frags_max)

    def __getbuffer__(self, Py_buffer* view, int flags):
        PyBuffer_FillInfo(view, self, self.b.block, self.bytes, 1, flags)

    def __releasebuffer__(self, Py_buffer* view):
        pass

    def __dealloc__(self):
        burst_dispose(&self.b)


cdef class Block:
    """Columns and the numpy arrays over them; used again once no slice of the arrays is alive."""

    def __cinit__(self, uint32_t packets_max, uint32_t frags_max):
        self.columns = Columns(packets_max, frags_max)
        self.b = &self.columns.b
        self.lengths = self._array(np.uint32, self.b.length)
        self.timestamps = self._array(np.uint64, self.b.timestamp_ns)
        self.rule_ids = self._array(np.uint32, self.b.rule_id)

    cdef _array(self, dtype, void* where):
        return np.frombuffer(self.columns, dtype, self.b.packets_max,
                             <uint8_t*>where - <uint8_t*>self.b.block)

    cdef bint idle(self):
        return (references(self.lengths) == 1 and references(self.timestamps) == 1
                and references(self.rule_ids) == 1)


@cython.no_gc_clear
cdef class Batch:
    """Packets of one burst, all from one queue. It is recycled by `release()` or when the loop
    that yielded it goes on; using it after that raises StaleFrame.

    `lengths` (uint32, bytes), `timestamps_ns` (uint64, nanoseconds since the epoch) and `rule_ids`
    (uint32) are numpy arrays of shape (n,), read-only, without a copy; they stay valid for as long
    as you keep them. `batch[i]` is a Frame.
    """

    def __init__(self):
        raise TypeError("batches come from port.recv()")

    def __len__(self):
        return self.count

    cdef int alive(self) except -1:
        if self.block is None:
            raise StaleFrameError("this batch was released")
        return 0

    @property
    def lengths(self):
        self.alive()
        return self.block.lengths[:self.count]

    @property
    def timestamps_ns(self):
        self.alive()
        return self.block.timestamps[:self.count]

    @property
    def rule_ids(self):
        self.alive()
        return self.block.rule_ids[:self.count]

    @property
    def queue_id(self):
        return self.queue.q.queue_id

    def head(self, Py_ssize_t nbytes):
        """The first bytes of every packet: uint8, shape (n, nbytes), zeros behind short ones.

        One gathered copy, made without the GIL; it stays valid after the batch.
        """
        cdef oc_burst* b
        cdef uint8_t* base
        cdef uint8_t[:, ::1] out
        cdef uint32_t i, f, last
        cdef Py_ssize_t at, n
        self.alive()
        if not 1 <= nbytes <= 65535:
            raise ValueError(f"head({nbytes}): 1 to 65535 bytes")
        b = self.block.b
        base = self.queue.frames.um.base
        array = np.zeros((self.count, nbytes), np.uint8)
        if self.count == 0:
            return array
        out = array
        with nogil:
            for i in range(self.count):
                last = b.first[i + 1] if i + 1 < self.count else b.frags
                at = 0
                for f in range(b.first[i], last):
                    n = b.bytes[f] if b.bytes[f] < nbytes - at else nbytes - at
                    memcpy(&out[i, at], base + b.addr[f], n)
                    at += n
                    if at == nbytes:
                        break
        return array

    cdef Frame make(self, uint32_t i):
        cdef Frame frame
        cdef oc_burst* b = self.block.b
        cdef uint32_t last = b.first[i + 1] if i + 1 < self.count else b.frags
        cdef uint32_t k
        cdef oc_piece* p
        frame = Frame.__new__(Frame)
        frame.pieces = last - b.first[i]
        if frame.pieces > 1:
            frame.many = <oc_piece*>malloc(frame.pieces * sizeof(oc_piece))
            if frame.many == NULL:
                raise MemoryError("a frame of several fragments")
        frame.batch = self
        frame.lender = self.lender
        frame.queue = self.queue
        frame.length = b.length[i]
        frame.rule_id = b.rule_id[i]
        frame.timestamp_ns = b.timestamp_ns[i]
        for k in range(frame.pieces):
            p = frame.piece(k)
            p.addr = b.addr[b.first[i] + k]
            p.bytes = b.bytes[b.first[i] + k]
            p.frame = b.frame[b.first[i] + k]
            p.generation = b.generation[b.first[i] + k]
        return frame

    def __getitem__(self, index):
        self.alive()
        if isinstance(index, slice):
            return [self.make(i) for i in range(*index.indices(self.count))]
        cdef Py_ssize_t i = index
        if i < 0:
            i += self.count
        if not 0 <= i < self.count:
            raise IndexError(f"packet {index} of a batch of {self.count}")
        return self.make(i)

    def __iter__(self):
        cdef uint32_t i
        for i in range(self.count):
            self.alive()
            yield self.make(i)

    def release(self):
        """Sends every frame home that nobody holds or looks at. May be called again."""
        if self.block is None:
            return
        self.give_back()
        if len(self.lender.blocks) < 16:
            self.lender.blocks.append(self.block)
        self.block = None

    cdef void give_back(self) noexcept:
        """The frames go home, and the batch leaves its lender's list."""
        cdef oc_umem* um = &self.queue.frames.um
        if self.count:
            pthread_mutex_lock(&um.lock)
            burst_free(um, self.block.b)
            pthread_mutex_unlock(&um.lock)
        if self.previous != NULL:
            (<Batch>self.previous).next = self.next
        else:
            self.lender.batches = self.next
        if self.next != NULL:
            (<Batch>self.next).previous = self.previous
        self.next = self.previous = NULL

    def __dealloc__(self):
        if self.block is not None:
            self.give_back()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.release()

    def __repr__(self):
        return f"<Batch of {self.count}{' (released)' if self.block is None else ''}>"


@cython.no_gc_clear
cdef class Frame:
    """One packet where the kernel put it. `memoryview(frame)` and everything else that takes a
    buffer reads it in place, read-only; while such a view lives the frame stays out of circulation.

    A packet that spans several frames (jumbo) is gathered into one copy for `memoryview(frame)`;
    `frame.fragments` gives its pieces in place. After its batch, a frame that is neither held nor
    viewed raises StaleFrame.
    """

    def __init__(self):
        raise TypeError("frames come from a batch")

    cdef oc_piece* piece(self, uint32_t i) noexcept:
        return &self.many[i] if self.many != NULL else &self.one

    cdef const uint8_t* shown(self, uint32_t i) noexcept:
        """Where piece i can be read: in its frame, or in the copy, one after the other."""
        cdef const uint8_t* at = self.copy
        cdef uint32_t k
        if self.slab is None:
            return self.queue.frames.um.base + self.piece(i).addr
        for k in range(i):
            at += self.piece(k).bytes
        return at

    cdef bint is_alive(self) noexcept:
        cdef oc_piece* p = self.piece(0)
        return self.slab is not None or frame_is(&self.queue.frames.um, p.frame, p.generation)

    cdef int check(self) except -1:
        if not self.is_alive():
            raise StaleFrameError("this frame was recycled: hold() it to keep it past its batch")
        return 0

    cdef int export_begin(self) except -1:
        self.check()
        if self.holds == 0 and self.exports == 0:
            self.lender.pin(self)
        self.exports += 1
        return 0

    cdef void export_end(self) noexcept:
        self.exports -= 1
        if self.holds == 0 and self.exports == 0:
            self.lender.unpin(self)

    cdef bint ours_alone(self) noexcept:
        """No view, and no reference but this frame's own and its batch's: it may be moved to TX."""
        cdef uint32_t others = word_references(
            load_relaxed_u64(&self.queue.frames.um.ledger[self.piece(0).frame].word))
        others -= (self.holds > 0) + (self.batch.block is not None)
        return self.exports == 0 and others == 0 and self.slab is None

    cdef void sent(self) noexcept:
        """Its frames went to TX: whatever pins were counted are gone with them."""
        if self.holds:
            self.lender.moved(self)
            self.holds = 0

    def __getbuffer__(self, Py_buffer* view, int flags):
        if flags & PyBUF_WRITABLE:
            raise BufferError("frames are read-only")
        if self.pieces > 1 and self.slab is None:
            if self.gathered is None:
                self.gathered = self._gather()
            PyBuffer_FillInfo(view, self, PyBytes_AS_STRING(self.gathered), self.length, 1, flags)
            view.internal = NULL
            return
        self.export_begin()
        PyBuffer_FillInfo(view, self, <void*>self.shown(0), self.length, 1, flags)
        view.internal = <void*>self

    def __releasebuffer__(self, Py_buffer* view):
        if view.internal != NULL:
            self.export_end()

    cdef bytes _gather(self):
        cdef bytes out
        cdef char* to
        cdef uint32_t i
        cdef oc_piece* p
        self.check()
        out = PyBytes_FromStringAndSize(NULL, self.length)
        to = PyBytes_AS_STRING(out)
        for i in range(self.pieces):
            p = self.piece(i)
            memcpy(to, self.shown(i), p.bytes)
            to += p.bytes
        return out

    @property
    def fragments(self):
        """The pieces of the packet in order, each a zero-copy read-only memoryview."""
        self.check()
        return tuple(memoryview(Fragment(self, i)) for i in range(self.pieces))

    @property
    def number(self):
        """Of the (first) frame in its memory: what the history and the ledger know it by."""
        return self.piece(0).frame

    @property
    def held(self):
        return self.holds > 0

    @property
    def copied(self):
        """Is what this shows a copy in the mid tier? Its own frame went home."""
        return self.slab is not None

    @property
    def stale(self):
        return not self.is_alive()

    def hold(self):
        """Keeps the frame past its batch until `release()`; returns itself.

        Counts against the port's quota. When that is used up the port's policy decides: the packet
        is copied out to the mid tier (reliable), the oldest hold ends (lossy), or MemoryExhausted.
        """
        self.check()
        if self.holds == 0 and self.exports == 0:
            self.lender.pin(self)
        self.holds += 1
        return self

    def release(self):
        """Undoes one hold(). Without a hold it does nothing."""
        if self.holds:
            self.holds -= 1
            if self.holds == 0 and self.exports == 0:
                self.lender.unpin(self)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.release()

    def __len__(self):
        return self.length

    def __bytes__(self):
        if self.pieces > 1 and self.slab is None:
            return self.gathered if self.gathered is not None else self._gather()
        self.check()
        return PyBytes_FromStringAndSize(<char*>self.shown(0), self.length)

    def __repr__(self):
        state = ("stale" if self.stale else "copied out" if self.copied
                 else "held" if self.holds else "lent")
        return f"<Frame of {self.length} bytes, {state}>"

    def __dealloc__(self):
        # Never raises: a program that forgot to release gets its frames back all the same.
        if self.holds and self.exports == 0:
            self.lender.unpin(self)
        free(self.many)


@cython.no_gc_clear
cdef class Fragment:
    """One piece of a packet, as a buffer."""
    cdef Frame frame
    cdef uint32_t index

    def __cinit__(self, Frame frame not None, uint32_t index):
        self.frame = frame
        self.index = index

    def __getbuffer__(self, Py_buffer* view, int flags):
        cdef oc_piece* p = self.frame.piece(self.index)
        if flags & PyBUF_WRITABLE:
            raise BufferError("frames are read-only")
        self.frame.export_begin()
        PyBuffer_FillInfo(view, self, <void*>self.frame.shown(self.index), p.bytes, 1, flags)

    def __releasebuffer__(self, Py_buffer* view):
        self.frame.export_end()
