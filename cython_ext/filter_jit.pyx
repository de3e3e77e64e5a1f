# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True
"""A filter as machine code: classic BPF compiled by include/oc_jit.h into memory of its own.

Owns that memory: written first, then executable and never writable again. Where there is no
compiler for the CPU, `native` is False and libpcap's interpreter runs the same filter; both say the
same of every packet (tests/steering/test_jit.py).
"""
from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport calloc, free

from cython_ext.pcap cimport Filter, bpf_filter, bpf_insn

cdef extern from "oc_jit.h" nogil:
    enum:
        OC_JIT_INSTRUCTION_MAX
        OC_JIT_FRAME_MAX
    long oc_jit_pass(const bpf_insn* code, unsigned n, uint8_t* out, uint32_t* where)

cdef extern from "<sys/mman.h>" nogil:
    void* mmap(void* addr, size_t length, int prot, int flags, int fd, long offset)
    int munmap(void* addr, size_t length)
    int mprotect(void* addr, size_t length, int prot)
    int PROT_READ, PROT_WRITE, PROT_EXEC, MAP_PRIVATE, MAP_ANONYMOUS
    void* MAP_FAILED


cdef class NativeFilter:
    """`NativeFilter(program)`: an expression, or instructions as compile_filter() gives them."""

    def __cinit__(self, program):
        cdef uint32_t* where
        self.interpreter = Filter(program)
        where = <uint32_t*>calloc(self.interpreter.length + 1, sizeof(uint32_t))
        if where == NULL:
            raise MemoryError("a filter")
        try:
            self._compile(where)
        finally:
            free(where)

    cdef _compile(self, uint32_t* where):
        cdef unsigned n = <unsigned>self.interpreter.length
        cdef long size = oc_jit_pass(self.interpreter.code, n, NULL, where)
        cdef uint8_t* at
        if size < 0 or size > n * OC_JIT_INSTRUCTION_MAX + OC_JIT_FRAME_MAX:
            return
        at = <uint8_t*>mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        if at == <uint8_t*>MAP_FAILED:
            return
        # The second pass knows where everything is, forward too, and must be as long as the first.
        if (oc_jit_pass(self.interpreter.code, n, at, where) != size
                or mprotect(at, size, PROT_READ | PROT_EXEC) < 0):
            munmap(at, size)
            return
        self.memory = at
        self.bytes = size
        self.function = <oc_match>at

    @property
    def native(self):
        """Whether it runs as machine code."""
        return self.function != NULL

    @property
    def code(self):
        """The machine code; empty where there is none."""
        return (<uint8_t*>self.memory)[:self.bytes] if self.memory != NULL else b""

    def match(self, packet):
        """Whether a packet matches: any object with the buffer protocol."""
        cdef const uint8_t[::1] view = packet
        cdef uint32_t length = view.shape[0]
        cdef uint8_t nothing = 0
        cdef const uint8_t* data = &view[0] if length else &nothing
        if self.function != NULL:
            return self.function(data, length) != 0
        return bpf_filter(self.interpreter.code, data, length, length) != 0

    def __dealloc__(self):
        if self.memory != NULL:
            munmap(self.memory, self.bytes)
