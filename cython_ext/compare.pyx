# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True
"""Compares received packets with what was sent, where they lie and byte for byte.

For whoever checks a link or a file against the packets that arrive: the demo and the tests. It
walks a batch and a packed buffer side by side with memcmp, fragment by fragment, without the GIL
and without an object per packet. It changes nothing, and holds nothing past the call.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp

from cython_ext.lending cimport Batch
from cython_ext.queue cimport oc_burst


cdef bint same(const uint8_t* base, const oc_burst* b, uint32_t packet, const uint8_t* other,
               uint64_t length) noexcept nogil:
    """Is this packet of the burst, over all its fragments, what stands at `other`?"""
    cdef uint32_t f
    cdef uint32_t last = b.first[packet + 1] if packet + 1 < b.packets else b.frags
    if b.length[packet] != length:
        return False
    for f in range(b.first[packet], last):
        if b.bytes[f] > length or memcmp(base + b.addr[f], other, b.bytes[f]) != 0:
            return False
        other += b.bytes[f]
        length -= b.bytes[f]
    return length == 0


def equal_run(Batch batch not None, uint32_t first, const uint8_t[::1] data,
              const uint64_t[::1] offsets, const uint32_t[::1] lengths, Py_ssize_t start):
    """How many packets of the batch, from `first` on, are those of the buffer from `start` on.

    The buffer's packets are given as for `Port.send_packed`: offsets and lengths into `data`. Ends
    at the first difference, at the end of the batch or at the end of the columns.
    """
    cdef oc_burst* b
    cdef const uint8_t* base
    cdef const uint8_t* other
    cdef uint64_t total = data.shape[0]
    cdef Py_ssize_t at = start, stop = offsets.shape[0]
    cdef uint32_t i = first
    cdef uint8_t nothing = 0
    batch.alive()
    if not 0 <= start <= stop or lengths.shape[0] != stop or first > batch.count:
        raise ValueError(f"packets {first} of {batch.count} and {start} of {stop}")
    b = batch.block.b
    base = batch.queue.frames.um.base
    with nogil:
        while i < b.packets and at < stop:
            if offsets[at] > total or lengths[at] > total - offsets[at]:
                break
            other = &data[0] + offsets[at] if total else &nothing
            if not same(base, b, i, other, lengths[at]):
                break
            i += 1
            at += 1
    return i - first
