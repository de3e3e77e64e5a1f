/* SPDX-License-Identifier: Apache-2.0
 *
 * io_uring for the log's writer: open, write, sync, reap, close, over liburing. Without liburing at
 * build time the same calls answer -ENOSYS, as a kernel that forbids io_uring does at run time
 * (kernel.io_uring_disabled, seccomp), and the device falls back to threads. Not a general wrapper:
 * one thread submits and reaps.
 */
#ifndef OC_URING_H
#define OC_URING_H
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/uio.h>

#ifdef OC_HAVE_URING
#include <liburing.h>
typedef struct io_uring oc_uring;

/* A ring whose completions are announced on an eventfd: 0 or -errno. */
static inline int oc_uring_open(oc_uring **out, unsigned int depth, int event_fd)
{
	oc_uring *ring = calloc(1, sizeof(*ring));
	int error;

	if (!ring)
		return -ENOMEM;
	error = io_uring_queue_init(depth, ring, 0);
	if (error < 0) {
		free(ring);
		return error;
	}
	error = io_uring_register_eventfd(ring, event_fd);
	if (error < 0) {
		io_uring_queue_exit(ring);
		free(ring);
		return error;
	}
	*out = ring;
	return 0;
}

static inline int oc_uring_push(oc_uring *ring)
{
	int n = io_uring_submit(ring);

	return n == 1 ? 0 : n < 0 ? n : -EAGAIN;
}

static inline int oc_uring_writev(oc_uring *ring, int fd, const struct iovec *iov, unsigned int n,
				  uint64_t offset, void *tag)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(ring);

	if (!sqe)
		return -EAGAIN;
	io_uring_prep_writev(sqe, fd, iov, n, offset);
	io_uring_sqe_set_data(sqe, tag);
	return oc_uring_push(ring);
}

static inline int oc_uring_sync(oc_uring *ring, int fd, void *tag)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(ring);

	if (!sqe)
		return -EAGAIN;
	io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC);
	io_uring_sqe_set_data(sqe, tag);
	return oc_uring_push(ring);
}

/* One completion's tag and result, or NULL. */
static inline void *oc_uring_reap(oc_uring *ring, int *result)
{
	struct io_uring_cqe *cqe = NULL;
	void *tag;

	if (io_uring_peek_cqe(ring, &cqe) || !cqe)
		return NULL;
	tag = io_uring_cqe_get_data(cqe);
	*result = cqe->res;
	io_uring_cqe_seen(ring, cqe);
	return tag;
}

static inline void oc_uring_close(oc_uring *ring)
{
	io_uring_queue_exit(ring);
	free(ring);
}
#else
typedef struct oc_uring oc_uring;
static inline int oc_uring_open(oc_uring **out, unsigned int depth, int event_fd)
{
	(void)out, (void)depth, (void)event_fd;
	return -ENOSYS;
}
static inline int oc_uring_writev(oc_uring *ring, int fd, const struct iovec *iov, unsigned int n,
				  uint64_t offset, void *tag)
{
	(void)ring, (void)fd, (void)iov, (void)n, (void)offset, (void)tag;
	return -ENOSYS;
}
static inline int oc_uring_sync(oc_uring *ring, int fd, void *tag)
{
	(void)ring, (void)fd, (void)tag;
	return -ENOSYS;
}
static inline void *oc_uring_reap(oc_uring *ring, int *result)
{
	(void)ring, (void)result;
	return NULL;
}
static inline void oc_uring_close(oc_uring *ring)
{
	(void)ring;
}
#endif
#endif
