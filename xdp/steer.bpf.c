// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The steering program: one XDP program for all rules of a port. For each packet: parse once, leave
 * management traffic to the kernel, try the rules in the order of the file, and then redirect the
 * packet with its metadata record to the AF_XDP socket of its queue, pass it, or drop it with a
 * numbered reason. It owns the counters of its map and the order of these steps. What a rule
 * matches is generated (appliance/steering/translate.py) and stands where RULES stands below.
 *
 * The generator defines, in front of this text:
 *   OC_JUMBO            packets may span several buffers; loads beyond the first one call a helper
 *   OC_OFFLINE          do not act: return rule id and verdict; `len` comes from the metadata area
 *   OC_KEEP_MANAGEMENT  management traffic is passed unless a rule names it
 *   OC_NAMED_ANY        bit mask: management classes that at least one rule names
 *   OC_NO_SOCKET_DROP   no socket on the queue: drop instead of pass
 *
 * One function, everything inline: bcc puts each function into a section of its own and does not
 * link calls between them. Map numbers are resolved by our loader, so compiling needs no privilege.
 */
#include <uapi/linux/bpf.h>

#include "openclaw_abi.h"
#include "openclaw_parse.h"

#define OC_CHAIN_MAX 64 /* extension headers that protochain follows; RFC 8200 expects under 10 */

static void *(*oc_lookup)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static unsigned long long (*oc_now_ns)(void) = (void *)BPF_FUNC_ktime_get_ns;
static long (*oc_redirect)(void *map, unsigned int key, unsigned long long flags) =
	(void *)BPF_FUNC_redirect_map;
static long (*oc_adjust_meta)(struct xdp_md *ctx, int delta) = (void *)BPF_FUNC_xdp_adjust_meta;
/* By number, because headers before 5.18 do not name them. */
static unsigned long long (*oc_xdp_get_buff_len)(struct xdp_md *ctx) = (void *)188;
static long (*oc_xdp_load_bytes)(struct xdp_md *ctx, unsigned int offset, void *to,
				 unsigned int size) = (void *)189;

#include "steer_load.h"

#define OC_MAP(number) ((void *)bpf_pseudo_fd(1, number))

/* What a rule decided, in one register: the rules are many and the end of the program is one. */
#define OC_ACTION_CONSUME 0u
#define OC_ACTION_PASS 1u
#define OC_ACTION_DROP 2u
#define OC_ACTION_SAMPLE 3u
#define OC_HIT(action, priority, slot) (1u | (action) << 8 | (priority) << 16 | (slot) << 24)

/* Reads ctx anew. Each rule does, and so begins with pointers of which nothing is known: the
 * verifier then finds that all paths into a rule are alike and walks each rule once. */
#define OC_RELOAD()                                                                   \
	do {                                                                          \
		data = (unsigned char *)(long)*(volatile unsigned int *)&ctx->data;   \
		data_end = (unsigned char *)(long)*(volatile unsigned int *)&ctx->data_end; \
	} while (0)

/* The same value, of which the verifier knows nothing any more. `place` is a word of scratch. */
#define OC_FORGET(place, v)                                                           \
	(*(volatile unsigned int *)&count->scratch[place] = (v),                      \
	 *(volatile unsigned int *)&count->scratch[place])

#if OC_KEEP_MANAGEMENT
#define OC_GUARD(names, no)                                                           \
	do {                                                                          \
		if (guarded & ~(names))                                               \
			goto no;                                                      \
	} while (0)
#else
#define OC_GUARD(names, no) do { } while (0)
#endif

/* Head of a rule: its registers begin at zero, as in bpf_filter. */
#define OC_RULE(names, no)                                                            \
	do {                                                                          \
		OC_RELOAD();                                                          \
		OC_GUARD(names, no);                                                  \
		A = 0;                                                                \
		X = 0;                                                                \
	} while (0)

#if OC_OFFLINE
#define OC_END(counter, id, verdict, action)                                          \
	do {                                                                          \
		(counter)++;                                                          \
		return (int)((unsigned int)(id) << OC_VERDICT_BITS | (verdict));      \
	} while (0)
#else
#define OC_END(counter, id, verdict, action)                                          \
	do {                                                                          \
		(counter)++;                                                          \
		return (action);                                                      \
	} while (0)
#endif
#define OC_END_PASS (OC_OFFLINE ? OC_VERDICT_PASS : XDP_PASS)
/* Ends the program here. A plain return in front of the rules becomes a jump to the end behind
 * them, which can be farther than a BPF jump reaches; the compiler (LLVM 14) does not notice. */
#define OC_EXIT_NOW(value)                                                            \
	do {                                                                          \
		asm volatile("r0 = %0\n\texit" : : "i"(value));                       \
		__builtin_unreachable();                                              \
	} while (0)
#define OC_PASS(id) OC_END(count->passed, id, OC_VERDICT_PASS, XDP_PASS)
#define OC_DROP(id, reason) OC_END(count->dropped[reason], id, OC_VERDICT_DROP, XDP_DROP)

int oc_steer(struct xdp_md *ctx)
{
	unsigned char *data, *data_end;
	unsigned int A, X, len, len_here, size, word = 0, zero = 0;
	unsigned int id, hit = 0, every = 0, flags = 0;
	unsigned long long matched;
	unsigned int *shed, *ids;
	struct oc_meta *meta;
	struct oc_counters *count = oc_lookup(OC_MAP(OC_MAP_COUNTERS), &zero);

	if (!count) /* an array of one entry has its entry; the verifier wants to see it */
		OC_EXIT_NOW(OC_END_PASS);
	count->seen++;
	OC_RELOAD();
#if OC_KEEP_MANAGEMENT
	/* Parsed into map memory, of which the verifier remembers nothing: what follows is walked
	 * once and not once for each way through the parser (10 times less, measured). */
	struct oc_packet *packet = (void *)count->scratch;
	unsigned int guarded;

	oc_parse(data, data_end, packet);
	asm volatile("" : : : "memory");
	guarded = OC_FORGET(0, oc_management(packet));
	if (guarded & ~OC_NAMED_ANY) {
		count->management++;
		count->passed++;
		OC_EXIT_NOW(OC_END_PASS);
	}
#endif

	OC_RELOAD();
#if OC_JUMBO
	len_here = oc_xdp_get_buff_len(ctx);
	/* The size as the verifier can follow it: 1 to OC_WINDOW, whatever len_here is. */
	size = len_here < OC_WINDOW ? ((len_here - 1) & (OC_WINDOW - 1)) + 1 : OC_WINDOW;
	if (oc_xdp_load_bytes(ctx, 0, count->window, size))
		len_here = 0;
#else
	len_here = data_end - data;
#endif
#if OC_OFFLINE
	meta = (void *)(long)ctx->data_meta;
	if ((unsigned char *)meta + 4 > data)
		return -1;
	len = *(unsigned int *)meta;
#else
	len = len_here;
#endif

	/* RULES: each one ends at its own label, with `hit` set when it matched. */

	if (!hit)
		OC_PASS(OC_RULE_NONE);
	/* Ids come from a map and not from the text, so that the same rules compile but once. */
	ids = oc_lookup(OC_MAP(OC_MAP_IDS), &zero);
	id = ids ? ids[hit >> 24 & (OC_RULES_MAX - 1)] : OC_RULE_NONE;
	matched = count->rules[hit >> 24 & (OC_RULES_MAX - 1)]++;
	switch (hit >> 8 & 3) {
	case OC_ACTION_PASS:
		OC_PASS(id);
	case OC_ACTION_DROP:
		OC_DROP(id, OC_DROP_rule);
	case OC_ACTION_SAMPLE:
		/* The first of each `every`; on each CPU by itself, so that no CPU waits. */
		if (every && matched % every)
			OC_PASS(id);
		flags = OC_META_SAMPLED;
	}
	shed = oc_lookup(OC_MAP(OC_MAP_SHED), &zero);
	if (shed && *shed && (hit >> 16 & 0xff) >= *shed)
		OC_DROP(id, OC_DROP_shed);
#if OC_OFFLINE
	OC_END(count->consumed, id, OC_VERDICT_CONSUME, XDP_PASS);
#else
	/* Only chooses the socket; the redirection happens when we return XDP_REDIRECT. Asked
	 * first, so that a packet that stays with the kernel carries no metadata. */
	if (oc_redirect(OC_MAP(OC_MAP_SOCKETS), ctx->rx_queue_index, XDP_PASS) != XDP_REDIRECT) {
#if OC_NO_SOCKET_DROP
		OC_DROP(id, OC_DROP_no_socket);
#else
		OC_PASS(id);
#endif
	}
	if (oc_adjust_meta(ctx, -(int)sizeof(*meta)))
		OC_DROP(id, OC_DROP_no_metadata);
	OC_RELOAD();
	meta = (void *)(long)ctx->data_meta;
	if ((unsigned char *)(meta + 1) > data)
		OC_DROP(id, OC_DROP_no_metadata);
#if OC_JUMBO
	if (len_here > (unsigned int)(data_end - data))
		flags |= OC_META_FRAGS;
#endif
	meta->magic = OC_META_MAGIC;
	meta->version = OC_META_VERSION;
	meta->flags = flags;
	meta->rule_id = id;
	meta->timestamp_ns = oc_now_ns();
	count->consumed++;
	return XDP_REDIRECT;
#endif
}
