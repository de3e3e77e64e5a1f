"""Two builds of one commit are bit-identical; when they are not, the file that differs is named."""

from __future__ import annotations

import filecmp
import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.full
ROOT = Path(__file__).resolve().parent.parent.parent
TOOLS = ROOT / "build/trees/tools"
VERSION = "0.0.1"


def build(at: Path) -> Path:
    subprocess.run([ROOT / "images/image", "--version", VERSION, "--out", at, "--slots-only"],
                   check=True, timeout=3000)
    return at / f"update_{VERSION}"


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def extracted(root: Path, at: Path) -> Path:
    """The files of an erofs image, by the tools tree's own program."""
    at.mkdir()
    shutil.copy(root, TOOLS / "tmp/root.raw")
    try:
        subprocess.run(["chroot", TOOLS, "fsck.erofs", "--extract=/tmp/root", "/tmp/root.raw"],
                       check=True, capture_output=True)
        shutil.move(TOOLS / "tmp/root", at / "root")
    finally:
        (TOOLS / "tmp/root.raw").unlink()
    return at / "root"


def differing(one: Path, two: Path) -> list[str]:
    compared = filecmp.dircmp(one, two, shallow=False)
    found = [str(one / name) for name in
             (*compared.diff_files, *compared.left_only, *compared.right_only)]
    for name in compared.common_dirs:
        if not (one / name).is_symlink():
            found += differing(one / name, two / name)
    return found


def test_two_builds_of_one_commit_are_bit_identical(tmp_path):
    one, two = build(tmp_path / "one"), build(tmp_path / "two")
    names = sorted(path.name for path in one.iterdir())
    if names == sorted(path.name for path in two.iterdir()):
        different = [name for name in names if digest(one / name) != digest(two / name)]
    else:
        different = ["the root's hash, which is in the names"]
    if not different:
        return
    [first], [second] = (list(at.glob("*.root-x86-64.*")) for at in (one, two))
    files = differing(extracted(first, tmp_path / "a"), extracted(second, tmp_path / "b"))
    raise AssertionError(f"{different}; in the root: {files[:20]}")
