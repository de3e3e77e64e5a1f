# DPDK, declared: every type, function and constant of it that we use, and nothing else. Pure
# declarations; the owners are dpdk_eal, dpdk_pool, dpdk_bursts and dpdk_device. The text behind is
# include/oc_dpdk.h.
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "oc_dpdk.h" nogil:
    # ------------------------------------------------------------------------------- mbuf, mempool
    enum:
        OC_MBUF_AT
        OC_BUFFER_AT
        OC_DATA_AT
        OC_LOG_WIDTH
        RTE_PKTMBUF_HEADROOM
    unsigned RTE_MEMPOOL_F_NO_SPREAD
    int SOCKET_ID_ANY
    struct rte_mempool:
        void* pool_config
        void* pool_data
        uint32_t size
        uint32_t populated_size
        uint32_t elt_size
        uint32_t header_size
        uint32_t trailer_size
    struct rte_mbuf:
        void* buf_addr
        uint16_t data_off
        uint16_t nb_segs
        uint16_t port
        uint64_t ol_flags
        uint32_t pkt_len
        uint16_t data_len
        rte_mempool* pool
        rte_mbuf* next
    struct rte_pktmbuf_pool_private:
        uint16_t mbuf_data_room_size
        uint16_t mbuf_priv_size
    ctypedef uint64_t rte_iova_t
    ctypedef void rte_mempool_populate_obj_cb_t(rte_mempool*, void*, void*, rte_iova_t)
    ctypedef int (*rte_mempool_alloc_t)(rte_mempool*) noexcept nogil
    ctypedef void (*rte_mempool_free_t)(rte_mempool*) noexcept nogil
    ctypedef int (*rte_mempool_enqueue_t)(rte_mempool*, void* const*, unsigned) noexcept nogil
    ctypedef int (*rte_mempool_dequeue_t)(rte_mempool*, void**, unsigned) noexcept nogil
    ctypedef unsigned (*rte_mempool_get_count)(const rte_mempool*) noexcept nogil
    ctypedef int (*rte_mempool_populate_t)(
        rte_mempool*, unsigned, void*, rte_iova_t, size_t,
        rte_mempool_populate_obj_cb_t*, void*) noexcept nogil
    void oc_enter(void* pool, void* queue)
    void* oc_queue_inside(void* pool)
    int oc_register_ops(const char* name, rte_mempool_alloc_t, rte_mempool_free_t,
                        rte_mempool_enqueue_t, rte_mempool_dequeue_t, rte_mempool_get_count,
                        rte_mempool_populate_t)
    void oc_mbuf_send(rte_mbuf* m, uint16_t at, uint16_t length)
    rte_mempool* rte_mempool_create_empty(const char* name, unsigned n, unsigned elt_size,
                                          unsigned cache_size, unsigned private_size,
                                          int socket_id, unsigned flags)
    int rte_mempool_set_ops_byname(rte_mempool* mp, const char* name, void* config)
    int rte_mempool_populate_iova(rte_mempool* mp, char* vaddr, rte_iova_t iova, size_t length,
                                  void* free_cb, void* opaque)
    void rte_mempool_free(rte_mempool* mp)
    uint32_t rte_mempool_obj_iter(rte_mempool* mp, void* callback, void* arg)
    void rte_pktmbuf_pool_init(rte_mempool* mp, void* arg)
    void rte_pktmbuf_init(rte_mempool* mp, void* arg, void* m, unsigned i)
    void rte_pktmbuf_free(rte_mbuf* m)
    const void* rte_pktmbuf_read(const rte_mbuf* m, uint32_t offset, uint32_t length, void* into)
    int rte_extmem_register(void* at, size_t length, rte_iova_t* iovas, unsigned pages,
                            size_t page_bytes)
    int rte_extmem_unregister(void* at, size_t length)

    # ------------------------------------------------------------------------------------- ethdev
    struct rte_device:
        pass
    struct rte_eth_desc_lim:
        uint16_t nb_max
        uint16_t nb_min
    struct rte_eth_dev_portconf:
        uint16_t ring_size
    struct rte_eth_dev_info:
        rte_device* device
        const char* driver_name
        uint16_t min_mtu
        uint16_t max_mtu
        uint16_t max_rx_queues
        uint16_t max_tx_queues
        uint64_t rx_offload_capa
        uint64_t tx_offload_capa
        uint64_t flow_type_rss_offloads
        rte_eth_dev_portconf default_rxportconf
        rte_eth_dev_portconf default_txportconf
    struct rte_eth_rxmode:
        uint32_t mq_mode
        uint32_t mtu
        uint64_t offloads
    struct rte_eth_txmode:
        uint64_t offloads
    struct rte_eth_rss_conf:
        uint64_t rss_hf
    struct rte_eth_rx_adv_conf "rte_eth_conf":       # its anonymous member: only the name matters
        rte_eth_rss_conf rss_conf
    struct rte_eth_conf:
        rte_eth_rxmode rxmode
        rte_eth_txmode txmode
        rte_eth_rx_adv_conf rx_adv_conf
    struct rte_eth_stats:
        uint64_t ipackets
        uint64_t opackets
        uint64_t ibytes
        uint64_t obytes
        uint64_t imissed
        uint64_t ierrors
        uint64_t oerrors
        uint64_t rx_nombuf
    struct rte_eth_link:
        uint32_t link_speed
        uint16_t link_status
    uint64_t RTE_ETH_RX_OFFLOAD_SCATTER
    uint64_t RTE_ETH_TX_OFFLOAD_MULTI_SEGS
    uint64_t RTE_ETH_RSS_IP
    uint64_t RTE_ETH_RSS_TCP
    uint64_t RTE_ETH_RSS_UDP
    uint32_t RTE_ETH_MQ_RX_RSS
    int rte_eth_dev_get_port_by_name(const char* name, uint16_t* port)
    int rte_eth_dev_info_get(uint16_t port, rte_eth_dev_info* info)
    int rte_eth_dev_conf_get(uint16_t port, rte_eth_conf* conf)
    int rte_eth_dev_socket_id(uint16_t port)
    int rte_eth_dev_configure(uint16_t port, uint16_t rx, uint16_t tx, const rte_eth_conf* conf)
    int rte_eth_dev_adjust_nb_rx_tx_desc(uint16_t port, uint16_t* rx, uint16_t* tx)
    int rte_eth_rx_queue_setup(uint16_t port, uint16_t queue, uint16_t descriptors,
                               unsigned socket, const void* conf, rte_mempool* mp)
    int rte_eth_tx_queue_setup(uint16_t port, uint16_t queue, uint16_t descriptors,
                               unsigned socket, const void* conf)
    int rte_eth_dev_start(uint16_t port)
    int rte_eth_dev_stop(uint16_t port)
    int rte_eth_dev_close(uint16_t port)
    int rte_eth_promiscuous_enable(uint16_t port)
    int rte_eth_promiscuous_disable(uint16_t port)
    int rte_eth_promiscuous_get(uint16_t port)
    int rte_eth_dev_get_mtu(uint16_t port, uint16_t* mtu)
    int rte_eth_dev_set_mtu(uint16_t port, uint16_t mtu)
    int rte_eth_stats_get(uint16_t port, rte_eth_stats* stats)
    int rte_eth_link_get_nowait(uint16_t port, rte_eth_link* link)
    const char* rte_eth_dev_rx_offload_name(uint64_t bit)
    const char* rte_eth_dev_tx_offload_name(uint64_t bit)
    uint16_t rte_eth_rx_burst(uint16_t port, uint16_t queue, rte_mbuf** packets, uint16_t n)
    uint16_t rte_eth_tx_burst(uint16_t port, uint16_t queue, rte_mbuf** packets, uint16_t n)
    int rte_eth_tx_done_cleanup(uint16_t port, uint16_t queue, uint32_t free_count)
    int rte_dev_probe(const char* devargs)
    int rte_dev_remove(rte_device* device)
    int rte_dev_dma_map(rte_device* device, void* at, uint64_t iova, size_t length)
    int rte_dev_dma_unmap(rte_device* device, void* at, uint64_t iova, size_t length)

    # ---------------------------------------------------------------------------------------- EAL
    const char* RTE_EAL_PMD_PATH
    int RTLD_NOW
    int RTLD_GLOBAL
    void* dlopen(const char* path, int flags)
    char* dlerror()
    int rte_eal_init(int argc, char** argv)
    int rte_eal_cleanup()
    const char* rte_version()
    const char* rte_strerror(int error)
    int rte_errno
    void oc_silence()
    int oc_log_open()
    void oc_log_forget()
    void oc_log_read(char* into, int errors)
