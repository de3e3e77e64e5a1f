# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True
"""Slabs in Python: one allocation as an object, with the buffer protocol and DLPack.

A Slab owns its memory until release(), the end of its `with`, or its last reference. Views (a
memoryview, a numpy array, a tensor) keep the memory, not the name: after release() the object is
stale at once and lends nothing new, and the memory goes home when the last view has ended.
"""
cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.pycapsule cimport (PyCapsule_Destructor, PyCapsule_GetPointer, PyCapsule_IsValid,
                                PyCapsule_New)
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc
from cython_ext.slab cimport (slabs_alloc, slabs_free, slabs_free_directly, slabs_is_live)
from cython_ext.slab_arenas cimport slabs_too_many_empty, slabs_trim
from cython_ext.slab_tier cimport Cache, Slabs
from cython_ext.slab_types cimport CLASSES, class_of_bytes, name_one

# The exceptions of the package above us, put here by its facade (imports point downward only).
StaleSlabError = RuntimeError

cdef enum:
    DL_CPU = 1
    DL_UINT = 1
    HANDLE_UNIT = 6           # handles count in 64 B, the smallest class
    HANDLE_UNITS_BITS = 38    # 2**44 bytes of address reservation: 11 classes of 1 TiB

ctypedef struct DLTensor:     # dlpack.h, 1.0
    void* data
    int32_t device_type
    int32_t device_id
    int32_t ndim
    uint8_t code
    uint8_t bits
    uint16_t lanes
    int64_t* shape
    int64_t* strides
    uint64_t byte_offset

ctypedef struct Managed:
    DLTensor tensor
    void* context
    void (*deleter)(Managed*) noexcept with gil

ctypedef struct Versioned:
    uint32_t major
    uint32_t minor
    void* context
    void (*deleter)(Versioned*) noexcept with gil
    uint64_t flags
    DLTensor tensor


def use_errors(stale):
    """Which exception to raise when a released slab, or a stale handle, is used."""
    global StaleSlabError
    StaleSlabError = stale


@cython.no_gc_clear
@cython.final
cdef class Slab:
    """One allocation. Made by MidTier.alloc; `slab.nbytes`, `slab.handle`, `slab.release()`."""
    cdef readonly Slabs slabs
    cdef readonly uint32_t nbytes
    cdef readonly uint32_t class_bytes
    cdef void* p
    cdef uint32_t generation
    cdef uint32_t exports
    cdef bint released
    cdef uint64_t[1] shape
    cdef list account             # of the tier's facade: bytes asked for, per class

    cdef void _home(self, bint here) noexcept:
        """`here`: we are called by a Python thread that may use its own cache."""
        cdef Cache cache
        cdef void* p = self.p
        cdef uint32_t now = 0
        if p == NULL:
            return
        self.p = NULL
        if self.account is not None:
            self.account[class_of_bytes(self.class_bytes)] -= self.nbytes
        if here and slabs_is_live(&self.slabs.t, p, &now) and now == self.generation:
            try:
                cache = self.slabs.thread_cache()
                slabs_free(cache.c, &p, 1)
            except BaseException:     # no memory for a cache of this thread: then without
                slabs_free_directly(&self.slabs.t, p, self.generation)
        else:
            slabs_free_directly(&self.slabs.t, p, self.generation)

    def release(self):
        """Stale from here on. The memory goes home now, or with the last view of it."""
        if not self.released:
            self.released = True
            if self.exports == 0:
                self._home(True)

    @property
    def stale(self):
        return self.released

    @property
    def handle(self):
        """64 bits that name this allocation in any process that has the tier's files."""
        self._check()
        return (<uint64_t>self.generation << HANDLE_UNITS_BITS) | (
            (<uint64_t>self.p - <uint64_t>self.slabs.t.base) >> HANDLE_UNIT)

    @property
    def address(self):
        self._check()
        return <uintptr_t>self.p

    cdef int _check(self) except -1:
        if self.released:
            raise StaleSlabError("this slab has been released")
        return 0

    def __len__(self):
        return self.nbytes

    def __enter__(self):
        self._check()
        return self

    def __exit__(self, *_):
        self.release()

    def __getbuffer__(self, Py_buffer* view, int flags):
        self._check()
        PyBuffer_FillInfo(view, self, self.p, self.nbytes, 0, flags)
        self.exports += 1

    def __releasebuffer__(self, Py_buffer* view):
        self._let_go()

    cdef void _let_go(self) noexcept:
        self.exports -= 1
        if self.exports == 0 and self.released:
            self._home(True)

    def __dlpack_device__(self):
        return (DL_CPU, 0)

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        """One dimension of uint8, writable, without a copy."""
        self._check()
        if dl_device is not None and tuple(dl_device) != (DL_CPU, 0):
            raise BufferError(f"a slab is in main memory, not on device {dl_device}")
        if copy:
            raise BufferError("a slab is lent, not copied")
        if max_version is not None and max_version[0] >= 1:
            return self._versioned()
        cdef Managed* m = <Managed*>malloc(sizeof(Managed))
        if m == NULL:
            raise MemoryError("a DLPack descriptor")
        self._fill(&m.tensor)
        m.context = <void*>self
        m.deleter = _delete_managed
        return self._capsule(m, b"dltensor", _drop_managed)

    cdef _versioned(self):
        cdef Versioned* m = <Versioned*>malloc(sizeof(Versioned))
        if m == NULL:
            raise MemoryError("a DLPack descriptor")
        m.major, m.minor, m.flags = 1, 0, 0
        self._fill(&m.tensor)
        m.context = <void*>self
        m.deleter = _delete_versioned
        return self._capsule(m, b"dltensor_versioned", _drop_versioned)

    cdef _capsule(self, void* m, const char* name, void (*drop)(object) noexcept):
        try:
            capsule = PyCapsule_New(m, name, <PyCapsule_Destructor>drop)
        except BaseException:
            free(m)
            raise
        Py_INCREF(self)
        self.exports += 1
        return capsule

    cdef void _fill(self, DLTensor* d) noexcept:
        self.shape[0] = self.nbytes
        d.data = self.p
        d.device_type, d.device_id = DL_CPU, 0
        d.ndim = 1
        d.code, d.bits, d.lanes = DL_UINT, 8, 1
        d.shape = <int64_t*>self.shape
        d.strides = NULL
        d.byte_offset = 0

    def __dealloc__(self):
        # From any thread, also while one ends: not through a cache.
        self._home(False)


cdef void _end_export(void* context) noexcept:
    cdef Slab slab = <Slab>context
    slab._let_go()
    Py_DECREF(slab)


cdef void _delete_managed(Managed* m) noexcept with gil:
    _end_export(m.context)
    free(m)


cdef void _delete_versioned(Versioned* m) noexcept with gil:
    _end_export(m.context)
    free(m)


cdef void _drop_managed(object capsule) noexcept:
    """A capsule that nobody consumed; a consumer renames it and calls the deleter itself."""
    if PyCapsule_IsValid(capsule, b"dltensor"):
        _delete_managed(<Managed*>PyCapsule_GetPointer(capsule, b"dltensor"))


cdef void _drop_versioned(object capsule) noexcept:
    if PyCapsule_IsValid(capsule, b"dltensor_versioned"):
        _delete_versioned(<Versioned*>PyCapsule_GetPointer(capsule, b"dltensor_versioned"))


def alloc_bulk(Slabs slabs not None, uint32_t nbytes, uint32_t n, list account):
    """n allocations of nbytes, all or None. account[class] grows by what was asked for."""
    cdef uint32_t cls, done = 0, i, part
    cdef void* got[64]
    cdef Cache cache
    cdef Slab one
    if not 1 <= nbytes <= 65536:
        raise ValueError(f"nbytes: {nbytes}: 1 to 65536")
    cls = class_of_bytes(nbytes)
    cache = slabs.thread_cache()
    out = []
    while done < n:
        part = min(n - done, <uint32_t>64)
        if slabs_alloc(cache.c, cls, got, part) < 0:
            for slab in out:
                (<Slab>slab).release()
            return None
        for i in range(part):
            one = Slab.__new__(Slab)
            one.slabs = slabs
            one.nbytes = nbytes
            one.class_bytes = 64 << cls
            one.p = got[i]
            one.generation = <uint32_t>name_one(&slabs.t.classes[cls].exact, got[i])
            one.account = account
            account[cls] += nbytes
            out.append(one)
        done += part
    return out


def release_bulk(Slabs slabs not None, list many):
    """Releases all, and gives empty arenas back if there are too many of them."""
    for slab in many:
        (<Slab?>slab).release()
    tidy(slabs)


def tidy(Slabs slabs not None):
    """Gives empty arenas back if a class has more of them than its trip level."""
    cdef uint32_t i
    for i in range(CLASSES):
        if slabs_too_many_empty(&slabs.t.classes[i]):
            with nogil:
                slabs_trim(&slabs.t, False)
            return
