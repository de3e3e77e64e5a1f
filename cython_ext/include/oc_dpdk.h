/* SPDX-License-Identifier: Apache-2.0
 *
 * DPDK for Cython: the headers that we use, and what only C can say of them (inline functions, bit
 * fields, thread-local words, the log's stream). It owns the last lines of DPDK's log and decides
 * nothing. cython_ext/dpdk.pxd declares what is here, and is the only file that does.
 */
#ifndef OC_DPDK_H
#define OC_DPDK_H
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <pthread.h>
#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_lcore.h>
#include <rte_log.h>
#include <rte_malloc.h>
#include <rte_mbuf.h>
#include <rte_mempool.h>
#include <rte_version.h>

/* ------------------------------------------------------------------------------- frames and mbufs
 * One frame, one mempool object, one mbuf:
 *
 *   0            64         192        320                                        frame_bytes
 *   | objhdr     | rte_mbuf | headroom | packet, at the earliest                  |
 *
 * The record (struct oc_meta) lies in the headroom, in front of the packet. A device may begin the
 * packet later: net_af_xdp adds the kernel's headroom of 256. */
enum {
	OC_OBJECT_HEADER = 64, /* rte_mempool_objhdr, aligned to a cache line */
	OC_MBUF_AT = OC_OBJECT_HEADER,
	OC_BUFFER_AT = OC_OBJECT_HEADER + sizeof(struct rte_mbuf),
	OC_DATA_AT = OC_BUFFER_AT + RTE_PKTMBUF_HEADROOM,
};
_Static_assert(sizeof(struct rte_mempool_objhdr) <= OC_OBJECT_HEADER, "the object's header fits");
_Static_assert(sizeof(struct rte_mbuf) == 128, "the picture above");

/* Which memory and queue the calling thread is at work for while it is inside a driver. */
static __thread struct {
	void *pool, *queue;
} oc_inside;

static inline void oc_enter(void *pool, void *queue)
{
	oc_inside.pool = pool;
	oc_inside.queue = queue;
}

/* The queue, if the thread is at work for this pool. */
static inline void *oc_queue_inside(void *pool)
{
	return oc_inside.pool == pool ? oc_inside.queue : NULL;
}

/* What is to be sent: the mbuf of a frame, as the first or a later one of its packet. */
static inline void oc_mbuf_send(struct rte_mbuf *m, uint16_t at, uint16_t length)
{
	m->data_off = at - OC_BUFFER_AT;
	m->data_len = length;
	m->pkt_len = length;
	m->nb_segs = 1;
	m->next = NULL;
	m->ol_flags = 0;
}

/* ----------------------------------------------------------------------------------------- log
 * DPDK writes to a FILE. Lines end up here, the errors among them apart, so that a failure can be
 * told in one line instead of thirty on the user's terminal. */
enum { OC_LOG_WIDTH = 240 };
static struct {
	pthread_mutex_t lock;
	char first_error[OC_LOG_WIDTH]; /* since oc_log_forget(); later ones follow from it */
	char last[OC_LOG_WIDTH];
	uint64_t lines;
} oc_log = { .lock = PTHREAD_MUTEX_INITIALIZER };

static ssize_t oc_log_write(void *cookie, const char *data, size_t size)
{
	size_t length = size < OC_LOG_WIDTH - 1 ? size : OC_LOG_WIDTH - 1;
	int error = rte_log_cur_msg_loglevel() <= (int)RTE_LOG_ERR;
	char line[OC_LOG_WIDTH];

	(void)cookie;
	memcpy(line, data, length);
	while (length && (line[length - 1] == '\n' || line[length - 1] == ' '))
		length--;
	line[length] = 0;
	if (length == 0)
		return size;
	pthread_mutex_lock(&oc_log.lock);
	oc_log.lines++;
	memcpy(oc_log.last, line, length + 1);
	if (error && !oc_log.first_error[0])
		memcpy(oc_log.first_error, line, length + 1);
	pthread_mutex_unlock(&oc_log.lock);
	return size;
}

static inline void oc_log_forget(void)
{
	pthread_mutex_lock(&oc_log.lock);
	oc_log.first_error[0] = oc_log.last[0] = 0;
	pthread_mutex_unlock(&oc_log.lock);
}

static inline void oc_log_read(char *into, int errors)
{
	pthread_mutex_lock(&oc_log.lock);
	memcpy(into, errors ? oc_log.first_error : oc_log.last, OC_LOG_WIDTH);
	pthread_mutex_unlock(&oc_log.lock);
}

static inline int oc_log_open(void)
{
	cookie_io_functions_t functions = { .write = oc_log_write };
	FILE *stream = fopencookie(NULL, "w", functions);

	if (!stream)
		return -1;
	setvbuf(stream, NULL, _IOLBF, BUFSIZ);
	return rte_openlog_stream(stream);
}

/* libbpf and libxdp, which some drivers bring along, write to the user's terminal. */
static inline void oc_silence(void)
{
	void *(*set)(void *);

	*(void **)&set = dlsym(RTLD_DEFAULT, "libxdp_set_print");
	if (set)
		set(NULL);
	*(void **)&set = dlsym(RTLD_DEFAULT, "libbpf_set_print");
	if (set)
		set(NULL);
}

/* -------------------------------------------------------------------------------- mempool */
static inline int oc_register_ops(const char *name, rte_mempool_alloc_t alloc,
				  rte_mempool_free_t release, rte_mempool_enqueue_t enqueue,
				  rte_mempool_dequeue_t dequeue, rte_mempool_get_count count,
				  rte_mempool_populate_t populate)
{
	static struct rte_mempool_ops ops;

	snprintf(ops.name, sizeof(ops.name), "%s", name);
	ops.alloc = alloc;
	ops.free = release;
	ops.enqueue = enqueue;
	ops.dequeue = dequeue;
	ops.get_count = count;
	ops.populate = populate;
	return rte_mempool_register_ops(&ops);
}
#endif
