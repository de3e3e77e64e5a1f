# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True
"""The AF_XDP back-end: one socket, its four rings, one queue of one interface.

Order of life: register the UMEM (or share another socket's), size the rings, map them, fill FILL,
bind. The caller then puts the socket into the steering program's map, and takes it out before
`close`. We drive the socket by the kernel's own interface (linux/if_xdp.h): ring indices, the
moment FILL is filled, and multi-buffer flags have to be ours, on kernels and libraries of any age.

It must be opened inside the interface's network namespace. It raises OSError with the errno of
the step that failed, and a text that names the step; appliance/ turns those into its own errors.
"""
cimport cython
from libc.errno cimport EAGAIN, EBUSY, EINTR, ENETDOWN, ENOBUFS, errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset
from posix.unistd cimport close as c_close

import os
import time

from cython_ext.frames cimport Frames, pthread_mutex_lock, pthread_mutex_unlock
from cython_ext.bursts cimport reap, rings_rx_burst, rings_tx_burst
from cython_ext.filling cimport fill_up
from cython_ext.queue cimport Queue, oc_queue
from cython_ext.rings cimport oc_desc, oc_ring
from cython_ext.atomics cimport load_acquire_u32

cdef extern from "oc_xdp.h" nogil:
    enum:
        AF_XDP, SOL_XDP
        XDP_UMEM_REG, XDP_UMEM_FILL_RING, XDP_UMEM_COMPLETION_RING, XDP_RX_RING, XDP_TX_RING
        XDP_MMAP_OFFSETS, XDP_STATISTICS, XDP_OPTIONS, XDP_OPTIONS_ZEROCOPY
        XDP_SHARED_UMEM, XDP_COPY, XDP_ZEROCOPY, XDP_USE_NEED_WAKEUP, XDP_USE_SG
        XDP_RING_NEED_WAKEUP
        XDP_PGOFF_RX_RING, XDP_PGOFF_TX_RING
        XDP_UMEM_PGOFF_FILL_RING, XDP_UMEM_PGOFF_COMPLETION_RING
        SO_PREFER_BUSY_POLL, SO_BUSY_POLL_BUDGET, SO_BUSY_POLL, SOL_SOCKET, SOCK_RAW, SOCK_CLOEXEC
        MSG_DONTWAIT
    struct xdp_umem_reg:
        uint64_t addr
        uint64_t len
        uint32_t chunk_size
        uint32_t headroom
        uint32_t flags
    struct xdp_ring_offset:
        uint64_t producer
        uint64_t consumer
        uint64_t desc
        uint64_t flags
    struct xdp_mmap_offsets:
        xdp_ring_offset rx
        xdp_ring_offset tx
        xdp_ring_offset fr
        xdp_ring_offset cr
    struct sockaddr_xdp:
        uint16_t sxdp_family
        uint16_t sxdp_flags
        uint32_t sxdp_ifindex
        uint32_t sxdp_queue_id
        uint32_t sxdp_shared_umem_fd
    struct xdp_statistics:
        uint64_t rx_dropped
        uint64_t rx_invalid_descs
        uint64_t tx_invalid_descs
        uint64_t rx_ring_full
        uint64_t rx_fill_ring_empty_descs
        uint64_t tx_ring_empty_descs
    struct xdp_options:
        uint32_t flags
    int socket(int, int, int)
    int setsockopt(int, int, int, const void*, unsigned)
    int getsockopt(int, int, int, void*, unsigned*)
    struct sockaddr:
        pass
    int bind(int, const sockaddr*, unsigned)
    ssize_t sendto(int, const void*, size_t, int, const sockaddr*, unsigned)
    ssize_t recvfrom(int, void*, size_t, int, sockaddr*, unsigned*)

cdef extern from "<sys/mman.h>" nogil:
    void* mmap(void* addr, size_t length, int prot, int flags, int fd, long offset)
    int munmap(void* addr, size_t length)
    int PROT_READ, PROT_WRITE, MAP_SHARED, MAP_POPULATE
    void* MAP_FAILED

cdef enum:
    KICKS_MAX = 256           # sendto() calls for one kick: each moves 32 descriptors


cdef int xsk_kick(oc_queue* q) noexcept nogil:
    """Makes the kernel send. In copy mode one call moves 32 packets, so it is asked until empty.

    EAGAIN means "ask again", EBUSY and ENOBUFS that the device is full; ENETDOWN that the link is
    away: the descriptors stay in the ring for the next kick.
    """
    cdef int _i, error
    for _i in range(KICKS_MAX):
        if load_acquire_u32(q.tx.consumer) == q.tx.mine:
            return 0
        if not (load_acquire_u32(q.tx.flags) & XDP_RING_NEED_WAKEUP) and not q.drive:
            return 0
        q.wakeups += 1
        if sendto(q.fd, NULL, 0, MSG_DONTWAIT, NULL, 0) < 0:
            error = errno
            if error == ENETDOWN:
                return -error
            if error == ENOBUFS or error == EBUSY:
                return 0
            if error != EAGAIN and error != EINTR:
                return -error
            # The completion ring bounds what may be under way: without room there EAGAIN stays.
            reap(q)
    return 0


cdef int xsk_nudge(oc_queue* q) noexcept nogil:
    """Drives receiving where the kernel waits for us: busy polling, or FILL that it found empty.

    Packets that lie in the ring already are taken first: asking for more would be one system call
    a burst, for packets that we then leave in the ring.
    """
    if (q.drive and load_acquire_u32(q.rx.producer) == q.rx.mine) \
            or load_acquire_u32(q.fill.flags) & XDP_RING_NEED_WAKEUP:
        q.wakeups += 1
        recvfrom(q.fd, NULL, 0, MSG_DONTWAIT, NULL, NULL)
    return 0


@cython.no_gc_clear
cdef class XskQueue(Queue):
    """`XskQueue(frames, ifindex, queue_id, rx_ring=2048, tx_ring=2048, fill_ring=4096,
    fill_target=..., mode="copy"|"zerocopy", multi_buffer=False, share=None, retry_s=2.0)`.

    Ring sizes are powers of two, in descriptors. `share` is a queue whose UMEM (the same Frames)
    is used: needed to forward between two ports without a copy. A queue that another socket still
    holds gives EBUSY: tried again for retry_s seconds, since the kernel frees it after a delay.
    """
    cdef void* maps[4]
    cdef size_t map_bytes[4]
    cdef readonly bint zero_copy
    cdef readonly int ifindex
    cdef readonly object last_statistics
    cdef XskQueue shared_with

    def __cinit__(self, Frames frames not None, int ifindex, uint32_t queue_id,
                  uint32_t rx_ring=2048, uint32_t tx_ring=2048, uint32_t fill_ring=4096,
                  fill_target=None, str mode="copy", bint multi_buffer=False,
                  XskQueue share=None, double retry_s=2.0):
        memset(&self.q, 0, sizeof(oc_queue))
        memset(self.maps, 0, sizeof(self.maps))
        self.q.fd = -1
        self.frames = frames
        self.ifindex = ifindex
        self.shared_with = share
        self.closed = True
        for name, size in (("rx_ring", rx_ring), ("tx_ring", tx_ring), ("fill_ring", fill_ring)):
            if size == 0 or size & (size - 1) or size > 1 << 20:
                raise ValueError(f"{name}: {size}: a power of two up to {1 << 20}")
        if mode not in ("auto", "copy", "zerocopy"):
            raise ValueError(f"mode: {mode!r}: auto, copy or zerocopy")
        if share is not None and share.frames is not frames:
            raise ValueError("share: that queue has other frames")
        self.q.um = &frames.um
        self.q.queue_id = queue_id
        self.q.multi_buffer = multi_buffer
        self.q.rx_burst = rings_rx_burst
        self.q.tx_burst = rings_tx_burst
        self.q.kick = xsk_kick
        self.q.nudge = xsk_nudge
        self.q.fill_target = fill_ring if fill_target is None else min(fill_target, fill_ring)
        self.q.fd = socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0)
        if self.q.fd < 0:
            raise OSError(errno, "AF_XDP socket: " + os.strerror(errno))
        try:
            self._register(rx_ring, tx_ring, fill_ring)
            self._map(rx_ring, tx_ring, fill_ring)
            fill_up(&self.q, self.q.fill_target)
            self._bind(mode, retry_s)
        except BaseException:
            self._unmap()
            self._forget_frames()
            raise
        self.closed = False

    def _register(self, uint32_t rx_ring, uint32_t tx_ring, uint32_t fill_ring):
        cdef xdp_umem_reg reg
        if self.shared_with is None:
            memset(&reg, 0, sizeof(reg))
            reg.addr = <uint64_t>self.frames.um.base
            reg.len = self.frames.um.bytes
            reg.chunk_size = self.frames.um.frame_bytes
            self._set(XDP_UMEM_REG, &reg, sizeof(reg), "register the UMEM")
        self._set(XDP_UMEM_FILL_RING, &fill_ring, 4, "size the fill ring")
        # Completions can never be more than frames sent: a ring as large as TX never overflows.
        self._set(XDP_UMEM_COMPLETION_RING, &tx_ring, 4, "size the completion ring")
        self._set(XDP_RX_RING, &rx_ring, 4, "size the RX ring")
        self._set(XDP_TX_RING, &tx_ring, 4, "size the TX ring")

    cdef int _set(self, int option, const void* value, unsigned size, str what) except -1:
        if setsockopt(self.q.fd, SOL_XDP, option, value, size) < 0:
            raise OSError(errno, f"{what}: {os.strerror(errno)}")
        return 0

    def _map(self, uint32_t rx_ring, uint32_t tx_ring, uint32_t fill_ring):
        cdef xdp_mmap_offsets offsets
        cdef unsigned size = sizeof(offsets)
        memset(&offsets, 0, sizeof(offsets))
        if getsockopt(self.q.fd, SOL_XDP, XDP_MMAP_OFFSETS, &offsets, &size) < 0:
            raise OSError(errno, f"ring offsets: {os.strerror(errno)}")
        if size != sizeof(offsets):
            raise OSError(0, "ring offsets: this kernel is older than 5.4")
        self._map_one(0, &self.q.fill, &offsets.fr, XDP_UMEM_PGOFF_FILL_RING, fill_ring, 8)
        self._map_one(1, &self.q.completion, &offsets.cr, XDP_UMEM_PGOFF_COMPLETION_RING,
                      tx_ring, 8)
        self._map_one(2, &self.q.rx, &offsets.rx, XDP_PGOFF_RX_RING, rx_ring, sizeof(oc_desc))
        self._map_one(3, &self.q.tx, &offsets.tx, XDP_PGOFF_TX_RING, tx_ring, sizeof(oc_desc))

    cdef int _map_one(self, int slot, oc_ring* ring, xdp_ring_offset* at, long page_offset,
                      uint32_t size, size_t entry) except -1:
        cdef size_t length = at.desc + size * entry
        cdef uint8_t* p = <uint8_t*>mmap(NULL, length, PROT_READ | PROT_WRITE,
                                         MAP_SHARED | MAP_POPULATE, self.q.fd, page_offset)
        if p == <uint8_t*>MAP_FAILED:
            raise OSError(errno, f"map ring {slot}: {os.strerror(errno)}")
        self.maps[slot] = p
        self.map_bytes[slot] = length
        ring.producer = <uint32_t*>(p + at.producer)
        ring.consumer = <uint32_t*>(p + at.consumer)
        ring.flags = <uint32_t*>(p + at.flags)
        ring.entries = p + at.desc
        ring.size = size
        ring.mask = size - 1
        ring.mine = 0
        ring.theirs = 0
        return 0

    def _bind(self, str mode, double retry_s):
        cdef sockaddr_xdp address
        cdef xdp_options options
        cdef unsigned size = sizeof(options)
        cdef int result, error
        memset(&address, 0, sizeof(address))
        address.sxdp_family = AF_XDP
        address.sxdp_ifindex = self.ifindex
        address.sxdp_queue_id = self.q.queue_id
        if self.shared_with is not None:
            address.sxdp_flags = XDP_SHARED_UMEM
            address.sxdp_shared_umem_fd = self.shared_with.q.fd
        else:
            address.sxdp_flags = XDP_USE_NEED_WAKEUP
            if mode == "copy":
                address.sxdp_flags |= XDP_COPY
            elif mode == "zerocopy":
                address.sxdp_flags |= XDP_ZEROCOPY
            if self.q.multi_buffer:
                address.sxdp_flags |= XDP_USE_SG
        deadline = time.monotonic() + retry_s
        pause = 0.0005
        while True:
            result = bind(self.q.fd, <const sockaddr*>&address, sizeof(address))
            error = errno
            if result == 0:
                break
            if error != EBUSY or time.monotonic() > deadline:
                raise OSError(error, f"bind queue {self.q.queue_id}: {os.strerror(error)}")
            time.sleep(pause)
            pause = min(pause * 2, 0.05)
        memset(&options, 0, sizeof(options))
        if getsockopt(self.q.fd, SOL_XDP, XDP_OPTIONS, &options, &size) == 0:
            self.zero_copy = bool(options.flags & XDP_OPTIONS_ZEROCOPY)

    def busy_poll(self, bint never_sleep=True, int budget=64, int usecs=20):
        """The application drives the NIC: SO_PREFER_BUSY_POLL. OSError if the kernel will not.

        With never_sleep (profile busy) it looks again at once when nothing came; without (profile
        defer) it sleeps in poll(), and the device's timer is the safety net.
        """
        cdef int one = 1
        if (setsockopt(self.q.fd, SOL_SOCKET, SO_PREFER_BUSY_POLL, &one, 4) < 0
                or setsockopt(self.q.fd, SOL_SOCKET, SO_BUSY_POLL, &usecs, 4) < 0
                or setsockopt(self.q.fd, SOL_SOCKET, SO_BUSY_POLL_BUDGET, &budget, 4) < 0):
            raise OSError(errno, f"busy polling: {os.strerror(errno)}")
        self.q.drive = True
        self.q.busy = never_sleep

    def kernel_statistics(self):
        """The six drop counters of the socket, as the kernel counts them; after close, the last."""
        cdef xdp_statistics s
        cdef unsigned size = sizeof(s)
        memset(&s, 0, sizeof(s))
        if self.closed and self.last_statistics is not None:
            return dict(self.last_statistics)
        if getsockopt(self.q.fd, SOL_XDP, XDP_STATISTICS, &s, &size) < 0:
            raise OSError(errno, f"XDP_STATISTICS: {os.strerror(errno)}")
        return {"rx_dropped": s.rx_dropped, "rx_invalid_descs": s.rx_invalid_descs,
                "tx_invalid_descs": s.tx_invalid_descs, "rx_ring_full": s.rx_ring_full,
                "rx_fill_ring_empty_descs": s.rx_fill_ring_empty_descs,
                "tx_ring_empty_descs": s.tx_ring_empty_descs}

    def close(self):
        """Closes the socket. Frames that the kernel had are then nobody's: `Frames.reclaim`."""
        if self.closed:
            return
        pthread_mutex_lock(&self.frames.um.lock)
        reap(&self.q)
        pthread_mutex_unlock(&self.frames.um.lock)
        self.last_statistics = self.kernel_statistics()
        self.closed = True
        self._unmap()

    cdef _unmap(self):
        cdef int i
        if self.q.fd >= 0:
            c_close(self.q.fd)
            self.q.fd = -1
        for i in range(4):
            if self.maps[i] != NULL:
                munmap(self.maps[i], self.map_bytes[i])
                self.maps[i] = NULL

    cdef _forget_frames(self):
        """A queue that never opened: what it posted is free again."""
        if self.q.filled:
            self.frames.reclaim()
            self.q.filled = 0

    def __dealloc__(self):
        cdef int i
        if self.q.fd >= 0:
            c_close(self.q.fd)
        for i in range(4):
            if self.maps[i] != NULL:
                munmap(self.maps[i], self.map_bytes[i])
