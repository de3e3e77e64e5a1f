"""Capture files: pcap and pcapng in through libpcap, nanosecond pcap out.

Owns the calls of libpcap and the memory that holds a file: all packets in one contiguous buffer,
numpy columns beside it, no object for each. appliance/capture.py makes a Capture of them. It knows
no protocol (parser.pyx) and no filter (pcap.pyx).

How it fails: OSError when the file cannot be opened; ValueError, one line, when it is no capture,
is larger than the caller allows, or mixes interfaces that libpcap cannot tell apart. A file that
is damaged or cut off further in gives the packets before that place and says so under `truncated`.
"""

import os
import struct

import numpy as np

from cpython.buffer cimport PyBuffer_FillInfo
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdio cimport FILE, fclose, fdopen
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

cdef extern from "<pcap/pcap.h>" nogil:
    ctypedef struct pcap_t:
        pass
    struct timeval:
        long tv_sec
        long tv_usec
    struct pcap_pkthdr:
        timeval ts
        uint32_t caplen
        uint32_t len
    enum:
        PCAP_ERRBUF_SIZE
        PCAP_TSTAMP_PRECISION_NANO
        PCAP_ERROR_BREAK
    pcap_t *pcap_fopen_offline_with_tstamp_precision(FILE *, unsigned int, char *)
    int pcap_next_ex(pcap_t *, pcap_pkthdr **, const uint8_t **)
    int pcap_datalink(pcap_t *)
    const char *pcap_datalink_val_to_name(int)
    char *pcap_geterr(pcap_t *)
    void pcap_close(pcap_t *)

BYTES_MAX = 2 << 30          # data and columns together; a laptop's memory, not a sensor's
cdef enum:
    PACKETS_PER_TURN = 65536     # between two looks at pending signals: some 10 ms
    FIRST_ROOM = 4096
    BYTES_PER_ROW = 24           # offset 8, length 4, wire length 4, timestamp 8
    SECONDS_MAX = 18446744072    # the last whole second that 64 bits of nanoseconds hold

LINK_ETHERNET = 1
# Files carry LINKTYPE numbers; these two of libpcap's DLT numbers differ from them on Linux.
_LINKTYPE_OF_DLT = {11: 100, 12: 101}


cdef class Memory:
    """Memory from realloc that is freed with its last view. Read-only from outside."""
    cdef uint8_t *start
    cdef size_t used, room

    def __dealloc__(self):
        free(self.start)

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.start, self.used, 1, flags)

    cdef uint8_t *extend(self, size_t count) noexcept nogil:
        """Room for `count` more bytes, already counted as used; NULL when memory is short."""
        cdef size_t room = self.room
        cdef void *moved
        if room - self.used < count:
            room = max(room + room // 2, self.used + count, <size_t>FIRST_ROOM)
            moved = realloc(self.start, room)
            if moved is NULL:
                return NULL
            self.start = <uint8_t *>moved
            self.room = room
        self.used += count
        return self.start + self.used - count

    def column(self, dtype):
        return np.frombuffer(self, dtype) if self.used else np.empty(0, dtype)


cdef int read_some(pcap_t *handle, Memory data, Memory offsets, Memory lengths, Memory wires,
                   Memory times, size_t bytes_max) noexcept nogil:
    """Up to PACKETS_PER_TURN packets. 1: go on; -3: out of memory; -4: more than bytes_max; else
    what pcap_next_ex said (-2 end of file, -1 error)."""
    cdef pcap_pkthdr *header
    cdef const uint8_t *bytes
    cdef uint8_t *to
    cdef uint8_t *row
    cdef uint64_t time_ns
    cdef int64_t seconds
    cdef int rc, _i
    for _i in range(PACKETS_PER_TURN):
        rc = pcap_next_ex(handle, &header, &bytes)
        if rc != 1:
            return rc
        if data.used + header.caplen + (offsets.used // 8 + 1) * BYTES_PER_ROW > bytes_max:
            return -4
        row = offsets.extend(8)
        if row is NULL:
            return -3
        (<uint64_t *>row)[0] = data.used
        to = data.extend(header.caplen)
        if to is NULL and header.caplen:
            return -3
        memcpy(to, bytes, header.caplen)
        row = lengths.extend(4)
        if row is NULL:
            return -3
        (<uint32_t *>row)[0] = header.caplen
        row = wires.extend(4)
        if row is NULL:
            return -3
        (<uint32_t *>row)[0] = header.len
        row = times.extend(8)
        if row is NULL:
            return -3
        seconds = header.ts.tv_sec
        if -(<int64_t>1 << 31) <= seconds < 0:
            seconds += <int64_t>1 << 32  # the format's are unsigned; libpcap's end in 2038
        time_ns = 0              # a damaged file may hold any number here: outside of it, 1970
        if 0 <= seconds <= <int64_t>SECONDS_MAX:
            time_ns = <uint64_t>seconds * 1000000000u + <uint64_t>header.ts.tv_usec
        (<uint64_t *>row)[0] = time_ns
    return 1


cdef pcap_t *open_handle(str name, int fd) except NULL:
    """Takes the descriptor, whatever happens."""
    cdef char error[PCAP_ERRBUF_SIZE]
    cdef pcap_t *handle
    cdef FILE *stream = fdopen(fd, "rb")
    if stream is NULL:
        os.close(fd)
        raise MemoryError()
    error[0] = 0
    with nogil:
        handle = pcap_fopen_offline_with_tstamp_precision(
            stream, PCAP_TSTAMP_PRECISION_NANO, error)
    if handle is NULL:
        fclose(stream)
        text = (<bytes>error).decode("utf-8", "replace")
        raise ValueError(f"{name} is not a capture file: {text}")
    return handle


def read_capture(path, *, bytes_max=BYTES_MAX):
    """Reads a pcap or pcapng file; "-" is standard input. Returns the fields of Capture."""
    name = "standard input" if path == "-" else os.fsdecode(path)
    fd = os.dup(0) if path == "-" else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    cdef pcap_t *handle = open_handle(name, fd)
    cdef size_t limit = bytes_max
    cdef int rc = 1
    cdef Memory data = Memory(), offsets = Memory(), lengths = Memory()
    cdef Memory wires = Memory(), times = Memory()
    try:
        while rc == 1:
            with nogil:
                rc = read_some(handle, data, offsets, lengths, wires, times, limit)
            PyErr_CheckSignals()
        if rc == -3:
            raise MemoryError(f"{name}: no memory for {data.used} bytes of packets")
        if rc == -4:
            raise ValueError(f"{name} needs more than {bytes_max} bytes of memory; "
                             "read it in parts (editcap -c) or raise bytes_max")
        truncated = None
        if rc != PCAP_ERROR_BREAK:
            truncated = (<bytes>pcap_geterr(handle)).decode("utf-8", "replace")
            if "different from" in truncated:
                raise ValueError(f"{name} mixes interfaces ({truncated}); "
                                 "keep one of them (tshark -Y 'frame.interface_id == 0' -w)")
        link_type = pcap_datalink(handle)
        link_name = link_type_name(link_type)
    finally:
        pcap_close(handle)
    return {
        "data": memoryview(data) if data.used else memoryview(b""),
        "offsets": offsets.column(np.uint64), "lengths": lengths.column(np.uint32),
        "wire_lengths": wires.column(np.uint32), "timestamps_ns": times.column(np.uint64),
        "link_type": link_type, "link_type_name": link_name, "truncated": truncated, "name": name}


def link_type_name(int link_type):
    """libpcap's name, as tcpdump prints it: EN10MB."""
    cdef const char *name = pcap_datalink_val_to_name(link_type)
    return str(link_type) if name is NULL else (<bytes>name).decode()


def write_pcap(path, packets, timestamps_ns, wire_lengths=None, *, link_type=LINK_ETHERNET):
    """Writes packets (bytes-like) as nanosecond pcap to a path or to an open binary file.

    A packet shorter than its wire length was cut by the snapshot length; without wire_lengths
    every packet is whole. Returns how many were written. ValueError before anything is written
    when the columns do not fit each other.
    """
    packets = list(packets)
    timestamps_ns = [int(t) for t in timestamps_ns]
    wires = [len(p) for p in packets] if wire_lengths is None else [int(n) for n in wire_lengths]
    if not len(packets) == len(timestamps_ns) == len(wires):
        raise ValueError(f"{len(packets)} packets, {len(timestamps_ns)} timestamps and "
                         f"{len(wires)} wire lengths")
    for i, (packet, time_ns, wire) in enumerate(zip(packets, timestamps_ns, wires, strict=True)):
        if not 0 <= time_ns < 10**9 << 32:
            raise ValueError(f"packet {i}: {time_ns} ns is not between 1970 and 2106")
        if not len(packet) <= wire < 1 << 31:
            raise ValueError(f"packet {i}: {len(packet)} bytes captured of {wire}")
    if hasattr(path, "write"):
        _write_records(path, packets, timestamps_ns, wires, link_type)
    else:
        with open(path, "wb") as file:
            _write_records(file, packets, timestamps_ns, wires, link_type)
    return len(packets)


def _write_records(file, packets, timestamps_ns, wires, link_type):
    snaplen = max(262144, max(map(len, packets), default=0))   # tcpdump's, or more if need be
    file.write(struct.pack("=IHHiIII", 0xa1b23c4d, 2, 4, 0, 0, snaplen,
                           _LINKTYPE_OF_DLT.get(link_type, link_type)))
    record = struct.Struct("=IIII")
    for packet, time_ns, wire in zip(packets, timestamps_ns, wires, strict=True):
        file.write(record.pack(time_ns // 10**9, time_ns % 10**9, len(packet), wire))
        file.write(packet)
