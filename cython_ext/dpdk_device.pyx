# cython: language_level=3, embedsignature=True
"""One DPDK device (an ethdev port) from plugging in to unplugging: everything but its packets.

It owns the device's settings and life: probe, configure, queues, start, stop, close, remove; and
what DPDK says of it (info, link, statistics). Some drivers look at the network namespace of the
calling thread (net_af_xdp): who calls is in the right one. It raises OSError with the step and
DPDK's first error line, ValueError for what the device cannot do.
"""
from libc.errno cimport EEXIST, ENODEV, EOPNOTSUPP
from libc.stdint cimport uint16_t, uint64_t, uintptr_t
from libc.string cimport memset

from cython_ext.dpdk cimport (RTE_ETH_MQ_RX_RSS, RTE_ETH_RSS_IP, RTE_ETH_RSS_TCP, RTE_ETH_RSS_UDP,
                              RTE_ETH_RX_OFFLOAD_SCATTER, RTE_ETH_TX_OFFLOAD_MULTI_SEGS,
                              rte_dev_dma_map, rte_dev_dma_unmap, rte_dev_probe, rte_dev_remove,
                              rte_device, rte_eth_conf, rte_eth_dev_adjust_nb_rx_tx_desc,
                              rte_eth_dev_close, rte_eth_dev_conf_get, rte_eth_dev_configure,
                              rte_eth_dev_get_mtu, rte_eth_dev_get_port_by_name,
                              rte_eth_dev_info, rte_eth_dev_info_get, rte_eth_dev_rx_offload_name,
                              rte_eth_dev_set_mtu, rte_eth_dev_socket_id, rte_eth_dev_start,
                              rte_eth_dev_stop, rte_eth_dev_tx_offload_name, rte_eth_link,
                              rte_eth_link_get_nowait, rte_eth_promiscuous_disable,
                              rte_eth_promiscuous_enable, rte_eth_promiscuous_get,
                              rte_eth_rx_queue_setup, rte_eth_stats, rte_eth_stats_get,
                              rte_eth_tx_queue_setup, rte_mempool)
from cython_ext.dpdk_pool cimport pool_enter, pool_leave
from cython_ext.dpdk_port cimport DpdkQueue

from cython_ext import dpdk_eal

DESCRIPTORS = 1024                # where the driver has no wish of its own, as testpmd


cdef class Device:
    """`Device(devargs)`: probes "net_null0,size=64" or "0000:03:00.0". EAL runs."""
    cdef readonly str name
    cdef readonly uint16_t number         # ethdev's port number
    cdef readonly bint running
    cdef readonly bint closed
    cdef readonly bint pci
    cdef readonly dict last_statistics
    cdef bint made_promiscuous
    cdef rte_eth_dev_info about
    cdef list mapped

    def __cinit__(self, str devargs not None):
        cdef bytes words = devargs.encode()
        cdef bytes name
        cdef const char* c_words = words
        cdef const char* c_name
        cdef int result
        self.closed = True
        self.mapped = []
        self.name = devargs.split(",")[0]
        self.pci = not self.name.startswith("net_")
        name = self.name.encode()
        c_name = name
        if not self.pci:
            dpdk_eal.load_driver(self.name)
        if rte_eth_dev_get_port_by_name(c_name, &self.number) == 0:
            raise OSError(EEXIST, f"{self.name} is open already")
        dpdk_eal.forget_log()
        with nogil:
            result = rte_dev_probe(c_words)
        if result < 0:
            raise OSError(-result, f"{devargs}: {dpdk_eal.reason(result)}")
        if rte_eth_dev_get_port_by_name(c_name, &self.number) != 0:
            raise OSError(ENODEV, f"{self.name}: DPDK found a device that is no network device")
        self.closed = False
        self._check(rte_eth_dev_info_get(self.number, &self.about), "ask")

    cdef int _check(self, int result, str step) except -1:
        if result < 0:
            raise OSError(-result, f"{self.name}: {step}: {dpdk_eal.reason(result)}")
        return 0

    # ------------------------------------------------------------------------------- what it is

    @property
    def driver(self):
        return self.about.driver_name.decode()

    @property
    def queues_max(self):
        """Queues that receive and send; software devices that take any number say 1024 or so."""
        return min(self.about.max_rx_queues, self.about.max_tx_queues)

    @property
    def numa_node(self):
        return rte_eth_dev_socket_id(self.number)

    @property
    def descriptors(self):
        """(RX, TX) ring sizes that the driver wants, within what it allows."""
        cdef uint16_t rx = self.about.default_rxportconf.ring_size or DESCRIPTORS
        cdef uint16_t tx = self.about.default_txportconf.ring_size or DESCRIPTORS
        self._check(rte_eth_dev_adjust_nb_rx_tx_desc(self.number, &rx, &tx), "ring sizes")
        return rx, tx

    @property
    def mtu(self):
        cdef uint16_t mtu = 0
        return mtu if rte_eth_dev_get_mtu(self.number, &mtu) == 0 else 0

    @property
    def sends_chains(self):
        """Can packets of several segments be sent?"""
        return bool(self.about.tx_offload_capa & RTE_ETH_TX_OFFLOAD_MULTI_SEGS)

    def link(self):
        """"up" or "down", as the driver says."""
        cdef rte_eth_link link
        memset(&link, 0, sizeof(link))
        if self.closed or rte_eth_link_get_nowait(self.number, &link) < 0:
            return "down"
        return "up" if link.link_status else "down"

    def settings(self):
        """What was granted, read back: offloads, RSS, promiscuous, MTU."""
        cdef rte_eth_conf conf
        memset(&conf, 0, sizeof(conf))
        if rte_eth_dev_conf_get(self.number, &conf) < 0:
            memset(&conf, 0, sizeof(conf))
        return {
            "rx_offloads": [rte_eth_dev_rx_offload_name(1 << bit).decode() for bit in range(64)
                            if conf.rxmode.offloads & (<uint64_t>1 << bit)],
            "tx_offloads": [rte_eth_dev_tx_offload_name(1 << bit).decode() for bit in range(64)
                            if conf.txmode.offloads & (<uint64_t>1 << bit)],
            "rss": bool(conf.rxmode.mq_mode & RTE_ETH_MQ_RX_RSS
                        and conf.rx_adv_conf.rss_conf.rss_hf),
            "promiscuous": rte_eth_promiscuous_get(self.number) == 1,
            "mtu": self.mtu,
        }

    def statistics(self):
        """The device's own counters; after close, the last."""
        cdef rte_eth_stats s
        if self.closed:
            return dict(self.last_statistics or {})
        memset(&s, 0, sizeof(s))
        if rte_eth_stats_get(self.number, &s) < 0:
            return {}
        return {"ipackets": s.ipackets, "opackets": s.opackets, "ibytes": s.ibytes,
                "obytes": s.obytes, "imissed": s.imissed, "ierrors": s.ierrors,
                "oerrors": s.oerrors, "rx_nombuf": s.rx_nombuf}

    # ------------------------------------------------------------------------------------- start

    def start(self, list queues, *, mtu=None, bint jumbo=False, bint promiscuous=True,
              bint chains=False):
        """Configures as many queues as given, in their order, and starts the device.

        FILL of each queue holds frames already: drivers take mbufs here. From now on packets may
        arrive; they are taken when the queue is opened. `chains`: it sends packets of several
        segments.
        """
        cdef rte_eth_conf conf
        cdef uint16_t n = len(queues)
        cdef uint64_t rss
        memset(&conf, 0, sizeof(conf))
        rss = RTE_ETH_RSS_IP | RTE_ETH_RSS_TCP | RTE_ETH_RSS_UDP
        rss &= self.about.flow_type_rss_offloads
        if n > 1 and rss:
            conf.rxmode.mq_mode = RTE_ETH_MQ_RX_RSS
            conf.rx_adv_conf.rss_conf.rss_hf = rss
        if jumbo:
            conf.rxmode.offloads = RTE_ETH_RX_OFFLOAD_SCATTER & self.about.rx_offload_capa
            conf.txmode.offloads = RTE_ETH_TX_OFFLOAD_MULTI_SEGS & self.about.tx_offload_capa
        conf.rxmode.mtu = mtu if mtu is not None else self.mtu
        dpdk_eal.forget_log()
        self._check(rte_eth_dev_configure(self.number, n, n, &conf), f"configure {n} queues")
        if mtu is not None:
            self._check(rte_eth_dev_set_mtu(self.number, mtu), f"MTU {mtu}")
        rx, tx = self.descriptors
        for place in range(n):
            self._queue(queues[place], place, rx, tx)
        self._check(rte_eth_dev_start(self.number), "start")
        if promiscuous:
            # What came of it is read back in settings().
            self.made_promiscuous = rte_eth_promiscuous_enable(self.number) == 0
        self.running = True
        for queue in queues:
            (<DpdkQueue?>queue).d.chains = chains
            (<DpdkQueue?>queue).d.started = True

    cdef int _queue(self, DpdkQueue queue, uint16_t place, uint16_t rx, uint16_t tx) except -1:
        cdef int result
        cdef unsigned node = <unsigned>rte_eth_dev_socket_id(self.number)
        cdef rte_mempool* mp = queue.pool.pool.mp
        # A driver that holds as many frames as FILL offers would leave none to replace them.
        while rx > 64 and rx + 64 > queue.q.fill_target:
            rx //= 2
        self._map(queue)
        queue.d.port = self.number
        pool_enter(&queue.q)
        result = rte_eth_rx_queue_setup(self.number, place, rx, node, NULL, mp)
        pool_leave()
        self._check(result, f"receive queue {place}")
        self._check(rte_eth_tx_queue_setup(self.number, place, tx, node, NULL),
                    f"send queue {place}")
        return 0

    cdef int _map(self, DpdkQueue queue) except -1:
        """Lets a PCI device reach the frames through the IOMMU."""
        cdef void* base = queue.frames.um.base
        cdef uint64_t length = queue.frames.arena.bytes
        cdef int result
        known = (<uintptr_t>base, length)
        if not self.pci or known in self.mapped:
            return 0
        result = rte_dev_dma_map(self.about.device, base, <uintptr_t>base, length)
        if result < 0 and result != -EOPNOTSUPP:
            self._check(result, "map the frames for DMA")
        self.mapped.append(known)
        return 0

    # -------------------------------------------------------------------------------------- stop

    def stop(self):
        """No more packets in either direction; the driver gives back what it can."""
        if self.running:
            self.running = False
            self.last_statistics = self.statistics()
            if self.made_promiscuous:     # net_af_xdp leaves the interface so
                rte_eth_promiscuous_disable(self.number)
            rte_eth_dev_stop(self.number)

    def close(self):
        """Stops, closes and unplugs. The frames are nobody's but ours afterwards."""
        cdef rte_device* device = self.about.device
        if self.closed:
            return
        self.stop()
        self.closed = True
        rte_eth_dev_close(self.number)
        for base, length in self.mapped:
            rte_dev_dma_unmap(device, <void*><uintptr_t>base, base, length)
        self.mapped = []
        if device != NULL:
            rte_dev_remove(device)

    def __dealloc__(self):
        if not self.closed:
            rte_eth_dev_stop(self.number)
            rte_eth_dev_close(self.number)
            if self.about.device != NULL:
                rte_dev_remove(self.about.device)
