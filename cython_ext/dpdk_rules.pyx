# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True
"""Steering without a kernel: the same rules, in the same order, over the mbufs of a DPDK port.

What xdp/steer.bpf.c does to a packet, step by step: management traffic that no rule names is left
alone, the first rule that matches decides, sampling, shedding, counters. A filter is the classic
BPF that libpcap made, the very same that translate.py turns into C: rte_bpf turns it into native
code (JIT), without a compiler on the machine. libpcap's interpreter runs what rte_bpf does not
take or would run differently; the caller says which (appliance/steering/native.py).

A Filters is compiled once per set of rules; a Decisions counts, one for each queue, since a counter
has one writer. There is no kernel to pass a packet to: what is passed is counted, and ends.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from cython_ext.atomics cimport count_u64, load_relaxed_u32, store_relaxed_u32, unlikely
from cython_ext.dpdk cimport (oc_bpf_function, oc_bpf_load, rte_bpf_destroy, rte_pktmbuf_read)
from cython_ext.parser cimport oc_management, oc_packet, oc_parse
from cython_ext.pcap cimport Filter, bpf_filter
from cython_ext.queue cimport OC_META_SAMPLED

cdef extern from "openclaw_abi.h":
    enum:
        OC_RULE_NONE
        OC_VERDICT_BITS
        OC_VERDICT_CONSUME
        OC_VERDICT_DROP
        OC_VERDICT_PASS


cdef inline bint matches(oc_rules* r, oc_rule* rule, rte_mbuf* m) noexcept nogil:
    cdef const uint8_t* data
    cdef uint32_t length
    if rule.native != NULL:
        return rule.native(m) != 0
    data = <const uint8_t*>m.buf_addr + m.data_off
    length = m.pkt_len
    if unlikely(m.nb_segs > 1):
        if length > LINEAR_MAX:
            return False
        data = <const uint8_t*>rte_pktmbuf_read(m, 0, length, r.linear)
        if data == NULL:
            return False
    return bpf_filter(rule.code, data, length, length) != 0


cdef uint32_t rules_decide(oc_rules* r, rte_mbuf* m, uint32_t* flags) noexcept nogil:
    """Rule id and verdict of one packet, as an offline program returns them; counted."""
    cdef oc_packet packet
    cdef oc_rule* rule = NULL
    cdef uint32_t i, guarded = 0, threshold
    cdef uint64_t matched
    cdef const uint8_t* data = <const uint8_t*>m.buf_addr + m.data_off
    flags[0] = 0
    count_u64(&r.seen, 1)
    if r.keep_management:
        oc_parse(data, data + m.data_len, &packet)
        guarded = oc_management(&packet)
        if guarded & ~r.named_any:
            count_u64(&r.management, 1)
            count_u64(&r.passed, 1)
            return OC_VERDICT_PASS
    for i in range(r.n):
        if guarded & ~r.rules[i].names:
            continue
        if matches(r, &r.rules[i], m):
            rule = &r.rules[i]
            break
    if rule == NULL:
        count_u64(&r.passed, 1)
        return OC_VERDICT_PASS
    matched = rule.matched
    count_u64(&rule.matched, 1)
    if rule.action == DROP:
        count_u64(&r.dropped_rule, 1)
        return rule.id << OC_VERDICT_BITS | OC_VERDICT_DROP
    if rule.action == SAMPLE:
        flags[0] = OC_META_SAMPLED
    # The first of each `every`; on each queue by itself, as on each CPU in XDP.
    if rule.action == PASS or (rule.action == SAMPLE and matched % rule.every):
        count_u64(&r.passed, 1)
        return rule.id << OC_VERDICT_BITS | OC_VERDICT_PASS
    threshold = load_relaxed_u32(r.shed)
    if threshold and rule.priority >= threshold:
        count_u64(&r.dropped_shed, 1)
        return rule.id << OC_VERDICT_BITS | OC_VERDICT_DROP
    count_u64(&r.consumed, 1)
    return rule.id << OC_VERDICT_BITS | OC_VERDICT_CONSUME


cdef class Filters:
    """`Filters([(id, code, names, action, priority, every, native), ...])`, in order.

    action counts as in xdp/steer.bpf.c. With `native` the filter becomes machine code; if DPDK does
    not take it, or has no compiler for this CPU, libpcap interprets it all the same. EAL runs.
    """

    def __cinit__(self, list rules):
        cdef Filter interpreter
        cdef uint32_t i
        self.rules = rules
        self.natives = []
        self.interpreters = []
        self.programs = <rte_bpf**>calloc(max(len(rules), 1), sizeof(rte_bpf*))
        if self.programs == NULL:
            raise MemoryError("filters")
        self.n = len(rules)
        for i in range(self.n):
            interpreter = Filter(rules[i][1])
            self.interpreters.append(interpreter)
            if rules[i][6]:
                with nogil:
                    self.programs[i] = oc_bpf_load(interpreter.code, <unsigned>interpreter.length)
            self.natives.append(self.programs[i] != NULL
                                and oc_bpf_function(self.programs[i]) != NULL)

    def set_shed(self, uint32_t threshold):
        """0: off; else rules of this priority number and above are dropped."""
        store_relaxed_u32(&self.shed[0], threshold)

    def __dealloc__(self):
        cdef uint32_t i
        if self.programs != NULL:
            for i in range(self.n):
                if self.programs[i] != NULL:
                    rte_bpf_destroy(self.programs[i])
        free(self.programs)


cdef class Decisions:
    """`Decisions(filters, keep_management=True)`: these filters at work on one queue, counting."""

    def __cinit__(self, Filters filters not None, bint keep_management=True):
        cdef oc_rule* rule
        cdef Filter interpreter
        cdef uint32_t i
        memset(&self.r, 0, sizeof(self.r))
        self.filters = filters
        self.r.rules = <oc_rule*>calloc(max(filters.n, 1), sizeof(oc_rule))
        self.r.linear = <uint8_t*>calloc(1, LINEAR_MAX)
        if self.r.rules == NULL or self.r.linear == NULL:
            raise MemoryError("rules")
        self.r.n = filters.n
        self.r.keep_management = keep_management
        self.r.shed = &filters.shed[0]
        for i in range(filters.n):
            rule = &self.r.rules[i]
            interpreter = filters.interpreters[i]
            rule.id, _, rule.names, rule.action, rule.priority, rule.every, _ = filters.rules[i]
            rule.code = interpreter.code
            if filters.natives[i]:
                rule.native = <oc_match>oc_bpf_function(filters.programs[i])
            self.r.named_any |= rule.names

    def counters(self):
        """Under names that add up over queues and sets of rules, as steering.py's tally()."""
        cdef oc_rules* r = &self.r
        cdef uint32_t i
        found = {"seen": r.seen, "consumed": r.consumed, "passed": r.passed,
                 "management": r.management, "drop rule": r.dropped_rule,
                 "drop shed": r.dropped_shed}
        for i in range(r.n):
            found[f"rule {r.rules[i].id}"] = r.rules[i].matched
        return found

    def decide_many(self, data, const uint64_t[::1] offsets, const uint32_t[::1] lengths,
                    uint32_t[::1] results):
        """Verdicts on packets that lie in one buffer: rule id << 2 | verdict, without a device."""
        cdef const uint8_t[::1] source = data
        cdef rte_mbuf m
        cdef uint32_t flags
        cdef Py_ssize_t i
        memset(&m, 0, sizeof(m))
        m.nb_segs = 1
        if not offsets.shape[0] == lengths.shape[0] == results.shape[0]:
            raise ValueError("offsets, lengths and results differ in number")
        for i in range(offsets.shape[0]):
            if lengths[i] > 65535 or offsets[i] + lengths[i] > <uint64_t>source.shape[0]:
                raise ValueError(f"packet {i} of {lengths[i]} bytes at {offsets[i]}")
            m.buf_addr = <void*>(&source[0] + offsets[i])
            m.data_len = lengths[i]
            m.pkt_len = lengths[i]
            results[i] = rules_decide(&self.r, &m, &flags)

    def __dealloc__(self):
        free(self.r.rules)
        free(self.r.linear)
