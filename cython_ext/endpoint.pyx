# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True
"""The endpoint: Python's side of a port. It receives batches from all queues and sends.

It owns the waiting (poll without the GIL, woken by close), the copies into TX frames, and the
order of stop: no thread inside, batches released, sockets closed, ledger proved. It knows nothing
of interfaces, rules or namespaces; appliance/port.py puts those around it. It is longer than a room
should be: receiving, sending and stopping share the same few fields, and apart they would each
have to explain them.
"""
cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy
from posix.unistd cimport usleep

import os
import time

from cython_ext.atomics cimport load_relaxed_u32, store_relaxed_u32
from cython_ext.frames cimport (Frames, oc_umem, pthread_mutex_lock,
                                pthread_mutex_unlock)
from cython_ext.holding cimport Holder
from cython_ext.lending cimport Batch, Block, Frame, oc_piece
from cython_ext.bursts cimport reap
from cython_ext.poll cimport POLLIN, poll, pollfd
from cython_ext.queue cimport FRAGS_MAX, Queue, now_ns, oc_burst, oc_queue

cdef extern from "oc_xdp.h":
    enum:
        XDP_PKT_CONTD

cdef enum:
    QUEUES_MAX = 128
    IDLE_US = 50                  # how long to nap on a port that has nothing to poll() on
    SIGNALS_NS = 10000000         # without poll(): how often Python may handle its signals
    # Under load, look again for this long before sleeping, as the worker does (its SPIN_NS): a
    # sleeper has to be woken by the sender's core and to wait for its turn. A port at rest does
    # not spin: only one whose last batch was there without sleeping.
    SPIN_NS = 20000


@cython.no_gc_clear
cdef class Endpoint(Holder):
    """`Endpoint(queues, quota=1024)`: queues is a list of open Queue objects."""
    cdef readonly list queues
    cdef oc_queue** q
    cdef uint32_t n
    # Hints that several threads may read and write while they receive, hence relaxed:
    cdef uint32_t turn                    # the queue to ask first, so that none is starved
    cdef pollfd[QUEUES_MAX + 1] waits
    cdef uint32_t n_waits
    cdef int wake_fd
    cdef uint32_t inside                  # threads in a nogil section (counted under the GIL)
    cdef uint32_t hot                     # the last packets came without sleeping
    cdef readonly bint closed
    cdef readonly uint64_t leaked         # the audit's verdict at close
    cdef dict last_ledger

    def __init__(self, list queues, uint32_t quota=1024):
        cdef Queue queue
        if not 1 <= len(queues) <= QUEUES_MAX:
            raise ValueError(f"{len(queues)} queues: 1 to {QUEUES_MAX}")
        self.q = <oc_queue**>calloc(len(queues), sizeof(oc_queue*))
        if self.q == NULL:
            raise MemoryError("an endpoint")
        self.queues = queues
        self.quota = quota
        self.wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        for queue in queues:
            self.q[self.n] = &queue.q
            self.n += 1
            if queue.q.fd >= 0:
                self.waits[self.n_waits].fd = queue.q.fd
                self.waits[self.n_waits].events = POLLIN
                self.n_waits += 1
        self.waits[self.n_waits].fd = self.wake_fd
        self.waits[self.n_waits].events = POLLIN

    # ------------------------------------------------------------------------------ receiving

    cdef int _try(self, oc_burst* b, uint32_t packets_max) noexcept nogil:
        """One round over the queues; the number of the queue that gave packets, or -1."""
        cdef uint32_t i, k, got
        cdef oc_queue* q
        for i in range(self.n):
            k = load_relaxed_u32(&self.turn) + i
            if k >= self.n:
                k -= self.n
            q = self.q[k]
            q.nudge(q)
            pthread_mutex_lock(&q.um.lock)
            got = q.rx_burst(q, b, packets_max, self.owner, now_ns())
            pthread_mutex_unlock(&q.um.lock)
            if got:
                store_relaxed_u32(&self.turn, k + 1 if k + 1 < self.n else 0)
                return k
        return -1

    cdef int _wait(self, oc_burst* b, uint32_t packets_max, uint64_t deadline) noexcept nogil:
        """Waits for packets until `deadline`; queue number, -1 at the deadline, -2 for signals."""
        cdef int got, ready
        cdef int64_t left
        cdef uint64_t now, begin = now_ns(), spin_until = 0
        if load_relaxed_u32(&self.hot):
            spin_until = begin + SPIN_NS
        store_relaxed_u32(&self.hot, True)
        while True:
            got = self._try(b, packets_max)
            if got >= 0 or load_relaxed_u32(<uint32_t*>&self.closed):
                return got
            now = now_ns()
            left = <int64_t>(deadline - now)
            if left <= 0:
                return -1
            if now - begin > SIGNALS_NS and (self.q[0].busy or self.n_waits == 0):
                return -2         # poll() would notice a signal; this loop has to come up for it
            if self.q[0].busy or now < spin_until:
                continue
            store_relaxed_u32(&self.hot, False)
            if self.n_waits == 0:
                usleep(IDLE_US)
                continue
            ready = poll(self.waits, self.n_waits + 1, <int>((left + 999999) // 1000000))
            if ready < 0 and errno == EINTR:
                return -2

    cdef Batch next_batch(self, uint32_t packets_max, uint64_t wait_ns):
        cdef Block block = self.take_block(packets_max, self.q[0].multi_buffer)
        cdef Batch batch = Batch.__new__(Batch)
        cdef oc_burst* b = block.b
        cdef uint64_t deadline = 0
        cdef uint32_t i
        cdef int got
        b.packets = b.frags = 0
        if self.max_hold_ns:
            self.sweep()
        self.inside += 1
        try:
            with nogil:
                got = self._try(b, packets_max)
                if got >= 0:
                    store_relaxed_u32(&self.hot, True)
                elif wait_ns:
                    deadline = now_ns() + wait_ns
                    got = self._wait(b, packets_max, deadline)
            while got == -2:
                PyErr_CheckSignals()
                with nogil:
                    got = self._wait(b, packets_max, deadline)
        finally:
            self.inside -= 1
        for i in range(b.packets):
            if b.timestamp_ns[i]:
                b.timestamp_ns[i] += self.clock_offset_ns
        batch.lender = self
        batch.queue = self.queues[got if got >= 0 else 0]
        batch.block = block
        batch.count = b.packets
        self.register(batch)
        return batch

    def recv(self, uint32_t max_frames=64, timeout_ms=100):
        """An iterator of batches; each lives until the next is asked for. See appliance.Port."""
        if not 1 <= max_frames <= 4096:
            raise ValueError(f"max_frames: {max_frames}: 1 to 4096")
        if timeout_ms is not None and not 0 <= timeout_ms <= 86_400_000:
            raise ValueError(f"timeout_ms: {timeout_ms}: 0 to 86400000, or None to wait for ever")
        return Receiver(self, max_frames,
                        1 << 62 if timeout_ms is None else int(timeout_ms * 1_000_000))

    # -------------------------------------------------------------------------------- sending

    cdef uint32_t _send_copy(self, oc_queue* q, const uint8_t* data,
                             uint64_t length) noexcept nogil:
        """Copies one packet into TX frames and queues it: 1 done, 0 no room now, 2 too long."""
        cdef oc_umem* um = q.um
        cdef uint32_t[FRAGS_MAX] frame
        cdef uint64_t[FRAGS_MAX] addr
        cdef uint32_t[FRAGS_MAX] nbytes
        cdef uint32_t[FRAGS_MAX] options
        cdef uint32_t i, taken
        cdef uint32_t room = um.frame_bytes - q.tx_headroom
        cdef uint64_t need = (length + room - 1) // room
        if need == 0 or need > FRAGS_MAX or (need > 1 and not q.multi_buffer):
            return 2
        if um.tx_free_n < need:
            reap(q)
            if um.tx_free_n < need:
                q.kick(q)
                reap(q)
                if um.tx_free_n < need:
                    return 0
        um.tx_free_n -= <uint32_t>need
        for i in range(need):
            frame[i] = um.tx_free[um.tx_free_n + need - 1 - i]
            addr[i] = (<uint64_t>frame[i] << um.frame_shift) + q.tx_headroom
            nbytes[i] = room if i + 1 < need else <uint32_t>(length - i * room)
            options[i] = XDP_PKT_CONTD if i + 1 < need else 0
            memcpy(um.base + addr[i], data + i * room, nbytes[i])
        taken = q.tx_burst(q, frame, addr, nbytes, options, <uint32_t>need)
        if taken == 0:
            q.kick(q)
            reap(q)
            taken = q.tx_burst(q, frame, addr, nbytes, options, <uint32_t>need)
            if taken == 0:        # the ring is full: the frames stay free
                for i in range(need):
                    um.tx_free[um.tx_free_n] = frame[i]
                    um.tx_free_n += 1
                return 0
        return 1

    cdef bint _send_frame(self, oc_queue* q, Frame frame) noexcept:
        """Moves a received frame to TX without a copy. Only one that nobody else looks at."""
        cdef oc_umem* um = q.um
        cdef uint32_t[FRAGS_MAX] number
        cdef uint64_t[FRAGS_MAX] addr
        cdef uint32_t[FRAGS_MAX] nbytes
        cdef uint32_t[FRAGS_MAX] options
        cdef oc_piece* p
        cdef uint32_t i
        for i in range(frame.pieces):
            p = frame.piece(i)
            number[i] = p.frame
            addr[i] = p.addr
            nbytes[i] = p.bytes
            options[i] = XDP_PKT_CONTD if i + 1 < frame.pieces else 0
        pthread_mutex_lock(&um.lock)
        i = q.tx_burst(q, number, addr, nbytes, options, frame.pieces)
        pthread_mutex_unlock(&um.lock)
        if i:
            frame.sent()
        return i != 0

    def send(self, items, uint32_t queue=0):
        """Queues packets for sending; returns how many were queued, in order.

        An item is bytes-like (copied into a TX frame) or a Frame of this queue (moved: it is stale
        afterwards; copied if a view of it is alive or it came from elsewhere). Stops at the first
        item for which there is no room now. ValueError for one that can never be sent.
        """
        cdef oc_queue* q
        cdef Frame frame
        cdef Py_buffer view
        cdef uint32_t result, done = 0
        if self.closed:
            raise ValueError("the port is closed")
        if queue >= self.n:
            raise ValueError(f"queue: {queue}: 0 to {self.n - 1}")
        q = self.q[queue]
        try:
            for item in items:
                if isinstance(item, Frame):
                    frame = item
                    frame.check()
                    if (frame.queue.frames.um.base == q.um.base and frame.ours_alone()
                            and (frame.pieces == 1 or q.multi_buffer)):
                        if not self._send_frame(q, frame):
                            break
                        done += 1
                        continue
                PyObject_GetBuffer(item, &view, PyBUF_SIMPLE)
                pthread_mutex_lock(&q.um.lock)
                result = self._send_copy(q, <const uint8_t*>view.buf, view.len)
                pthread_mutex_unlock(&q.um.lock)
                length = view.len
                PyBuffer_Release(&view)
                if result == 2:
                    raise ValueError(f"a packet of {length} bytes: 1 to {self.longest}")
                if result == 0:
                    break
                done += 1
        finally:
            if done:
                self._kick(q)
        return done

    @property
    def longest(self):
        """The longest packet that can be sent, in bytes."""
        cdef oc_queue* q
        if self.n == 0:
            return 0
        q = self.q[0]
        return (q.um.frame_bytes - q.tx_headroom) * (FRAGS_MAX - 1 if q.multi_buffer else 1)

    def send_packed(self, data, const uint64_t[::1] offsets, const uint32_t[::1] lengths,
                    Py_ssize_t start, Py_ssize_t stop, uint32_t queue=0):
        """Sends packets start..stop-1 of one buffer, without an object per packet or the GIL.

        Returns how many were queued; a packet that can never be sent ends the run before it.
        """
        cdef oc_queue* q
        cdef const uint8_t[::1] source = data
        cdef Py_ssize_t i = start, done = 0
        if self.closed:
            raise ValueError("the port is closed")
        if queue >= self.n or not 0 <= start <= stop <= offsets.shape[0] == lengths.shape[0]:
            raise ValueError(f"packets {start} to {stop} of {offsets.shape[0]} on queue {queue}")
        q = self.q[queue]
        self.inside += 1
        try:
            with nogil:
                pthread_mutex_lock(&q.um.lock)
                for i in range(start, stop):
                    if offsets[i] + lengths[i] > <uint64_t>source.shape[0]:
                        break
                    if self._send_copy(q, &source[offsets[i]] if lengths[i] else NULL,
                                       lengths[i]) != 1:
                        break
                    done += 1
                q.kick(q)
                reap(q)
                pthread_mutex_unlock(&q.um.lock)
        finally:
            self.inside -= 1
        return done

    cdef int _kick(self, oc_queue* q) except -1:
        cdef int result
        self.inside += 1
        with nogil:
            pthread_mutex_lock(&q.um.lock)
            result = q.kick(q)
            reap(q)
            pthread_mutex_unlock(&q.um.lock)
        self.inside -= 1
        if result < 0:
            raise OSError(-result, "transmit: " + os.strerror(-result))
        return 0

    def outstanding(self):
        """Frames that were queued for sending and have not completed."""
        cdef uint32_t i
        return sum(self.q[i].sending for i in range(self.n))

    def flush(self, timeout_ms=1000):
        """Waits until everything queued was sent; True if it was."""
        cdef uint32_t i
        cdef uint64_t until = now_ns() + <uint64_t>(timeout_ms * 1_000_000)
        if self.closed:
            return True
        while True:
            for i in range(self.n):
                self._kick(self.q[i])
            if self.outstanding() == 0:
                return True
            if now_ns() > until:
                return False
            with nogil:
                usleep(IDLE_US)
            PyErr_CheckSignals()

    # --------------------------------------------------------------------------------- figures

    def frame_sets(self):
        """The distinct Frames behind the queues (queues may share one)."""
        cdef Queue queue
        sets = []
        for queue in self.queues:
            if not any(queue.frames is known for known in sets):
                sets.append(queue.frames)
        return sets

    def ledger(self):
        """Frames by state over all queues, live; after close as it was then, `leaked` proved."""
        if self.last_ledger is not None:
            return dict(self.last_ledger)
        total = {}
        for frames in self.frame_sets():
            for state, n in frames.count().items():
                total[state] = total.get(state, 0) + n
        total["leaked"] += self.leaked
        return total

    # ------------------------------------------------------------------------------------ stop

    def close(self):
        """Stops receivers, releases batches, closes the queues and proves the ledger.

        Frames that are still held or viewed stay readable, and go home when they are released.
        """
        cdef Queue queue
        cdef Frames frames
        if self.closed:
            return
        store_relaxed_u32(<uint32_t*>&self.closed, True)
        while self.inside:
            os.eventfd_write(self.wake_fd, 1)
            time.sleep(0.0005)
        self.release_batches()
        for queue in self.queues:
            queue.close()
        for frames in self.frame_sets():
            self.leaked += frames.settle([queue for queue in self.queues
                                          if queue.frames is frames])
        self.last_ledger = self.ledger()
        # Memory that no view holds goes back now, not when this object does.
        self.n = 0
        self.queues = []
        self.blocks = []
        os.close(self.wake_fd)

    def __dealloc__(self):
        free(self.q)


cdef class Receiver:
    """The iterator behind `port.recv()`."""
    cdef Endpoint endpoint
    cdef Batch current
    cdef uint32_t packets_max
    cdef uint64_t wait_ns

    def __cinit__(self, Endpoint endpoint, uint32_t packets_max, uint64_t wait_ns):
        self.endpoint = endpoint
        self.packets_max = packets_max
        self.wait_ns = wait_ns

    def __iter__(self):
        return self

    def __next__(self):
        if self.current is not None:
            self.current.release()
            self.current = None
        if self.endpoint.closed:
            raise StopIteration
        self.current = self.endpoint.next_batch(self.packets_max, self.wait_ns)
        if self.endpoint.closed:
            self.current.release()
            raise StopIteration
        return self.current
