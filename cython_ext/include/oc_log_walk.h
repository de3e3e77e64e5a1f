/* SPDX-License-Identifier: Apache-2.0
 *
 * Reading a segment record by record, believing nothing: every length is checked against the map
 * before it is used, a header is copied once and then judged, and a record is handed out only when
 * its crc continues the chain and its payload has its own. One text for the readers (log_scan.pyx)
 * and for the fuzz target, hence C. It decides nothing about a log: where and why a walk ended is
 * for appliance/record/verdict.py; what lies behind that place is for oc_log_search.h.
 */
#ifndef OC_LOG_WALK_H
#define OC_LOG_WALK_H
#include "oc_log_format.h"
enum oc_log_stop {
	OC_LOG_GOES_ON = 0,
	OC_LOG_NEED,       /* bytes up to `need` must be made ready; then it goes on */
	OC_LOG_AT_LIMIT,   /* between two writes, nothing more to see (yet): it can go on later */
	OC_LOG_SEALED,     /* the end of the segment, written on purpose */
	/* the rest are breaks: `offset` is the end of what holds */
	OC_LOG_NO_WRITE,   /* no HEAD that continues the chain where a write should begin */
	OC_LOG_BAD_HEAD,   /* a HEAD that contradicts what came before it */
	OC_LOG_BAD_RECORD, /* a header that does not continue the chain */
	OC_LOG_BAD_LENGTH, /* a record that does not fit into its write, or is none */
	OC_LOG_BAD_PAYLOAD,
	OC_LOG_BAD_ORDER,  /* a number that is not the next */
	OC_LOG_BAD_FILL,   /* something where zeros belong */
	OC_LOG_BAD_SEAL,   /* a seal whose sums are not those of the records */
	OC_LOG_SHORT,      /* the segment ends within a write */
};

struct oc_log_walk {
	const uint8_t *base; /* of the segment */
	uint64_t limit;      /* bytes of it that exist */
	uint64_t ready;      /* bytes of it that may be touched; at most limit */
	uint64_t need;
	uint64_t epoch, index;
	uint64_t offset;     /* end of the last record that holds */
	uint64_t write_end;  /* of the write that it is in; equal to offset between writes */
	uint64_t seq;        /* that the next record must have */
	uint64_t number;     /* of the next write; all ones: not known */
	uint64_t durable_seq; /* the highest that any HEAD or the seal told */
	uint64_t records, bytes, lost; /* seen by this walk */
	uint32_t crc, left;  /* of the last record; records left in the write */
	uint32_t stop;       /* oc_log_stop; only after SEALED it stays */
	uint32_t whole, cut; /* begun at the first write; sealed by recovery */
	uint64_t seal_at;    /* payload of the seal, when SEALED */
};

static inline void oc_log_walk_begin(struct oc_log_walk *w, const uint8_t *base, uint64_t limit,
				     const struct oc_log_segment *header)
{
	memset(w, 0, sizeof(*w));
	w->base = base;
	w->limit = w->ready = limit;
	w->epoch = header->epoch;
	w->index = header->index;
	w->seq = header->first_seq;
	w->crc = header->chain;
	w->offset = w->write_end = OC_LOG_PAGE;
	w->whole = 1;
}

/* Whether the bytes up to `end` can be looked at; otherwise the walk has stopped. */
static inline int oc_log_see(struct oc_log_walk *w, uint64_t end)
{
	if (__builtin_expect(end <= w->ready, 1))
		return 1;
	w->need = end;
	w->stop = end > w->limit ? OC_LOG_SHORT : OC_LOG_NEED;
	return 0;
}

static inline int oc_log_zeros(const uint8_t *from, const uint8_t *to)
{
	for (; from < to && !*from; from++) {
	}
	return from >= to;
}
/* What a record of `kind` may have as payload. */
static inline int oc_log_fits_kind(const struct oc_log_record *r, const uint8_t *payload)
{
	struct oc_log_gap gap;
	struct oc_log_seal seal;

	switch (r->kind) {
	case OC_LOG_PACKET:
		return r->captured <= OC_LOG_CAPTURED_MAX && r->captured <= r->original;
	case OC_LOG_GAP:
		if (r->captured < offsetof(struct oc_log_gap, reason))
			return 0;
		memcpy(&gap, payload, offsetof(struct oc_log_gap, reason));
		return gap.reasons <= OC_LOG_REASONS_MAX &&
		       r->captured == offsetof(struct oc_log_gap, reason) +
					      gap.reasons * sizeof(struct oc_log_reason);
	case OC_LOG_SEAL:
		if (r->captured < sizeof(seal) + sizeof(struct oc_log_trailer))
			return 0;
		memcpy(&seal, payload, sizeof(seal));
		return seal.entry_bytes == sizeof(struct oc_log_entry) &&
		       seal.entries <= OC_LOG_INDEX_MAX &&
		       r->captured >= sizeof(seal) + seal.entries * sizeof(struct oc_log_entry) +
					      sizeof(struct oc_log_trailer);
	default:
		return 0;
	}
}

/* Judges the record whose header is at `place` and which must end by `bound`; its header comes out
 * in `r`. GOES_ON: it holds. */
static inline uint32_t oc_log_judge(struct oc_log_walk *w, uint64_t place, uint64_t bound,
				    struct oc_log_record *r)
{
	const uint8_t *payload = w->base + place + OC_LOG_RECORD_BYTES;
	uint64_t end;

	if (place + OC_LOG_RECORD_BYTES > bound)
		return OC_LOG_BAD_LENGTH;
	if (!oc_log_see(w, place + OC_LOG_RECORD_BYTES))
		return w->stop;
	memcpy(r, w->base + place, sizeof(*r));
	if (r->crc != oc_log_link(w->epoch, w->crc, r))
		return OC_LOG_BAD_RECORD;
	end = oc_log_after(place, r->captured);
	if (end > bound || r->spare)
		return OC_LOG_BAD_LENGTH;
	if (!oc_log_see(w, end))
		return w->stop;
	if (r->payload_crc != oc_crc32c(0, payload, r->captured))
		return OC_LOG_BAD_PAYLOAD;
	if (!oc_log_zeros(payload + r->captured, w->base + end))
		return OC_LOG_BAD_FILL;
	return r->seq == w->seq ? OC_LOG_GOES_ON : OC_LOG_BAD_ORDER;
}

static inline uint32_t oc_log_enter_write(struct oc_log_walk *w)
{
	struct oc_log_record r;
	struct oc_log_head head;
	uint32_t why;

	if (w->offset == w->limit)
		return OC_LOG_AT_LIMIT;
	why = oc_log_judge(w, w->offset, w->offset + OC_LOG_PAGE, &r);
	if (why == OC_LOG_NEED)
		return why;
	if (why != OC_LOG_GOES_ON || r.kind != OC_LOG_HEAD || r.captured != sizeof(head))
		return OC_LOG_NO_WRITE;
	memcpy(&head, w->base + w->offset + OC_LOG_RECORD_BYTES, sizeof(head));
	if (!oc_log_is_head(&head) || head.epoch != w->epoch || head.index != w->index ||
	    head.first_seq != w->seq || head.chain != w->crc || !head.bytes ||
	    head.bytes % OC_LOG_PAGE || head.bytes > OC_LOG_WRITE_BYTES_MAX ||
	    (w->number != UINT64_MAX && head.number != w->number))
		return OC_LOG_BAD_HEAD;
	w->write_end = w->offset + head.bytes;
	w->offset += OC_LOG_HEAD_BYTES;
	w->left = head.records;
	w->number = head.number + 1;
	w->crc = r.crc;
	if (head.durable_seq > w->durable_seq && head.durable_seq < w->seq)
		w->durable_seq = head.durable_seq;
	return OC_LOG_GOES_ON;
}

static inline uint32_t oc_log_take_seal(struct oc_log_walk *w, uint64_t place,
					const struct oc_log_record *r)
{
	struct oc_log_seal seal;

	memcpy(&seal, w->base + place + OC_LOG_RECORD_BYTES, sizeof(seal));
	if (w->whole && (seal.records != w->records || seal.bytes != w->bytes ||
			 (w->records && seal.last_seq + 1 != w->seq)))
		return OC_LOG_BAD_SEAL;
	w->cut = !!(r->flags & OC_LOG_CUT);
	w->crc = r->crc;
	w->seal_at = place + OC_LOG_RECORD_BYTES;
	w->offset = w->write_end = oc_log_after(place, r->captured);
	w->left = 0;
	if (seal.durable_seq > w->durable_seq && seal.durable_seq < w->seq)
		w->durable_seq = seal.durable_seq;
	return OC_LOG_SEALED;
}

/* A break, unless recovery has put its seal there. */
static inline uint32_t oc_log_break(struct oc_log_walk *w, uint32_t why)
{
	struct oc_log_record r;
	uint64_t place = oc_log_place(w->offset);
	uint32_t found = oc_log_judge(w, place, w->limit, &r);

	if (found == OC_LOG_NEED)
		return found;
	if (found != OC_LOG_GOES_ON || r.kind != OC_LOG_SEAL || !(r.flags & OC_LOG_CUT) ||
	    !oc_log_fits_kind(&r, w->base + place + OC_LOG_RECORD_BYTES))
		return why;
	found = oc_log_take_seal(w, place, &r);
	return found == OC_LOG_SEALED ? found : why;
}

static inline uint32_t oc_log_step(struct oc_log_walk *w, struct oc_log_record *r, uint64_t *at)
{
	uint64_t place = oc_log_place(w->offset);
	uint32_t why;

	if (!w->left) { /* the end of a write, or between two */
		if (!oc_log_see(w, w->write_end))
			return w->stop;
		if (!oc_log_zeros(w->base + w->offset, w->base + w->write_end))
			return OC_LOG_BAD_FILL;
		w->offset = w->write_end;
		return oc_log_enter_write(w);
	}
	why = oc_log_judge(w, place, w->write_end, r);
	if (why != OC_LOG_GOES_ON)
		return why;
	if (!oc_log_zeros(w->base + w->offset, w->base + place))
		return OC_LOG_BAD_FILL;
	*at = place + OC_LOG_RECORD_BYTES;
	if (!oc_log_fits_kind(r, w->base + *at))
		return OC_LOG_BAD_LENGTH;
	if (r->kind == OC_LOG_SEAL)
		return w->left == 1 ? oc_log_take_seal(w, place, r) : OC_LOG_BAD_SEAL;
	return OC_LOG_GOES_ON;
}

/* The next packet or gap into `r`, its payload's offset into `at`: 1. 0: w->stop says why not. */
static inline int oc_log_next(struct oc_log_walk *w, struct oc_log_record *r, uint64_t *at)
{
	while (w->stop != OC_LOG_SEALED) {
		uint32_t inside = w->left;

		w->stop = oc_log_step(w, r, at);
		if (w->stop > OC_LOG_SEALED)
			w->stop = oc_log_break(w, w->stop);
		if (w->stop != OC_LOG_GOES_ON)
			return 0;
		if (!inside)
			continue; /* that was a HEAD */
		w->offset = oc_log_after(*at - OC_LOG_RECORD_BYTES, r->captured);
		w->crc = r->crc;
		w->left--;
		w->seq++;
		w->records++;
		if (r->kind == OC_LOG_PACKET)
			w->bytes += r->captured;
		else
			w->lost += oc_log_gap_packets(w->base + *at);
		return 1;
	}
	return 0;
}

#endif
