# cython: boundscheck=False, wraparound=False
"""Batches of a log: columns without an object per packet, packets without a copy, filters.

Owns LogBatch and LogRecord, both views into the map of a segment that they keep alive. Every
record in a batch has been proved by the walk. Which segments there are, where to begin and what the
end means is for appliance/record.
"""

import numpy as np

from cpython.buffer cimport PyBuffer_FillInfo
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp

from cython_ext.log_format cimport (
    OC_LOG_FRAGMENTS, OC_LOG_PACKET, log_next, oc_log_record)
from cython_ext.log_scan cimport Walk, gap_of
from cython_ext.parser cimport oc_packet, oc_parse
from cython_ext.pcap cimport Filter

FRAGMENTS = OC_LOG_FRAGMENTS
COLUMNS = {"seqs": np.uint64, "timestamps_ns": np.uint64, "offsets": np.uint64,
           "lengths": np.uint32, "originals": np.uint32, "rule_ids": np.uint32,
           "ports": np.uint16, "queues": np.uint16, "flags": np.uint16}


cdef class LogRecord:
    """One packet of a batch: its bytes by the buffer protocol, and what was noted beside them."""
    cdef LogBatch batch
    cdef Py_ssize_t place

    def __init__(self):
        raise TypeError("a record comes from a batch")

    @property
    def seq(self):
        return int(self.batch.seqs[self.place])

    @property
    def timestamp_ns(self):
        return int(self.batch.timestamps_ns[self.place])

    @property
    def original(self):
        """Bytes on the wire; more than len() when the recorder kept only a part."""
        return int(self.batch.originals[self.place])

    @property
    def port(self):
        return int(self.batch.ports[self.place])

    @property
    def queue(self):
        return int(self.batch.queues[self.place])

    @property
    def rule_id(self):
        return int(self.batch.rule_ids[self.place])

    def __len__(self):
        return int(self.batch.lengths[self.place])

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        cdef uint64_t offset = self.batch.offsets[self.place]
        PyBuffer_FillInfo(buffer, self, self.batch.segment.base + offset,
                          self.batch.lengths[self.place], 1, flags)

    def __repr__(self):
        return f"<LogRecord {self.seq}: {len(self)} of {self.original} bytes>"


cdef class LogBatch:
    """Consecutive packets of one segment.

    Columns (numpy): seqs, timestamps_ns, lengths, originals, ports, queues, rule_ids, flags, and
    offsets into `data`, the map of the segment. `gaps` are losses that the recorder noted among
    these records. batch[i] is a LogRecord; memoryview(batch[i]) its bytes, read-only, no copy.
    """
    def __init__(self):
        raise TypeError("a batch comes from a log")

    @staticmethod
    def empty():
        """A batch of nothing."""
        cdef LogBatch batch = LogBatch.__new__(LogBatch)
        fill(batch, {name: np.empty(0, dtype) for name, dtype in COLUMNS.items()}, 0)
        batch.gaps = []
        return batch

    def __len__(self):
        return len(self.seqs)

    def __getitem__(self, index):
        cdef LogRecord record
        cdef Py_ssize_t count = len(self.seqs)
        place = index + count if index < 0 else index
        if not 0 <= place < count:
            raise IndexError(f"record {index} of a batch of {count}")
        record = LogRecord.__new__(LogRecord)
        record.batch, record.place = self, place
        return record

    def __iter__(self):
        return map(self.__getitem__, range(len(self.seqs)))

    @property
    def data(self):
        """The segment's bytes, which `offsets` point into."""
        return memoryview(self.segment)

    def select(self, mask):
        """The records for which the mask (numpy, bool) is true; gaps stay."""
        cdef LogBatch part = LogBatch.__new__(LogBatch)
        part.segment, part.gaps, part.next_seq = self.segment, self.gaps, self.next_seq
        part.seqs, part.timestamps_ns = self.seqs[mask], self.timestamps_ns[mask]
        part.offsets, part.lengths = self.offsets[mask], self.lengths[mask]
        part.originals, part.rule_ids = self.originals[mask], self.rule_ids[mask]
        part.ports, part.queues, part.flags = self.ports[mask], self.queues[mask], self.flags[mask]
        return part

    def __repr__(self):
        return f"<LogBatch: {len(self)} packets of {self.segment.name}>"


cdef fill(LogBatch batch, table, Py_ssize_t count):
    """The columns of a batch: the first `count` rows of each."""
    batch.seqs, batch.timestamps_ns = table["seqs"][:count], table["timestamps_ns"][:count]
    batch.offsets, batch.lengths = table["offsets"][:count], table["lengths"][:count]
    batch.originals, batch.rule_ids = table["originals"][:count], table["rule_ids"][:count]
    batch.ports, batch.queues = table["ports"][:count], table["queues"][:count]
    batch.flags = table["flags"][:count]


def read_batch(Walk walk not None, Py_ssize_t records, uint64_t bytes_max):
    """The next packets of the walk as a LogBatch; an empty one: the walk has stopped."""
    cdef LogBatch batch = LogBatch.__new__(LogBatch)
    table = {name: np.empty(records, dtype) for name, dtype in COLUMNS.items()}
    cdef uint64_t[::1] seqs = table["seqs"], times = table["timestamps_ns"]
    cdef uint64_t[::1] offsets = table["offsets"]
    cdef uint32_t[::1] lengths = table["lengths"], originals = table["originals"]
    cdef uint32_t[::1] rules = table["rule_ids"]
    cdef uint16_t[::1] ports = table["ports"], queues = table["queues"], flags = table["flags"]
    cdef Py_ssize_t count = 0
    cdef uint64_t held = 0, at
    cdef oc_log_record r
    cdef bint more = True
    gaps = []
    while more and count < records and held < bytes_max:
        with nogil:
            while count < records and held < bytes_max:
                more = log_next(&walk.walk, &r, &at)
                if not more or r.kind != OC_LOG_PACKET:
                    break
                seqs[count], times[count], offsets[count] = r.seq, r.timestamp_ns, at
                lengths[count], originals[count], rules[count] = r.captured, r.original, r.rule
                ports[count], queues[count], flags[count] = r.port, r.queue, r.flags
                held += r.captured
                count += 1
        if not more:
            more = walk.get_ready()
        elif r.kind != OC_LOG_PACKET:
            gaps.append(gap_of(walk.walk.base + at, &r))
    batch.segment, batch.gaps, batch.next_seq = walk.segment, gaps, walk.walk.seq
    fill(batch, table, count)
    return batch


def match_mask(LogBatch batch not None, Filter wanted not None):
    """Which records a filter expression selects, as tcpdump would."""
    cdef Py_ssize_t i, count = len(batch)
    result = np.empty(count, np.uint8)
    cdef uint8_t[::1] mask = result
    cdef const uint64_t[::1] offsets = batch.offsets
    cdef const uint32_t[::1] lengths = batch.lengths, originals = batch.originals
    cdef const uint8_t *base = batch.segment.base
    with nogil:
        for i in range(count):
            mask[i] = wanted.run(base + offsets[i], originals[i], lengths[i])
    return result.view(bool)


cdef bint is_flow(const uint8_t *packet, uint32_t length, const uint8_t *one, const uint8_t *two,
                  int version, int proto, int port_one, int port_two) noexcept nogil:
    """Whether the packet goes from one end to the other. The parser has checked the bounds of
    what it gives an offset for, but an IP header may be cut short of its addresses."""
    cdef oc_packet p
    cdef uint32_t size = 4 if version == 4 else 16
    cdef uint32_t source
    oc_parse(packet, packet + length, &p)
    if p.ip_version != version or p.ip_proto != proto or p.l3_offset == 0:
        return False
    source = p.l3_offset + (12 if version == 4 else 8)
    if source + 2 * size > length:
        return False
    if memcmp(packet + source, one, size) or memcmp(packet + source + size, two, size):
        return False
    return port_one < 0 or (p.has_ports and p.sport == port_one and p.dport == port_two)


def flow_mask(LogBatch batch not None, int proto, const uint8_t[::1] one not None, int port_one,
              const uint8_t[::1] two not None, int port_two):
    """Which records belong to a conversation, either way. Ports of -1: a protocol without."""
    cdef Py_ssize_t i, count = len(batch)
    cdef int version = 4 if one.shape[0] == 4 else 6
    if one.shape[0] not in (4, 16) or two.shape[0] != one.shape[0]:
        raise ValueError("two addresses of one family")
    result = np.empty(count, np.uint8)
    cdef uint8_t[::1] mask = result
    cdef const uint64_t[::1] offsets = batch.offsets
    cdef const uint32_t[::1] lengths = batch.lengths
    cdef const uint8_t *base = batch.segment.base
    with nogil:
        for i in range(count):
            mask[i] = (is_flow(base + offsets[i], lengths[i], &one[0], &two[0], version, proto,
                               port_one, port_two) or
                       is_flow(base + offsets[i], lengths[i], &two[0], &one[0], version, proto,
                               port_two, port_one))
    return result.view(bool)
