# Declarations of libpcap's filter half and of Filter, for other modules of the data plane.
# Not here: reading and writing of capture files (capture_file.pyx).
from libc.stdint cimport uint8_t, uint32_t


cdef extern from "<pcap/pcap.h>" nogil:
    ctypedef struct pcap_t:
        pass
    struct bpf_insn:
        unsigned short code
        unsigned char jt
        unsigned char jf
        uint32_t k
    struct bpf_program:
        unsigned int bf_len
        bpf_insn *bf_insns
    int DLT_EN10MB
    uint32_t PCAP_NETMASK_UNKNOWN
    pcap_t *pcap_open_dead(int linktype, int snaplen)
    void pcap_close(pcap_t *handle)
    int pcap_compile(pcap_t *handle, bpf_program *program, const char *text, int optimize,
                     uint32_t netmask)
    void pcap_freecode(bpf_program *program)
    char *pcap_geterr(pcap_t *handle)
    unsigned int bpf_filter(const bpf_insn *program, const uint8_t *packet, unsigned int wirelen,
                            unsigned int caplen)


cdef class Filter:
    cdef bpf_insn *code
    cdef Py_ssize_t length
    cdef _check(self, Py_ssize_t i)
    cdef bint run(self, const uint8_t *packet, uint32_t wirelen, uint32_t caplen) noexcept nogil
