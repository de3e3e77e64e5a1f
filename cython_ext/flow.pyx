# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True
"""Flows as numbers: one of 256 buckets for a packet, the same for both directions.

Owns the hash. It is seeded, so that nobody outside can aim all flows at one bucket; what a bucket
is good for is not its matter.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from cython_ext.parser cimport oc_packet, oc_parse

cdef extern from "openclaw_parse.h" nogil:
    enum:
        OC_PKT_FRAGMENT
        OC_LAYER_NETWORK


cdef inline uint64_t mix(uint64_t x) noexcept nogil:
    """splitmix64's finalizer."""
    x = (x ^ (x >> 30)) * <uint64_t>0xbf58476d1ce4e5b9
    x = (x ^ (x >> 27)) * <uint64_t>0x94d049bb133111eb
    return x ^ (x >> 31)


cdef uint64_t end_of(uint64_t seed, const uint8_t* address, uint32_t nbytes,
                     uint32_t port) noexcept nogil:
    """One end of a conversation as a number."""
    cdef uint64_t h = seed, word = 0
    cdef uint32_t at = 0, n
    while at < nbytes:
        n = nbytes - at if nbytes - at < 8 else 8
        word = 0
        memcpy(&word, address + at, n)
        h = mix(h ^ word)
        at += n
    return mix(h + port + 1)


cdef uint32_t bucket_of(uint64_t seed, const uint8_t* packet, uint32_t length) noexcept nogil:
    """Both directions of a flow have one bucket: addresses, protocol and ports; of fragments, which
    have no ports but in the first, without; of what is not IP, the MAC addresses."""
    cdef oc_packet p
    cdef uint64_t a, b
    cdef uint32_t at, size, sport = 0, dport = 0
    if length < 14:
        return 0
    if oc_parse(packet, packet + length, &p) >= OC_LAYER_NETWORK and p.ip_version:
        size = 4 if p.ip_version == 4 else 16
        at = p.l3_offset + (12 if p.ip_version == 4 else 8)
        if at + 2 * size <= length:
            if p.has_ports and not p.flags & OC_PKT_FRAGMENT:
                sport, dport = p.sport, p.dport
            a = end_of(seed, packet + at, size, sport)
            b = end_of(seed, packet + at + size, size, dport)
            return <uint32_t>(mix(a + b + p.ip_proto) & (FLOW_BUCKETS - 1))
    a = end_of(seed, packet, 6, 0)
    b = end_of(seed, packet + 6, 6, 0)
    return <uint32_t>(mix(a + b) & (FLOW_BUCKETS - 1))


def bucket(const uint8_t[::1] packet, uint64_t seed=0):
    """The bucket of a packet in memory."""
    return bucket_of(seed, &packet[0], <uint32_t>packet.shape[0]) if packet.shape[0] else 0
