/* SPDX-License-Identifier: Apache-2.0
 *
 * What the engine and a member (a consumer in another process) share: two files for each worker.
 *
 *   down   the engine writes, the member maps it read-only: what it is lent, in order
 *   up     the member writes: what it gives back, and whether it sleeps
 *
 * Nothing in `up` is believed: the engine reads each word once and checks it against its own table.
 * Nothing in `down` is ever read by the engine.
 *
 * An entry's `seq` is one more than its position and is written last, after it was 0: a lossy
 * member, whose entries are overwritten without asking, looks at it before and after its copy.
 */
#ifndef OC_SHARE_H
#define OC_SHARE_H
#include <stdint.h>
#include <sys/socket.h>

#define OC_SHARE_MAGIC 0x3165726168734c43ULL /* "CLshare1" in memory */
#define OC_NONE 0xffffffffu

enum {
	OC_SHARE_VERSION = 1,
	OC_SHARE_HEADER = 4096, /* one page; the entries begin on their own */
};

enum oc_place { OC_IN_FRAME = 0, OC_IN_SLAB_2M = 1, OC_IN_SLAB_4K = 2 };

struct oc_lent {
	uint64_t seq;
	uint64_t timestamp_ns; /* CLOCK_MONOTONIC, of the steering program */
	uint64_t place;        /* of its first byte: in the UMEM, or in the file of slabs */
	uint32_t length;
	uint32_t rule_id;
	uint32_t slot;       /* to give back, with its serial; OC_NONE for a lossy member */
	uint32_t serial;
	uint32_t frame;      /* number in the ledger; of the first byte's slab: unused */
	uint32_t generation; /* of the frame, or of the slab's handle */
	uint16_t kind;       /* enum oc_place */
	uint16_t queue;
	uint32_t flags;
	uint32_t missed; /* packets so far that this member should have got and did not */
	uint32_t gap;
};

struct oc_down {
	uint64_t magic;
	uint32_t version;
	uint32_t size;     /* entries, a power of two */
	uint32_t reliable;
	uint32_t window;   /* lossy: entries that the engine keeps alive, at most */
	uint8_t gap0[104];
	uint64_t produced; /* entries so far */
	uint8_t gap1[120];
};

struct oc_up {
	uint32_t sleeping; /* 0: awake; else a number that is new each time */
	uint8_t gap0[124];
	uint32_t returned; /* elements given back so far */
	uint8_t gap1[124];
	uint64_t overruns; /* what a lossy member says that it has lost */
	uint8_t gap2[120];
};

_Static_assert(sizeof(struct oc_lent) == 64, "one cache line an entry");
_Static_assert(sizeof(struct oc_down) == 256 && sizeof(struct oc_up) == 384, "lines in pairs");

static inline void oc_fence(void)
{
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}
static inline void oc_fence_acquire(void)
{
	__atomic_thread_fence(__ATOMIC_ACQUIRE);
}
static inline void oc_fence_release(void)
{
	__atomic_thread_fence(__ATOMIC_RELEASE);
}

/* Wakes who sleeps at the other end. Flags of an eventfd belong to everybody who has it: a member
 * could make ours block, fill it, and stop the worker. Here the flag is the call's own. */
static inline void oc_wake(int fd)
{
	(void)!send(fd, "w", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
}
#endif
