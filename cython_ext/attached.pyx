# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True
"""The member's end of a share: batches, frames and views of packets in another process's memory.

Owns batches, frames and views, the waiting, and what is to be given back. The words are those of a
port in the engine's process (lending.pyx), without its ledger: here a lease is a slot and a serial,
and giving it back is writing both into a ring.

    memoryview -> Frame -> Batch -> Lane -> Mapping        who keeps what alive

* A *reliable* member's frames stay as they are until they are given back, and views of them are in
  place. A batch gives back what nobody holds or looks at; the last view of the rest does.
* A *lossy* member is overrun without being asked. It is shown only what was still true after it
  was copied: `memoryview(frame)` looks at a verified copy, and what was lost raises StaleFrame.

It is longer than a room should be, as lending.pyx is and for its reason: port, batch and frame are
one protocol.
"""
cimport cython
from cpython.buffer cimport (PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release,
                             PyObject_GetBuffer)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

import os
import time

import numpy as np

from cython_ext.atomics cimport store_relaxed_u32, unlikely
from cython_ext.member_lane cimport Lane, Mapping
from cython_ext.poll cimport POLLIN, poll, pollfd
from cython_ext.queue cimport now_ns
from cython_ext.sharing cimport IN_FRAME, IN_SLAB_2M, IN_SLAB_4K, fence, oc_lent

# The exceptions of the package above us, put here by its facade (imports point downward only).
StaleFrameError = RuntimeError

cdef extern from "<sys/socket.h>" nogil:
    ssize_t recv(int fd, void* data, size_t nbytes, int flags)
    int MSG_DONTWAIT

cdef enum:
    SPIN_NS = 20000               # as endpoint.pyx: under load look again before sleeping
    WAKES_MAX = 64                # read from the connection at once; the rest next time
    HANDLE_PLACE_BITS = 38        # of a slab's handle: slab_object.pyx

ENTRY = np.dtype({
    "names": ["timestamp_ns", "length", "rule_id", "queue"],
    "formats": [np.uint64, np.uint32, np.uint32, np.uint16],
    "offsets": [8, 24, 28, 50], "itemsize": 64})


def use_errors(stale):
    """Which exception to raise for a frame that is not there any more."""
    global StaleFrameError
    StaleFrameError = stale


@cython.no_gc_clear
cdef class AttachedBatch:
    """Packets that a share lent us; recycled by `release()` or when the loop goes on.

    `lengths`, `timestamps_ns`, `rule_ids` are numpy columns that stay valid; `batch[i]` is a frame.
    """
    cdef Attached port
    cdef Lane lane
    cdef object table             # numpy, owns the entries
    cdef Py_buffer view
    cdef oc_lent* e
    cdef readonly uint32_t count
    cdef uint16_t* pins           # of each entry: frames that are held or looked at
    cdef bint released
    cdef bint viewed

    def __init__(self):
        raise TypeError("batches come from port.recv()")

    def __len__(self):
        return self.count

    cdef int check(self) except -1:
        if self.released:
            raise StaleFrameError("this batch was released")
        if self.port.hung_up:
            raise StaleFrameError("the port is closed: the appliance has taken its frames back")
        return 0

    @property
    def lengths(self):
        self.check()
        return self.table["length"]

    @property
    def timestamps_ns(self):
        self.check()
        return self.table["timestamp_ns"]

    @property
    def rule_ids(self):
        self.check()
        return self.table["rule_id"]

    @property
    def queue_ids(self):
        self.check()
        return self.table["queue"]

    @property
    def queue_id(self):
        """Of the first packet: a worker may run several queues, see queue_ids."""
        self.check()
        return self.e[0].queue if self.count else 0

    def head(self, Py_ssize_t nbytes):
        """The first bytes of every packet: uint8, shape (n, nbytes), zeros behind short ones.

        Rows of a lossy member that were overrun while they were gathered are zero, and counted.
        """
        cdef uint8_t[:, ::1] out
        cdef const uint8_t* source
        cdef uint32_t i
        cdef uint64_t lost = 0
        self.check()
        if not 1 <= nbytes <= 65535:
            raise ValueError(f"head({nbytes}): 1 to 65535 bytes")
        array = np.zeros((self.count, nbytes), np.uint8)
        if self.count == 0:
            return array
        out = array
        for i in range(self.count):
            if self.e[i].kind != IN_FRAME and not self.lane.reliable:
                try:
                    part = self.port.slab_bytes(&self.e[i])[:nbytes]
                except StaleFrameError:
                    lost += 1
                else:
                    memcpy(&out[i, 0], PyBytes_AS_STRING(part), len(part))
        self.port.inside += 1         # close() waits: what we read must not be taken back
        with nogil:
            for i in range(self.count):
                if self.e[i].kind != IN_FRAME and not self.lane.reliable:
                    continue
                source = self.port.where(self.lane, &self.e[i])
                memcpy(&out[i, 0], source, min(<Py_ssize_t>self.e[i].length, nbytes))
                if not self.lane.reliable and not self.lane.alive(&self.e[i]):
                    memset(&out[i, 0], 0, nbytes)
                    lost += 1
        self.port.inside -= 1
        if lost:
            self.lane.up.overruns += lost
        return array

    cdef AttachedFrame make(self, uint32_t i):
        cdef AttachedFrame frame = AttachedFrame.__new__(AttachedFrame)
        frame.batch = self
        frame.index = i
        frame.length = self.e[i].length
        frame.rule_id = self.e[i].rule_id
        frame.timestamp_ns = self.e[i].timestamp_ns
        return frame

    def __getitem__(self, index):
        self.check()
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
            self.check()
            yield self.make(i)

    cdef int pin(self, uint32_t i) except -1:
        if self.pins == NULL:
            self.pins = <uint16_t*>calloc(self.count, sizeof(uint16_t))
            if self.pins == NULL:
                raise MemoryError("pins of a batch")
        if self.pins[i] == 65535:
            raise MemoryError("65,535 views of one packet")
        self.pins[i] += 1
        self.port.held += self.pins[i] == 1
        return 0

    cdef void unpin(self, uint32_t i) noexcept:
        self.pins[i] -= 1
        if self.pins[i]:
            return
        self.port.held -= 1
        if self.released and self.lane.reliable:
            self.lane.give_back(&self.e[i])
            self.lane.say_returned()
        if self.port.closed and self.port.held == 0:
            self.port.hang_up()

    def release(self):
        """Gives back every frame that nobody holds or looks at. May be called again."""
        cdef uint32_t i
        if self.released:
            return
        self.released = True
        if self.port.last == <void*>self:
            self.port.last = NULL
        if self.lane.reliable:
            for i in range(self.count):
                if self.pins == NULL or self.pins[i] == 0:
                    self.lane.give_back(&self.e[i])
            self.lane.say_returned()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.release()

    def __dealloc__(self):
        if self.lane is not None:
            self.release()
        if self.viewed:
            PyBuffer_Release(&self.view)
        free(self.pins)

    def __repr__(self):
        return f"<Batch of {self.count}{' (released)' if self.released else ''}>"


@cython.no_gc_clear
cdef class AttachedFrame:
    """One packet of a share. Reliable: `memoryview(frame)` is the packet in place, read-only.
    Lossy: a copy that was verified after it was made; StaleFrame if it came too late."""
    cdef AttachedBatch batch
    cdef uint32_t index
    cdef readonly uint32_t length
    cdef readonly uint32_t rule_id
    cdef readonly uint64_t timestamp_ns
    cdef uint32_t holds
    cdef bytes kept               # lossy: the verified copy

    def __init__(self):
        raise TypeError("frames come from a batch")

    cdef bint there(self):
        if self.kept is not None:
            return True
        if not self.batch.lane.reliable:
            return not self.batch.released and self.batch.lane.alive(&self.batch.e[self.index])
        if self.batch.pins != NULL and self.batch.pins[self.index]:
            return True
        return not self.batch.released and not self.batch.port.hung_up

    cdef int check(self) except -1:
        if not self.there():
            raise StaleFrameError("this frame was recycled: hold() it to keep it past its batch"
                                  if self.batch.lane.reliable else
                                  "this frame was overrun: a lossy consumer has to keep up")
        return 0

    cdef bytes verified(self):
        """The packet as bytes, made once; StaleFrame if the engine needed the frame meanwhile."""
        cdef oc_lent* e = &self.batch.e[self.index]
        cdef bytes out
        if self.kept is None:
            self.check()
            if e.kind != IN_FRAME:
                out = self.batch.port.slab_bytes(e)
            else:
                out = PyBytes_FromStringAndSize(
                    <char*>self.batch.port.where(self.batch.lane, e), e.length)
            if not self.batch.lane.alive(e):
                self.batch.lane.up.overruns += 1
            self.check()
            self.kept = out
        return self.kept

    def __getbuffer__(self, Py_buffer* view, int flags):
        cdef oc_lent* e = &self.batch.e[self.index]
        if flags & PyBUF_WRITABLE:
            raise BufferError("frames are read-only")
        view.internal = NULL
        if not self.batch.lane.reliable:
            PyBuffer_FillInfo(view, self, PyBytes_AS_STRING(self.verified()), self.length, 1, flags)
            return
        self.check()
        self.batch.pin(self.index)
        PyBuffer_FillInfo(view, self, <void*>self.batch.port.where(self.batch.lane, e),
                          e.length, 1, flags)
        view.internal = <void*>self

    def __releasebuffer__(self, Py_buffer* view):
        if view.internal != NULL:
            self.batch.unpin(self.index)

    @property
    def fragments(self):
        """The packet in one piece: longer ones were gathered when they were lent."""
        return (memoryview(self),)

    @property
    def copied(self):
        """It stands in the mid tier, or in this process, instead of its frame."""
        return self.kept is not None or self.batch.e[self.index].kind != IN_FRAME

    @property
    def held(self):
        return self.holds > 0

    @property
    def stale(self):
        return not self.there()

    def hold(self):
        """Keeps the packet past its batch; each hold needs a release(). It counts against the
        quota that the engine has for us. Of a lossy consumer: a verified copy."""
        self.check()
        if self.batch.lane.reliable:
            if self.holds == 0:
                self.batch.pin(self.index)
        else:
            self.verified()
        self.holds += 1
        return self

    def release(self):
        """Ends one hold()."""
        if self.holds == 0:
            return
        self.holds -= 1
        if self.holds == 0 and self.batch.lane.reliable:
            self.batch.unpin(self.index)

    def __enter__(self):
        return self.hold()

    def __exit__(self, *exc):
        self.release()

    def __len__(self):
        return self.length

    def __bytes__(self):
        if not self.batch.lane.reliable:
            return self.verified()
        self.check()
        return PyBytes_FromStringAndSize(
            <char*>self.batch.port.where(self.batch.lane, &self.batch.e[self.index]), self.length)

    def __repr__(self):
        state = "stale" if self.stale else "held" if self.holds else "lent"
        return f"<Frame of {self.length} bytes, {state}>"

    def __dealloc__(self):
        if self.holds and self.batch.lane.reliable:
            self.batch.unpin(self.index)


@cython.no_gc_clear
cdef class Attached:
    """`Attached(connection, lanes, slabs_2m, slabs_4k, reader)`: the loop behind appliance.attach.

    connection: a socket; its messages wake us, its end ends us. lanes: descriptors of (umem,
    ledger, down, up) of each worker. slabs: descriptors or None. reader(handle, nbytes) -> bytes.
    """
    cdef object connection
    cdef int fd
    cdef int wake_fd
    cdef list lanes
    cdef Mapping slabs_2m
    cdef Mapping slabs_4k
    cdef object reader
    cdef uint32_t turn
    cdef uint32_t nap             # the number of our last sleep
    cdef uint32_t inside
    cdef bint hot
    cdef bint hung_up             # the engine may have what was lent
    cdef void* last               # the batch that was given last, borrowed
    cdef readonly bint reliable
    cdef readonly bint closed
    cdef readonly bint ended      # the engine has gone
    cdef readonly uint32_t held   # packets held or looked at
    cdef readonly uint64_t frames
    cdef readonly uint64_t bytes
    cdef uint32_t missed_of[128]
    cdef int64_t clock_offset_ns

    def __init__(self, connection, lanes, slabs_2m, slabs_4k, reader):
        if not 1 <= len(lanes) <= 128:
            raise ValueError(f"{len(lanes)} workers: 1 to 128")
        self.lanes = [Lane(*fds) for fds in lanes]
        self.slabs_2m = Mapping(slabs_2m) if slabs_2m is not None else None
        self.slabs_4k = Mapping(slabs_4k) if slabs_4k is not None else None
        self.connection, self.fd, self.reader = connection, connection.fileno(), reader
        self.reliable = (<Lane>self.lanes[0]).reliable
        self.clock_offset_ns = time.time_ns() - time.monotonic_ns()
        self.wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    cdef const uint8_t* where(self, Lane lane, const oc_lent* e) noexcept nogil:
        """The packet's first byte; take() has checked that it lies inside."""
        if e.kind == IN_SLAB_2M:
            return self.slabs_2m.base + e.place
        if e.kind == IN_SLAB_4K:
            return self.slabs_4k.base + e.place
        return lane.umem.base + e.place

    cdef bytes slab_bytes(self, const oc_lent* e):
        """Of a lossy member: read, not mapped. An arena that is given back cannot take us down."""
        return self.reader((<uint64_t>e.generation << HANDLE_PLACE_BITS) | (e.place >> 6), e.length)

    cdef bint slabs_inside(self, const oc_lent* e) noexcept:
        cdef Mapping m
        if e.kind == IN_FRAME:
            return True
        m = self.slabs_2m if e.kind == IN_SLAB_2M else self.slabs_4k
        return m is not None and e.place < m.bytes and e.length <= m.bytes - e.place

    # --------------------------------------------------------------------------- receiving

    cdef int find(self) noexcept:
        """The number of a lane with something to take, or -1; fair among them."""
        cdef uint32_t i, k, n = <uint32_t>len(self.lanes)
        for i in range(n):
            k = self.turn + i
            if k >= n:
                k -= n
            if (<Lane>self.lanes[k]).ready():
                self.turn = k + 1 if k + 1 < n else 0
                return k
        return -1

    cdef AttachedBatch batch_of(self, int number, uint32_t most):
        cdef AttachedBatch batch = AttachedBatch.__new__(AttachedBatch)
        cdef Lane lane = self.lanes[number if number >= 0 else 0]
        cdef uint64_t n = 0
        cdef uint32_t i, k = 0
        if number >= 0:
            n = min(lane.ready(), <uint64_t>most)
        table = np.empty(n, ENTRY)
        PyObject_GetBuffer(table, &batch.view, PyBUF_SIMPLE)
        batch.viewed = True
        batch.e = <oc_lent*>batch.view.buf
        n = lane.take(batch.e, n) if n else 0
        for i in range(n):
            if unlikely(not self.slabs_inside(&batch.e[i])):
                continue
            if k != i:
                batch.e[k] = batch.e[i]
            if batch.e[k].timestamp_ns:
                batch.e[k].timestamp_ns += self.clock_offset_ns
            self.bytes += batch.e[k].length
            k += 1
        if k:
            self.missed_of[number] = batch.e[k - 1].missed
        self.frames += k
        batch.count = k
        batch.table = table[:k]
        batch.table.flags.writeable = False
        batch.port, batch.lane = self, lane
        self.last = <void*>batch
        return batch

    def doze(self):
        """Says that we sleep; True if there is something to take after all. Else wait on
        filenos(), and rouse()."""
        cdef Lane lane
        self.nap = self.nap + 1 if self.nap < 0xffffffff else 1
        for lane in self.lanes:
            store_relaxed_u32(&lane.up.sleeping, self.nap)
        fence()
        if self.find() < 0 and not self.ended and not self.closed:
            return False
        self.rouse()
        return True

    def rouse(self):
        """Awake again; takes what was sent to wake us, and notices the engine's end."""
        cdef Lane lane
        cdef char[64] word
        cdef ssize_t got
        cdef int _i
        for lane in self.lanes:
            store_relaxed_u32(&lane.up.sleeping, 0)
        for _i in range(WAKES_MAX):
            got = recv(self.fd, word, sizeof(word), MSG_DONTWAIT) if self.fd >= 0 else 0
            if got < 0 and errno in (EAGAIN, EINTR):
                return
            if got <= 0:
                self.ended = True
                return

    def filenos(self):
        """What becomes readable when there may be something, once doze() said False."""
        return [self.fd]

    def poll(self, uint32_t most=64):
        """A batch of what is there now, maybe empty."""
        return self.batch_of(-1 if self.closed else self.find(), most)

    cdef AttachedBatch next_batch(self, uint32_t most, uint64_t wait_ns):
        cdef uint64_t now, begin = now_ns()
        cdef int found = self.find(), timeout
        cdef pollfd[2] waits
        while found < 0 and wait_ns and not self.closed and not self.ended:
            now = now_ns()
            if now - begin >= wait_ns:
                break
            if self.hot and now - begin < SPIN_NS:
                found = self.find()
                continue
            self.hot = False
            if self.doze():
                found = self.find()
                continue
            timeout = <int>min((wait_ns - (now - begin) + 999999) // 1000000, <uint64_t>86400000)
            waits[0].fd, waits[0].events = self.fd, POLLIN
            waits[1].fd, waits[1].events = self.wake_fd, POLLIN
            self.inside += 1
            with nogil:
                poll(waits, 2, timeout)
            self.inside -= 1
            self.rouse()
            PyErr_CheckSignals()
            found = self.find()
        if found >= 0 and not self.hot:
            self.hot = True
        return self.batch_of(found if not self.closed else -1, most)

    def recv(self, uint32_t max_frames=64, timeout_ms=100):
        """An iterator of batches; each lives until the next is asked for."""
        if not 1 <= max_frames <= 4096:
            raise ValueError(f"max_frames: {max_frames}: 1 to 4096")
        if timeout_ms is not None and not 0 <= timeout_ms <= 86_400_000:
            raise ValueError(f"timeout_ms: {timeout_ms}: 0 to 86400000, or None to wait for ever")
        return AttachedReceiver(self, max_frames,
                                1 << 62 if timeout_ms is None else int(timeout_ms * 1_000_000))

    @property
    def missed(self):
        """Packets that we should have got and did not, as far as entries have told."""
        return sum(self.missed_of[i] for i in range(len(self.lanes)))

    @property
    def overruns(self):
        """Lossy: packets that were overwritten before we had read them."""
        cdef Lane lane
        total = 0
        for lane in self.lanes:
            total += lane.up.overruns
        return total

    # -------------------------------------------------------------------------------- stop

    cdef void hang_up(self) noexcept:
        """The engine takes back what is left; after the last view, so that none ever changes."""
        self.hung_up = True
        if self.connection is not None:
            try:
                self.connection.close()
            except OSError:
                pass
            self.connection = None
            self.fd = -1

    def close(self):
        """Takes nothing more. The connection ends now, or with the last view of a packet."""
        if self.closed:
            return
        self.closed = True
        while self.inside:
            os.eventfd_write(self.wake_fd, 1)
            time.sleep(0.0005)
        os.close(self.wake_fd)
        self.wake_fd = -1
        if self.last != NULL:
            (<AttachedBatch>self.last).release()
        if self.held == 0:
            self.hang_up()

    def __dealloc__(self):
        if self.wake_fd >= 0:
            os.close(self.wake_fd)


cdef class AttachedReceiver:
    """The iterator behind `port.recv()` of an attached port."""
    cdef Attached port
    cdef AttachedBatch current
    cdef uint32_t most
    cdef uint64_t wait_ns

    def __cinit__(self, Attached port, uint32_t most, uint64_t wait_ns):
        self.port, self.most, self.wait_ns = port, most, wait_ns

    def __iter__(self):
        return self

    def __next__(self):
        if self.current is not None:
            self.current.release()
            self.current = None
        if self.port.closed or (self.port.ended and self.port.find() < 0):
            raise StopIteration
        self.current = self.port.next_batch(self.most, self.wait_ns)
        if self.port.closed or (self.port.ended and self.current.count == 0):
            self.current.release()
            raise StopIteration
        return self.current
