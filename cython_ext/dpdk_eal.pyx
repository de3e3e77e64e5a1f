# cython: language_level=3, embedsignature=True
"""DPDK's environment (EAL): started once in a process, and the plugins that its drivers are.

It owns the arguments that EAL gets, and DPDK's log, of which the first error becomes the one line
of a failure. EAL cannot be ended and begun anew, so the first start decides for the process: no
telemetry socket, no files, no hugepages unless PCI devices need them, no threads on cores of its
own, no signals. What it leaves running is one thread that sleeps (eal-intr-thread).

Plugins are loaded by name. Debian ships a hundred of them, and without a list EAL loads all.
"""
from cython_ext.dpdk cimport (OC_LOG_WIDTH, RTE_EAL_PMD_PATH, RTLD_GLOBAL, RTLD_NOW, dlerror,
                              dlopen, oc_log_forget, oc_log_open, oc_log_read, oc_silence,
                              rte_eal_init, rte_errno, rte_strerror, rte_version)

import contextlib
import os
import threading

_lock = threading.Lock()
_options = None                   # what EAL was started with; None: not yet
_loaded = set()


def version():
    """DPDK's own words for the library that this process runs."""
    return rte_version().decode()


def plugins():
    """The folder of DPDK's drivers."""
    return RTE_EAL_PMD_PATH.decode()


def forget_log():
    """What was logged so far does not explain the next failure."""
    oc_log_forget()


def reason(int code=0):
    """Why the last call failed: DPDK's first error since forget_log(), or the text of the code."""
    cdef char[OC_LOG_WIDTH] line
    oc_log_read(line, True)
    if line[0]:
        return (<bytes>line).decode("utf-8", "replace")
    return os.strerror(-code) if code else rte_strerror(rte_errno).decode()


def started():
    """The options of the one start, or None."""
    return _options


def start(*, pci=False):
    """Starts EAL, or finds it running. OSError with one line when it cannot.

    pci: look for PCI devices; they get hugepages and addresses that an IOMMU translates.
    """
    global _options
    with _lock:
        if _options is not None:
            if pci and not _options["pci"]:
                raise OSError(0, "DPDK was started without PCI devices: open the first PCI device "
                                 "before any other DPDK port")
            return
        if oc_log_open() < 0:
            raise OSError(0, "DPDK's log cannot be taken over")
        failed = []
        # EAL pins the thread that starts it, and makes it an lcore: a thread of its own, then.
        thread = threading.Thread(target=_start, args=(pci, failed), name="dpdk start")
        thread.start()
        thread.join()
        if failed:
            raise failed[0]
        _options = {"pci": pci}


def _start(pci, failed):
    cpus = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    # One lcore that floats over all the CPUs we have: EAL starts no thread for it.
    words = ["openclaw", f"--lcores=0@({cpus})", "--no-telemetry", "--log-level=notice",
             f"--file-prefix=openclaw-{os.getpid()}",
             "-d", os.path.join(plugins(), "librte_bus_vdev.so")]
    if pci:
        # Every driver, since nobody knows which one the device needs; no device until it is named.
        words += ["--in-memory", "-d", plugins(), "-a", "0000:00:00.0", "--iova-mode=va"]
    else:
        # --in-memory wants hugepages. DPDK's own memory holds names and small tables here: the
        # packets are in our frames.
        words += ["--no-pci", "--no-huge", "--no-shconf", "-m", "64"]
    try:
        _init([word.encode() for word in words])
    except OSError as error:
        failed.append(error)
    # EAL makes a folder for files that it then does not make.
    base = os.environ.get("XDG_RUNTIME_DIR", "/tmp") if os.getuid() else "/var/run"
    for folder in (f"{base}/dpdk/openclaw-{os.getpid()}", f"{base}/dpdk"):
        with contextlib.suppress(OSError):
            os.rmdir(folder)


cdef _init(list words):
    cdef char* argv[32]
    cdef int i, n = len(words), result
    for i in range(n):
        argv[i] = <bytes>words[i]
    argv[n] = NULL
    oc_log_forget()
    with nogil:
        result = rte_eal_init(n, argv)
    if result < 0:
        raise OSError(rte_errno, f"DPDK does not start: {reason()}")


def load_driver(str device):
    """Loads the plugin of a virtual device, told by its name. ValueError for one that is not there.

    PCI devices need none: start(pci=True) has loaded all.
    """
    cdef bytes path
    kind = device.split(",")[0].rstrip("0123456789")
    with _lock:
        if kind in _loaded or (_options or {}).get("pci"):
            return
        found = sorted(name[len("librte_"):-len(".so")] for name in os.listdir(plugins())
                       if name.startswith("librte_net_") and name.endswith(".so"))
        known = [{"net_bond": "net_bonding"}.get(name, name) for name in found]
        if kind not in known:
            raise ValueError(f"{device!r}: no such driver in {plugins()}")
        path = os.path.join(plugins(), f"librte_{found[known.index(kind)]}.so").encode()
        if dlopen(path, RTLD_NOW | RTLD_GLOBAL) == NULL:
            raise OSError(0, f"{kind}: {dlerror().decode('utf-8', 'replace')}")
        oc_silence()
        _loaded.add(kind)
