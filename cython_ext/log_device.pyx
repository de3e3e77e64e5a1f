# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True
"""The device under the log: writes and flushes that are submitted and collected, never waited for.

Owns the two engines (log_device.pxd has the table) and the threads of the second. A write that was
cut short goes on by itself; what cannot be written ends with -errno. What is written where, and
what an error means, is the recorder's. The class Device shows it to Python, for tests and for
probing. A little longer than other rooms: two engines behind one set of verbs.
"""
from libc.errno cimport EIO, ENOSYS, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from posix.unistd cimport close
from cython_ext.frames cimport (pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock,
                                pthread_mutex_t, pthread_mutex_unlock)
from cython_ext.queue cimport now_ns

import os
import time

cdef extern from "oc_uring.h" nogil:
    ctypedef struct oc_uring:
        pass
    int oc_uring_open(oc_uring** out, unsigned int depth, int event_fd)
    int oc_uring_writev(oc_uring* ring, int fd, const iovec* iov, unsigned int n, uint64_t offset,
                        void* tag)
    int oc_uring_sync(oc_uring* ring, int fd, void* tag)
    void* oc_uring_reap(oc_uring* ring, int* result)
    void oc_uring_close(oc_uring* ring)

cdef extern from "oc_persist.h" nogil:
    void oc_persist_copy(void* to, const void* source, size_t n)
    enum:
        OC_PERSIST_STORES

cdef extern from *:
    """
    #include <errno.h>
    #include <pthread.h>
    #include <sys/eventfd.h>
    #include <sys/mman.h>
    #include <sys/uio.h>
    #include <unistd.h>
    static int oc_thread_start(void *(*run)(void *), void *argument)
    {
        pthread_t thread;
        pthread_attr_t how;
        int error;
        pthread_attr_init(&how);
        pthread_attr_setdetachstate(&how, PTHREAD_CREATE_DETACHED);
        pthread_attr_setstacksize(&how, 262144);
        error = pthread_create(&thread, &how, run, argument);
        pthread_attr_destroy(&how);
        return -error;
    }
    static int oc_announce(int fd) { return eventfd_write(fd, 1); }
    /* The page that holds `at`, and all up to at + n. */
    static int oc_flush_map(uint8_t *at, size_t n)
    {
        uintptr_t page = (uintptr_t)at & ~(uintptr_t)4095;
        return msync((void *)page, (uintptr_t)at + n - page, MS_SYNC);
    }
    """
    ctypedef struct pthread_cond_t:
        pass
    int pthread_cond_init(pthread_cond_t* c, void* attributes) nogil
    int pthread_cond_wait(pthread_cond_t* c, pthread_mutex_t* m) nogil
    int pthread_cond_broadcast(pthread_cond_t* c) nogil
    int pthread_cond_signal(pthread_cond_t* c) nogil
    int pthread_cond_destroy(pthread_cond_t* c) nogil
    int oc_thread_start(void* (*run)(void*) noexcept nogil, void* argument) nogil
    int oc_announce(int fd) nogil
    int oc_flush_map(uint8_t* at, size_t n) nogil
    ssize_t pwritev(int fd, const iovec* iov, int n, int64_t offset) nogil
    int fdatasync(int fd) nogil

cdef struct oc_device:
    uint32_t engine
    int wake_fd
    oc_uring* ring
    oc_request[DEPTH] requests
    uint32_t in_flight
    # threads: what is to do, in order, and what is done
    pthread_mutex_t lock
    pthread_cond_t work
    oc_request* todo
    oc_request** todo_end
    oc_request* finished
    oc_request** finished_end
    uint32_t threads
    bint stop
    bint abandoned


cdef oc_device* device_open(uint32_t engine, int wake_fd, int* error) noexcept nogil:
    """A device of that engine, or NULL and -errno."""
    cdef oc_device* d = <oc_device*>calloc(1, sizeof(oc_device))
    cdef uint32_t i
    error[0] = -12                                # ENOMEM
    if d == NULL:
        return NULL
    d.engine = engine
    d.wake_fd = wake_fd
    error[0] = 0
    if engine == URING:
        error[0] = oc_uring_open(&d.ring, DEPTH, wake_fd)
        if error[0] < 0:
            free(d)
            return NULL
        return d
    pthread_mutex_init(&d.lock, NULL)
    pthread_cond_init(&d.work, NULL)
    d.todo_end = &d.todo
    d.finished_end = &d.finished
    for i in range(IO_THREADS):
        error[0] = oc_thread_start(io_thread, d)
        if error[0] < 0:
            break
        pthread_mutex_lock(&d.lock)
        d.threads += 1
        pthread_mutex_unlock(&d.lock)
    if d.threads == 0:
        free(d)
        return NULL
    error[0] = 0
    return d


cdef bint device_close(oc_device* d) noexcept nogil:
    """Ends it if nothing is under way. Otherwise it is left as it is, with all that it refers to:
    threads that come back from a device that hung end by themselves; closing a ring would wait."""
    if d.engine == URING:
        if d.in_flight:
            return False
        oc_uring_close(d.ring)
        free(d)
        return True
    cdef bint idle = d.in_flight == 0
    pthread_mutex_lock(&d.lock)
    d.stop = True
    d.abandoned = True                            # whoever leaves last frees it, us included
    d.threads += 1
    pthread_cond_broadcast(&d.work)
    leave(d)
    return idle


cdef void leave(oc_device* d) noexcept nogil:
    """One fewer; under the lock, which is given up. The last one takes all down."""
    d.threads -= 1
    cdef bint last = d.threads == 0 and d.abandoned and d.in_flight == 0
    pthread_mutex_unlock(&d.lock)
    if last:
        pthread_mutex_destroy(&d.lock)
        pthread_cond_destroy(&d.work)
        free(d)


cdef void* io_thread(void* argument) noexcept nogil:
    """Takes requests in order; several of these work at once, so they may end in any order."""
    cdef oc_device* d = <oc_device*>argument
    cdef oc_request* r
    pthread_mutex_lock(&d.lock)
    while True:
        while d.todo == NULL and not d.stop:
            pthread_cond_wait(&d.work, &d.lock)
        r = d.todo
        if r == NULL:
            break
        d.todo = r.next
        if d.todo == NULL:
            d.todo_end = &d.todo
        pthread_mutex_unlock(&d.lock)
        r.result = perform(r)
        pthread_mutex_lock(&d.lock)
        r.next = NULL
        d.finished_end[0] = r
        d.finished_end = &r.next
        if not d.abandoned:
            oc_announce(d.wake_fd)
    leave(d)
    return NULL


cdef int64_t perform(oc_request* r) noexcept nogil:
    """The request itself, in a thread that may wait: 0 or -errno."""
    cdef uint8_t* at
    cdef uint64_t where = r.target.base + r.offset
    cdef ssize_t n
    cdef uint32_t i
    if r.target.map != NULL:
        if where + r.bytes > r.target.map_bytes:
            return -EIO
        at = r.target.map + where
        if r.kind == SYNC:
            if r.target.persistent_stores:
                return 0                          # each copy ended with its fence
            # `covers` of a mapping's sync is not known here: the segment is flushed whole, and
            # the kernel looks at dirty pages only.
            return 0 if oc_flush_map(r.target.map + r.target.base, r.target.bytes) == 0 else -errno
        for i in range(r.n_iov):
            oc_persist_copy(at, r.iov[i].iov_base, r.iov[i].iov_len)
            at += r.iov[i].iov_len
        return 0
    if r.kind == SYNC:
        return 0 if fdatasync(r.target.fd) == 0 else -errno
    while r.first_iov < r.n_iov:
        n = pwritev(r.target.fd, &r.iov[r.first_iov], r.n_iov - r.first_iov,
                    r.target.base + r.offset)
        if n < 0 and errno == 4:                  # EINTR
            continue
        if n < 0:
            return -errno
        if n == 0:
            return -EIO
        advance(r, n)
    return 0


cdef void advance(oc_request* r, uint64_t n) noexcept nogil:
    """So many bytes more of a write are done."""
    r.offset += n
    while n and r.first_iov < r.n_iov:
        if n < r.iov[r.first_iov].iov_len:
            r.iov[r.first_iov].iov_base = <uint8_t*>r.iov[r.first_iov].iov_base + n
            r.iov[r.first_iov].iov_len -= n
            return
        n -= r.iov[r.first_iov].iov_len
        r.first_iov += 1


cdef oc_request* device_request(oc_device* d) noexcept nogil:
    """A request to fill in, or NULL: all are under way."""
    cdef uint32_t i
    for i in range(DEPTH):
        if d.requests[i].kind == IDLE:
            memset(&d.requests[i], 0, sizeof(oc_request))
            d.requests[i].slot = i
            return &d.requests[i]
    return NULL


cdef void device_submit(oc_device* d, oc_request* r, uint64_t now) noexcept nogil:
    """On its way. Errors come with the request, when it is collected."""
    r.submitted_ns = now
    d.in_flight += 1
    if d.engine == URING:
        start(d, r)
        return
    pthread_mutex_lock(&d.lock)
    r.next = NULL
    d.todo_end[0] = r
    d.todo_end = &r.next
    pthread_cond_signal(&d.work)
    pthread_mutex_unlock(&d.lock)


cdef void start(oc_device* d, oc_request* r) noexcept nogil:
    cdef int error
    if r.kind == SYNC:
        error = oc_uring_sync(d.ring, r.target.fd, r)
    else:
        error = oc_uring_writev(d.ring, r.target.fd, &r.iov[r.first_iov], r.n_iov - r.first_iov,
                                r.target.base + r.offset, r)
    if error < 0:
        # Not taken by the kernel: it ends here, through the list that collect() looks at, too.
        r.result = error
        r.next = d.finished
        d.finished = r


cdef oc_request* device_collect(oc_device* d) noexcept nogil:
    """One request that has ended, or NULL."""
    cdef oc_request* r
    cdef int result = 0
    if d.engine == URING:
        r = d.finished
        if r != NULL:
            d.finished = r.next
        else:
            while True:
                r = <oc_request*>oc_uring_reap(d.ring, &result)
                if r == NULL:
                    return NULL
                if result < 0:
                    r.result = result
                    break
                if r.kind == SYNC:
                    break
                if result == 0:
                    r.result = -EIO
                    break
                advance(r, result)
                if r.first_iov == r.n_iov:
                    break
                start(d, r)                       # cut short: the rest
    else:
        pthread_mutex_lock(&d.lock)
        r = d.finished
        if r != NULL:
            d.finished = r.next
            if d.finished == NULL:
                d.finished_end = &d.finished
        pthread_mutex_unlock(&d.lock)
        if r == NULL:
            return NULL
    d.in_flight -= 1
    r.done = True
    return r


cdef void device_release(oc_device* d, oc_request* r) noexcept nogil:
    r.kind = IDLE


cdef uint64_t device_oldest_ns(oc_device* d) noexcept nogil:
    """When the oldest request that is under way was submitted; 0: none is."""
    cdef uint64_t oldest = 0
    cdef uint32_t i
    for i in range(DEPTH):
        if d.requests[i].kind != IDLE and not d.requests[i].done and (
                oldest == 0 or d.requests[i].submitted_ns < oldest):
            oldest = d.requests[i].submitted_ns
    return oldest


cdef uint32_t device_in_flight(oc_device* d) noexcept nogil:
    return d.in_flight


# ------------------------------------------------------------------ for Python

ENGINES = ("io_uring", "threads")


cdef class Device:
    """`Device("io_uring" | "threads")`: submits writes and syncs, collects (kind, bytes, error).

    For tests, and to see which engine this host allows: OSError says why not.
    """
    cdef oc_device* d
    cdef int wake_fd
    cdef readonly str engine
    cdef list kept

    def __cinit__(self, str engine not None):
        cdef int error = 0
        self.wake_fd = -1
        self.kept = []
        self.engine = engine
        number = ENGINES.index(engine)
        self.wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.d = device_open(number, self.wake_fd, &error)
        if self.d == NULL:
            raise OSError(-error, os.strerror(-error))

    def write(self, int fd, uint64_t offset, data, *, map=None):
        """Submits a write of a buffer (aligned, if fd is O_DIRECT). map: a writable buffer to
        copy into instead."""
        cdef const uint8_t[::1] view = data
        cdef oc_request* r = self._request(fd, map)
        r.kind = WRITE
        r.offset = offset
        r.bytes = view.shape[0]
        r.n_iov = 1
        r.iov[0].iov_base = <void*>&view[0]
        r.iov[0].iov_len = view.shape[0]
        self.kept.append(data)
        device_submit(self.d, r, now_ns())

    def sync(self, int fd, *, map=None):
        cdef oc_request* r = self._request(fd, map)
        r.kind = SYNC
        device_submit(self.d, r, now_ns())

    cdef oc_request* _request(self, int fd, map) except NULL:
        cdef uint8_t[::1] view
        cdef oc_request* r = device_request(self.d)
        if r == NULL:
            raise BlockingIOError(f"{DEPTH} requests are under way")
        r.target.fd = fd
        if map is not None:
            view = map
            r.target.map = &view[0]
            r.target.map_bytes = r.target.bytes = view.shape[0]
            self.kept.append(map)
        return r

    def collect(self, double timeout_s=5.0):
        """(kind, bytes, error number) of one that has ended; None: none did in that time."""
        cdef oc_request* r
        until = time.monotonic() + timeout_s
        while True:
            r = device_collect(self.d)
            if r != NULL:
                out = ("sync" if r.kind == SYNC else "write", r.bytes, -r.result)
                device_release(self.d, r)
                return out
            if time.monotonic() > until:
                return None
            time.sleep(0.0005)

    @property
    def in_flight(self):
        return device_in_flight(self.d)

    def close(self):
        """True: all had ended. False: it was abandoned with what is under way."""
        if self.d == NULL:
            return True
        cdef bint idle = device_close(self.d)
        self.d = NULL
        return idle

    def __dealloc__(self):
        if self.d != NULL:
            device_close(self.d)
        if self.wake_fd >= 0:
            close(self.wake_fd)


def persistent_stores():
    """Whether this processor's stores can pass by the cache (else DAX is flushed by msync)."""
    return bool(OC_PERSIST_STORES)
