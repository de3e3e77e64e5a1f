"""Kernel headers for bcc: finds some that serve, and shows them to bcc as one tree.

Owns a private directory of links for the length of one compilation. XDP's ABI is stable, so the
headers of any Debian kernel serve; Debian splits them into two packages, and bcc wants one tree.
It installs nothing: without headers it raises HostError with the command that would.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import stat
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from appliance.errors import HostError

SOURCES = Path("/usr/src")
MODULES = Path("/lib/modules")
KHEADERS = Path("/sys/kernel/kheaders.tar.xz")
PREFIX = "openclaw-headers-"
STALE_S = 3600  # no compilation lives so long (compiler.COMPILE_S)
# The kernel's names of architectures, as bcc asks for them: arch/<name>/include.
ARCHITECTURES = {"x86_64": "x86", "aarch64": "arm64", "ppc64le": "powerpc", "riscv64": "riscv"}
DEBIAN_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "ppc64le": "ppc64el"}


def architecture() -> str:
    machine = platform.machine()
    return ARCHITECTURES.get(machine, machine)


def install_command() -> str:
    machine = platform.machine()
    return f"apt-get install linux-headers-{DEBIAN_ARCHITECTURES.get(machine, machine)}"


def candidates() -> list[tuple[Path, ...]]:
    """Header trees of this host, best first; each is one directory or a pair that belongs together.

    The running kernel's own come first, then those of /usr/src, newest first.
    """
    found: list[tuple[Path, ...]] = []
    running = MODULES / platform.release()
    parts = [path.resolve() for path in (running / "build", running / "source") if path.is_dir()]
    if parts:
        found.append(tuple(dict.fromkeys(parts)))
    packages = sorted(SOURCES.glob("linux-headers-*"), key=_version, reverse=True)
    for common in packages:
        if common.name.endswith("-common"):
            stem = common.name.removesuffix("common")
            for flavour in packages:
                if flavour.name.startswith(stem) and flavour != common:
                    found.append((flavour, common))
    found += [(package,) for package in packages]
    return [tree for tree in found if _serves(tree)]


@contextlib.contextmanager
def tree() -> Iterator[Path]:
    """One directory that holds include/ and arch/*/include/, for BCC_KERNEL_SOURCE.

    It lies in a new directory of mode 0700, so nobody else can put a header into our program, and
    it is gone afterwards.
    """
    trees = candidates()
    if not trees and not KHEADERS.exists():
        raise HostError("no kernel headers found for bcc", fix=install_command())
    _sweep()
    with tempfile.TemporaryDirectory(prefix=PREFIX) as made:
        root = Path(made)
        if trees:
            for part in ("include", f"arch/{architecture()}/include"):
                _merge(root / part, [source / part for source in trees[0]])
        else:
            _unpack(root)
        yield root


def _sweep() -> None:
    """Removes trees of ours that a killed process left: links only, an hour old or more."""
    for left in Path(tempfile.gettempdir()).glob(PREFIX + "*"):
        with contextlib.suppress(OSError):
            status = left.lstat()
            old = time.time() - status.st_mtime > STALE_S
            if old and stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid():
                shutil.rmtree(left, ignore_errors=True)


def describe() -> str:
    """For doctor: which headers a compilation would use now, or an empty string."""
    trees = candidates()
    if trees:
        return " + ".join(str(path) for path in trees[0])
    return str(KHEADERS) if KHEADERS.exists() else ""


def _version(path: Path) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", path.name)]


def _serves(trees: tuple[Path, ...]) -> bool:
    wanted = ("include/uapi/linux/bpf.h", "include/linux/kconfig.h", "include/generated/autoconf.h")
    return all(any((tree / name).is_file() for tree in trees) for name in wanted)


def _merge(into: Path, sources: list[Path]) -> None:
    """`into` becomes a directory of links; only what several sources have is merged deeper."""
    into.mkdir(parents=True)
    names: dict[str, list[Path]] = {}
    for source in sources:
        if source.is_dir():
            for entry in os.scandir(source):
                names.setdefault(entry.name, []).append(Path(entry.path))
    for name, paths in names.items():
        if len(paths) > 1 and all(path.is_dir() for path in paths):
            _merge(into / name, paths)
        else:
            (into / name).symlink_to(paths[0])


def _unpack(root: Path) -> None:
    """The headers that the kernel itself carries (CONFIG_IKHEADERS); some 3 s of unpacking."""
    try:
        with tarfile.open(KHEADERS) as archive:
            archive.extractall(root, filter="data")
    except (OSError, tarfile.TarError) as error:
        shutil.rmtree(root, ignore_errors=True)
        raise HostError(f"{KHEADERS} cannot be read: {error}", fix=install_command()) from error
