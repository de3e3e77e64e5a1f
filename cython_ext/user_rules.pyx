# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True
"""Steering without a kernel: the same rules, in the same order, for a port that has none.

What xdp/steer.bpf.c does to a packet, step by step: management traffic that no rule names is left
alone, the first rule that matches decides, sampling, shedding, counters. A filter is the classic
BPF that libpcap made, the very same that translate.py turns into C for XDP; here it is machine code
(filter_jit.pyx), without a compiler on the machine.

A Filters is compiled once per set of rules; a Decisions counts, one for each queue, since a counter
has one writer. There is no kernel to pass a packet to: what is passed is counted, and ends.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from cython_ext.atomics cimport count_u64, load_relaxed_u32, store_relaxed_u32
from cython_ext.filter_jit cimport NativeFilter
from cython_ext.parser cimport oc_management, oc_packet, oc_parse
from cython_ext.pcap cimport bpf_filter
from cython_ext.queue cimport OC_META_SAMPLED

cdef extern from "openclaw_abi.h":
    enum:
        OC_RULE_NONE
        OC_VERDICT_BITS
        OC_VERDICT_CONSUME
        OC_VERDICT_DROP
        OC_VERDICT_PASS


cdef uint32_t rules_decide(oc_rules* r, const uint8_t* data, uint32_t first, uint32_t length,
                           uint32_t* flags) noexcept nogil:
    """Rule id and verdict of one packet, as an offline program returns them; counted.

    `length` bytes lie at `data`; the parser looks at the `first` ones, those of the first buffer.
    """
    cdef oc_packet packet
    cdef oc_rule* rule = NULL
    cdef uint32_t i, guarded = 0, threshold
    cdef uint64_t matched
    flags[0] = 0
    count_u64(&r.seen, 1)
    if r.keep_management:
        oc_parse(data, data + first, &packet)
        guarded = oc_management(&packet)
        if guarded & ~r.named_any:
            count_u64(&r.management, 1)
            count_u64(&r.passed, 1)
            return OC_VERDICT_PASS
    for i in range(r.n):
        if guarded & ~r.rules[i].names:
            continue
        if r.rules[i].native(data, length) if r.rules[i].native != NULL \
                else bpf_filter(r.rules[i].code, data, length, length):
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
    """`Filters([(id, code, names, action, priority, every), ...])`, in order.

    action counts as in xdp/steer.bpf.c.
    """

    def __cinit__(self, list rules):
        self.rules = rules
        self.compiled = [NativeFilter(rule[1]) for rule in rules]
        self.natives = [made.native for made in self.compiled]
        self.n = len(rules)

    def set_shed(self, uint32_t threshold):
        """0: off; else rules of this priority number and above are dropped."""
        store_relaxed_u32(&self.shed[0], threshold)


cdef class Decisions:
    """`Decisions(filters, keep_management=True)`: these filters at work on one queue, counting."""

    def __cinit__(self, Filters filters not None, bint keep_management=True):
        cdef oc_rule* rule
        cdef NativeFilter made
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
            made = filters.compiled[i]
            rule.id, _, rule.names, rule.action, rule.priority, rule.every = filters.rules[i]
            rule.code = made.interpreter.code
            rule.native = made.function
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
        cdef uint32_t flags
        cdef uint64_t total = source.shape[0]
        cdef uint8_t nothing = 0
        cdef const uint8_t* base = &source[0] if total else &nothing
        cdef Py_ssize_t i
        if not offsets.shape[0] == lengths.shape[0] == results.shape[0]:
            raise ValueError("offsets, lengths and results differ in number")
        for i in range(offsets.shape[0]):
            if offsets[i] > total or lengths[i] > total - offsets[i]:
                raise ValueError(f"packet {i} lies outside of the buffer of {total} bytes")
            results[i] = rules_decide(&self.r, base + offsets[i], lengths[i], lengths[i], &flags)

    def __dealloc__(self):
        free(self.r.rules)
        free(self.r.linear)
