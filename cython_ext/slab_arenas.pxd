# The depot of a tier of slabs: one stack of free objects per arena; growth and give-back.
from libc.stdint cimport uint32_t
from cython_ext.slab_types cimport oc_class, oc_slabs

# Up to n objects of a class; how many. Under the class's lock.
cdef uint32_t depot_take(oc_class* c, void** out, uint32_t n) noexcept nogil
# Objects of one class come home. Under the class's lock.
cdef void depot_give(oc_slabs* t, oc_class* c, void* const* objects, uint32_t n) noexcept nogil
# One more arena: 0, or -1 with t.error saying why (0: the cap). Takes the locks itself.
cdef int slabs_grow(oc_slabs* t, oc_class* c) noexcept nogil
# Gives empty arenas back: of classes past their trip level, or of all. How many. Takes the locks.
cdef bint slabs_too_many_empty(oc_class* c) noexcept nogil
cdef uint32_t slabs_trim(oc_slabs* t, bint all) noexcept nogil
