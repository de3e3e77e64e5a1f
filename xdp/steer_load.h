/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
 *
 * Loads of classic BPF as the steering program does them: bounds-checked, in network byte order,
 * and with the meaning of libpcap's bpf_filter: what lies beyond the packet means "no match".
 * Owns the macros that appliance/steering/translate.py writes calls of; it knows no rule.
 *
 * Every macro uses, of the function that it stands in: ctx, data, data_end, count, len_here, word
 * (a u32 on the stack), and the registers A and X. `no` is the label for "no match".
 */
#ifndef OPENCLAW_STEER_LOAD_H
#define OPENCLAW_STEER_LOAD_H

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define OC_NTOH1(v) (v)
#define OC_NTOH2(v) __builtin_bswap16(v)
#define OC_NTOH4(v) __builtin_bswap32(v)
#else
#define OC_NTOH1(v) (v)
#define OC_NTOH2(v) (v)
#define OC_NTOH4(v) (v)
#endif
typedef unsigned char oc_load1;
typedef unsigned short oc_load2;
typedef unsigned int oc_load4;

/* The compiler must not look through this value: it would check one register and use another, and
 * the verifier believes only in the one that was checked. */
#define OC_OPAQUE(v) asm volatile("" : "+r"(v))

/* The verifier gives up on packet offsets above 0xffff (MAX_PACKET_OFF), end of the load included;
 * bpf_xdp_load_bytes refuses them too. No XDP packet is longer. */
#define OC_OFFSET_MAX 0xfff0ul

/* A constant offset that lies in the linear part, or (jumbo) in a fragment. */
#if OC_JUMBO
#define OC_FETCH(n, into, p, at, no)                                                  \
	do {                                                                          \
		if ((p) + (n) <= data_end) {                                          \
			into = OC_NTOH##n(*(oc_load##n *)(p));                        \
		} else {                                                              \
			if (oc_xdp_load_bytes(ctx, (at), &word, (n)))                 \
				goto no;                                              \
			into = OC_NTOH##n(*(oc_load##n *)&word);                      \
		}                                                                     \
	} while (0)
#else
#define OC_FETCH(n, into, p, at, no)                                                  \
	do {                                                                          \
		if ((p) + (n) > data_end)                                             \
			goto no;                                                      \
		into = OC_NTOH##n(*(oc_load##n *)(p));                                \
	} while (0)
#endif

/* A constant offset. Jumbo programs read the first OC_WINDOW bytes of the packet from a copy: one
 * helper call per packet instead of one in the code of each load, which made programs of 256 rules
 * longer than BPF's jumps reach (44,000 instructions against 23,000). */
#if OC_JUMBO
#define OC_FIXED(n, into, k, no)                                                      \
	do {                                                                          \
		if ((k) + (n) <= OC_WINDOW) {                                         \
			if (len_here < (k) + (n))                                     \
				goto no;                                              \
			into = OC_NTOH##n(*(oc_load##n *)&count->window[k]);          \
		} else {                                                              \
			OC_FETCH(n, into, data + (k), (k), no);                       \
		}                                                                     \
	} while (0)
#else
#define OC_FIXED(n, into, k, no) OC_FETCH(n, into, data + (k), (k), no)
#endif

/* ld/ldh/ldb [k] */
#define OC_ABS(n, k, no) OC_FIXED(n, A, k, no)

/* ld/ldh/ldb [x + k]: the sum does not wrap, as in bpf_filter. */
#define OC_IND(n, k, no)                                                              \
	do {                                                                          \
		unsigned long at = (unsigned long)X + (k);                            \
		unsigned char *p;                                                     \
		OC_OPAQUE(at);                                                        \
		if (at > OC_OFFSET_MAX)                                               \
			goto no;                                                      \
		OC_OPAQUE(at);                                                        \
		p = data + at;                                                        \
		OC_OPAQUE(p);                                                         \
		OC_FETCH(n, A, p, at, no);                                            \
	} while (0)

/* ldx 4*([k]&0xf): the length of an IPv4 header. */
#define OC_MSH(k, no)                                                                 \
	do {                                                                          \
		OC_FIXED(1, X, k, no);                                                \
		X = (X & 0xf) << 2;                                                   \
	} while (0)

/* Divisors that a packet decides: zero means no match. */
#define OC_DIV(by, no)                                                                \
	do {                                                                          \
		if (!(by))                                                            \
			goto no;                                                      \
		A /= (by);                                                            \
	} while (0)
#define OC_MOD(by, no)                                                                \
	do {                                                                          \
		if (!(by))                                                            \
			goto no;                                                      \
		A %= (by);                                                            \
	} while (0)

/* Shifts by 32 and more give zero. */
#define OC_LSH(by) (A = (by) < 32 ? A << ((by) & 31) : 0)
#define OC_RSH(by) (A = (by) < 32 ? A >> ((by) & 31) : 0)

/* A backward jump of `ip6 protochain`: at most OC_CHAIN_MAX headers, then no match. The verifier
 * walks each round; with A and X forgotten all ways through a round end alike. */
#define OC_BACK(label, no)                                                            \
	do {                                                                          \
		if (++chain > OC_CHAIN_MAX)                                           \
			goto no;                                                      \
		A = OC_FORGET(0, A);                                                  \
		X = OC_FORGET(1, X);                                                  \
		goto label;                                                           \
	} while (0)

#endif
