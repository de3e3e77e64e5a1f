# Latencies by bucket, log-linear: the power of two and the four bits below it (as in HdrHistogram).
# 64 powers of 16 steps each are 1,024 counters, and 6 % of resolution. The worker writes, others
# read; worker.bucket_upper_ns says what a bucket stands for.
from libc.stdint cimport uint32_t, uint64_t
from cython_ext.atomics cimport likely, unlikely

cdef extern from * nogil:
    int clz "__builtin_clzll"(unsigned long long)


cdef inline uint32_t bucket_of(uint64_t ns) noexcept nogil:
    cdef uint32_t power
    if ns < 16:
        return <uint32_t>ns
    power = 63 - clz(ns)
    return (power - 3) * 16 + <uint32_t>((ns >> (power - 4)) & 15)


cdef inline void record_latency(uint64_t* counts, uint64_t* largest, const uint64_t* timestamps,
                                uint32_t n, uint64_t when) noexcept nogil:
    """From each packet's timestamp until `when`; equal buckets in a row are one addition."""
    cdef uint32_t i, bucket, last = 0, same = 0
    cdef uint64_t took, most = largest[0]
    for i in range(n):
        took = when - timestamps[i] if when > timestamps[i] else 0
        bucket = bucket_of(took)
        if unlikely(took > most and timestamps[i] != 0):
            most = took
        if likely(bucket == last):
            same += 1
            continue
        counts[last] += same
        last = bucket
        same = 1
    counts[last] += same
    largest[0] = most
