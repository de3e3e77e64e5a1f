/* SPDX-License-Identifier: Apache-2.0
 *
 * The state page of a log: what its one writer tells readers and the next start, through a shared
 * map. Two places take turns, each with its crc, so that a reader in the middle of an update, or a
 * writer killed there, leaves one that is whole. It owns no file and no map.
 */
#ifndef OC_LOG_STATE_H
#define OC_LOG_STATE_H
#include "oc_log_format.h"

/* Publishes `s` in the page (shared map). One writer. */
static inline void oc_log_state_put(void *page, struct oc_log_state *s)
{
	struct oc_log_state *to;

	s->turn++;
	memcpy(s->magic, "OCLOGSTA", 8);
	s->version = OC_LOG_VERSION;
	s->crc = oc_log_crc(0, s);
	to = (struct oc_log_state *)((uint8_t *)page +
				     s->turn % OC_LOG_STATE_PLACES * OC_LOG_STATE_STRIDE);
	__atomic_thread_fence(__ATOMIC_RELEASE); /* what it covers was written before */
	memcpy(to, s, sizeof(*s));
	__atomic_thread_fence(__ATOMIC_RELEASE);
}

/* The newest valid state into `s`: 1, or 0 when there is none (a reader then looks again). */
static inline int oc_log_state_get(const void *page, struct oc_log_state *s)
{
	int found = 0;

	for (uint64_t i = 0; i < OC_LOG_STATE_PLACES; i++) {
		struct oc_log_state one;

		memcpy(&one, (const uint8_t *)page + i * OC_LOG_STATE_STRIDE, sizeof(one));
		if (memcmp(one.magic, "OCLOGSTA", 8) || one.version != OC_LOG_VERSION ||
		    one.crc != oc_log_crc(0, &one) || (found && one.turn < s->turn))
			continue;
		*s = one;
		found = 1;
	}
	__atomic_thread_fence(__ATOMIC_ACQUIRE);
	return found;
}

#endif
