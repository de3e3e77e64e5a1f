/* SPDX-License-Identifier: Apache-2.0
 *
 * CRC32C (Castagnoli), the checksum of the log, at the speed of the processor, alone and fused with
 * a copy: a packet that is recorded is read once. oc_crc32c(0, "123456789", 9) is 0xe3069283, and
 * oc_crc32c(oc_crc32c(0, a), b) that of a and b in a row. It knows nothing of records.
 *
 * x86 (SSE4.2): the instruction takes one word a cycle but answers after three, so three lanes of
 * equal length run side by side. A lane is carried over the words behind it by a carry-less
 * multiplication: two 32-bit remainders give 63 bits that the instruction itself reduces, times
 * x^33; hence the factor for a distance of i words is x^(64 i - 33) mod P. That of one word is
 * x^31, bit 0 of a reflected remainder; the next comes by feeding a zero word.
 * Armv8: one lane. Elsewhere: eight tables. Which one is chosen when the module is loaded.
 */
#ifndef OC_CRC32C_H
#define OC_CRC32C_H
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <nmmintrin.h>
#include <wmmintrin.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#ifndef HWCAP_CRC32
#define HWCAP_CRC32 (1 << 7)
#endif
#endif
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the log is little-endian, and so are the hosts that this is written for"
#endif

#define OC_CRC32C_POLYNOMIAL 0x82f63b78u /* reflected */
#define OC_CRC32C_LANE_WORDS 512         /* 3 x 4 KiB: the first-level cache holds them */
#define OC_CRC32C_LANES_FROM 120         /* bytes; below, joining the lanes costs what it gains */

/* Remainder after `n` bytes; `to` is NULL, or gets the bytes. */
typedef uint32_t (*oc_crc32c_fn)(uint32_t crc, uint8_t *to, const uint8_t *from, size_t n);

static uint32_t oc_crc32c_table[8][256];
static oc_crc32c_fn oc_crc32c_run;
static const char *oc_crc32c_how;

static inline uint64_t oc_crc32c_word(const uint8_t *p)
{
	uint64_t word;

	memcpy(&word, p, 8);
	return word;
}

static uint32_t oc_crc32c_portable(uint32_t crc, uint8_t *to, const uint8_t *from, size_t n)
{
	uint32_t (*t)[256] = oc_crc32c_table;

	if (to)
		memcpy(to, from, n);
	for (; n >= 8; n -= 8, from += 8) {
		uint64_t w = oc_crc32c_word(from) ^ crc;

		crc = t[7][w & 255] ^ t[6][(w >> 8) & 255] ^ t[5][(w >> 16) & 255] ^
		      t[4][(w >> 24) & 255] ^ t[3][(w >> 32) & 255] ^ t[2][(w >> 40) & 255] ^
		      t[1][(w >> 48) & 255] ^ t[0][w >> 56];
	}
	for (; n; n--)
		crc = (crc >> 8) ^ t[0][(crc ^ *from++) & 255];
	return crc;
}

#if defined(__x86_64__)
#define OC_SSE42 __attribute__((target("sse4.2,pclmul")))
static uint32_t oc_crc32c_factor[2 * OC_CRC32C_LANE_WORDS + 1];

OC_SSE42 static inline uint64_t oc_crc32c_carry(uint64_t crc, size_t words)
{
	__m128i product = _mm_clmulepi64_si128(_mm_cvtsi64_si128((int64_t)crc),
					       _mm_cvtsi64_si128(oc_crc32c_factor[words]), 0);
	return (uint64_t)_mm_cvtsi128_si64(product);
}

OC_SSE42 static inline __attribute__((always_inline)) uint64_t
oc_crc32c_step(uint64_t crc, uint8_t *to, const uint8_t *from, size_t at)
{
	uint64_t word = oc_crc32c_word(from + at);

	if (to)
		memcpy(to + at, &word, 8);
	return _mm_crc32_u64(crc, word);
}

OC_SSE42 static inline __attribute__((always_inline)) uint32_t
oc_crc32c_lanes(uint32_t crc, uint8_t *to, const uint8_t *from, size_t n)
{
	uint64_t a = crc;

	while (n >= OC_CRC32C_LANES_FROM) {
		size_t words = n / 24 < OC_CRC32C_LANE_WORDS ? n / 24 : OC_CRC32C_LANE_WORDS;
		size_t lane = words * 8;
		uint64_t b = 0, c = 0;

		for (size_t at = 0; at < lane; at += 8) {
			a = oc_crc32c_step(a, to, from, at);
			b = oc_crc32c_step(b, to, from, lane + at);
			c = oc_crc32c_step(c, to, from, 2 * lane + at);
		}
		a = c ^ _mm_crc32_u64(0, oc_crc32c_carry(a, 2 * words) ^
						 oc_crc32c_carry(b, words));
		from += 3 * lane;
		to = to ? to + 3 * lane : to;
		n -= 3 * lane;
	}
	for (; n >= 8; n -= 8, from += 8, to = to ? to + 8 : to)
		a = oc_crc32c_step(a, to, from, 0);
	for (; n; n--, from++) {
		if (to)
			*to++ = *from;
		a = _mm_crc32_u8((uint32_t)a, *from);
	}
	return (uint32_t)a;
}

OC_SSE42 static uint32_t oc_crc32c_sse42(uint32_t crc, uint8_t *to, const uint8_t *from, size_t n)
{
	/* `to` as a constant: two loops, neither of which asks for each word. */
	return to ? oc_crc32c_lanes(crc, to, from, n) : oc_crc32c_lanes(crc, NULL, from, n);
}

OC_SSE42 static void oc_crc32c_factors(void)
{
	oc_crc32c_factor[1] = 1;
	for (int i = 2; i <= 2 * OC_CRC32C_LANE_WORDS; i++)
		oc_crc32c_factor[i] = (uint32_t)_mm_crc32_u64(oc_crc32c_factor[i - 1], 0);
}
#elif defined(__aarch64__)
static uint32_t oc_crc32c_armv8(uint32_t crc, uint8_t *to, const uint8_t *from, size_t n)
{
	if (to)
		memcpy(to, from, n);
	for (; n >= 8; n -= 8, from += 8)
		__asm__(".arch_extension crc\n\tcrc32cx %w0, %w0, %x1"
			: "+r"(crc) : "r"(oc_crc32c_word(from)));
	for (; n; n--, from++)
		__asm__(".arch_extension crc\n\tcrc32cb %w0, %w0, %w1"
			: "+r"(crc) : "r"((uint32_t)*from));
	return crc;
}
#endif

__attribute__((constructor)) static void oc_crc32c_choose(void)
{
	for (uint32_t i = 0; i < 256; i++) {
		uint32_t crc = i;

		for (int bit = 0; bit < 8; bit++)
			crc = (crc >> 1) ^ (crc & 1 ? OC_CRC32C_POLYNOMIAL : 0);
		oc_crc32c_table[0][i] = crc;
	}
	for (int t = 1; t < 8; t++)
		for (int i = 0; i < 256; i++) {
			uint32_t crc = oc_crc32c_table[t - 1][i];

			oc_crc32c_table[t][i] = (crc >> 8) ^ oc_crc32c_table[0][crc & 255];
		}
	oc_crc32c_run = oc_crc32c_portable;
	oc_crc32c_how = "portable";
#if defined(__x86_64__)
	__builtin_cpu_init();
	if (__builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul")) {
		oc_crc32c_factors();
		oc_crc32c_run = oc_crc32c_sse42;
		oc_crc32c_how = "sse4.2";
	}
#elif defined(__aarch64__) && defined(__linux__)
	if (getauxval(AT_HWCAP) & HWCAP_CRC32) {
		oc_crc32c_run = oc_crc32c_armv8;
		oc_crc32c_how = "armv8";
	}
#endif
}

static inline uint32_t oc_crc32c(uint32_t crc, const void *from, size_t n)
{
	return ~oc_crc32c_run(~crc, NULL, (const uint8_t *)from, n);
}

/* The same, and the bytes are at `to` afterwards; the two do not overlap. */
static inline uint32_t oc_crc32c_copy(uint32_t crc, void *to, const void *from, size_t n)
{
	return ~oc_crc32c_run(~crc, (uint8_t *)to, (const uint8_t *)from, n);
}

#endif
