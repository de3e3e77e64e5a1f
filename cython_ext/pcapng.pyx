# cython: boundscheck=False, wraparound=False
"""pcapng blocks as bytes: section, interfaces, packets of a log batch, statistics.

Owns the encoding (draft-ietf-opsawg-pcapng, little-endian, nanoseconds); appliance/record/export.py
decides what is written and in which order. Written here and not with a library because packets go
from the log's map into the block in one copy, a batch at a time.
"""

import struct

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from cython_ext.log_read cimport LogBatch

cdef enum:
    EPB_FIXED = 32               # type, length, interface, time, captured, original, length again

SECTION, INTERFACE, PACKET, STATISTICS = 0x0A0D0D0A, 1, 6, 5
# Option codes; 1 (comment) is the same in every block.
COMMENT, HARDWARE, OS, APPLICATION = 1, 2, 3, 4
IF_NAME, IF_DESCRIPTION, IF_TSRESOL = 2, 3, 9
ISB_STARTTIME, ISB_ENDTIME, ISB_IFRECV, ISB_IFDROP, ISB_USRDELIV = 2, 3, 4, 5, 8


def _options(options):
    """The option list of (code, bytes), with its end; nothing when there are none."""
    made = b""
    for code, value in options:
        made += struct.pack("<HH", code, len(value)) + value + b"\0" * (-len(value) % 4)
    return made + b"\0\0\0\0" if made else b""


def _block(kind, body):
    size = struct.pack("<I", len(body) + 12)
    return struct.pack("<I", kind) + size + body + size


def _text(value):
    return str(value).encode("utf-8", "replace")[:65535]


def _time(ns):
    return struct.pack("<II", ns >> 32, ns & 0xffffffff)


def section(application, hardware="", system=""):
    """The block that begins a file."""
    options = [(code, _text(value)) for code, value in
               ((HARDWARE, hardware), (OS, system), (APPLICATION, application)) if value]
    return _block(SECTION, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1) + _options(options))


def interface(link_type, snap_bytes, name, description=""):
    """An interface; its number is how many came before it. Timestamps in nanoseconds."""
    options = [(IF_NAME, _text(name))]
    if description:
        options.append((IF_DESCRIPTION, _text(description)))
    options.append((IF_TSRESOL, b"\x09"))
    return _block(INTERFACE, struct.pack("<HHI", link_type, 0, snap_bytes) + _options(options))


def statistics(number, at_ns, *, start_ns, end_ns, received, dropped, comment=""):
    """What an interface received and what of it was not recorded, at the end of a file."""
    options = [(COMMENT, _text(comment))] if comment else []
    options += [(ISB_STARTTIME, _time(start_ns)), (ISB_ENDTIME, _time(end_ns)),
                (ISB_IFRECV, struct.pack("<Q", received)),
                (ISB_IFDROP, struct.pack("<Q", dropped)),
                (ISB_USRDELIV, struct.pack("<Q", received - dropped))]
    return _block(STATISTICS, struct.pack("<I", number) + _time(at_ns) + _options(options))


cdef void put_packet(uint8_t *to, uint32_t size, uint32_t number, uint64_t ns,
                     const uint8_t *packet, uint32_t captured, uint32_t original) noexcept nogil:
    cdef uint32_t[7] head
    head[0], head[1], head[2] = 6, size, number
    head[3], head[4] = <uint32_t>(ns >> 32), <uint32_t>ns
    head[5], head[6] = captured, original
    memcpy(to, head, 28)
    memcpy(to + 28, packet, captured)
    memset(to + 28 + captured, 0, size - EPB_FIXED - captured)
    memcpy(to + size - 4, &size, 4)


def packets(LogBatch batch not None, const uint32_t[::1] numbers not None):
    """A block for each packet of the batch, in one bytes object; `numbers` gives the interface of
    each port id."""
    cdef const uint64_t[::1] offsets = batch.offsets, times = batch.timestamps_ns
    cdef const uint32_t[::1] lengths = batch.lengths, originals = batch.originals
    cdef const uint16_t[::1] ports = batch.ports
    cdef Py_ssize_t i, count = lengths.shape[0]
    cdef uint64_t total = 0
    cdef uint32_t size
    cdef uint8_t *to
    if numbers.shape[0] != 65536:
        raise ValueError("an interface for each of 65,536 port ids")
    for i in range(count):
        total += EPB_FIXED + ((lengths[i] + 3) & ~<uint32_t>3)
    made = PyBytes_FromStringAndSize(NULL, total)
    to = <uint8_t *>PyBytes_AS_STRING(made)
    with nogil:
        for i in range(count):
            size = EPB_FIXED + ((lengths[i] + 3) & ~<uint32_t>3)
            put_packet(to, size, numbers[ports[i]], times[i], batch.segment.base + offsets[i],
                       lengths[i], originals[i])
            to += size
    return made
