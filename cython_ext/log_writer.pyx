"""Writing a log one call after the other: for tools, tests and what must keep a few packets.

Owns the order of the steps (header, write, flush, publish, seal, next segment) in their simplest
form: buffered files in one directory, no thread. The recorder of a running appliance has its own
(threads, O_DIRECT, several devices) over the same encoding, include/oc_log_write.h.

How it fails: BlockingIOError when somebody else writes there, OSError from the file system, and
ValueError for a packet that no write can hold. What it published as durable is on disk.
"""

import fcntl
import mmap
import os
import secrets
import time

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from cython_ext.log_format cimport (
    OC_LOG_CAPTURED_MAX, OC_LOG_CUT, OC_LOG_FRESH, OC_LOG_GAP, OC_LOG_HEAD_BYTES, OC_LOG_NO_PORT,
    OC_LOG_PACKET, OC_LOG_PAGE, OC_LOG_PORTS_MAX, OC_LOG_REASONS_MAX, log_append, log_begin,
    log_begin_segment, log_close_segment, log_close_write, log_finish, log_fit, log_put_seal,
    log_state_get, log_state_put, log_tally_begin, oc_log_chain, oc_log_gap, oc_log_record,
    oc_log_segment, oc_log_state, oc_log_tally)

cdef enum:
    SEAL_ROOM = 45056           # 44 KiB: OC_LOG_INDEX_MAX entries, HEAD, sums, trailer

SUFFIX = ".oclog"
STATE_NAME = "state"


def segment_name(index):
    return f"{index:012d}{SUFFIX}"


def process_start(pid):
    """Start time of a process as the kernel counts it: a pid alone is used again. 0: not there."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0


def cut_seal(bytes before, uint64_t at, *, epoch, first_seq, seq, chain, records, bytes, lost):
    """The page or two in which a segment ends at `at`, with recovery's seal behind it.

    `before` is what the page holds up to there; the rest says where the records stand.
    """
    cdef oc_log_chain c
    cdef oc_log_tally *t
    cdef uint8_t[::1] block
    cdef uint64_t size
    if len(before) != at % OC_LOG_PAGE:
        raise ValueError(f"{len(before)} bytes before {at}")
    memory = bytearray(3 * OC_LOG_PAGE)     # a seal without an index takes a part of a page
    memory[:len(before)] = before
    block = memory
    memset(&c, 0, sizeof(c))
    c.epoch, c.seq, c.crc = epoch, seq, chain
    t = <oc_log_tally *>calloc(1, sizeof(oc_log_tally))
    if t is NULL:
        raise MemoryError()
    log_tally_begin(t, 0)
    t.sum.records, t.sum.bytes, t.sum.lost = records, bytes, lost
    if records:
        t.sum.first_seq, t.sum.last_seq = first_seq, seq - 1
    size = log_put_seal(&c, t, &block[0], len(before), at - len(before), OC_LOG_CUT,
                        time.time_ns())
    free(t)
    return memory[:size]


def lower_state(path, uint64_t durable_seq):
    """Makes a state page promise no more than durable_seq, and says that nobody records."""
    cdef oc_log_state s
    cdef uint8_t[::1] page
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        if os.fstat(fd).st_size < OC_LOG_PAGE and not os.lseek(fd, 0, os.SEEK_END):
            return
        with mmap.mmap(fd, OC_LOG_PAGE) as shared:
            page = shared
            if log_state_get(&page[0], &s):
                s.durable_seq = min(s.durable_seq, durable_seq)
                s.last_seq = min(s.last_seq, durable_seq)
                s.writer_pid = s.writer_start = 0
                log_state_put(&page[0], &s)
            page = None
            shared.flush()
    finally:
        os.close(fd)


cdef bint put_name(char *place, size_t room, text):
    cdef bytes encoded = str(text).encode("utf-8", "replace")[:room - 1]
    memcpy(place, <const char *>encoded, len(encoded))
    return True


cdef class LogWriter:
    """Appends to a new or continued log in `directory`.

    ports: (id, name, interface, link_type, snap_bytes) for each. `index`, `seq`, `chain` and
    `fresh` continue a log where recover_to_record says; `epoch` (tests) makes epochs foreseeable.
    """
    cdef oc_log_chain chain
    cdef oc_log_tally *tally
    cdef oc_log_segment header
    cdef oc_log_state state
    cdef uint8_t[::1] block, page
    cdef object _memory, _seal, _state_map, _lock
    cdef readonly object directory
    cdef uint64_t used, segment_bytes, block_bytes
    cdef uint32_t records
    cdef int fd
    cdef object epochs
    cdef readonly uint64_t durable_seq
    cdef bint preallocate

    def __cinit__(self, directory, *, segment_bytes=64 << 20, ports=(), uuid=None, index=0, seq=1,
                  chain=0, block_bytes=65536, epoch=None, preallocate=True, fresh=False):
        if block_bytes % OC_LOG_PAGE or block_bytes < SEAL_ROOM:
            raise ValueError(f"block_bytes: {block_bytes}: whole pages, {SEAL_ROOM} or more")
        if segment_bytes % OC_LOG_PAGE or segment_bytes < OC_LOG_PAGE + block_bytes + SEAL_ROOM:
            raise ValueError(f"segment_bytes: {segment_bytes}: whole pages, room for one block")
        if len(ports) > OC_LOG_PORTS_MAX:
            raise ValueError(f"{len(ports)} ports; at most {OC_LOG_PORTS_MAX}")
        self.fd = -1
        self.directory = os.fsdecode(directory)
        self.segment_bytes = segment_bytes
        self.block_bytes = block_bytes
        self.preallocate = preallocate
        self.epochs = epoch
        self.tally = <oc_log_tally *>calloc(1, sizeof(oc_log_tally))
        if self.tally is NULL:
            raise MemoryError()
        self._memory = mmap.mmap(-1, block_bytes)   # page-aligned
        self.block = self._memory
        self._seal = mmap.mmap(-1, SEAL_ROOM)
        self.chain.seq = seq
        self.chain.crc = chain
        self.durable_seq = seq - 1
        self.used = OC_LOG_HEAD_BYTES
        self._describe(ports, uuid or secrets.token_bytes(16))
        os.makedirs(self.directory, exist_ok=True)
        self._open_state()
        self._begin(index, OC_LOG_FRESH if fresh else 0)

    def _describe(self, ports, bytes uuid):
        cdef oc_log_segment *h = &self.header
        h.segment_bytes = self.segment_bytes
        h.stripes = 1
        h.port_count = len(ports)
        memcpy(h.uuid, <const char *>uuid, 16)
        memcpy(self.state.uuid, <const char *>uuid, 16)
        for i, (number, name, interface, link_type, snap_bytes) in enumerate(ports):
            h.ports[i].id = number
            h.ports[i].link_type = link_type
            h.ports[i].snap_bytes = snap_bytes
            put_name(h.ports[i].name, 32, name)
            put_name(h.ports[i].interface, 16, interface)

    def _open_state(self):
        fd = os.open(os.path.join(self.directory, STATE_NAME),
                     os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._lock = os.fdopen(fd, "rb")      # the recorder's lock, held until the log is closed
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(fd, OC_LOG_PAGE)
        self._state_map = mmap.mmap(fd, OC_LOG_PAGE)
        self.page = self._state_map
        memset(&self.page[0], 0, OC_LOG_PAGE)
        self.state.writer_pid = os.getpid()
        self.state.writer_start = process_start(os.getpid())

    def _begin(self, index, uint32_t flags):
        """The next segment: under another name until its header is on disk."""
        cdef oc_log_segment *h = &self.header
        h.index = index
        h.epoch = secrets.randbits(64) if self.epochs is None else self.epochs + index
        h.created_ns = time.time_ns()
        h.clock_offset_ns = time.time_ns() - time.monotonic_ns()
        h.flags = flags
        log_begin_segment(&self.chain, self.tally, h)
        path = os.path.join(self.directory, segment_name(index))
        self.fd = os.open(path + ".new", os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        if self.preallocate:
            os.posix_fallocate(self.fd, 0, self.segment_bytes)
        os.pwrite(self.fd, <bytes>(<char *>h)[:OC_LOG_PAGE], 0)
        os.fdatasync(self.fd)
        os.rename(path + ".new", path)
        self._publish()

    def _publish(self):
        cdef oc_log_state *s = &self.state
        s.epoch, s.index = self.chain.epoch, self.chain.index
        s.published = self.chain.offset
        s.last_seq = self.chain.seq - 1
        s.durable_seq = self.durable_seq
        s.updated_ns = time.time_ns()
        log_state_put(&self.page[0], s)

    @property
    def next_seq(self):
        return self.chain.seq + self.records

    @property
    def index(self):
        return self.chain.index

    @property
    def offset(self):
        """Where the next write goes in the segment."""
        return self.chain.offset

    cdef oc_log_record *_room(self, uint32_t captured, uint16_t kind) except NULL:
        """A record's header in the block; commits the block first when it has no room."""
        cdef uint64_t place
        if self.fd < 0:
            raise ValueError("the log is closed")
        place = log_fit(self.used, captured, self.block_bytes)
        if not place:
            self.commit(sync=False)
            place = log_fit(self.used, captured, self.block_bytes)
            if not place:
                raise ValueError(f"{captured} bytes do not fit a write of {self.block_bytes}")
        return log_begin(&self.block[0], self.used, place, kind)

    cdef _done(self, oc_log_record *r):
        self.used = log_finish(&self.block[0], r)
        self.records += 1

    def append(self, packet, uint64_t timestamp_ns, *, original=None, uint16_t port=0,
               uint16_t queue=0, uint32_t rule=0, uint16_t flags=0):
        """One packet; `original` is its length on the wire when `packet` is not all of it."""
        cdef Py_buffer view
        cdef oc_log_record *r
        PyObject_GetBuffer(packet, &view, PyBUF_SIMPLE)
        try:
            if view.len > OC_LOG_CAPTURED_MAX:
                raise ValueError(f"{view.len} bytes; a record holds {OC_LOG_CAPTURED_MAX}")
            if original is not None and original < view.len:
                raise ValueError(f"{view.len} bytes of a packet of {original}")
            r = self._room(view.len, OC_LOG_PACKET)
            r.original = view.len if original is None else original
            r.port, r.queue, r.rule, r.flags = port, queue, rule, flags
            r.timestamp_ns = timestamp_ns
            log_append(r, view.buf, view.len)
            self._done(r)
        finally:
            PyBuffer_Release(&view)

    def gap(self, uint64_t first_ns, uint64_t last_ns, reasons, *, uint64_t count_bytes=0,
            uint16_t port=OC_LOG_NO_PORT):
        """Packets that were not recorded: {reason: packets}."""
        cdef oc_log_gap gap
        cdef oc_log_record *r
        cdef uint32_t size = 40 + 32 * len(reasons)
        if len(reasons) > OC_LOG_REASONS_MAX:
            raise ValueError(f"{len(reasons)} reasons; a gap holds {OC_LOG_REASONS_MAX}")
        memset(&gap, 0, sizeof(gap))
        gap.first_ns, gap.last_ns, gap.bytes = first_ns, last_ns, count_bytes
        gap.packets = sum(reasons.values())
        gap.reasons = len(reasons)
        for i, (name, count) in enumerate(reasons.items()):
            put_name(gap.reason[i].name, 24, name)
            gap.reason[i].packets = count
        r = self._room(size, OC_LOG_GAP)
        r.original, r.port, r.timestamp_ns = size, port, last_ns
        log_append(r, &gap, size)
        self._done(r)

    def commit(self, *, sync=True):
        """Writes what is in the block; with `sync` it is durable afterwards. Seals and goes on in
        the next segment when this one is full. Returns the last number written."""
        cdef uint64_t size
        if self.fd < 0:
            raise ValueError("the log is closed")
        if self.records:
            if self.chain.offset + self.block_bytes + SEAL_ROOM > self.segment_bytes:
                self._end()
                self._begin(self.chain.index + 1, 0)
            where = self.chain.offset
            size = log_close_write(&self.chain, self.tally, &self.block[0], self.used, self.records,
                                   self.durable_seq, time.time_ns())
            if not size:
                raise AssertionError("a block of the log does not hold what was put into it")
            self.used, self.records = OC_LOG_HEAD_BYTES, 0
            self._write(self._memory, size, where)
        if sync:
            os.fdatasync(self.fd)
            self.durable_seq = self.chain.seq - 1
        self._publish()
        return self.chain.seq - 1

    cdef _write(self, memory, uint64_t size, uint64_t where):
        written = os.pwrite(self.fd, memory[:size], where)
        if written != size:
            raise OSError(28, f"wrote {written} of {size} bytes")     # ENOSPC is what it was

    cdef _end(self):
        """Flushes, seals, and gives back what the file was larger than that."""
        os.fdatasync(self.fd)
        self.durable_seq = self.chain.seq - 1
        cdef uint8_t[::1] place = self._seal
        where = self.chain.offset
        size = log_close_segment(&self.chain, self.tally, &place[0], self.durable_seq,
                                 time.time_ns())
        self._write(self._seal, size, where)
        os.ftruncate(self.fd, where + size)
        os.fdatasync(self.fd)
        self._publish()
        os.close(self.fd)
        self.fd = -1

    def close(self, *, seal=True):
        """Writes the rest and seals the segment; without `seal` the log ends as if killed."""
        if self.fd < 0:
            return
        try:
            if seal:
                self.commit()
                self._end()
                self.state.writer_pid = self.state.writer_start = 0
                self._publish()
        finally:
            if self.fd >= 0:
                os.close(self.fd)
            self.fd = -1
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            self._lock.close()

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        self.close()

    def __dealloc__(self):
        free(self.tally)
