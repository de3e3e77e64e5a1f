# cython: language_level=3, embedsignature=True
"""Arenas: shared memory for frames, ledgers and slabs.

An arena owns one memfd and one mapping of it. It climbs down the hugepage ladder (2 MiB pages,
transparent hugepages, 4 KiB pages) and says which step it stands on: a fallback is a visible state.
The memory is bound to a NUMA node when asked, touched before use, and the memfd is sealed so that
nobody who is lent a descriptor can shrink it under us. It hands out no objects: pools do that.
"""
from libc.errno cimport EINTR, ENOMEM, errno
from libc.stdint cimport int64_t, uint8_t, uint64_t, uintptr_t
from libc.string cimport memset
from posix.unistd cimport close, ftruncate
from cython_ext.atomics cimport load_relaxed_u64, store_relaxed_u64

import os

cdef extern from "<linux/memfd.h>" nogil:
    unsigned int MFD_HUGE_2MB, MFD_HUGE_1GB

cdef extern from "<sys/mman.h>" nogil:
    int memfd_create(const char* name, unsigned int flags)
    void* mmap(void* addr, size_t length, int prot, int flags, int fd, long offset)
    int munmap(void* addr, size_t length)
    int madvise(void* addr, size_t length, int advice)
    int PROT_NONE, PROT_READ, PROT_WRITE, MAP_SHARED, MAP_FIXED, MAP_PRIVATE, MAP_ANONYMOUS
    int MAP_NORESERVE, MADV_HUGEPAGE, MADV_POPULATE_WRITE
    void* MAP_FAILED
    unsigned int MFD_CLOEXEC, MFD_HUGETLB, MFD_ALLOW_SEALING

cdef extern from "<fcntl.h>" nogil:
    int fcntl(int fd, int cmd, ...)
    int fallocate(int fd, int mode, long offset, long length)
    int F_ADD_SEALS, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_SEAL
    int FALLOC_FL_PUNCH_HOLE, FALLOC_FL_KEEP_SIZE

cdef extern from "<numaif.h>" nogil:
    long mbind(void* addr, unsigned long length, int mode, const unsigned long* nodemask,
               unsigned long maxnode, unsigned flags)
    long get_mempolicy(int* mode, unsigned long* nodemask, unsigned long maxnode, void* addr,
                       unsigned flags)
    int MPOL_BIND, MPOL_PREFERRED, MPOL_F_NODE, MPOL_F_ADDR

cdef enum:
    HUGE_1G = 1073741824
    HUGE_2M = 2097152
    SMALL = 4096
    MPOL_PREFERRED_MANY = 5       # 5.15, and Debian 12's libnuma does not name it

# Fault injection: counts down at every place where memory can run out; at zero that place fails
# once with ENOMEM. -1: off. Only cold paths look at it.
cdef extern from *:
    """
    static inline uint64_t oc_fault_add(uint64_t* p, uint64_t n)
    { return __atomic_fetch_add(p, n, __ATOMIC_RELAXED); }
    """
    uint64_t atomic_add "oc_fault_add"(uint64_t* p, uint64_t n) noexcept nogil

cdef int64_t fault_countdown = -1
cdef uint64_t fault_sites = 0


cdef bint fault() noexcept nogil:
    """Is it this allocation's turn to fail? Asked by each of arenas, slabs and rings."""
    atomic_add(&fault_sites, 1)
    if load_relaxed_u64(<uint64_t*>&fault_countdown) >> 63:
        return False
    # 0 becomes -1: the others find it off.
    return atomic_add(<uint64_t*>&fault_countdown, <uint64_t>-1) == 0


def fail_allocation(int64_t n):
    """The n-th allocation from now (0: the next) fails once, as if there were no memory; -1: none.

    Returns how many allocation sites were passed in this process so far.
    """
    store_relaxed_u64(<uint64_t*>&fault_countdown, <uint64_t>n)
    return load_relaxed_u64(&fault_sites)


cdef void nodes_of(oc_nodes* nodes, wanted, bint strict) except *:
    """Fills a node mask from None, a node number (-1: none) or an iterable of node numbers."""
    memset(nodes, 0, sizeof(oc_nodes))
    numbers = [] if wanted is None else [wanted] if isinstance(wanted, int) else list(wanted)
    for node in numbers:
        if node == -1:
            continue
        if not 0 <= node < NODES_MAX:
            raise ValueError(f"NUMA node {node}: 0 to {NODES_MAX - 1}")
        nodes.mask[node // 64] |= 1UL << (node % 64)
        nodes.count += 1
    nodes.strict = strict


cdef int memory_file(const char* name, uint64_t length, uint64_t page) noexcept nogil:
    """A memfd of `length` bytes, sealed against shrinking; nothing is backed yet. fd or -errno."""
    cdef unsigned int flags = MFD_CLOEXEC | MFD_ALLOW_SEALING
    cdef int fd, error
    if page == HUGE_2M:
        flags |= MFD_HUGETLB | MFD_HUGE_2MB
    elif page == HUGE_1G:
        flags |= MFD_HUGETLB | MFD_HUGE_1GB
    if fault():
        return -ENOMEM
    fd = memfd_create(name, flags)
    if fd < 0:
        return -errno
    if ftruncate(fd, length) < 0:
        error = errno
        close(fd)
        return -error
    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)
    return fd


cdef int map_pages(int fd, uint64_t offset, uint64_t length, uint64_t page, bint thp,
                   const oc_nodes* nodes, void** at, bint* unbound) noexcept nogil:
    """Maps, binds and touches; 0 or an errno, with nothing left behind when it is not 0.

    *at is where to map (over a reservation of ours), or NULL; where it was mapped comes back in it.
    *unbound becomes true if the kernel would not have the preferred nodes.
    """
    cdef int error = 0, mode
    cdef void* where
    # A hugepage that is not there must not cost the reservation: mmap unmaps what MAP_FIXED names
    # before it finds out. So hugepages are taken at an address of the kernel's choice first.
    cdef void* first = at[0] if page == SMALL else NULL
    # Without MAP_NORESERVE the kernel reserves every hugepage here, or says ENOMEM now
    # instead of SIGBUS at some packet later.
    if fault():
        return ENOMEM
    where = mmap(first, length, PROT_READ | PROT_WRITE,
                 MAP_SHARED | (MAP_FIXED if first != NULL else 0), fd, offset)
    if where == MAP_FAILED:
        return errno
    if nodes.count:
        mode = MPOL_BIND
        if not nodes.strict:
            mode = MPOL_PREFERRED if nodes.count == 1 else MPOL_PREFERRED_MANY
        if mbind(where, length, mode, nodes.mask, sizeof(nodes.mask) * 8, 0) < 0:
            if nodes.strict:
                error = errno
            else:
                unbound[0] = True
    if page == SMALL and thp:
        madvise(where, length, MADV_HUGEPAGE)
    if error == 0:
        error = _touch(where, length)
    if error == 0 and at[0] != NULL and first == NULL:
        # The pages are in the file now: mapping them once more takes nothing.
        if mmap(at[0], length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd,
                offset) == MAP_FAILED:
            error = errno
            unmap_pages(fd, offset, length, at[0], True)
        munmap(where, length)
        where = at[0]
        first = where
        if error == 0:
            error = _touch(where, length)
    if error:
        unmap_pages(fd, offset, length, where, first != NULL)
        return error
    at[0] = where
    return 0


cdef int _touch(void* where, uint64_t length) noexcept nogil:
    """Prefaults: the first touch of a page costs microseconds, too much for a packet."""
    if fault():
        return ENOMEM
    while madvise(where, length, MADV_POPULATE_WRITE) < 0:
        if errno != EINTR:
            return errno
    return 0


cdef void unmap_pages(int fd, uint64_t offset, uint64_t length, void* where,
                      bint reserved) noexcept nogil:
    """Gives pages back to the system; a reservation of ours stays where they were mapped."""
    if reserved:
        mmap(where, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED,
             -1, 0)
    else:
        munmap(where, length)
    fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length)


cdef void* reserve_addresses(uint64_t length) noexcept nogil:
    """Address space without memory, aligned to 2 MiB; NULL if there is none."""
    cdef uint64_t wide = length + HUGE_2M
    cdef void* got
    cdef uint64_t start, lead
    if fault():
        return NULL
    got = mmap(NULL, wide, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if got == MAP_FAILED:
        return NULL
    start = (<uint64_t>got + HUGE_2M - 1) & ~<uint64_t>(HUGE_2M - 1)
    lead = start - <uint64_t>got
    if lead:
        munmap(got, lead)
    munmap(<void*>(start + length), wide - length - lead)
    return <void*>start


cdef int node_of(void* where) noexcept nogil:
    """The NUMA node that a touched page is on; -1 if the kernel does not say."""
    cdef int node = -1
    if get_mempolicy(&node, NULL, 0, where, MPOL_F_NODE | MPOL_F_ADDR) < 0:
        return -1
    return node


def shmem_thp_enabled():
    """True if the host gives transparent hugepages to memfd mappings that ask for them."""
    try:
        with open("/sys/kernel/mm/transparent_hugepage/shmem_enabled") as f:
            text = f.read()
    except OSError:
        return False
    return any(f"[{choice}]" in text for choice in ("always", "advise", "within_size", "force"))


cdef class Arena:
    """`Arena(bytes, name, hugepages="auto"|"require"|"off"|"1G", numa_node=-1, strict_numa=False)`.

    "1G" begins the ladder with 1 GiB pages. numa_node may be several nodes: a list of numbers.
    Raises MemoryError when `require` cannot be met or no memory is there, OSError for the rest.
    The mapping lives until the last Python object that refers to the arena is gone, so a view of a
    packet can outlive its port without ever pointing at nothing.
    """

    def __cinit__(self, uint64_t nbytes, str name="openclaw", str hugepages="auto",
                  numa_node=-1, bint strict_numa=False):
        cdef oc_nodes nodes
        self.fd = -1
        self.base = NULL
        nodes_of(&nodes, numa_node, strict_numa)
        self.numa_node = numa_node if isinstance(numa_node, int) else min(numa_node, default=-1)
        self.reason = ""
        if nbytes == 0:
            raise ValueError("an arena of 0 bytes")
        if hugepages not in ("auto", "require", "off", "1G"):
            raise ValueError(f"hugepages: {hugepages!r}: auto, require, off or 1G")
        if hugepages == "1G":
            if self._map(nbytes, HUGE_1G, name, &nodes) == 0:
                self.backing = "1G"
                return
            self.reason = f"{(nbytes + HUGE_1G - 1) // HUGE_1G} hugepages of 1 GiB are not free"
        if hugepages != "off":
            if self._map(nbytes, HUGE_2M, name, &nodes) == 0:
                self.backing = "2M"
                return
            pages = (nbytes + HUGE_2M - 1) // HUGE_2M
            no_2m = f"{pages} hugepages of 2 MiB are not free"
            self.reason = f"{self.reason}, nor {no_2m}" if self.reason else no_2m
            if hugepages == "require":
                raise MemoryError(self.reason)
        error = self._map(nbytes, SMALL, name, &nodes)
        if error:
            raise MemoryError(f"{nbytes} bytes for {name}: {os.strerror(error)}")
        self.backing = "thp" if hugepages != "off" and self._is_thp() else "4k"

    cdef int _map(self, uint64_t nbytes, uint64_t page, str name, oc_nodes* nodes) except -1:
        """0 or an errno, with nothing left behind when it is not 0."""
        cdef uint64_t length = (nbytes + page - 1) // page * page
        cdef bytes label = name.encode()
        cdef const char* clabel = label
        cdef bint unbound = False
        cdef bint thp = page == SMALL and shmem_thp_enabled()
        cdef void* where = NULL
        cdef int error
        cdef int fd = memory_file(clabel, length, page)
        if fd < 0:
            return -fd
        with nogil:
            error = map_pages(fd, 0, length, page, thp, nodes, &where, &unbound)
        if error:
            close(fd)
            return error
        if unbound:
            self.reason = f"memory is not bound to node {self.numa_node}"
            self.numa_node = -1
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
