# Declarations of the log's format (include/oc_log_format.h), of writing it into memory
# (oc_log_write.h) and of CRC32C, for the recorder and the readers. The headers say what they mean.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "oc_crc32c.h" nogil:
    const char *crc32c_how "oc_crc32c_how"
    uint32_t crc32c "oc_crc32c"(uint32_t crc, const void *data, size_t count) noexcept
    uint32_t crc32c_copy "oc_crc32c_copy"(uint32_t crc, void *to, const void *data,
                                          size_t count) noexcept
    uint32_t crc32c_portable "oc_crc32c_portable"(uint32_t crc, uint8_t *to, const uint8_t *data,
                                                  size_t count) noexcept


cdef extern from "oc_log_format.h" nogil:
    enum:
        OC_LOG_VERSION
        OC_LOG_PAGE
        OC_LOG_RECORD_BYTES
        OC_LOG_HEAD_BYTES
        OC_LOG_PORTS_MAX
        OC_LOG_CAPTURED_MAX
        OC_LOG_WRITE_BYTES_MAX
        OC_LOG_INDEX_MAX
        OC_LOG_REASONS_MAX
        OC_LOG_NO_PORT
        OC_LOG_PACKET
        OC_LOG_GAP
        OC_LOG_HEAD
        OC_LOG_SEAL
        OC_LOG_CUT
        OC_LOG_FRAGMENTS
        OC_LOG_FRESH
    uint64_t OC_LOG_SEGMENT_BYTES_MIN
    uint64_t OC_LOG_SEGMENT_BYTES_MAX
    uint64_t OC_LOG_DEVICE_FIRST

    struct oc_log_port:
        uint16_t id, link_type
        uint32_t snap_bytes
        char *name
        char *interface
    struct oc_log_segment:
        char *magic
        uint32_t version, header_bytes
        uint8_t *uuid
        uint64_t epoch, index, segment_bytes, first_seq, created_ns
        int64_t clock_offset_ns
        uint32_t chain, flags, page_bytes, port_count, stripe, stripes, crc
        oc_log_port *ports
    struct oc_log_record:
        uint32_t crc, payload_crc
        uint16_t kind, flags, port, queue
        uint32_t rule, captured, original, spare
        uint64_t seq, timestamp_ns
    struct oc_log_head:
        uint64_t epoch, index, number, first_seq, durable_seq
        uint32_t bytes, records, chain, crc
    struct oc_log_reason:
        char *name
        uint64_t packets
    struct oc_log_gap:
        uint64_t first_ns, last_ns, packets, bytes
        uint32_t reasons, spare
        oc_log_reason *reason
    struct oc_log_entry:
        uint64_t seq, offset, high_ns, low_ns
        uint32_t chain, spare
    struct oc_log_seal:
        uint64_t records, bytes, first_seq, last_seq, durable_seq, low_ns, high_ns, lost
        uint32_t entries, entry_bytes
    struct oc_log_trailer:
        char *magic
        uint64_t epoch, seal
        uint32_t spare, crc
    struct oc_log_state:
        uint32_t version, flags
        uint64_t turn
        uint8_t *uuid
        uint64_t epoch, index, published, last_seq, durable_seq, writer_pid, writer_start
        uint64_t slot_bytes, slots, updated_ns
    uint64_t log_place "oc_log_place"(uint64_t at) noexcept
    uint64_t log_after "oc_log_after"(uint64_t at, uint32_t captured) noexcept
    uint64_t log_pages "oc_log_pages"(uint64_t count) noexcept


cdef extern from "oc_log_write.h" nogil:
    struct oc_log_chain:
        uint64_t epoch, index, seq, number, offset
        uint32_t crc
    struct oc_log_tally:
        oc_log_seal sum
        uint64_t every
    uint64_t log_fit "oc_log_fit"(uint64_t at, uint32_t captured, uint64_t limit) noexcept
    oc_log_record *log_begin "oc_log_begin"(void *block, uint64_t at, uint64_t place,
                                            uint16_t kind) noexcept
    void log_append "oc_log_append"(oc_log_record *r, const void *data, uint32_t count) noexcept
    uint64_t log_finish "oc_log_finish"(void *block, const oc_log_record *r) noexcept
    void log_tally_begin "oc_log_tally_begin"(oc_log_tally *t, uint64_t segment_bytes) noexcept
    void log_begin_segment "oc_log_begin_segment"(oc_log_chain *c, oc_log_tally *t,
                                                  oc_log_segment *header) noexcept
    uint64_t log_close_write "oc_log_close_write"(
        oc_log_chain *c, oc_log_tally *t, void *block, uint64_t used, uint32_t records,
        uint64_t durable_seq, uint64_t now_ns) noexcept
    uint64_t log_close_segment "oc_log_close_segment"(
        oc_log_chain *c, oc_log_tally *t, void *block, uint64_t durable_seq,
        uint64_t now_ns) noexcept
    uint64_t log_put_seal "oc_log_put_seal"(oc_log_chain *c, oc_log_tally *t, void *block,
                                            uint64_t at, uint64_t where, uint16_t flags,
                                            uint64_t now_ns) noexcept


cdef extern from "oc_log_state.h" nogil:
    void log_state_put "oc_log_state_put"(void *page, oc_log_state *s) noexcept
    int log_state_get "oc_log_state_get"(const void *page, oc_log_state *s) noexcept


cdef extern from "oc_log_search.h" nogil:
    enum:
        OC_LOG_GOES_ON
        OC_LOG_NEED
        OC_LOG_AT_LIMIT
        OC_LOG_SEALED
        OC_LOG_NO_WRITE
        OC_LOG_BAD_HEAD
        OC_LOG_BAD_RECORD
        OC_LOG_BAD_LENGTH
        OC_LOG_BAD_PAYLOAD
        OC_LOG_BAD_ORDER
        OC_LOG_BAD_FILL
        OC_LOG_BAD_SEAL
        OC_LOG_SHORT
    struct oc_log_walk:
        const uint8_t *base
        uint64_t limit, ready, need, epoch, index, offset, write_end, seq, number, durable_seq
        uint64_t records, bytes, lost, seal_at
        uint32_t crc, left, stop, whole, cut
    struct oc_log_evidence:
        uint64_t heads, first_at, first_seq, end_seq, durable_seq, end, epoch
    bint log_is_trailer "oc_log_is_trailer"(const oc_log_trailer *t, uint64_t epoch) noexcept
    bint log_is_header "oc_log_is_header"(const oc_log_segment *h) noexcept
    void log_walk_begin "oc_log_walk_begin"(oc_log_walk *w, const uint8_t *base, uint64_t limit,
                                            const oc_log_segment *header) noexcept
    int log_next "oc_log_next"(oc_log_walk *w, oc_log_record *r, uint64_t *at) noexcept
    void log_find_heads "oc_log_find_heads"(const uint8_t *base, uint64_t start, uint64_t limit,
                                            uint64_t epoch, uint64_t index,
                                            oc_log_evidence *found) noexcept
    void log_search "oc_log_search"(const oc_log_walk *w, oc_log_evidence *found) noexcept
