/* SPDX-License-Identifier: Apache-2.0
 *
 * DPDK's rte_mempool and rte_ring under the very loops that measure ours. dpdk-test's own
 * mempool_perf_autotest takes 5 s for each of hundreds of cases and cannot be told which; this
 * compiles against the same Debian library and prints one figure.
 *
 *   rte_peer EAL-OPTIONS -- slab BULK THREADS SECONDS   ns of CPU time per object, get and put
 *   rte_peer EAL-OPTIONS -- ring sp|mp BULK SECONDS     ns per element between two threads
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <rte_eal.h>
#include <rte_launch.h>
#include <rte_lcore.h>
#include <rte_mempool.h>
#include <rte_ring.h>

/* CACHE is what our caches hold of 2 KiB objects; RING is what our benchmark makes. */
enum { OBJECTS = 4095, OBJECT_BYTES = 2048, CACHE = 128, RING = 4096, ROUNDS = 4096,
       BULK_MAX = 128 };

static struct rte_mempool *pool;
static struct rte_ring *ring;
static unsigned bulk;
static int multi;
static double seconds;
static int stop;
static double figure[2];

static double now_ns(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

static int churn(void *arg)
{
	double begin = now_ns(CLOCK_THREAD_CPUTIME_ID), took = 0;
	uint64_t objects = 0;
	void *held[BULK_MAX];

	while (took < seconds * 1e9) {
		for (unsigned i = 0; i < ROUNDS; i++) {
			if (rte_mempool_get_bulk(pool, held, bulk) < 0)
				return -1;
			rte_mempool_put_bulk(pool, held, bulk);
		}
		objects += (uint64_t)ROUNDS * bulk;
		took = now_ns(CLOCK_THREAD_CPUTIME_ID) - begin;
	}
	*(double *)arg = took / objects;
	return 0;
}

static int produce(void *arg)
{
	void *some[BULK_MAX] = { NULL };

	(void)arg;
	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED))
		if (multi)
			while (rte_ring_mp_enqueue_bulk(ring, some, bulk, NULL) == 0 &&
			       !__atomic_load_n(&stop, __ATOMIC_RELAXED))
				rte_pause();
		else
			while (rte_ring_sp_enqueue_bulk(ring, some, bulk, NULL) == 0 &&
			       !__atomic_load_n(&stop, __ATOMIC_RELAXED))
				rte_pause();
	return 0;
}

static double consume(void)
{
	double begin = now_ns(CLOCK_MONOTONIC), took = 0;
	uint64_t elements = 0;
	void *some[BULK_MAX];

	while (took < seconds * 1e9) {
		for (unsigned i = 0; i < ROUNDS; i++)
			if (multi)
				while (rte_ring_mc_dequeue_bulk(ring, some, bulk, NULL) == 0)
					rte_pause();
			else
				while (rte_ring_sc_dequeue_bulk(ring, some, bulk, NULL) == 0)
					rte_pause();
		elements += (uint64_t)ROUNDS * bulk;
		took = now_ns(CLOCK_MONOTONIC) - begin;
	}
	__atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
	return took / elements;
}

int main(int argc, char **argv)
{
	int used = rte_eal_init(argc, argv);
	unsigned other, threads;

	if (used < 0)
		return 3;
	argc -= used;
	argv += used;
	other = rte_get_next_lcore(rte_lcore_id(), 1, 0);
	if (argc == 5 && strcmp(argv[1], "slab") == 0) {
		bulk = atoi(argv[2]);
		threads = atoi(argv[3]);
		seconds = atof(argv[4]);
		pool = rte_mempool_create("peer", OBJECTS, OBJECT_BYTES, CACHE, 0, NULL, NULL, NULL,
					  NULL, SOCKET_ID_ANY, 0);
		if (!pool || bulk > BULK_MAX || (threads == 2 && other >= RTE_MAX_LCORE))
			return 2;
		if (threads == 2)
			rte_eal_remote_launch(churn, &figure[1], other);
		if (churn(&figure[0]) < 0)
			return 1;
		if (threads == 2 && rte_eal_wait_lcore(other) < 0)
			return 1;
		printf("ns %.4f\n", threads == 2 ? (figure[0] + figure[1]) / 2 : figure[0]);
		return 0;
	}
	if (argc == 5 && strcmp(argv[1], "ring") == 0) {
		multi = argv[2][0] == 'm';
		bulk = atoi(argv[3]);
		seconds = atof(argv[4]);
		ring = rte_ring_create("peer", RING, SOCKET_ID_ANY,
				       multi ? 0 : RING_F_SP_ENQ | RING_F_SC_DEQ);
		if (!ring || bulk > BULK_MAX || other >= RTE_MAX_LCORE)
			return 2;
		rte_eal_remote_launch(produce, NULL, other);
		figure[0] = consume();
		rte_eal_wait_lcore(other);
		printf("ns %.4f\n", figure[0]);
		return 0;
	}
	return 2;
}
