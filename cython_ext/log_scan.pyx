"""Segments in memory: the read-only map of one, and the validating walk through it.

Owns the map, its shared lock (a recorder that wants to use the file again finds it taken and makes
another one; a reader keeps what it has) and the rule that no page is touched before the kernel has
said that it is there: an unreadable disk or a file that was cut is an OSError here, not a SIGBUS.
The walk itself is include/oc_log_walk.h; what its end means is appliance/record/verdict.py.
"""

import errno
import fcntl
import os

import numpy as np

from cpython.buffer cimport PyBuffer_FillInfo
from libc.errno cimport errno as c_errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from cython_ext.log_format cimport (
    OC_LOG_AT_LIMIT, OC_LOG_BAD_FILL, OC_LOG_BAD_HEAD, OC_LOG_BAD_LENGTH, OC_LOG_BAD_ORDER,
    OC_LOG_BAD_PAYLOAD, OC_LOG_BAD_RECORD, OC_LOG_BAD_SEAL, OC_LOG_DEVICE_FIRST, OC_LOG_FRESH,
    OC_LOG_GAP, OC_LOG_GOES_ON, OC_LOG_INDEX_MAX, OC_LOG_NEED, OC_LOG_NO_PORT, OC_LOG_NO_WRITE,
    OC_LOG_PAGE, OC_LOG_RECORD_BYTES, OC_LOG_SEAL, OC_LOG_SEALED, OC_LOG_SHORT, crc32c, crc32c_copy,
    crc32c_how, crc32c_portable, log_after, log_find_heads, log_is_header, log_is_trailer, log_next,
    log_search, log_state_get, log_walk_begin, oc_log_evidence, oc_log_gap, oc_log_record,
    oc_log_seal, oc_log_state, oc_log_trailer)

cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *, size_t, int, int, int, long)
    int munmap(void *, size_t)
    int madvise(void *, size_t, int)
    enum:
        PROT_READ
        MAP_SHARED
    void *MAP_FAILED

cdef extern from "<string.h>" nogil:
    size_t strnlen(const char *, size_t)

cdef enum:
    POPULATE_READ = 22           # MADV_POPULATE_READ, Linux 5.14; not in Debian 12's headers
    CHUNK = 1 << 20              # made ready at once: 256 faults for the price of some

PAGE = OC_LOG_PAGE
DEVICE_FIRST = OC_LOG_DEVICE_FIRST

STOPS = {
    OC_LOG_GOES_ON: "goes on", OC_LOG_AT_LIMIT: "end", OC_LOG_SEALED: "sealed",
    OC_LOG_NO_WRITE: "no write begins here", OC_LOG_BAD_HEAD: "a write contradicts the one before",
    OC_LOG_BAD_RECORD: "a record does not continue the chain",
    OC_LOG_BAD_LENGTH: "a record does not fit its write",
    OC_LOG_BAD_PAYLOAD: "a payload fails its checksum",
    OC_LOG_BAD_ORDER: "a record has the wrong number", OC_LOG_BAD_FILL: "fill is not zero",
    OC_LOG_BAD_SEAL: "the seal is not that of these records",
    OC_LOG_SHORT: "the segment ends within a write",
}
ENTRY = np.dtype([("seq", "u8"), ("offset", "u8"), ("high_ns", "u8"), ("low_ns", "u8"),
                  ("chain", "u4"), ("spare", "u4")])
GOES_ON, AT_LIMIT, SEALED, NO_WRITE = (
    OC_LOG_GOES_ON, OC_LOG_AT_LIMIT, OC_LOG_SEALED, OC_LOG_NO_WRITE)


cdef text(const char *place, size_t room):
    return (<bytes>place[:strnlen(place, room)]).decode("utf-8", "replace")


cdef class SegmentMap:
    """The map of one segment, read-only. Its views keep it, and with it the lock.

    `size` may reach beyond the end of a file that still grows; `touch` says what is there. `lock`
    is False for devices. BlockingIOError: somebody is making another segment of it right now.
    """

    def __cinit__(self, path, uint64_t size, *, uint64_t start=0, bint lock=True):
        self.fd = -1
        self.name = os.fsdecode(path)
        self.size, self.start = size, start
        if size < OC_LOG_PAGE:
            raise ValueError(f"{self.name}: {size} bytes are less than a page")
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        if lock:
            fcntl.flock(self.fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        cdef void *found = mmap(NULL, size, PROT_READ, MAP_SHARED, self.fd, start)
        if found is MAP_FAILED:
            raise OSError(c_errno, os.strerror(c_errno), self.name)
        self.base = <uint8_t *>found
        self.touch(OC_LOG_PAGE)
        memcpy(&self.head, self.base, OC_LOG_PAGE)
        self.valid = log_is_header(&self.head)

    def __dealloc__(self):
        if self.base is not NULL:
            munmap(self.base, self.size)
        if self.fd >= 0:
            os.close(self.fd)

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.base, self.size, 1, flags)

    cdef touch(self, uint64_t end):
        """Makes the pages up to `end` ready, or raises OSError."""
        if end > self.touched:
            self.touch_from(self.touched, end)
            self.touched = end

    cdef touch_from(self, uint64_t start, uint64_t end):
        cdef int rc
        start &= ~(<uint64_t>OC_LOG_PAGE - 1)
        with nogil:
            rc = madvise(self.base + start, end - start, POPULATE_READ)
        if rc and c_errno != errno.EINVAL:       # EINVAL: a kernel that does not know it
            raise OSError(errno.EIO, "cannot be read", self.name)

    def length(self):
        """Bytes of the segment that exist now."""
        end = os.lseek(self.fd, 0, os.SEEK_END)
        return min(self.size, max(0, end - self.start))

    def same(self):
        """Whether the header is still the one that was read: a slot of a device is used again."""
        return self.valid and memcmp(self.base, &self.head, OC_LOG_PAGE) == 0

    @property
    def blank(self):
        """Whether the first page was all zeros."""
        return not any((<bytes>(<char *>&self.head)[:OC_LOG_PAGE]))

    @property
    def header(self):
        """The header as a dict; None when it does not hold."""
        if not self.valid:
            return None
        h = &self.head
        ports = [{"id": h.ports[i].id, "link_type": h.ports[i].link_type,
                  "snap_bytes": h.ports[i].snap_bytes, "name": text(h.ports[i].name, 32),
                  "interface": text(h.ports[i].interface, 16)} for i in range(h.port_count)]
        return {"uuid": (<bytes>(<char *>h.uuid)[:16]).hex(), "epoch": h.epoch, "index": h.index,
                "segment_bytes": h.segment_bytes, "first_seq": h.first_seq,
                "created_ns": h.created_ns, "clock_offset_ns": h.clock_offset_ns,
                "chain": h.chain, "fresh": bool(h.flags & OC_LOG_FRESH), "stripe": h.stripe,
                "stripes": h.stripes, "ports": ports}

    def seal(self, uint64_t length):
        """What the seal at the end of `length` bytes says, with its index; None: there is none.

        A hint, proved by its own checksums only: a walk must still come to it.
        """
        cdef oc_log_trailer last
        cdef oc_log_record r
        cdef oc_log_seal sums
        cdef uint64_t start
        if not self.valid or length < 2 * OC_LOG_PAGE or length > self.size:
            return None
        self.touch_from(length - sizeof(last), length)   # the rest may be a disk's worth
        memcpy(&last, self.base + length - sizeof(last), sizeof(last))
        if not log_is_trailer(&last, self.head.epoch):
            return None
        if last.seal > length - OC_LOG_RECORD_BYTES - sizeof(sums):
            return None
        self.touch_from(last.seal, length)
        memcpy(&r, self.base + last.seal, sizeof(r))
        start = last.seal + OC_LOG_RECORD_BYTES
        if r.kind != OC_LOG_SEAL or log_after(last.seal, r.captured) != length:
            return None
        if r.payload_crc != crc32c(0, self.base + start, r.captured):
            return None
        memcpy(&sums, self.base + start, sizeof(sums))
        if sums.entries > OC_LOG_INDEX_MAX or r.captured < sizeof(sums) + sums.entries * 40:
            return None
        entries = np.frombuffer(self, ENTRY, sums.entries, start + sizeof(sums)).tolist()
        return {**sums, "index": entries}

    def stray_heads(self, index, uint64_t limit):
        """HEADs that name segment `index`, whatever their epoch: what a lost header leaves."""
        cdef oc_log_evidence found
        memset(&found, 0, sizeof(found))
        self.touch(limit)
        log_find_heads(self.base, OC_LOG_PAGE, limit, 0, index, &found)
        return found.heads


cdef gap_of(const uint8_t *payload, const oc_log_record *r):
    """A gap as a dict. The walk has checked that its payload is one."""
    cdef oc_log_gap gap
    memcpy(&gap, payload, r.captured)
    reasons = {text(gap.reason[i].name, 24): gap.reason[i].packets for i in range(gap.reasons)}
    return {"seq": r.seq, "port": None if r.port == OC_LOG_NO_PORT else r.port,
            "first_ns": gap.first_ns, "last_ns": gap.last_ns,
            "packets": gap.packets, "bytes": gap.bytes, "reasons": reasons}


cdef class Walk:
    """One pass through a segment, from its first write or from an index entry.

    `limit` bytes of it exist; it may be raised. OSError when the medium cannot be read. An entry
    that leads nowhere is ignored: where it does lead, the chain proves it.
    """

    def __cinit__(self, SegmentMap segment not None, uint64_t limit, *, entry=None):
        if not segment.valid:
            raise ValueError(f"{segment.name}: the segment's header does not hold")
        self.segment = segment
        log_walk_begin(&self.walk, segment.base, min(limit, segment.size), &segment.head)
        self.walk.ready = OC_LOG_PAGE
        if entry is not None and entry[1] % OC_LOG_PAGE == 0 and entry[1] < self.walk.limit:
            self.walk.offset = self.walk.write_end = entry[1]
            self.walk.seq, self.walk.crc = entry[0], entry[4]
            self.walk.number = ~<uint64_t>0
            self.walk.whole = 0

    cdef int get_ready(self) except -1:
        """Answers a NEED: 1 when the walk can go on."""
        if self.walk.stop != OC_LOG_NEED:
            return 0
        end = min(self.walk.limit, max(self.walk.need, self.walk.ready + CHUNK))
        self.segment.touch(end)
        self.walk.ready = end
        return 1

    def raise_limit(self, uint64_t limit):
        self.walk.limit = max(self.walk.limit, min(limit, self.segment.size))

    def run(self, uint64_t records=0xffffffffffffffff, *, Py_ssize_t gaps_max=0):
        """Walks up to `records` more; returns the first `gaps_max` gaps among them. The GIL is
        released."""
        cdef oc_log_record r
        cdef uint64_t at = 0, count = 0
        cdef bint more = True
        gaps = []
        while more and count < records:
            with nogil:
                while count < records:
                    more = log_next(&self.walk, &r, &at)
                    count += more
                    if not more or r.kind == OC_LOG_GAP:
                        break
            if not more:
                more = self.get_ready()
            elif r.kind == OC_LOG_GAP and len(gaps) < gaps_max:
                gaps.append(gap_of(self.walk.base + at, &r))
        return gaps

    @property
    def stop(self):
        return self.walk.stop

    @property
    def why(self):
        return STOPS.get(self.walk.stop, str(self.walk.stop))

    @property
    def facts(self):
        """Where it stands: everything that a verdict may need, as plain numbers."""
        w = &self.walk
        return {"stop": w.stop, "offset": w.offset, "write_end": w.write_end, "left": w.left,
                "seq": w.seq, "chain": w.crc, "number": w.number, "durable_seq": w.durable_seq,
                "records": w.records, "bytes": w.bytes, "lost": w.lost, "cut": bool(w.cut),
                "limit": w.limit}

    def search(self):
        """Evidence behind the break."""
        cdef oc_log_evidence found
        self.segment.touch(self.walk.limit)
        with nogil:
            log_search(&self.walk, &found)
        return found


def read_state(buffer):
    """The newest valid state of a state page as a dict, or None."""
    cdef const uint8_t[::1] page = buffer
    cdef oc_log_state s
    cdef int _i
    if page.shape[0] < OC_LOG_PAGE:
        return None
    for _i in range(100):            # in the middle of an update one of the two is not whole
        if log_state_get(&page[0], &s):
            break
    else:
        return None
    return {"uuid": (<bytes>(<char *>s.uuid)[:16]).hex(), "epoch": s.epoch, "index": s.index,
            "published": s.published, "last_seq": s.last_seq, "durable_seq": s.durable_seq,
            "writer_pid": s.writer_pid, "writer_start": s.writer_start,
            "slot_bytes": s.slot_bytes, "slots": s.slots, "updated_ns": s.updated_ns}


def last_byte(data, uint64_t start, uint64_t end):
    """Where the bytes of `data` from start to end that are not zero end; start: all are zero."""
    cdef const uint8_t[::1] view = data
    if end > <uint64_t>view.shape[0] or start > end:
        raise ValueError(f"{start} to {end} of {view.shape[0]} bytes")
    with nogil:
        while end > start and view[end - 1] == 0:
            end -= 1
    return end


def checksum(data, uint32_t value=0, *, how=None):
    """CRC32C of bytes; how: None (as the log does it), "portable", or "copy" (with the copy)."""
    cdef const uint8_t[::1] view = data
    cdef size_t count = view.shape[0]
    cdef uint8_t nothing = 0
    cdef const uint8_t *start = &view[0] if count else &nothing
    cdef uint8_t[::1] target
    if how is None:
        return crc32c(value, start, count)
    if how == "portable":
        return ~crc32c_portable(~value, NULL, start, count) & 0xffffffff
    copy = bytearray(count + 1)
    target = copy
    result = crc32c_copy(value, &target[0], start, count)
    return result, bytes(copy[:count])


def checksum_how():
    """Which instructions CRC32C uses on this host."""
    return (<bytes>crc32c_how).decode()
