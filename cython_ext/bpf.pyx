"""Maps, programs and links of the kernel's BPF, as objects that own one descriptor each.

Owns every bpf system call of the project. It decides nothing: what to load and where to attach it
is appliance/steering's matter. Failures are OSError with the kernel's errno; a refused program is
VerifierError, which carries the verifier's log. An object that is collected closes its descriptor,
and the kernel drops what nothing refers to, so a process that dies leaves nothing attached.
"""

import os

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from cython_ext.libbpf cimport *

# libbpf reports on stderr by itself; what it has to say reaches us as errno and verifier log.
libbpf_set_print(NULL)

NATIVE = XDP_FLAGS_DRV_MODE
GENERIC = XDP_FLAGS_SKB_MODE
ARRAY = BPF_MAP_TYPE_ARRAY
PERCPU_ARRAY = BPF_MAP_TYPE_PERCPU_ARRAY
XSKMAP = BPF_MAP_TYPE_XSKMAP

# The verifier's log at level 1 names the failing path only; 1 MiB held every log seen so far, and
# one that is cut keeps its end, which is what is read (kernels before 6.4 keep the beginning).
cdef enum:
    LOG_BYTES = 1 << 20

# What the BPF sources say in their first line; bpf_ktime_get_ns and others want it compatible.
cdef const char *LICENSE = "Dual BSD/GPL"


class VerifierError(OSError):
    """The kernel refused a program. `log` is the verifier's whole log."""

    def __init__(self, int code, str log):
        super().__init__(code, os.strerror(code))
        self.log = log


cdef int check(int rc) except -1:
    """libbpf 1.x gives -errno from every low-level call; here it becomes an exception."""
    if rc >= 0:
        return rc
    raise OSError(-rc, os.strerror(-rc))


cdef class Descriptor:
    """A descriptor that is closed exactly once. The base of Map, Program and Link."""
    cdef int _fd

    def __cinit__(self):
        self._fd = -1

    def __dealloc__(self):
        if self._fd >= 0:
            os_close(self._fd)
            self._fd = -1

    @property
    def fd(self):
        return self._alive()

    @property
    def closed(self):
        return self._fd < 0

    cdef int _alive(self) except -1:
        if self._fd < 0:
            raise ValueError(f"{type(self).__name__.lower()} is closed")
        return self._fd

    def close(self):
        if self._fd >= 0:
            os_close(self._fd)
            self._fd = -1


cdef extern from "<unistd.h>" nogil:
    int os_close "close"(int fd)


cdef class Map(Descriptor):
    """A map. Keys are u32 (all our maps are arrays); values are bytes of `value_size`."""
    cdef readonly uint32_t value_size
    cdef readonly uint32_t entries
    cdef readonly int kind

    def __init__(self, int kind, str name, uint32_t value_size, uint32_t entries):
        cdef bytes encoded = name.encode("ascii")[:15]
        self._fd = check(bpf_map_create(kind, encoded, 4, value_size, entries, NULL))
        self.kind, self.value_size, self.entries = kind, value_size, entries

    def __setitem__(self, uint32_t key, bytes value not None):
        if <uint32_t>len(value) != self.value_size or self.kind == BPF_MAP_TYPE_PERCPU_ARRAY:
            raise ValueError("the value has not the size of the map's values")
        check(bpf_map_update_elem(self._alive(), &key, PyBytes_AS_STRING(value), 0))

    def __getitem__(self, uint32_t key):
        """The value; of a per-CPU map a list of values, one for each possible CPU."""
        cdef uint32_t stride = (self.value_size + 7) // 8 * 8
        cdef bint spread = self.kind == BPF_MAP_TYPE_PERCPU_ARRAY
        cdef int copies = check(libbpf_num_possible_cpus()) if spread else 1
        value = PyBytes_FromStringAndSize(NULL, stride * copies)
        check(bpf_map_lookup_elem(self._alive(), &key, PyBytes_AS_STRING(value)))
        if spread:
            return [value[i * stride:i * stride + self.value_size] for i in range(copies)]
        return value[:self.value_size]

    def __delitem__(self, uint32_t key):
        check(bpf_map_delete_elem(self._alive(), &key))

    @property
    def id(self):
        cdef bpf_map_info info
        cdef uint32_t size = sizeof(info)
        memset(&info, 0, sizeof(info))
        check(bpf_obj_get_info_by_fd(self._alive(), &info, &size))
        return info.id


cdef class Program(Descriptor):
    """An XDP program in the kernel. The maps that its bytecode names stay alive with it."""
    cdef readonly bint frags

    def __init__(self, str name, bytes code not None, *, bint frags=False):
        cdef bpf_prog_load_opts opts
        cdef bytes encoded = name.encode("ascii")[:15]
        cdef const char *label = encoded
        cdef const bpf_insn *insns = <const bpf_insn *>PyBytes_AS_STRING(code)
        cdef size_t count = len(code) // 8
        cdef int fd, code_of_error
        cdef char *log
        if len(code) % 8 or not count:
            raise ValueError("bytecode is a whole number of instructions of 8 bytes")
        memset(&opts, 0, sizeof(opts))
        opts.sz = sizeof(opts)
        opts.expected_attach_type = BPF_XDP
        opts.prog_flags = BPF_F_XDP_HAS_FRAGS if frags else 0
        with nogil:
            fd = bpf_prog_load(BPF_PROG_TYPE_XDP, label, LICENSE, insns, count, &opts)
        if fd < 0:
            log = <char *>calloc(1, LOG_BYTES)
            if log is NULL:
                raise MemoryError()
            opts.log_level, opts.log_buf, opts.log_size = 1, log, LOG_BYTES
            with nogil:
                fd = bpf_prog_load(BPF_PROG_TYPE_XDP, label, LICENSE, insns, count, &opts)
            code_of_error = -fd
            log[LOG_BYTES - 1] = 0
            text = (<bytes>log).decode("utf-8", "replace")
            free(log)
            if fd < 0:
                raise VerifierError(code_of_error, text)
        self._fd = fd
        self.frags = frags

    @property
    def info(self):
        """What the kernel says of it: id, instructions, and how many the verifier walked."""
        cdef bpf_prog_info info
        cdef uint32_t size = sizeof(info)
        memset(&info, 0, sizeof(info))
        check(bpf_obj_get_info_by_fd(self._alive(), &info, &size))
        return {"id": info.id, "instructions": info.xlated_prog_len // 8,
                "verified": info.verified_insns}

    @property
    def id(self):
        return self.info["id"]

    def test_run(self, const uint8_t[::1] packet, *, uint32_t room=0):
        """One run over one packet (BPF_PROG_TEST_RUN): (return value, metadata and packet after).

        `room` is how many bytes the program may have put in front of the packet.
        """
        cdef bpf_test_run_opts opts
        cdef uint32_t size = packet.shape[0] + room
        out = PyBytes_FromStringAndSize(NULL, size)
        memset(&opts, 0, sizeof(opts))
        opts.sz = sizeof(opts)
        opts.data_in, opts.data_size_in = &packet[0], packet.shape[0]
        opts.data_out, opts.data_size_out = PyBytes_AS_STRING(out), size
        opts.repeat = 1
        check(bpf_prog_test_run_opts(self._alive(), &opts))
        return opts.retval, out[:opts.data_size_out]

    @cython.boundscheck(False)
    @cython.wraparound(False)
    def test_run_many(self, const uint8_t[::1] data, const uint64_t[::1] offsets,
                      const uint32_t[::1] lengths, const uint32_t[::1] wire_lengths,
                      uint32_t[::1] results):
        """The program over many packets of one buffer; return values go to `results`.

        The wire length of each packet lies in 8 bytes of metadata in front of it (data_meta), where
        an offline program looks for it. OSError when the kernel refuses one (shorter than 14 bytes,
        or too long for a program without fragments).
        """
        cdef Py_ssize_t n = offsets.shape[0], i
        cdef uint64_t total = data.shape[0]
        cdef uint32_t longest = 0
        cdef int fd = self._alive(), rc = 0
        cdef uint8_t *room
        cdef xdp_md context
        cdef bpf_test_run_opts opts
        if not lengths.shape[0] == wire_lengths.shape[0] == results.shape[0] == n:
            raise ValueError("offsets, lengths, wire_lengths and results differ in size")
        for i in range(n):
            if offsets[i] > total or lengths[i] > total - offsets[i]:
                raise ValueError(f"packet {i} lies outside the buffer")
            longest = max(longest, lengths[i])
        room = <uint8_t *>malloc(longest + 8)
        if room is NULL:
            raise MemoryError()
        with nogil:
            for i in range(n):
                memset(room, 0, 8)
                memcpy(room, &wire_lengths[i], 4)
                if lengths[i]:
                    memcpy(room + 8, &data[offsets[i]], lengths[i])
                memset(&context, 0, sizeof(context))
                context.data, context.data_end = 8, lengths[i] + 8
                memset(&opts, 0, sizeof(opts))
                opts.sz = sizeof(opts)
                opts.data_in, opts.data_size_in = room, lengths[i] + 8
                opts.ctx_in, opts.ctx_size_in = &context, sizeof(context)
                opts.repeat = 1
                rc = bpf_prog_test_run_opts(fd, &opts)
                if rc < 0:
                    break
                results[i] = opts.retval
        free(room)
        check(rc)


cdef class Link(Descriptor):
    """A program attached to an interface. It holds as long as the descriptor is open."""

    def __init__(self, Program program not None, int ifindex, uint32_t mode):
        cdef bpf_link_create_opts opts
        memset(&opts, 0, sizeof(opts))
        opts.sz = sizeof(opts)
        opts.flags = mode
        self._fd = check(bpf_link_create(program._alive(), ifindex, BPF_XDP, &opts))

    def update(self, Program program not None):
        """Replaces the program atomically; each packet meets the old one or the new one."""
        check(bpf_link_update(self._alive(), program._alive(), NULL))

    def detach(self):
        check(bpf_link_detach(self._alive()))

    @property
    def info(self):
        cdef bpf_link_info info
        cdef uint32_t size = sizeof(info)
        memset(&info, 0, sizeof(info))
        check(bpf_obj_get_info_by_fd(self._alive(), &info, &size))
        return {"id": info.id, "program": info.prog_id}


def named(int fd, str kind):
    """(id, name) of the object behind a descriptor; kind is "bpf-map" or "bpf-prog"."""
    cdef bpf_map_info map_info
    cdef bpf_prog_info prog_info
    cdef uint32_t size
    if kind == "bpf-map":
        memset(&map_info, 0, sizeof(map_info))
        size = sizeof(map_info)
        check(bpf_obj_get_info_by_fd(fd, &map_info, &size))
        return map_info.id, map_info.name.decode()
    memset(&prog_info, 0, sizeof(prog_info))
    size = sizeof(prog_info)
    check(bpf_obj_get_info_by_fd(fd, &prog_info, &size))
    return prog_info.id, prog_info.name.decode()


def attached(int ifindex):
    """The ids of XDP programs on an interface of the current network namespace, by mode."""
    cdef bpf_xdp_query_opts opts
    memset(&opts, 0, sizeof(opts))
    opts.sz = sizeof(opts)
    check(bpf_xdp_query(ifindex, 0, &opts))
    found = {"native": opts.drv_prog_id, "generic": opts.skb_prog_id, "offload": opts.hw_prog_id}
    if opts.prog_id and not any(found.values()):
        found["native"] = opts.prog_id
    return {mode: number for mode, number in found.items() if number}
