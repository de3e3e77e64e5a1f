"""libpcap's filters: from text to classic BPF, and libpcap's own interpreter as the reference.

Owns the call of pcap_compile for Ethernet and the class Filter, which runs classic BPF over one
packet exactly as tcpdump does. It knows nothing of XDP (appliance/steering translates) nor of
capture files (capture_file.pyx). Bad text raises ValueError with libpcap's own words.
"""

from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdlib cimport calloc, free


def compile_filter(str expression not None, int snaplen=262144, *, int link_type=DLT_EN10MB):
    """The expression as a list of classic BPF instructions (code, jt, jf, k).

    The default snaplen is tcpdump's. Names of hosts are looked up as tcpdump does; the GIL is
    released meanwhile.
    """
    if "\0" in expression:
        raise ValueError("a filter expression has no NUL character")
    try:
        encoded = expression.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("a filter expression is text that UTF-8 can hold") from None
    cdef const char *text = PyBytes_AS_STRING(encoded)
    cdef bpf_program program
    cdef pcap_t *handle = pcap_open_dead(link_type, snaplen)
    cdef int rc
    cdef unsigned int i
    if handle is NULL:
        raise MemoryError()
    try:
        with nogil:
            rc = pcap_compile(handle, &program, text, 1, PCAP_NETMASK_UNKNOWN)
        if rc != 0:
            raise ValueError((<bytes>pcap_geterr(handle)).decode("utf-8", "replace"))
        try:
            return [(program.bf_insns[i].code, program.bf_insns[i].jt, program.bf_insns[i].jf,
                     program.bf_insns[i].k) for i in range(program.bf_len)]
        finally:
            pcap_freecode(&program)
    finally:
        pcap_close(handle)


# Every opcode that libpcap's interpreter knows. At any other it calls abort(), hence the list.
OPCODES = frozenset((
    0x20, 0x28, 0x30, 0x40, 0x48, 0x50, 0x00, 0x60, 0x80,   # ld: absolute, indirect, #k, M[], len
    0x01, 0x61, 0x81, 0xb1, 0x02, 0x03,                     # ldx: #k, M[], len, msh; st, stx
    *(0x04 | operation | source for source in (0x00, 0x08)
      for operation in (0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0x90, 0xa0)), 0x84,
    0x05, *(0x05 | comparison | source for source in (0x00, 0x08)
            for comparison in (0x10, 0x20, 0x30, 0x40)),
    0x06, 0x16, 0x07, 0x87,
))


cdef class Filter:
    """Classic BPF that libpcap interprets. Made from an expression or from instructions.

    The interpreter trusts its program, so opcodes, jumps and scratch words are checked here, once.
    Backward jumps (`protochain`) are allowed, as libpcap generates them.
    """

    def __cinit__(self, program):
        if isinstance(program, str):
            program = compile_filter(program)
        self.length = len(program)
        if self.length == 0:
            raise ValueError("a filter has at least one instruction")
        self.code = <bpf_insn *>calloc(self.length, sizeof(bpf_insn))
        if self.code is NULL:
            raise MemoryError()
        for i, (code, jt, jf, k) in enumerate(program):
            self.code[i].code = code
            self.code[i].jt = jt
            self.code[i].jf = jf
            self.code[i].k = k
            self._check(i)
        if self.code[self.length - 1].code & 0x07 != 0x06:
            raise ValueError("a filter ends with ret")

    cdef _check(self, Py_ssize_t i):
        cdef unsigned short code = self.code[i].code
        cdef Py_ssize_t target
        if code not in OPCODES:
            raise ValueError(f"instruction {i} has the unknown code {code:#x}")
        if code & 0x07 == 0x05:                      # BPF_JMP
            if code & 0xf0 == 0:                     # BPF_JA: k is signed, protochain jumps back
                target = i + 1 + <int>self.code[i].k
                if not 0 <= target < self.length:
                    raise ValueError(f"instruction {i} jumps out of the filter")
            elif i + 1 + max(self.code[i].jt, self.code[i].jf) >= self.length:
                raise ValueError(f"instruction {i} jumps out of the filter")
        elif code in (0x02, 0x03, 0x60, 0x61) and self.code[i].k >= 16:   # ST STX LD_MEM LDX_MEM
            raise ValueError(f"instruction {i} uses a scratch word beyond 15")
        elif code in (0x34, 0x94) and self.code[i].k == 0:                # DIV_K MOD_K
            raise ValueError(f"instruction {i} divides by zero")

    def __dealloc__(self):
        free(self.code)
        self.code = NULL

    cdef bint run(self, const uint8_t *packet, uint32_t wirelen, uint32_t caplen) noexcept nogil:
        """Whether the packet matches; `caplen` bytes are there, the filter's `len` is `wirelen`."""
        return bpf_filter(self.code, packet, wirelen, caplen) != 0

    def match(self, packet, wire_length=None):
        """The same for any object with the buffer protocol."""
        cdef const uint8_t[::1] view = packet
        cdef uint32_t caplen = view.shape[0]
        cdef uint32_t wirelen = caplen if wire_length is None else wire_length
        cdef uint8_t nothing = 0
        return bool(self.run(&view[0] if caplen else &nothing, wirelen, caplen))
