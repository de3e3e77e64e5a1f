/* SPDX-License-Identifier: Apache-2.0
 *
 * What lies behind a break: the evidence that decides between a torn tail, which may be cut, and
 * damage, which may not. Two kinds count. A HEAD of this segment: 64 bits of epoch and its own crc.
 * Two records of which the second continues the first, for what is left of a write whose HEAD is
 * gone. Nothing that is found here is ever handed out as a record.
 */
#ifndef OC_LOG_SEARCH_H
#define OC_LOG_SEARCH_H
#include "oc_log_walk.h"

/* Beyond this a write that begins before the break has ended, and HEADs tell of the next ones. */
#define OC_LOG_PAIRS_BYTES OC_LOG_WRITE_BYTES_MAX

struct oc_log_evidence {
	uint64_t heads;       /* of this segment behind the break */
	uint64_t first_at;    /* the first evidence; 0: none */
	uint64_t first_seq;   /* of the lowest of these heads; 0: none */
	uint64_t end_seq;     /* behind the last record that they promise; 0: none */
	uint64_t durable_seq; /* the highest that they tell */
	uint64_t end;         /* of the last write that they tell of */
	uint64_t epoch;       /* of the first of them */
};

/* HEADs in whole pages from `from` to `limit` that belong to segment `index`; epoch 0: any. */
static inline void oc_log_find_heads(const uint8_t *base, uint64_t from, uint64_t limit,
				     uint64_t epoch, uint64_t index, struct oc_log_evidence *found)
{
	for (uint64_t at = oc_log_pages(from); at + OC_LOG_PAGE <= limit; at += OC_LOG_PAGE) {
		struct oc_log_head head;
		struct oc_log_record next;
		uint64_t end;

		memcpy(&head, base + at + OC_LOG_RECORD_BYTES, sizeof(head));
		if (!oc_log_is_head(&head) || head.index != index ||
		    (epoch && head.epoch != epoch))
			continue;
		if (!found->first_at) {
			found->first_at = at;
			found->epoch = head.epoch;
		}
		found->heads++;
		if (!found->first_seq || head.first_seq < found->first_seq)
			found->first_seq = head.first_seq;
		memcpy(&next, base + at + OC_LOG_HEAD_BYTES, sizeof(next));
		end = head.first_seq + (next.kind == OC_LOG_SEAL ? 0 : head.records);
		if (end > found->end_seq)
			found->end_seq = end;
		if (head.durable_seq > found->durable_seq)
			found->durable_seq = head.durable_seq;
		if (at + head.bytes > found->end)
			found->end = at + head.bytes;
	}
}

/* The first place from `from` on where a record stands that another one continues; 0: none. */
static inline uint64_t oc_log_find_pair(const uint8_t *base, uint64_t from, uint64_t limit,
					uint64_t epoch, uint64_t seq)
{
	if (limit - from > OC_LOG_PAIRS_BYTES)
		limit = from + OC_LOG_PAIRS_BYTES;
	for (uint64_t at = (from + 7) & ~7ull; at + 2 * OC_LOG_RECORD_BYTES <= limit; at += 8) {
		struct oc_log_record one, two;
		uint64_t next;

		memcpy(&one, base + at, sizeof(one));
		if ((one.kind != OC_LOG_PACKET && one.kind != OC_LOG_GAP) || one.spare ||
		    one.captured > OC_LOG_CAPTURED_MAX || one.seq < seq || oc_log_place(at) != at)
			continue;
		next = oc_log_place(oc_log_after(at, one.captured));
		if (next + OC_LOG_RECORD_BYTES > limit)
			continue;
		memcpy(&two, base + next, sizeof(two));
		if (two.crc == oc_log_link(epoch, one.crc, &two) && two.seq == one.seq + 1)
			return at;
	}
	return 0;
}

/* Everything behind the break of a walk. The map must be ready up to its limit. */
static inline void oc_log_search(const struct oc_log_walk *w, struct oc_log_evidence *found)
{
	memset(found, 0, sizeof(*found));
	oc_log_find_heads(w->base, w->offset, w->limit, w->epoch, w->index, found);
	if (!found->first_at && w->offset < w->limit)
		found->first_at = oc_log_find_pair(w->base, w->offset, w->limit, w->epoch, w->seq);
}

#endif
