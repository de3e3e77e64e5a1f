# Latencies by bucket, log-linear: the power of two and the four bits below it (as in HdrHistogram).
# 64 powers of 16 steps each are 1,024 counters, and 6 % of resolution. The worker writes, others
# read; worker.bucket_upper_ns says what a bucket stands for.
from libc.stdint cimport uint32_t, uint64_t
from cython_ext.atomics cimport unlikely

cdef extern from * nogil:
    int clz "__builtin_clzll"(unsigned long long)


cdef inline uint32_t bucket_of(uint64_t ns) noexcept nogil:
    cdef uint32_t power
    if ns < 16:
        return <uint32_t>ns
    power = 63 - clz(ns)
    return (power - 3) * 16 + <uint32_t>((ns >> (power - 4)) & 15)


cdef inline uint64_t bucket_least(uint32_t bucket, uint64_t* width) noexcept nogil:
    """The least value of a bucket, and how many values fall into it."""
    cdef uint32_t power
    if bucket < 16:
        width[0] = 1
        return bucket
    power = bucket // 16 + 3
    width[0] = <uint64_t>1 << (power - 4)
    return ((<uint64_t>bucket & 15) + 16) << (power - 4)


cdef inline void record_latency(uint64_t* counts, uint64_t* largest, const uint64_t* timestamps,
                                uint32_t n, uint64_t when) noexcept nogil:
    """From each packet's timestamp until `when`; equal buckets in a row are one addition.

    Packets of a burst came close together: most fall into the bucket of the one before, which one
    comparison tells. A timestamp of 0 is a packet without metadata, in the last bucket that there
    is; it is not the largest latency.
    """
    cdef uint32_t i, bucket = 0, same = 0
    cdef uint64_t took, least = 0, width = 1, most = largest[0]
    for i in range(n):
        took = when - timestamps[i]
        if unlikely(took - least >= width):
            counts[bucket] += same
            same = 0
            if timestamps[i] > when:          # another core's clock is ahead by a little
                took = 0
            bucket = bucket_of(took)
            least = bucket_least(bucket, &width)
        same += 1
        if took > most and timestamps[i] != 0:
            most = took
    counts[bucket] += same
    largest[0] = most
