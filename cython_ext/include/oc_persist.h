/* SPDX-License-Identifier: Apache-2.0
 *
 * Copies into memory that keeps its content (DAX): stores that do not pass through the cache, and
 * the fence after which they are in the memory's domain of persistence. Where the processor has no
 * such stores the copy is an ordinary one, and the caller has to flush by msync
 * (OC_PERSIST_STORES is 0 then).
 */
#ifndef OC_PERSIST_H
#define OC_PERSIST_H
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <emmintrin.h>
#define OC_PERSIST_STORES 1

/* `to` is 64-byte aligned and n a multiple of 64: writes of the log are whole pages. */
static inline void oc_persist_copy(void *to, const void *from, size_t n)
{
	__m128i *out = (__m128i *)to;
	const __m128i *in = (const __m128i *)from;

	for (; n >= 64; n -= 64, in += 4, out += 4) {
		_mm_stream_si128(out, _mm_loadu_si128(in));
		_mm_stream_si128(out + 1, _mm_loadu_si128(in + 1));
		_mm_stream_si128(out + 2, _mm_loadu_si128(in + 2));
		_mm_stream_si128(out + 3, _mm_loadu_si128(in + 3));
	}
	memcpy(out, in, n);
	_mm_sfence();
}
#else
#define OC_PERSIST_STORES 0
static inline void oc_persist_copy(void *to, const void *from, size_t n)
{
	memcpy(to, from, n);
}
#endif
#endif
