# libbpf's low-level calls that the loader uses, as of libbpf 1.1. Declarations only.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "<linux/bpf.h>" nogil:
    struct bpf_insn:
        pass
    struct xdp_md:
        uint32_t data
        uint32_t data_end
        uint32_t data_meta
        uint32_t ingress_ifindex
        uint32_t rx_queue_index
    struct bpf_prog_info:
        uint32_t id
        uint32_t xlated_prog_len
        uint32_t verified_insns
        char name[16]
    struct bpf_map_info:
        uint32_t id
        char name[16]
    struct bpf_link_info:
        uint32_t id
        uint32_t prog_id
    int BPF_PROG_TYPE_XDP
    int BPF_XDP
    int BPF_MAP_TYPE_ARRAY
    int BPF_MAP_TYPE_PERCPU_ARRAY
    int BPF_MAP_TYPE_XSKMAP
    int BPF_F_XDP_HAS_FRAGS


cdef extern from "<linux/if_link.h>" nogil:
    int XDP_FLAGS_SKB_MODE
    int XDP_FLAGS_DRV_MODE


cdef extern from "<bpf/bpf.h>" nogil:
    struct bpf_map_create_opts:
        size_t sz
    struct bpf_prog_load_opts:
        size_t sz
        uint32_t prog_flags
        int expected_attach_type
        uint32_t log_level
        uint32_t log_size
        char *log_buf
    struct bpf_link_create_opts:
        size_t sz
        uint32_t flags
    struct bpf_link_update_opts:
        size_t sz
    struct bpf_test_run_opts:
        size_t sz
        const void *data_in
        void *data_out
        uint32_t data_size_in
        uint32_t data_size_out
        const void *ctx_in
        uint32_t ctx_size_in
        uint32_t retval
        int repeat
        uint32_t duration
    int bpf_map_create(int map_type, const char *name, uint32_t key_size, uint32_t value_size,
                       uint32_t max_entries, const bpf_map_create_opts *opts)
    int bpf_map_update_elem(int fd, const void *key, const void *value, uint64_t flags)
    int bpf_map_lookup_elem(int fd, const void *key, void *value)
    int bpf_map_delete_elem(int fd, const void *key)
    int bpf_prog_load(int prog_type, const char *name, const char *license, const bpf_insn *insns,
                      size_t count, bpf_prog_load_opts *opts)
    int bpf_link_create(int prog_fd, int target_fd, int attach_type,
                        const bpf_link_create_opts *opts)
    int bpf_link_update(int link_fd, int prog_fd, const bpf_link_update_opts *opts)
    int bpf_link_detach(int link_fd)
    int bpf_obj_get_info_by_fd(int fd, void *info, uint32_t *info_len)
    int bpf_prog_test_run_opts(int prog_fd, bpf_test_run_opts *opts)


cdef extern from "<bpf/libbpf.h>" nogil:
    struct bpf_xdp_query_opts:
        size_t sz
        uint32_t prog_id
        uint32_t drv_prog_id
        uint32_t hw_prog_id
        uint32_t skb_prog_id
        uint8_t attach_mode
    int bpf_xdp_query(int ifindex, int flags, bpf_xdp_query_opts *opts)
    int libbpf_num_possible_cpus()
    void *libbpf_set_print(void *function)
