# LogBatch for those who go through its packets without Python. See log_read.pyx.
from libc.stdint cimport uint64_t

from cython_ext.log_scan cimport SegmentMap


cdef class LogBatch:
    cdef readonly SegmentMap segment
    cdef readonly object seqs, timestamps_ns, offsets, lengths, originals, rule_ids, ports, queues
    cdef readonly object flags, gaps
    cdef readonly uint64_t next_seq      # of the first record behind this batch
