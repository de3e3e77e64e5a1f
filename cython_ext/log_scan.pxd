# Maps of segments and walks through them, for log_read.pyx. See log_scan.pyx.
from libc.stdint cimport uint8_t, uint64_t

from cython_ext.log_format cimport oc_log_record, oc_log_segment, oc_log_walk


cdef class SegmentMap:
    cdef uint8_t *base
    cdef readonly uint64_t size          # mapped
    cdef readonly uint64_t start         # in the file or device
    cdef readonly object name
    cdef int fd
    cdef uint64_t touched
    cdef oc_log_segment head
    cdef readonly bint valid             # the header holds
    cdef touch(self, uint64_t end)
    cdef touch_from(self, uint64_t start, uint64_t end)


cdef class Walk:
    cdef SegmentMap segment
    cdef oc_log_walk walk
    cdef int get_ready(self) except -1


cdef gap_of(const uint8_t *payload, const oc_log_record *r)
