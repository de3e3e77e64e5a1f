/* SPDX-License-Identifier: Apache-2.0
 *
 * Fuzz target of the log's reader (cython_ext/include/oc_log_walk.h, oc_log_search.h), for
 * libFuzzer with ASan and UBSan. The input describes a small segment, which the real writer makes,
 * and edits of it; half of the inputs ask that all checksums be made right again afterwards, so
 * that hostile lengths and numbers come past them, as from someone who knows the format. The
 * segment lies in a heap block of exactly its size: a byte read too far is found. Where the
 * checksums are left as they are, a walk must also give nothing but what was written.
 */
#include <stdio.h>
#include <stdlib.h>

#include "oc_log_search.h"
#include "oc_log_write.h"

#define WRITES_MAX 6
#define BLOCK_BYTES 16384
#define SEGMENT_BYTES (OC_LOG_PAGE + (WRITES_MAX + 3) * BLOCK_BYTES)
#define RECORDS_MAX 64
#define EPOCH 0x0123456789abcdefULL

#define HOLDS(condition)                                                                 \
	do {                                                                             \
		if (!(condition)) {                                                      \
			fprintf(stderr, "line %d does not hold: %s\n", __LINE__, #condition); \
			abort();                                                         \
		}                                                                        \
	} while (0)

static struct {
	uint32_t count, length[RECORDS_MAX], crc[RECORDS_MAX];
} written;

struct input {
	const uint8_t *at;
	size_t left;
};

static uint32_t take(struct input *in, int bytes)
{
	uint32_t value = 0;

	for (; bytes && in->left; bytes--, in->left--)
		value = value << 8 | *in->at++;
	return value;
}

/* One write of up to eight records; gaps among the packets. */
static void put_write(struct input *in, struct oc_log_chain *c, struct oc_log_tally *t,
		      uint8_t *block)
{
	uint32_t records = 1 + take(in, 1) % 8, made = 0;
	uint64_t used = OC_LOG_HEAD_BYTES, place;
	static uint8_t payload[4096];

	for (; made < records && written.count < RECORDS_MAX; made++) {
		uint32_t what = take(in, 2), length = what % 4000, i = written.count;
		struct oc_log_gap gap = { .packets = what, .reasons = what % 3 };
		int is_gap = what % 7 == 0;
		struct oc_log_record *r;

		if (is_gap)
			length = (uint32_t)offsetof(struct oc_log_gap, reason) + gap.reasons * 32;
		place = oc_log_fit(used, length, BLOCK_BYTES);
		if (!place)
			break;
		memset(payload, (int)what, sizeof(payload));
		r = oc_log_begin(block, used, place, is_gap ? OC_LOG_GAP : OC_LOG_PACKET);
		r->original = length;
		r->timestamp_ns = what;
		oc_log_append(r, is_gap ? (const void *)&gap : payload, length);
		used = oc_log_finish(block, r);
		written.length[i] = length;
		written.crc[i] = r->payload_crc;
		written.count++;
	}
	if (made)
		HOLDS(oc_log_close_write(c, t, block, used, made, c->seq - 1, 1) > 0);
}

static uint64_t build(struct input *in, uint8_t *segment)
{
	static struct oc_log_tally tally;
	struct oc_log_segment header = { .epoch = EPOCH, .segment_bytes = SEGMENT_BYTES };
	struct oc_log_chain chain = { .seq = 1 };
	static _Alignas(4096) uint8_t block[3 * BLOCK_BYTES];
	uint32_t shape = take(in, 1), writes = shape % WRITES_MAX;

	written.count = 0;
	oc_log_begin_segment(&chain, &tally, &header);
	memcpy(segment, &header, sizeof(header));
	for (; writes; writes--) {
		uint64_t where = chain.offset;

		put_write(in, &chain, &tally, block);
		memcpy(segment + where, block, chain.offset - where);
	}
	if (shape & 128) {
		uint64_t where = chain.offset;

		oc_log_close_segment(&chain, &tally, block, chain.seq - 1, 1);
		memcpy(segment + where, block, chain.offset - where);
	}
	return chain.offset;
}

/* Makes the checksums right from the beginning on, as far as the lengths lead. */
static void chain_again(uint8_t *segment, uint64_t limit)
{
	uint64_t at = OC_LOG_PAGE, write_end = at, left = 0;
	uint32_t crc = ((struct oc_log_segment *)segment)->chain;

	while (at + OC_LOG_HEAD_BYTES <= limit) {
		struct oc_log_record *r = (struct oc_log_record *)(segment + oc_log_place(at));
		uint64_t place = oc_log_place(at);

		if (place + OC_LOG_RECORD_BYTES > limit || place % 8)
			return;
		if (r->captured <= limit - place - OC_LOG_RECORD_BYTES) {
			if (r->kind == OC_LOG_HEAD && r->captured == sizeof(struct oc_log_head)) {
				struct oc_log_head *h = (struct oc_log_head *)(r + 1);

				h->chain = crc;
				h->crc = oc_log_crc(oc_log_fold(h->epoch), h);
				write_end = place + h->bytes;
				left = h->records + 1ull;
			}
			r->payload_crc = oc_crc32c(0, r + 1, r->captured);
		}
		r->crc = crc = oc_log_link(EPOCH, crc, r);
		at = oc_log_after(place, r->captured);
		if (left && !--left)
			at = write_end > place ? write_end : limit;
	}
}

static void walk(const uint8_t *segment, uint64_t limit, int forged)
{
	struct oc_log_segment header;
	struct oc_log_walk w;
	struct oc_log_record r;
	struct oc_log_evidence found;
	uint64_t at, sum = 0;
	uint32_t count = 0;

	memcpy(&header, segment, sizeof(header));
	if (!oc_log_is_header(&header))
		return;
	oc_log_walk_begin(&w, segment, limit, &header);
	for (; oc_log_next(&w, &r, &at); count++) {
		HOLDS(at + r.captured <= limit && r.seq == header.first_seq + count);
		for (uint32_t i = 0; i < r.captured; i++)
			sum += segment[at + i];
		if (!forged) {
			HOLDS(count < written.count && r.captured == written.length[count]);
			HOLDS(r.payload_crc == written.crc[count]);
		}
	}
	HOLDS(w.stop != OC_LOG_GOES_ON && w.stop != OC_LOG_NEED);
	HOLDS(w.offset <= w.limit && w.records == count);
	oc_log_search(&w, &found);
	HOLDS(!found.first_at || found.first_at < limit);
	if (sum == UINT64_MAX)
		abort(); /* so that the bytes are read */
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = { data, size };
	uint8_t *whole = calloc(1, SEGMENT_BYTES), *segment;
	uint32_t how = take(&in, 1), cut;
	uint64_t limit;

	HOLDS(whole);
	limit = build(&in, whole);
	cut = how & 2 ? take(&in, 2) : 0;
	while (in.left >= 4) {
		uint64_t at = take(&in, 3);

		/* Mostly where headers begin: 48 bytes of each page, and those of the first one. */
		at = at & 1 ? at % limit : (at / 112 * OC_LOG_PAGE + at % 112) % limit;
		if (how & 1 || at >= OC_LOG_PAGE || how & 4)
			whole[at] = (uint8_t)take(&in, 1);
		else
			take(&in, 1);
	}
	if (how & 1) {
		struct oc_log_segment *h = (struct oc_log_segment *)whole;

		memcpy(h->magic, "OCLOGSEG", 8);
		h->epoch = EPOCH;
		h->crc = oc_log_crc(0, h);
		chain_again(whole, limit);
	}
	limit = cut < limit - OC_LOG_PAGE ? limit - cut : OC_LOG_PAGE;
	segment = aligned_alloc(8, (limit + 7) & ~7ull);
	HOLDS(segment);
	memcpy(segment, whole, limit);
	free(whole);
	walk(segment, limit, how & 1);
	free(segment);
	return 0;
}
