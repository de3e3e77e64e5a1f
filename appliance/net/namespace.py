"""Network namespaces: run a function inside one, make one, remove one.

Owns the threads that change namespace; no thread of the caller ever does. Names are those of
`ip netns` (files in /run/netns), so every tool sees ours and we see theirs. It knows nothing of
links. Uses libc directly because os.setns exists only from Python 3.12 on.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from appliance.errors import ConfigError, HostError

Result = TypeVar("Result")

NETNS_DIRECTORY = Path("/run/netns")

_CLONE_NEWNS = 0x00020000
_CLONE_NEWNET = 0x40000000
_MS_BIND, _MS_REC, _MS_PRIVATE, _MS_SLAVE, _MS_SHARED = 4096, 16384, 1 << 18, 1 << 19, 1 << 20
_MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


def _call(function: str, *args: Any) -> None:
    """A libc call that raises OSError with the errno of this thread."""
    if getattr(_libc, function)(*args) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), function)


def _mount(source: str | None, target: str, kind: str | None, flags: int) -> None:
    _call(
        "mount",
        source and source.encode(),
        target.encode(),
        kind and kind.encode(),
        ctypes.c_ulong(flags),
        None,
    )


def in_netns(name: str | None, function: Callable[..., Result], *args: Any) -> Result:
    """function(*args) inside the namespace `name`, with that namespace's /sys; its result.

    Runs in a thread of its own, which ends with the call. Sockets that the function opens belong
    to the namespace for good. None or "" means here and now, in the caller's thread.
    """
    if not name:
        return function(*args)
    path = _path(name)

    def inside() -> Result:
        _enter(name, path)
        return function(*args)

    return _in_thread(inside, f"netns {name}")


def _in_thread(function: Callable[[], Result], title: str) -> Result:
    """The result or exception of function() in a fresh thread, which is always waited for."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append((True, function()))
        except BaseException as error:
            outcome.append((False, error))

    thread = threading.Thread(target=run, name=title, daemon=True)
    thread.start()
    try:
        thread.join()
    except BaseException:
        # An interrupt must not leave the thread building what the caller is about to remove.
        thread.join()
        raise
    done, value = outcome.pop()
    if not done:
        try:
            raise value
        finally:
            del value  # the traceback holds this frame: without this, a cycle that keeps fds
    return value


def _enter(name: str, path: Path) -> None:
    """Moves the calling thread into the namespace and gives it that namespace's /sys/class/net."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise HostError(f"no network namespace {name}", fix=f"ip netns add {name}") from None
    except OSError as error:
        raise HostError(f"network namespace {name}: {error.strerror}", fix="run as root") from None
    try:
        _call("setns", handle, _CLONE_NEWNET)
        _call("unshare", _CLONE_NEWNS)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise HostError(
                f"{path} is no network namespace", fix=f"rm {path}; ip netns add {name}"
            ) from None
        raise HostError(
            f"cannot enter network namespace {name}: {error.strerror}", fix="run as root (sudo)"
        ) from None
    finally:
        os.close(handle)
    _private_sysfs()


def _private_sysfs() -> None:
    """sysfs shows the namespace that it was mounted in, so this thread mounts its own.

    "/" is made a slave first, so that unmounting a namespace elsewhere reaches us. In a plain
    chroot "/" is no mount point (EINVAL); then /sys alone is cut off, which is what matters: our
    mount must not appear outside.
    """
    for target, flags in (("/", _MS_SLAVE | _MS_REC), ("/sys", _MS_PRIVATE)):
        try:
            _mount(None, target, None, flags)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            if target == "/sys":
                raise HostError("/sys is not mounted", fix="mount -t sysfs sysfs /sys") from None
    _mount("sysfs", "/sys", "sysfs", 0)


def _path(name: str) -> Path:
    if not re.fullmatch(r"[!-.0-~]{1,255}", name) or name in (".", ".."):
        raise ConfigError(f"netns: {name!r}: a name without / and blanks")
    return NETNS_DIRECTORY / name


def inside(name: str | None, *command: str) -> list[str]:
    """The words of a command that runs in the namespace. By nsenter and not by `ip -n` or `ip netns
    exec`: those remount "/", which fails in a plain chroot."""
    return [*(("nsenter", f"--net={NETNS_DIRECTORY / name}") if name else ()), *command]


def namespaces() -> list[str]:
    """The names of all named network namespaces."""
    try:
        return sorted(os.listdir(NETNS_DIRECTORY))
    except FileNotFoundError:
        return []


def create(name: str) -> None:
    """A new, empty namespace with its loopback down. HostError if the name is taken."""
    path = _path(name)
    try:
        _prepare_directory()
        handle = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
        os.close(handle)
    except FileExistsError:
        raise HostError(
            f"network namespace {name} exists already", fix=f"ip netns delete {name}"
        ) from None
    except OSError as error:
        raise _needs_root(error) from None

    def make() -> None:
        _call("unshare", _CLONE_NEWNET)
        _mount(f"/proc/self/task/{threading.get_native_id()}/ns/net", str(path), "none", _MS_BIND)

    try:
        _in_thread(make, f"netns add {name}")
    except OSError as error:
        path.unlink(missing_ok=True)
        raise _needs_root(error) from None


def _needs_root(error: OSError) -> HostError:
    return HostError(f"cannot make a network namespace: {error.strerror}", fix="run as root (sudo)")


def _prepare_directory() -> None:
    """As iproute2 does: a shared mount, so that removal reaches processes with their own mounts."""
    NETNS_DIRECTORY.mkdir(mode=0o755, parents=True, exist_ok=True)
    target = str(NETNS_DIRECTORY)
    try:
        _mount(None, target, "none", _MS_SHARED | _MS_REC)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        _mount(target, target, "none", _MS_BIND | _MS_REC)
        _mount(None, target, "none", _MS_SHARED | _MS_REC)


def delete(name: str) -> bool:
    """Removes the name; the kernel removes the namespace once nothing uses it. False if absent."""
    path = _path(name)
    try:
        _call("umount2", str(path).encode(), _MNT_DETACH)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return False
        if error.errno != errno.EINVAL:  # EINVAL: a file without a mount, left by a crash
            raise HostError(f"cannot remove network namespace {name}: {error.strerror}",
                            fix="run as root (sudo)") from None
    path.unlink(missing_ok=True)
    return True
