# Rules in user space: what the steering program does in XDP, for a port without a kernel behind it.
# See user_rules.pyx.
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from cython_ext.filter_jit cimport oc_match
from cython_ext.pcap cimport bpf_insn

cdef enum:
    CONSUME = 0                   # OC_ACTION_* of xdp/steer.bpf.c, in their order
    PASS = 1
    DROP = 2
    SAMPLE = 3
    LINEAR_MAX = 18 * 4096        # FRAGS_MAX frames: no longer packet is ever handed on

cdef struct oc_rule:
    oc_match native               # NULL: libpcap interprets `code`
    bpf_insn* code
    uint32_t id
    uint32_t names                # management classes that it names
    uint32_t action
    uint32_t priority
    uint32_t every                # with action sample: one of so many
    uint64_t matched

cdef struct oc_rules:
    uint32_t n
    bint keep_management
    uint32_t named_any
    const uint32_t* shed          # 0 off, else this priority and above is dropped
    uint8_t* linear               # a packet of several segments, in one piece
    uint64_t seen
    uint64_t consumed
    uint64_t passed
    uint64_t management
    uint64_t dropped_rule
    uint64_t dropped_shed
    oc_rule* rules

cdef uint32_t rules_decide(oc_rules* r, const uint8_t* data, uint32_t first, uint32_t length,
                           uint32_t* flags) noexcept nogil

cdef class Filters:
    cdef readonly list rules              # what was given, in order
    cdef readonly list natives            # by rule: True if it runs as machine code
    cdef list compiled
    cdef uint32_t n
    cdef uint32_t[1] shed

cdef class Decisions:
    cdef oc_rules r
    cdef readonly Filters filters
