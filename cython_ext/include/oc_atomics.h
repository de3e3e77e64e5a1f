/* SPDX-License-Identifier: Apache-2.0
 *
 * The memory orders of the data plane, by name. A shared index is read once with
 * load_acquire into a local, checked, and used from the local; it is published with
 * store_release after what it covers was written. Counters that another thread only reads
 * use relaxed. Nothing here is `volatile`: that orders nothing between threads.
 */
#ifndef OC_ATOMICS_H
#define OC_ATOMICS_H
#include <stdint.h>

static inline uint32_t oc_load_acquire_u32(const uint32_t *p)
{
	return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}
static inline uint32_t oc_load_relaxed_u32(const uint32_t *p)
{
	return __atomic_load_n(p, __ATOMIC_RELAXED);
}
static inline void oc_store_release_u32(uint32_t *p, uint32_t v)
{
	__atomic_store_n(p, v, __ATOMIC_RELEASE);
}
static inline void oc_store_relaxed_u32(uint32_t *p, uint32_t v)
{
	__atomic_store_n(p, v, __ATOMIC_RELAXED);
}

static inline uint64_t oc_load_relaxed_u64(const uint64_t *p)
{
	return __atomic_load_n(p, __ATOMIC_RELAXED);
}
static inline uint64_t oc_load_acquire_u64(const uint64_t *p)
{
	return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}
static inline void oc_store_relaxed_u64(uint64_t *p, uint64_t v)
{
	__atomic_store_n(p, v, __ATOMIC_RELAXED);
}
static inline void oc_store_release_u64(uint64_t *p, uint64_t v)
{
	__atomic_store_n(p, v, __ATOMIC_RELEASE);
}

/* A counter with one writer: the add needs no locked instruction, the reader no torn value. */
static inline void oc_count_u64(uint64_t *p, uint64_t n)
{
	__atomic_store_n(p, __atomic_load_n(p, __ATOMIC_RELAXED) + n, __ATOMIC_RELAXED);
}

static inline void oc_prefetch(const void *p)
{
	__builtin_prefetch(p, 0, 3);
}
static inline void oc_prefetch_write(const void *p)
{
	__builtin_prefetch(p, 1, 3);
}

static inline void oc_cpu_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ __volatile__("yield");
#endif
}

/* Lets pure Cython code ask for build switches; the compiler removes the dead branch. */
#ifdef OC_LEDGER
enum { OC_LEDGER_ON = 1 };
#else
enum { OC_LEDGER_ON = 0 };
#endif
#ifdef OC_CHECKS
enum { OC_CHECKS_ON = 1 };
#else
enum { OC_CHECKS_ON = 0 };
#endif
#define oc_likely(x) __builtin_expect(!!(x), 1)
#define oc_unlikely(x) __builtin_expect(!!(x), 0)
#endif
