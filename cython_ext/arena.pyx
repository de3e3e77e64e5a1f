# cython: language_level=3, embedsignature=True
"""Arenas: shared memory for frames, ledgers and slabs.

An arena owns one memfd and one mapping of it. It climbs down the hugepage ladder (2 MiB pages,
transparent hugepages, 4 KiB pages) and says which step it stands on: a fallback is a visible state.
The memory is bound to a NUMA node when asked, touched before use, and the memfd is sealed so that
nobody who is lent a descriptor can shrink it under us. It hands out no objects: pools do that.
"""
from libc.errno cimport errno, EINTR
from libc.stdint cimport uint8_t, uint64_t, uintptr_t
from libc.string cimport memset
from posix.unistd cimport close, ftruncate

import os

cdef extern from "<linux/memfd.h>" nogil:
    unsigned int MFD_HUGE_2MB

cdef extern from "<sys/mman.h>" nogil:
    int memfd_create(const char* name, unsigned int flags)
    void* mmap(void* addr, size_t length, int prot, int flags, int fd, long offset)
    int munmap(void* addr, size_t length)
    int madvise(void* addr, size_t length, int advice)
    int PROT_READ, PROT_WRITE, MAP_SHARED, MADV_HUGEPAGE, MADV_POPULATE_WRITE
    void* MAP_FAILED
    unsigned int MFD_CLOEXEC, MFD_HUGETLB, MFD_ALLOW_SEALING

cdef extern from "<fcntl.h>" nogil:
    int fcntl(int fd, int cmd, ...)
    int F_ADD_SEALS, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_SEAL

cdef extern from "<numaif.h>" nogil:
    long mbind(void* addr, unsigned long length, int mode, const unsigned long* nodemask,
               unsigned long maxnode, unsigned flags)
    int MPOL_BIND, MPOL_PREFERRED

cdef enum:
    HUGE_2M = 2097152
    SMALL = 4096


def shmem_thp_enabled():
    """True if the host gives transparent hugepages to memfd mappings that ask for them."""
    try:
        with open("/sys/kernel/mm/transparent_hugepage/shmem_enabled") as f:
            text = f.read()
    except OSError:
        return False
    return any(f"[{choice}]" in text for choice in ("always", "advise", "within_size", "force"))


cdef class Arena:
    """`Arena(bytes, name, hugepages="auto"|"require"|"off", numa_node=-1, strict_numa=False)`.

    Raises MemoryError when `require` cannot be met or no memory is there, OSError for the rest.
    The mapping lives until the last Python object that refers to the arena is gone, so a view of a
    packet can outlive its port without ever pointing at nothing.
    """

    def __cinit__(self, uint64_t nbytes, str name="openclaw", str hugepages="auto",
                  int numa_node=-1, bint strict_numa=False):
        self.fd = -1
        self.base = NULL
        self.numa_node = numa_node
        self.reason = ""
        if nbytes == 0:
            raise ValueError("an arena of 0 bytes")
        if hugepages not in ("auto", "require", "off"):
            raise ValueError(f"hugepages: {hugepages!r}: auto, require or off")
        if hugepages != "off":
            if self._map(nbytes, HUGE_2M, name, strict_numa) == 0:
                self.backing = "2M"
                return
            pages = (nbytes + HUGE_2M - 1) // HUGE_2M
            self.reason = f"{pages} hugepages of 2 MiB are not free"
            if hugepages == "require":
                raise MemoryError(self.reason)
        error = self._map(nbytes, SMALL, name, strict_numa)
        if error:
            raise MemoryError(f"{nbytes} bytes for {name}: {os.strerror(error)}")
        self.backing = "thp" if hugepages != "off" and self._is_thp() else "4k"

    cdef int _map(self, uint64_t nbytes, uint64_t page, str name, bint strict_numa) except -1:
        """Maps and touches; 0 or an errno, with nothing left behind when it is not 0."""
        cdef uint64_t length = (nbytes + page - 1) // page * page
        cdef bytes label = name.encode()
        cdef unsigned int flags = MFD_CLOEXEC | MFD_ALLOW_SEALING
        cdef unsigned long[16] mask
        cdef int error = 0
        cdef void* where
        cdef const char* clabel = label
        if page == HUGE_2M:
            flags |= MFD_HUGETLB | MFD_HUGE_2MB
        cdef int fd = memfd_create(clabel, flags)
        if fd < 0:
            return errno
        # Without MAP_NORESERVE the kernel reserves every hugepage here, or says ENOMEM now
        # instead of SIGBUS at some packet later.
        with nogil:
            if ftruncate(fd, length) < 0:
                error = errno
            else:
                where = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
                if where == MAP_FAILED:
                    error = errno
        if error:
            close(fd)
            return error
        if self.numa_node >= 0:
            memset(mask, 0, sizeof(mask))
            mask[self.numa_node // 64] = 1UL << (self.numa_node % 64)
            if mbind(where, length, MPOL_BIND if strict_numa else MPOL_PREFERRED, mask,
                     sizeof(mask) * 8, 0) < 0:
                if strict_numa:
                    error = errno
                else:
                    self.reason = f"memory is not bound to node {self.numa_node}"
                    self.numa_node = -1
        if page == SMALL and shmem_thp_enabled():
            madvise(where, length, MADV_HUGEPAGE)
        if error == 0:
            with nogil:
                # Prefault: the first touch of a page costs microseconds, too much for a packet.
                while madvise(where, length, MADV_POPULATE_WRITE) < 0:
                    if errno != EINTR:
                        error = errno
                        break
        if error:
            munmap(where, length)
            close(fd)
            return error
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)
        self.fd = fd
        self.base = <uint8_t*>where
        self.bytes = length
        return 0

    def _is_thp(self):
        """Asks the kernel, not our wish: is most of this mapping on huge pages?"""
        if not shmem_thp_enabled():
            return False
        start = f"{<uintptr_t>self.base:x}-"
        inside = False
        with open("/proc/self/smaps") as smaps:
            for line in smaps:
                if line.startswith(start):
                    inside = True
                elif inside and line.startswith("ShmemPmdMapped:"):
                    return int(line.split()[1]) * 1024 * 2 > self.bytes
        return False

    def read_only_fd(self):
        """A new descriptor of the same memory that can be mapped for reading only.

        The caller closes it. This is what a consumer in another process is given.
        """
        return os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC)

    @property
    def address(self):
        """Where it is mapped in this process."""
        return <uintptr_t>self.base

    def __dealloc__(self):
        if self.base != NULL:
            munmap(self.base, self.bytes)
        if self.fd >= 0:
            close(self.fd)
