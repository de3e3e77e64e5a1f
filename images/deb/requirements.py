"""Which of pyproject.toml's requirements Debian satisfies, and which are put into the package.

Run inside the suite by images/deb/build. `names PYPROJECT` prints the requirements' names as Debian
writes them; `stage PYPROJECT DIR` writes DIR/depends (Debian packages whose version is accepted)
and installs the others, with what they need, into DIR/vendor. Owns nothing else.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path


def requirements(pyproject: str) -> list[str]:
    return tomllib.loads(Path(pyproject).read_text())["project"]["dependencies"]


def debian_name(requirement: str) -> str:
    return re.split(r"[<>=!~ \[;]", requirement)[0].lower().replace("_", "-")


def satisfied(requirement: str) -> bool:
    """Whether the version that Debian has is one that we accept."""
    from pip._vendor.packaging.requirements import Requirement

    wanted = Requirement(requirement)
    try:
        return metadata.version(wanted.name) in wanted.specifier
    except metadata.PackageNotFoundError:
        return False


def stage(pyproject: str, directory: Path) -> None:
    wanted = requirements(pyproject)
    ours = [one for one in wanted if not satisfied(one)]
    depends = [f"python3-{debian_name(one)}" for one in wanted if one not in ours]
    (directory / "depends").write_text(", ".join(depends))
    if ours:
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "-q", "--no-compile", "--ignore-installed",
             "--target", str(directory / "vendor"), *ours], check=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["names", pyproject]:
            print("\n".join(debian_name(one) for one in requirements(pyproject)))
        case ["stage", pyproject, directory]:
            stage(pyproject, Path(directory))
        case _:
            sys.exit("usage: requirements.py names PYPROJECT | stage PYPROJECT DIR")
