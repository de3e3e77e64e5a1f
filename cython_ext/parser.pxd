# Declarations of the packet parser, for the modules of the data plane that parse in the hot path.
# The text itself is xdp/openclaw_parse.h; nothing is parsed anywhere else.
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "openclaw_parse.h" nogil:
    struct oc_packet:
        uint16_t l3_offset, l4_offset, payload_offset, eth_type
        uint16_t *vlan
        uint8_t vlan_count, mpls_count, ip_version, ip_proto, icmp_type, has_ports
        uint16_t sport, dport, flags
    int oc_parse(const void *data, const void *data_end, oc_packet *out)
    unsigned int oc_management(const oc_packet *packet)


# Packet i lies at base + offsets[i] and has lengths[i] bytes; the caller has checked both.
cdef void parse_frames(const uint8_t *base, const uint64_t *offsets, const uint32_t *lengths,
                       size_t count, oc_packet *out) noexcept nogil
