/* SPDX-License-Identifier: Apache-2.0
 *
 * Classic BPF to x86-64 machine code, with the meaning of libpcap's bpf_filter: one pass to find
 * where each instruction begins, one to write. Every jump is 32 bits wide, so the two passes agree.
 * It owns no memory and trusts its input: opcodes, jumps and scratch words were checked
 * (cython_ext/pcap.pyx, Filter). What it does not know, and every other CPU, is interpreted (-1).
 *
 * Why not rte_bpf's compiler (DPDK 22.11 to 26.07): `ldb [x + k]` loads from A + k, `jset` with a
 * number under 128 becomes no instruction at all, its verifier needs for ever on six IPv6 hosts,
 * and some filters with VLANs jump into the middle of an instruction. Fuzzing found all but one.
 *
 *   uint32_t function(const uint8_t *packet, uint32_t length)      0: no match
 *   rdi packet   rsi length   eax A   ecx X   rdx, r8 free   [rsp - 64 + 4 * k] scratch word k
 */
#ifndef OC_JIT_H
#define OC_JIT_H
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <pcap/pcap.h>

/* Bytes at most: of one instruction (an indirect load takes 27), and of the frame around them. */
enum { OC_JIT_INSTRUCTION_MAX = 32, OC_JIT_FRAME_MAX = 32, OC_OFFSET_MAX = 0x7fffff00 };

struct oc_jit {
	unsigned char *out; /* NULL in the first pass */
	size_t at;
	uint32_t *where; /* of each instruction; where[n] is "no match" */
	unsigned int n;
};

static inline void oc_put(struct oc_jit *j, const void *bytes, size_t n)
{
	if (j->out)
		memcpy(j->out + j->at, bytes, n);
	j->at += n;
}

#define OC_CODE(j, ...)                                                                  \
	do {                                                                             \
		const unsigned char bytes[] = { __VA_ARGS__ };                           \
		oc_put(j, bytes, sizeof(bytes));                                         \
	} while (0)

static inline void oc_put32(struct oc_jit *j, uint32_t v) { oc_put(j, &v, 4); }

/* A jump to an instruction: `condition` is the second byte of jcc, or 0 for always. */
static inline void oc_jump(struct oc_jit *j, unsigned char condition, unsigned int to)
{
	if (condition)
		OC_CODE(j, 0x0f, condition);
	else
		OC_CODE(j, 0xe9);
	oc_put32(j, (uint32_t)j->where[to] - (uint32_t)(j->at + 4));
}

enum { OC_JB = 0x82, OC_JAE = 0x83, OC_JE = 0x84, OC_JNE = 0x85, OC_JA = 0x87 };
/* The bytes k..k+size-1 are there, or there is no match. False: they never can be. */
static inline int oc_bounds(struct oc_jit *j, uint32_t k, uint32_t size)
{
	if (k > OC_OFFSET_MAX) {
		oc_jump(j, 0, j->n);
		return 0;
	}
	OC_CODE(j, 0x81, 0xfe); /* cmp esi, k + size */
	oc_put32(j, k + size);
	oc_jump(j, OC_JB, j->n);
	return 1;
}

/* eax = [rdi + k], or [rdi + rdx], in host order. */
static inline void oc_fetch(struct oc_jit *j, const uint32_t *k, uint32_t size)
{
	if (size == 4)
		OC_CODE(j, 0x8b); /* mov */
	else
		OC_CODE(j, 0x0f, size == 2 ? 0xb7 : 0xb6); /* movzx */
	if (k) {
		OC_CODE(j, 0x87);
		oc_put32(j, *k);
	} else {
		OC_CODE(j, 0x04, 0x17);
	}
	if (size == 4)
		OC_CODE(j, 0x0f, 0xc8); /* bswap eax */
	else if (size == 2)
		OC_CODE(j, 0x66, 0xc1, 0xc0, 0x08); /* rol ax, 8 */
}

static inline void oc_load_x(struct oc_jit *j, uint32_t k, uint32_t size)
{
	if (k > OC_OFFSET_MAX) {
		oc_jump(j, 0, j->n);
		return;
	}
	OC_CODE(j, 0x89, 0xca, 0x48, 0x81, 0xc2); /* mov edx, ecx; add rdx, k */
	oc_put32(j, k);
	OC_CODE(j, 0x4c, 0x8d, 0x42, (unsigned char)size); /* lea r8, [rdx + size] */
	OC_CODE(j, 0x49, 0x39, 0xf0);                      /* cmp r8, rsi */
	oc_jump(j, OC_JA, j->n);
	oc_fetch(j, NULL, size);
}

/* add, sub, or, and, xor by operation: op eax, imm32; less 4 it is op r/m32, r32 */
static const unsigned char oc_plain[16] = { [0] = 0x05, [1] = 0x2d, [4] = 0x0d, [5] = 0x25,
					    [10] = 0x35 };

static inline int oc_arithmetic_k(struct oc_jit *j, unsigned int operation, uint32_t k)
{
	switch (operation) {
	case 0x00: case 0x10: case 0x40: case 0x50: case 0xa0: /* add sub or and xor */
		OC_CODE(j, oc_plain[operation >> 4]);
		oc_put32(j, k);
		return 0;
	case 0x20:
		OC_CODE(j, 0x69, 0xc0); /* imul eax, eax, k */
		oc_put32(j, k);
		return 0;
	case 0x30: case 0x90: /* div mod; k is not 0 */
		OC_CODE(j, 0x41, 0xb8);
		oc_put32(j, k);
		OC_CODE(j, 0x31, 0xd2, 0x41, 0xf7, 0xf0); /* xor edx, edx; div r8d */
		if (operation == 0x90)
			OC_CODE(j, 0x89, 0xd0);
		return 0;
	case 0x60: case 0x70: /* shifts by 32 and more give 0 */
		if (k > 31)
			OC_CODE(j, 0x31, 0xc0);
		else
			OC_CODE(j, 0xc1, operation == 0x60 ? 0xe0 : 0xe8, (unsigned char)k);
		return 0;
	case 0x80:
		OC_CODE(j, 0xf7, 0xd8); /* neg eax */
		return 0;
	}
	return -1;
}

static inline int oc_arithmetic_x(struct oc_jit *j, unsigned int operation)
{
	switch (operation) {
	case 0x00: case 0x10: case 0x40: case 0x50: case 0xa0: /* op eax, ecx */
		OC_CODE(j, oc_plain[operation >> 4] - 4, 0xc8);
		return 0;
	case 0x20: OC_CODE(j, 0x0f, 0xaf, 0xc1); return 0;
	case 0x30: case 0x90: /* by 0: no match */
		OC_CODE(j, 0x85, 0xc9);
		oc_jump(j, OC_JE, j->n);
		OC_CODE(j, 0x31, 0xd2, 0xf7, 0xf1);
		if (operation == 0x90)
			OC_CODE(j, 0x89, 0xd0);
		return 0;
	case 0x60: case 0x70: /* X under 32: shift by cl; else 0 */
		OC_CODE(j, 0x83, 0xf9, 0x20, 0x72, 0x04, 0x31, 0xc0, 0xeb, 0x02, 0xd3,
			operation == 0x60 ? 0xe0 : 0xe8);
		return 0;
	}
	return -1;
}

static inline int oc_branch(struct oc_jit *j, unsigned int pc, const struct bpf_insn *i)
{
	unsigned int operation = i->code & 0xf0, yes = pc + 1 + i->jt, no = pc + 1 + i->jf;
	unsigned char condition;
	if (operation == 0x00) {
		oc_jump(j, 0, pc + 1 + (int32_t)i->k);
		return 0;
	}
	switch (operation) {
	case 0x10: case 0x40: condition = operation == 0x10 ? OC_JE : OC_JNE; break;
	case 0x20: condition = OC_JA; break;
	case 0x30: condition = OC_JAE; break;
	default: return -1;
	}
	if (i->code & 0x08) {
		OC_CODE(j, operation == 0x40 ? 0x85 : 0x39, 0xc8); /* test or cmp eax, ecx */
	} else {
		OC_CODE(j, operation == 0x40 ? 0xa9 : 0x3d);
		oc_put32(j, i->k);
	}
	if (i->jt == 0) { /* what follows is the usual way: the opposite condition leaves it */
		oc_jump(j, condition ^ 1, no);
		return 0;
	}
	oc_jump(j, condition, yes);
	if (i->jf)
		oc_jump(j, 0, no);
	return 0;
}

static inline int oc_instruction(struct oc_jit *j, unsigned int pc, const struct bpf_insn *i)
{
	unsigned char word = (unsigned char)(4 * (int)i->k - 64);
	uint32_t size = i->code & 0x10 ? 1 : i->code & 0x08 ? 2 : 4; /* of loads */

	switch (i->code) {
	case 0x20: case 0x28: case 0x30: /* ld, ldh, ldb [k] */
		if (oc_bounds(j, i->k, size))
			oc_fetch(j, &i->k, size);
		return 0;
	case 0x40: case 0x48: case 0x50: oc_load_x(j, i->k, size); return 0;
	case 0xb1: /* X = 4 * (byte & 15) */
		if (oc_bounds(j, i->k, 1)) {
			OC_CODE(j, 0x0f, 0xb6, 0x8f);
			oc_put32(j, i->k);
			OC_CODE(j, 0x83, 0xe1, 0x0f, 0xc1, 0xe1, 0x02);
		}
		return 0;
	case 0x00: OC_CODE(j, 0xb8); oc_put32(j, i->k); return 0;
	case 0x01: OC_CODE(j, 0xb9); oc_put32(j, i->k); return 0;
	case 0x80: OC_CODE(j, 0x89, 0xf0); return 0;
	case 0x81: OC_CODE(j, 0x89, 0xf1); return 0;
	case 0x60: OC_CODE(j, 0x8b, 0x44, 0x24, word); return 0;
	case 0x61: OC_CODE(j, 0x8b, 0x4c, 0x24, word); return 0;
	case 0x02: OC_CODE(j, 0x89, 0x44, 0x24, word); return 0;
	case 0x03: OC_CODE(j, 0x89, 0x4c, 0x24, word); return 0;
	case 0x06: OC_CODE(j, 0xb8); oc_put32(j, i->k); OC_CODE(j, 0xc3); return 0;
	case 0x16: OC_CODE(j, 0xc3); return 0;
	case 0x07: OC_CODE(j, 0x89, 0xc1); return 0;
	case 0x87: OC_CODE(j, 0x89, 0xc8); return 0;
	}
	if ((i->code & 7) == 4)
		return i->code & 8 ? oc_arithmetic_x(j, i->code & 0xf0)
				   : oc_arithmetic_k(j, i->code & 0xf0, i->k);
	return (i->code & 7) == 5 ? oc_branch(j, pc, i) : -1;
}

/* One pass; the bytes of the function, or -1. `where` has room for n + 1. */
static inline long oc_jit_pass(const struct bpf_insn *code, unsigned int n, unsigned char *out,
			       uint32_t *where)
{
#ifdef __x86_64__
	struct oc_jit j = { out, 0, where, n };

	OC_CODE(&j, 0xf3, 0x0f, 0x1e, 0xfa);             /* endbr64: it is called by pointer */
	OC_CODE(&j, 0x89, 0xf6, 0x31, 0xc0, 0x31, 0xc9); /* rsi is 32 bits; A = X = 0 */
	for (unsigned int pc = 0; pc < n; pc++) {
		where[pc] = (uint32_t)j.at;
		if (oc_instruction(&j, pc, &code[pc]) < 0)
			return -1;
	}
	where[n] = (uint32_t)j.at;
	OC_CODE(&j, 0x31, 0xc0, 0xc3);
	return (long)j.at;
#else
	(void)code, (void)n, (void)out, (void)where;
	return -1;
#endif
}
#endif
