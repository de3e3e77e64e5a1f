"""The doctor's questions about the kernel, BPF, libraries, privileges and processors."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import platform
import socket
import struct
import subprocess
import sys
from pathlib import Path

from appliance.dataplane import dpdk as library
from appliance.doctor.check import Check, Finding, fail, ok, warn
from appliance.errors import HostError
from appliance.net.zerocopy import running_kernel

OLDEST_KERNEL = (6, 1)  # Debian 12's; what it lacks is probed, older ones were never tried
_AS_ROOT = "run as root (sudo)"
_BPF_SYSCALL = {"x86_64": 321, "aarch64": 280, "riscv64": 280}
# include/uapi/linux/capability.h
_CAPABILITIES = {"NET_ADMIN": 12, "NET_RAW": 13, "IPC_LOCK": 14, "SYS_ADMIN": 21, "BPF": 39}


def kernel() -> Finding:
    release = os.uname().release
    if running_kernel() < OLDEST_KERNEL:
        return fail("kernel", f"{release}; the oldest that works is 6.1", "apt-get install "
                    "linux-image-" + _debian_architecture())
    return ok("kernel", release)


def bpf_system_call() -> Finding:
    """Makes the smallest map there is."""
    number = _BPF_SYSCALL.get(platform.machine())
    if number is None:
        return warn("bpf", f"not probed on {platform.machine()}")
    libc = ctypes.CDLL(None, use_errno=True)
    request = ctypes.create_string_buffer(struct.pack("IIIII", 2, 4, 4, 1, 0), 72)  # BPF_MAP_ARRAY
    handle = libc.syscall(number, 0, request, len(request))
    if handle < 0:
        reason = os.strerror(ctypes.get_errno())
        return fail("bpf", f"bpf(): {reason}", _AS_ROOT if os.geteuid() else
                    "boot a kernel with CONFIG_BPF_SYSCALL, or grant CAP_BPF")
    os.close(handle)
    return ok("bpf", "maps can be made")


def btf() -> Finding:
    path = Path("/sys/kernel/btf/vmlinux")
    if path.exists():
        return ok("btf", f"{path} ({path.stat().st_size // 1024} KiB)")
    return warn("btf", "the kernel shows no types; nothing here needs them, tools might")


def xdp_socket() -> Finding:
    try:
        socket.socket(44, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0).close()  # AF_XDP
    except PermissionError:
        return fail("af_xdp", "AF_XDP sockets need CAP_NET_RAW", _AS_ROOT)
    except OSError as error:
        return fail("af_xdp", f"AF_XDP: {error.strerror}", "boot a kernel with CONFIG_XDP_SOCKETS")
    return ok("af_xdp", "sockets can be made")


def bcc() -> Finding:
    """In a child, as the compiler does it: LLVM's memory is not ours to hold."""
    probe = "import bcc; print(getattr(bcc, '__version__', 'unknown'))"
    done = _child(probe)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        return fail("bcc", reason, "apt-get install python3-bpfcc; "
                    "python3 -m venv --system-site-packages .venv")
    return ok("bcc", done.stdout.strip())


def _child(program: str) -> subprocess.CompletedProcess[str]:
    """Two minutes: a developer's checkout may build itself when it is imported."""
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )


def kernel_headers() -> Finding:
    """The tree that steering would compile against: the running kernel's, else any that is here."""
    release = os.uname().release
    for name in ("build", "source"):
        tree = Path("/lib/modules") / release / name
        if (tree / "include").is_dir():
            return ok("headers", tree)
    trees = sorted(
        tree for tree in Path("/usr/src").glob("linux-headers-*")
        if not tree.name.endswith("-common") and (tree / "include").is_dir()
    )
    if trees:
        return ok("headers", f"{trees[-1]} (not those of {release}; XDP's are stable)")
    if Path("/sys/kernel/kheaders.tar.xz").exists():
        return ok("headers", "/sys/kernel/kheaders.tar.xz")
    return fail("headers", "no kernel headers for bcc",
                f"apt-get install linux-headers-{_debian_architecture()}")


def libraries() -> Finding:
    versions = {"libbpf": _libbpf_version(), "libpcap": _libpcap_version()}
    found = ", ".join(f"{name} {version or 'missing'}" for name, version in versions.items())
    if all(versions.values()):
        return ok("libraries", found)
    return fail("libraries", found, "apt-get install libbpf-dev libpcap-dev")


def _libbpf_version() -> str | None:
    library = _library("bpf")
    if library is None:
        return None
    library.libbpf_version_string.restype = ctypes.c_char_p
    return library.libbpf_version_string().decode().removeprefix("v")


def _libpcap_version() -> str | None:
    library = _library("pcap")
    if library is None:
        return None
    library.pcap_lib_version.restype = ctypes.c_char_p
    words = library.pcap_lib_version().decode().split()
    return words[2] if len(words) > 2 else words[-1]


def _library(name: str) -> ctypes.CDLL | None:
    """find_library needs ldconfig or a compiler; the versioned names need neither."""
    for file in (f"lib{name}.so.1", f"lib{name}.so.0.8", ctypes.util.find_library(name)):
        if file:
            try:
                return ctypes.CDLL(file)
            except OSError:
                continue
    return None


def data_plane() -> Finding:
    """Whether the compiled part can be loaded, asked of a child because it may not come back."""
    probe = "import appliance.dataplane"
    done = _child(probe)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        return fail("data plane", reason, "make build")
    return ok("data plane", "compiled and loadable")


def capabilities() -> Finding:
    text = Path("/proc/self/status").read_text()
    effective = int(text.split("CapEff:")[1].split()[0], 16)
    missing = [name for name, bit in _CAPABILITIES.items() if not effective >> bit & 1]
    if not missing:
        return ok("capabilities", ", ".join(_CAPABILITIES))
    shown = "missing: " + ", ".join("CAP_" + name for name in missing)
    # SYS_ADMIN alone stands for BPF; IPC_LOCK matters only to the memory limit, asked elsewhere.
    needed = {"NET_ADMIN", "NET_RAW"} & set(missing) or {"BPF", "SYS_ADMIN"} <= set(missing)
    return fail("capabilities", shown, _AS_ROOT) if needed else warn("capabilities", shown)


def clock() -> Finding:
    path = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    try:
        source = path.read_text().strip()
    except OSError:
        return warn("clock", "the clock source cannot be read")
    if source in ("tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page"):
        return ok("clock", source)
    return warn("clock", f"{source}: reading the time is slow, and timestamps cost more",
                "boot with clocksource=tsc where the processor's counter is stable")


def processors() -> Finding:
    usable = sorted(os.sched_getaffinity(0))
    isolated = _text("/sys/devices/system/cpu/isolated")
    found = f"{len(usable)} usable, isolated: {isolated or 'none'}"
    if len(usable) < 2:
        return warn("cpus", f"{found}; the worker shares its core with everything else",
                    "give the machine a second core")
    return ok("cpus", found)


def busy_poll() -> Finding:
    value = _text("/proc/sys/net/core/busy_poll")
    budget = _text("/proc/sys/net/core/netdev_budget")
    if value is None:
        return warn("busy poll", "the kernel has no busy polling", "use poll = irq")
    return ok("busy poll", f"net.core.busy_poll={value} (sockets ask by themselves), "
              f"netdev_budget={budget}")


def jit() -> Finding:
    value = _text("/proc/sys/net/core/bpf_jit_enable")
    if value == "0":
        return warn("bpf jit", "off: programs are interpreted", "sysctl net.core.bpf_jit_enable=1")
    return ok("bpf jit", "on" if value else "always on")


def dpdk() -> Finding:
    """Optional: without it the package works, and only backend dpdk is missing."""
    try:
        return ok("dpdk", f"backend dpdk: {library().eal.version()}")
    except HostError as error:
        return warn("dpdk", str(error.args[0]), error.fix)


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _debian_architecture() -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


CHECKS: tuple[Check, ...] = (
    kernel, bpf_system_call, btf, jit, xdp_socket, bcc, kernel_headers, libraries, data_plane,
    capabilities, clock, processors, busy_poll, dpdk,
)
