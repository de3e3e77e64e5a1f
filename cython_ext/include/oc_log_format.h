/* SPDX-License-Identifier: Apache-2.0
 *
 * What a log consists of on its medium: sizes, places, and how one record vouches for the one
 * before it. Owns the layout and the arithmetic that writer (oc_log_write.h) and reader
 * (oc_log_walk.h) must share; it neither writes nor judges. Little-endian throughout.
 *
 *   segment   | header 4 KiB | write | write | ...            | write with SEAL |
 *   write     | HEAD | record | record | ... | zeros to the page's end |      n x 4 KiB
 *   record    | header 48 | payload | zeros to a multiple of 8 |
 *
 * A write is never rewritten: what was acknowledged is not touched again. Its HEAD says how long
 * it is and carries the epoch, so that it is recognised when everything before it is lost.
 * A record's header never straddles a page: fewer than 48 bytes left in a page are zeros.
 *
 *   header.crc = CRC32C(header after crc), seeded with the record before and the epoch
 *   payload_crc = CRC32C(payload), within the header: who copies packets and who chains headers
 *                 are different threads, and the second touches headers only
 *
 * The epoch is drawn anew whenever a segment's place is used, so a page of an earlier use does not
 * continue the chain: one record in 2^32 would, and a HEAD one in 2^96.
 */
#ifndef OC_LOG_FORMAT_H
#define OC_LOG_FORMAT_H
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "oc_crc32c.h"

#define OC_LOG_VERSION 1
#define OC_LOG_PAGE 4096u
#define OC_LOG_RECORD_BYTES 48u
#define OC_LOG_HEAD_BYTES (OC_LOG_RECORD_BYTES + 64u) /* where a write's first record begins */
#define OC_LOG_PORTS_MAX 32u
#define OC_LOG_CAPTURED_MAX 262144u        /* tcpdump's snapshot length */
#define OC_LOG_WRITE_BYTES_MAX (16u << 20)
#define OC_LOG_SEGMENT_BYTES_MIN (1ull << 20)
#define OC_LOG_SEGMENT_BYTES_MAX (64ull << 30)
#define OC_LOG_INDEX_MAX 1024u             /* entries of a seal: with it, 44 KiB */
#define OC_LOG_REASONS_MAX 16u             /* of one gap */
#define OC_LOG_NO_PORT 0xffffu             /* a gap that no single port has */
#define OC_LOG_DEVICE_FIRST (1ull << 20)   /* a block device: state at 0, then the slots */

enum oc_log_kind { /* numbers are never reused */
	OC_LOG_PACKET = 1,
	OC_LOG_GAP = 2,  /* packets that were lost here, by reason */
	OC_LOG_HEAD = 3, /* begins a write; takes no sequence number */
	OC_LOG_SEAL = 4, /* ends a segment; takes no sequence number */
};

enum oc_log_record_flag {
	OC_LOG_CUT = 1,       /* SEAL: written by recovery, in place of a torn tail */
	OC_LOG_FRAGMENTS = 2, /* PACKET: came as a chain of frames (jumbo) */
};

enum oc_log_segment_flag {
	/* Begun after a fault: the chain starts at 0, and records of earlier segments from
	 * first_seq on do not count (the device that was to hold them failed). */
	OC_LOG_FRESH = 1,
};

struct oc_log_port {
	uint16_t id, link_type; /* LINKTYPE of pcap: 1 is Ethernet */
	uint32_t snap_bytes;    /* 0: whole packets */
	char name[32], interface[16];
};

struct oc_log_segment {         /* the first page of a segment */
	char magic[8];          /* OCLOGSEG */
	uint32_t version, header_bytes;
	uint8_t uuid[16];       /* of the log */
	uint64_t epoch, index;
	uint64_t segment_bytes; /* at most; a sealed file may be shorter */
	uint64_t first_seq;     /* of the first record that has a number; numbers begin at 1 */
	uint64_t created_ns;    /* CLOCK_REALTIME */
	int64_t clock_offset_ns; /* CLOCK_REALTIME less CLOCK_MONOTONIC at that time */
	uint32_t chain;         /* crc of the record before the segment; 0: first or FRESH */
	uint32_t flags, page_bytes, port_count;
	uint32_t stripe, stripes; /* which of how many directories; 0 of 1 */
	uint8_t spare[152];
	struct oc_log_port ports[OC_LOG_PORTS_MAX];
	uint8_t zeros[2044];
	uint32_t crc; /* of everything before */
};

struct oc_log_record {
	uint32_t crc, payload_crc;
	uint16_t kind, flags, port, queue;
	uint32_t rule;
	uint32_t captured; /* bytes of payload */
	uint32_t original; /* length on the wire; otherwise that of the payload */
	uint32_t spare;    /* zero */
	uint64_t seq;      /* HEAD and SEAL: of the next record */
	uint64_t timestamp_ns; /* CLOCK_REALTIME */
};

struct oc_log_head {    /* payload of HEAD */
	char magic[8];  /* OCLOGWRT */
	uint64_t epoch, index; /* of the segment */
	uint64_t number;       /* of the write in its segment, from 0 */
	uint64_t first_seq;    /* of the next record that has a number */
	uint64_t durable_seq;  /* known to be flushed when this was written; 0: none */
	uint32_t bytes, records; /* of the write; records without HEAD */
	uint32_t chain;          /* crc of the record before the HEAD */
	uint32_t crc;            /* of everything before, seeded with the epoch alone */
};

struct oc_log_reason {
	char name[24];
	uint64_t packets;
};

struct oc_log_gap { /* payload of GAP, `reasons` entries long */
	uint64_t first_ns, last_ns, packets, bytes;
	uint32_t reasons, spare;
	struct oc_log_reason reason[OC_LOG_REASONS_MAX];
};

struct oc_log_entry { /* one every OC_LOG_INDEX_MAX-th of the segment, 64 KiB at least */
	uint64_t seq;     /* of the first record behind this HEAD */
	uint64_t offset;  /* of the HEAD in the segment */
	uint64_t high_ns; /* the latest timestamp before; 0: none */
	uint64_t low_ns;  /* the earliest from here to the next entry */
	uint32_t chain, spare;
};

struct oc_log_seal { /* payload of SEAL: this, entries, zeros, oc_log_trailer at the page's end */
	uint64_t records, bytes; /* of the segment: packets and gaps; captured bytes of packets */
	uint64_t first_seq, last_seq, durable_seq; /* 0: none */
	uint64_t low_ns, high_ns; /* earliest and latest timestamp; 0: none */
	uint64_t lost;            /* sum of the gaps' packets */
	uint32_t entries, entry_bytes;
};

struct oc_log_trailer { /* the last bytes of a SEAL, and of a sealed file: the way to the index */
	char magic[8];  /* OCLOGEND */
	uint64_t epoch;
	uint64_t seal;  /* offset of the SEAL's header in the segment */
	uint32_t spare;
	uint32_t crc;   /* of everything before, seeded with the epoch */
};

/* One of two that take turns in the first page of `state`; the valid one with the larger turn
 * counts, so a writer that is killed while it writes one leaves the other. It survives the death of
 * the process; after a power cut it is at worst old. */
struct oc_log_state {
	char magic[8];  /* OCLOGSTA */
	uint32_t version, flags;
	uint64_t turn;
	uint8_t uuid[16];
	uint64_t epoch, index;  /* of the segment that is being written */
	uint64_t published;     /* bytes of it that readers may look at: whole writes */
	uint64_t last_seq;      /* of the records up to there */
	uint64_t durable_seq;   /* flushed */
	uint64_t writer_pid, writer_start; /* 0: nobody; start time of /proc/PID/stat, field 22 */
	uint64_t slot_bytes, slots;        /* a block device; 0 in a directory */
	uint64_t updated_ns;
	uint32_t spare, crc;    /* of everything before */
};
#define OC_LOG_STATE_PLACES 2
#define OC_LOG_STATE_STRIDE 512u

#define OC_LOG_SIZE(type, bytes) _Static_assert(sizeof(struct type) == (bytes), #type)
OC_LOG_SIZE(oc_log_port, 56);
OC_LOG_SIZE(oc_log_segment, OC_LOG_PAGE);
OC_LOG_SIZE(oc_log_record, OC_LOG_RECORD_BYTES);
OC_LOG_SIZE(oc_log_head, 64);
OC_LOG_SIZE(oc_log_reason, 32);
OC_LOG_SIZE(oc_log_gap, 40 + 32 * OC_LOG_REASONS_MAX);
OC_LOG_SIZE(oc_log_entry, 40);
OC_LOG_SIZE(oc_log_seal, 72);
OC_LOG_SIZE(oc_log_trailer, 32);
OC_LOG_SIZE(oc_log_state, 128);
_Static_assert(offsetof(struct oc_log_segment, crc) == OC_LOG_PAGE - 4, "the crc ends the page");
_Static_assert(OC_LOG_STATE_STRIDE >= sizeof(struct oc_log_state), "two states do not overlap");

/* Where a header may stand at or after `at`, which is a multiple of 8. */
static inline uint64_t oc_log_place(uint64_t at)
{
	uint64_t left = OC_LOG_PAGE - (at & (OC_LOG_PAGE - 1));

	return left < OC_LOG_RECORD_BYTES ? at + left : at;
}

/* Where a record ends whose header is at `at`. */
static inline uint64_t oc_log_after(uint64_t at, uint32_t captured)
{
	return at + OC_LOG_RECORD_BYTES + ((captured + 7ull) & ~7ull);
}

static inline uint64_t oc_log_pages(uint64_t bytes)
{
	return (bytes + OC_LOG_PAGE - 1) & ~(uint64_t)(OC_LOG_PAGE - 1);
}

static inline uint32_t oc_log_fold(uint64_t epoch)
{
	return (uint32_t)(epoch ^ (epoch >> 32));
}

/* The crc that a record's header must have, given that of the record before. */
static inline uint32_t oc_log_link(uint64_t epoch, uint32_t before, const struct oc_log_record *r)
{
	return oc_crc32c(before ^ oc_log_fold(epoch), &r->payload_crc, sizeof(*r) - 4);
}

/* Crc of a structure that ends in it; `seed` is the folded epoch, or 0. */
#define oc_log_crc(seed, s) oc_crc32c(seed, s, sizeof(*(s)) - 4)

static inline int oc_log_is_header(const struct oc_log_segment *h)
{
	return !memcmp(h->magic, "OCLOGSEG", 8) && h->version == OC_LOG_VERSION &&
	       h->header_bytes == OC_LOG_PAGE && h->page_bytes == OC_LOG_PAGE &&
	       h->port_count <= OC_LOG_PORTS_MAX && h->first_seq &&
	       h->crc == oc_log_crc(0, h);
}

/* A HEAD's payload by itself: magic and the crc that its own epoch seeds. */
static inline int oc_log_is_head(const struct oc_log_head *h)
{
	return !memcmp(h->magic, "OCLOGWRT", 8) &&
	       h->crc == oc_log_crc(oc_log_fold(h->epoch), h);
}

static inline int oc_log_is_trailer(const struct oc_log_trailer *t, uint64_t epoch)
{
	return !memcmp(t->magic, "OCLOGEND", 8) && t->epoch == epoch &&
	       t->crc == oc_log_crc(oc_log_fold(epoch), t);
}

static inline uint64_t oc_log_gap_packets(const void *payload)
{
	struct oc_log_gap gap;

	memcpy(&gap, payload, offsetof(struct oc_log_gap, reason));
	return gap.packets;
}

#endif
