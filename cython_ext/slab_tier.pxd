# A tier of slabs and its caches as Python objects. See slab_tier.pyx.
from cython_ext.history cimport History
from cython_ext.slab_types cimport oc_cache, oc_slabs


cdef class Slabs:
    cdef oc_slabs t
    cdef History past                     # of objects; None: never switched on
    cdef object local                     # threading.local: the cache of each Python thread
    cdef Cache thread_cache(self)


cdef class Cache:
    cdef readonly Slabs slabs
    cdef readonly str owner
    cdef oc_cache* c                      # begins a cache line
