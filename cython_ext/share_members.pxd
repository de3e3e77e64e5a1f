# The control side of lending, as Python objects. See share_members.pyx.
from libc.stdint cimport uint32_t
from cython_ext.arena cimport Arena
from cython_ext.frames cimport Frames
from cython_ext.pcap cimport Filter
from cython_ext.sharing cimport oc_member, oc_share
from cython_ext.slab_tier cimport Cache


cdef class Share:
    cdef oc_share s
    cdef readonly Frames frames
    cdef readonly Cache cache
    cdef readonly bint reliable
    cdef list members                     # by place; None where there is none
    cdef bint closed


cdef class Member:
    cdef oc_member m
    cdef readonly Share share
    cdef readonly uint32_t place
    cdef readonly Arena down
    cdef readonly Arena up
    cdef Filter filter                    # its code is the worker's to run
