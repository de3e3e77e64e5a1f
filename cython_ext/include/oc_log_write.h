/* SPDX-License-Identifier: Apache-2.0
 *
 * Writing the log into memory: records into a block, a block into a write, a segment's end. Owns
 * the encoding only: who has the block, where it is written and when it is flushed is the caller's.
 *
 *   who copies packets            oc_log_begin, oc_log_append ..., oc_log_finish   (no order yet)
 *   the one who writes            oc_log_close_write: numbers and chains the records, adds HEAD
 *
 * A block is page-aligned memory whose first OC_LOG_HEAD_BYTES stay free for the HEAD; each block
 * becomes one write. The second half touches only headers: payloads may be out of its cache.
 */
#ifndef OC_LOG_WRITE_H
#define OC_LOG_WRITE_H
#include "oc_log_format.h"

/* ------------------------------------------------------------------ who copies packets */

/* Where the next header goes in a block of `limit` bytes that is used up to `at`; 0: no room. */
static inline uint64_t oc_log_fit(uint64_t at, uint32_t captured, uint64_t limit)
{
	uint64_t place = oc_log_place(at);

	return oc_log_after(place, captured) <= limit ? place : 0;
}

/* Begins a record at `place` (of oc_log_fit) of a block that is used up to `at`. The caller fills
 * in port, queue, rule, original, timestamp_ns and flags. */
static inline struct oc_log_record *oc_log_begin(void *block, uint64_t at, uint64_t place,
						 uint16_t kind)
{
	struct oc_log_record *r = (struct oc_log_record *)((uint8_t *)block + place);

	memset((uint8_t *)block + at, 0, place - at);
	memset(r, 0, sizeof(*r));
	r->kind = kind;
	return r;
}

/* Adds bytes to its payload: once, or once for each fragment. */
static inline void oc_log_append(struct oc_log_record *r, const void *bytes, uint32_t count)
{
	r->payload_crc = oc_crc32c_copy(r->payload_crc, (uint8_t *)(r + 1) + r->captured, bytes,
					count);
	r->captured += count;
}

/* Ends it; returns up to where the block is used now. */
static inline uint64_t oc_log_finish(void *block, const struct oc_log_record *r)
{
	uint64_t end = (uint64_t)((const uint8_t *)(r + 1) - (uint8_t *)block) + r->captured;
	uint64_t padded = (end + 7) & ~7ull;

	memset((uint8_t *)block + end, 0, padded - end);
	return padded;
}

/* ------------------------------------------------------------------ who writes */

/* Where the log stands: what goes from write to write and from segment to segment. */
struct oc_log_chain {
	uint64_t epoch, index; /* of the segment */
	uint64_t seq;          /* of the next record */
	uint64_t number;       /* of the next write in the segment */
	uint64_t offset;       /* of the next write in the segment */
	uint32_t crc;          /* of the last record */
	uint32_t spare;
};

/* What a segment will say of itself in its seal. */
struct oc_log_tally {
	struct oc_log_seal sum;
	uint64_t every; /* bytes between two entries */
	struct oc_log_entry entry[OC_LOG_INDEX_MAX];
};

static inline void oc_log_tally_begin(struct oc_log_tally *t, uint64_t segment_bytes)
{
	memset(&t->sum, 0, sizeof(t->sum));
	t->sum.entry_bytes = sizeof(struct oc_log_entry);
	t->every = segment_bytes / OC_LOG_INDEX_MAX;
	if (t->every < 65536)
		t->every = 65536;
}

/* A new segment: `header` is filled in but for chain, first_seq, magic, sizes and crc. */
static inline void oc_log_begin_segment(struct oc_log_chain *c, struct oc_log_tally *t,
					struct oc_log_segment *header)
{
	memcpy(header->magic, "OCLOGSEG", 8);
	header->version = OC_LOG_VERSION;
	header->header_bytes = header->page_bytes = OC_LOG_PAGE;
	if (header->flags & OC_LOG_FRESH)
		c->crc = 0;
	header->chain = c->crc;
	header->first_seq = c->seq;
	header->crc = oc_log_crc(0, header);
	c->epoch = header->epoch;
	c->index = header->index;
	c->number = 0;
	c->offset = OC_LOG_PAGE;
	oc_log_tally_begin(t, header->segment_bytes);
}

static inline void oc_log_tally_entry(struct oc_log_tally *t, const struct oc_log_chain *c)
{
	uint32_t n = t->sum.entries;

	if (n == OC_LOG_INDEX_MAX || (n && c->offset - t->entry[n - 1].offset < t->every))
		return;
	t->entry[n] = (struct oc_log_entry){ c->seq, c->offset, t->sum.high_ns, 0, c->crc, 0 };
	t->sum.entries = n + 1;
}

static inline void oc_log_tally_record(struct oc_log_tally *t, const struct oc_log_record *r)
{
	struct oc_log_entry *e = &t->entry[t->sum.entries - 1];
	uint64_t ns = r->timestamp_ns;

	if (r->kind == OC_LOG_PACKET)
		t->sum.bytes += r->captured;
	else
		t->sum.lost += oc_log_gap_packets(r + 1);
	if (!t->sum.records++)
		t->sum.first_seq = r->seq;
	t->sum.last_seq = r->seq;
	if (ns > t->sum.high_ns)
		t->sum.high_ns = ns;
	if (!t->sum.low_ns || ns < t->sum.low_ns)
		t->sum.low_ns = ns;
	if (!e->low_ns || ns < e->low_ns)
		e->low_ns = ns;
}

static inline void oc_log_number(struct oc_log_chain *c, struct oc_log_record *r)
{
	r->seq = c->seq;
	r->crc = c->crc = oc_log_link(c->epoch, c->crc, r);
}

static inline void oc_log_put_head(struct oc_log_chain *c, void *block, uint32_t bytes,
				   uint32_t records, uint64_t durable_seq, uint64_t now_ns)
{
	struct oc_log_head head = { { 0 }, c->epoch, c->index, c->number, c->seq, durable_seq,
				    bytes, records, c->crc, 0 };
	struct oc_log_record *r = oc_log_begin(block, 0, 0, OC_LOG_HEAD);

	memcpy(head.magic, "OCLOGWRT", 8);
	head.crc = oc_log_crc(oc_log_fold(c->epoch), &head);
	r->timestamp_ns = now_ns;
	oc_log_append(r, &head, sizeof(head));
	r->original = r->captured;
	oc_log_number(c, r);
}

/* Makes a block with `records` records up to `used` into the next write of the segment. Returns its
 * bytes, whole pages; 0: the block is not what was said, and nothing of it may be written. The
 * memory must reach to the end of the last page. */
static inline uint64_t oc_log_close_write(struct oc_log_chain *c, struct oc_log_tally *t,
					  void *block, uint64_t used, uint32_t records,
					  uint64_t durable_seq, uint64_t now_ns)
{
	uint64_t bytes = oc_log_pages(used), at = OC_LOG_HEAD_BYTES;

	if (used < at || bytes > OC_LOG_WRITE_BYTES_MAX)
		return 0;
	memset((uint8_t *)block + used, 0, bytes - used);
	oc_log_tally_entry(t, c);
	oc_log_put_head(c, block, (uint32_t)bytes, records, durable_seq, now_ns);
	for (; records; records--) {
		struct oc_log_record *r;

		at = oc_log_place(at);
		r = (struct oc_log_record *)((uint8_t *)block + at);
		if (at + OC_LOG_RECORD_BYTES > used || oc_log_after(at, r->captured) > used)
			return 0;
		oc_log_number(c, r);
		oc_log_tally_record(t, r);
		c->seq++;
		at = oc_log_after(at, r->captured);
	}
	if (at != used)
		return 0;
	c->number++;
	c->offset += bytes;
	return bytes;
}

/* The SEAL's record at `place` of a block that is used up to `at`, to the end of a page; `where` is
 * the block's offset in the segment. Returns the bytes of the block. Takes 44 KiB at most. */
static inline uint64_t oc_log_put_seal(struct oc_log_chain *c, struct oc_log_tally *t, void *block,
				       uint64_t at, uint64_t where, uint16_t flags, uint64_t now_ns)
{
	uint64_t place = oc_log_place(at), entries = t->sum.entries * sizeof(struct oc_log_entry);
	uint64_t least = place + OC_LOG_RECORD_BYTES + sizeof(t->sum) + entries;
	uint64_t end = oc_log_pages(least + sizeof(struct oc_log_trailer));
	struct oc_log_trailer last = { { 0 }, c->epoch, where + place, 0, 0 };
	struct oc_log_record *r = oc_log_begin(block, at, place, OC_LOG_SEAL);

	memcpy(last.magic, "OCLOGEND", 8);
	last.crc = oc_log_crc(oc_log_fold(c->epoch), &last);
	r->flags = flags;
	r->port = OC_LOG_NO_PORT;
	r->timestamp_ns = now_ns;
	oc_log_append(r, &t->sum, sizeof(t->sum));
	oc_log_append(r, t->entry, (uint32_t)entries);
	memset((uint8_t *)block + least, 0, end - least);
	memcpy((uint8_t *)block + end - sizeof(last), &last, sizeof(last));
	r->payload_crc = oc_crc32c(r->payload_crc, (uint8_t *)block + least, end - least);
	r->captured = r->original = (uint32_t)(end - place - OC_LOG_RECORD_BYTES);
	oc_log_number(c, r);
	return end;
}

/* The last write of a segment: HEAD and SEAL. `block` has room for 44 KiB; returns its bytes. */
static inline uint64_t oc_log_close_segment(struct oc_log_chain *c, struct oc_log_tally *t,
					    void *block, uint64_t durable_seq, uint64_t now_ns)
{
	uint64_t entries = t->sum.entries * sizeof(struct oc_log_entry), bytes;

	/* The size stands in the HEAD, which the SEAL's crc hangs on: it is computed first. */
	bytes = oc_log_pages(OC_LOG_HEAD_BYTES + OC_LOG_RECORD_BYTES + sizeof(t->sum) + entries +
			     sizeof(struct oc_log_trailer));
	t->sum.durable_seq = durable_seq;
	oc_log_put_head(c, block, (uint32_t)bytes, 1, durable_seq, now_ns);
	oc_log_put_seal(c, t, block, OC_LOG_HEAD_BYTES, c->offset, 0, now_ns);
	c->number++;
	c->offset += bytes;
	return bytes;
}

#endif
