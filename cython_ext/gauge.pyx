# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True
"""What measuring needs in compiled form: the clock of a core, a load, and a socket's latency.

Owns nothing that a packet of a user ever meets; appliance/bench is its only customer. The load is
the kernel's own generator (BPF_PROG_TEST_RUN with live frames, Linux 5.18): a sending AF_XDP socket
allocates an skb for each packet and tops out below what a receiver takes, so every receiver would
look alike behind it. The latency loop is compiled so that a socket is compared with a socket, and
not with Python's recvmsg.
"""
from libc.errno cimport EINTR
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset
from posix.time cimport CLOCK_REALTIME, clock_gettime, timespec

import os

from cython_ext.atomics cimport load_acquire_u32, store_release_u32
from cython_ext.queue cimport now_ns

cdef extern from "<bpf/bpf.h>" nogil:
    struct bpf_test_run_opts:
        size_t sz
        const void* data_in
        uint32_t data_size_in
        int repeat
        uint32_t flags
        uint32_t batch_size
    int bpf_prog_test_run_opts(int prog_fd, bpf_test_run_opts* opts)

cdef extern from "<linux/bpf.h>":
    enum:
        BPF_F_TEST_XDP_LIVE_FRAMES

cdef extern from *:
    """
    #include <sys/socket.h>
    #include <time.h>
    #include <string.h>
    #include <stdint.h>
    #include <errno.h>

    /* A chain of multiplications, each waiting for the one before: 3 cycles each on every x86-64
     * since 2008 and on 64-bit Arm cores (Cortex-A76 and later 2 to 3). Additions would not do:
     * newer cores fold a constant into the rename stage and take no time at all. */
    static uint64_t oc_chain(uint64_t n)
    {
        uint64_t x = n | 1, y = 0x9e3779b97f4a7c15ULL;
        for (uint64_t i = 0; i < n; i += 8) {
            x *= y; __asm__ volatile("" : "+r"(x)); x *= y; __asm__ volatile("" : "+r"(x));
            x *= y; __asm__ volatile("" : "+r"(x)); x *= y; __asm__ volatile("" : "+r"(x));
            x *= y; __asm__ volatile("" : "+r"(x)); x *= y; __asm__ volatile("" : "+r"(x));
            x *= y; __asm__ volatile("" : "+r"(x)); x *= y; __asm__ volatile("" : "+r"(x));
        }
        return x;
    }

    /* One datagram; *kernel_ns is the kernel's CLOCK_REALTIME stamp of it, 0 if it gave none. */
    static ssize_t oc_recv_stamped(int fd, int64_t *kernel_ns)
    {
        char data[2048], control[256];
        struct iovec io = { data, sizeof(data) };
        struct msghdr m;
        memset(&m, 0, sizeof(m));
        m.msg_iov = &io;
        m.msg_iovlen = 1;
        m.msg_control = control;
        m.msg_controllen = sizeof(control);
        ssize_t n = recvmsg(fd, &m, 0);
        *kernel_ns = 0;
        if (n < 0)
            return -errno;
        for (struct cmsghdr *c = CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c))
            if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SO_TIMESTAMPNS) {
                struct timespec t;
                memcpy(&t, CMSG_DATA(c), sizeof(t));
                *kernel_ns = (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
            }
        return n;
    }
    """
    uint64_t oc_chain(uint64_t n) nogil
    ssize_t oc_recv_stamped(int fd, int64_t* kernel_ns) nogil

CHAIN_CYCLES = 3


def chain_ns(uint64_t steps):
    """How long `steps` multiplications take that wait for each other, in nanoseconds."""
    cdef uint64_t start, end
    with nogil:
        start = now_ns()
        oc_chain(steps)
        end = now_ns()
    return end - start


cdef class Generator:
    """`Generator(program_fd, packet)`: the kernel sends `packet` wherever the program redirects.

    run() must be called in the network namespace of the interface that the program names.
    """
    cdef int fd
    cdef bytes packet
    cdef uint32_t stopped
    cdef readonly uint64_t sent

    def __init__(self, int program_fd, bytes packet not None):
        if not 14 <= len(packet) <= 3500:
            raise ValueError(f"a packet of {len(packet)} bytes: 14 to 3500")
        self.fd = program_fd
        self.packet = packet

    def run(self, uint32_t per_call=1 << 15, uint32_t batch=64):
        """Sends without pause until stop(). OSError if the kernel has no live frames."""
        cdef bpf_test_run_opts opts
        cdef const uint8_t* data = self.packet
        cdef uint32_t size = len(self.packet)
        cdef int rc = 0
        memset(&opts, 0, sizeof(opts))
        opts.sz = sizeof(opts)
        opts.data_in = data
        opts.data_size_in = size
        opts.flags = BPF_F_TEST_XDP_LIVE_FRAMES
        opts.batch_size = batch
        opts.repeat = <int>per_call
        with nogil:
            while not load_acquire_u32(&self.stopped):
                rc = bpf_prog_test_run_opts(self.fd, &opts)
                if rc < 0:
                    break
                self.sent += per_call
        if rc < 0 and -rc != EINTR:
            raise OSError(-rc, f"live frames: {os.strerror(-rc)}")

    def stop(self):
        """Makes run() return; from any thread."""
        store_release_u32(&self.stopped, 1)


def socket_latencies(int fd, uint64_t[::1] latencies):
    """Fills `latencies` (ns) with kernel timestamp to return of recvmsg; returns how many it got.

    The socket has SO_TIMESTAMPNS and a receive timeout, which ends the run.
    """
    cdef Py_ssize_t n = 0
    cdef int64_t stamp, now
    cdef ssize_t got
    cdef timespec t
    with nogil:
        while n < latencies.shape[0]:
            got = oc_recv_stamped(fd, &stamp)
            if got == -EINTR:
                continue
            if got < 0:
                break
            clock_gettime(CLOCK_REALTIME, &t)
            now = <int64_t>t.tv_sec * 1000000000 + t.tv_nsec
            if stamp == 0:
                continue
            latencies[n] = now - stamp if now > stamp else 0
            n += 1
    return n
