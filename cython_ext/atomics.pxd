# Memory orders and build switches by name; see include/oc_atomics.h.
from libc.stdint cimport uint32_t, uint64_t

cdef extern from "oc_atomics.h" nogil:
    uint32_t load_acquire_u32 "oc_load_acquire_u32"(const uint32_t* p) noexcept
    uint32_t load_relaxed_u32 "oc_load_relaxed_u32"(const uint32_t* p) noexcept
    void store_release_u32 "oc_store_release_u32"(uint32_t* p, uint32_t v) noexcept
    void store_relaxed_u32 "oc_store_relaxed_u32"(uint32_t* p, uint32_t v) noexcept
    uint64_t load_relaxed_u64 "oc_load_relaxed_u64"(const uint64_t* p) noexcept
    uint64_t load_acquire_u64 "oc_load_acquire_u64"(const uint64_t* p) noexcept
    void store_relaxed_u64 "oc_store_relaxed_u64"(uint64_t* p, uint64_t v) noexcept
    void store_release_u64 "oc_store_release_u64"(uint64_t* p, uint64_t v) noexcept
    void count_u64 "oc_count_u64"(uint64_t* p, uint64_t n) noexcept
    void prefetch "oc_prefetch"(const void* p) noexcept
    void prefetch_write "oc_prefetch_write"(const void* p) noexcept
    void cpu_relax "oc_cpu_relax"() noexcept
    bint likely "oc_likely"(bint x) noexcept
    bint unlikely "oc_unlikely"(bint x) noexcept
    enum:
        OC_LEDGER_ON
        OC_CHECKS_ON
