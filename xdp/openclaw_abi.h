/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * What the kernel side (the steering program) and user space share: the metadata record in front
 * of every consumed packet, and the numbered drop reasons. It owns no code and includes nothing,
 * so that bcc, Cython and the fuzz target take the same text. Types are spelled with compiler
 * built-ins because <linux/types.h> and <stdint.h> cannot both be had everywhere.
 */
#ifndef OPENCLAW_ABI_H
#define OPENCLAW_ABI_H

/* ------------------------------------------------------------------ limits */
#define OC_RULES_MAX 256u      /* rules in one program; a program with 256 stays under 1 s of bcc */
#define OC_QUEUES_MAX 128u     /* entries of the socket map: queues of one interface */
#define OC_WINDOW 128u         /* Ethernet 14, 3 VLAN tags 12, IPv6 40, TCP 20, and room */
#define OC_RULE_NONE 0u        /* rule id 0: no rule decided */

/* ---------------------------------------------------- maps of the steering program.
 * The compiler knows them by these numbers; the loader puts descriptors in their place. */
#define OC_MAP_SOCKETS 1       /* XSKMAP: queue -> AF_XDP socket; survives a swap of rules */
#define OC_MAP_COUNTERS 2      /* per-CPU array of one struct oc_counters; fresh for each program */
#define OC_MAP_SHED 3          /* array of one u32: 0 off, else drop this priority and above */
#define OC_MAP_IDS 4           /* array of one u32[OC_RULES_MAX]: place of a rule -> its id */

/* ------------------------------------------- metadata record, 16 bytes, in front of the packet */
#define OC_META_MAGIC 0x4f43u  /* "OC" */
#define OC_META_VERSION 1u
#define OC_META_SAMPLED 0x01u  /* the rule's action was "sample" */
#define OC_META_FRAGS 0x02u    /* the packet spans several frames */

struct oc_meta {
	unsigned short magic;            /* OC_META_MAGIC, host order */
	unsigned char version;           /* OC_META_VERSION */
	unsigned char flags;             /* OC_META_* */
	unsigned int rule_id;            /* 1..; never reused while a process lives */
	unsigned long long timestamp_ns; /* CLOCK_MONOTONIC at the steering program */
};
_Static_assert(sizeof(struct oc_meta) == 16, "bpf_xdp_adjust_meta moves exactly this much");

/* ------------------------------------------------- drop reasons: numbers are never reused.
 * X(number, name, what happened). The names are the keys of "drops" in the statistics. */
#define OC_DROP_REASONS(X)                                                              \
	X(1, rule, "a rule with action drop matched")                                   \
	X(2, no_metadata, "the driver has no room for the metadata record")             \
	X(3, no_socket, "no AF_XDP socket on the queue and no_socket is drop")          \
	X(4, shed, "a low-priority rule was shed by the governor")                      \
	X(16, rx_dropped, "kernel: no frame in the fill ring, or larger than a frame")  \
	X(17, rx_ring_full, "kernel: the RX ring was full")                             \
	X(18, invalid_metadata, "a received frame carried no valid metadata record")    \
	X(19, link, "the link itself lost the frame before XDP saw it")                 \
	X(20, too_many_fragments, "a packet of more frames than OC_FRAGS_MAX")          \
	X(21, bad_descriptors, "the kernel gave an address that it had not been given") \
	X(32, consumer, "the consumer of kind drop took it")                            \
	X(33, no_consumer, "the rule names no consumer")                                \
	X(34, forward_ring_full, "forward: the TX ring of the other port was full")     \
	X(35, forward_too_long, "forward: longer than the other port's frame")

enum oc_drop_reason {
#define X(number, name, text) OC_DROP_##name = number,
	OC_DROP_REASONS(X)
#undef X
	OC_DROP_MAX = 64
};

/* ------------------------------------------------- counters of one program on one CPU.
 * seen = consumed + passed + the sum of dropped. The index of rules[] is the place of the rule in
 * the program, not its id: ids outlive programs, places do not. */
struct oc_counters {
	unsigned long long seen;
	unsigned long long consumed;             /* handed to an AF_XDP socket */
	unsigned long long passed;               /* left to the kernel, whatever the reason */
	unsigned long long management;           /* of those: management that no rule names */
	unsigned long long dropped[OC_DROP_MAX]; /* by reason */
	unsigned long long rules[OC_RULES_MAX];  /* packets that the rule decided */
	unsigned int scratch[16];                /* of the program at work; no counter */
	unsigned char window[OC_WINDOW];         /* jumbo programs: the first bytes of the packet */
};
_Static_assert(sizeof(struct oc_counters) == 8 * (4 + 64 + 256 + 8 + 16),
	       "user space reads it as u64[]");

/* ------------------------------------------------- what an offline program returns:
 * rule id << OC_VERDICT_BITS | verdict. Ids stay below 2^30. */
#define OC_VERDICT_PASS 0u
#define OC_VERDICT_CONSUME 1u
#define OC_VERDICT_DROP 2u
#define OC_VERDICT_BITS 2

#endif
