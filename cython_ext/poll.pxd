# poll(2), as worker.pyx and endpoint.pyx wait with it. Declarations only.
cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd* fds, unsigned long n, int timeout_ms)
    short POLLIN
