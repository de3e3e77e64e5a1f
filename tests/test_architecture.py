"""The architecture, enforced: imports point downward, each dependency has one doorway, rooms are
small. Reads the source as text and trees; imports nothing of it.

The layers are those of ARCHITECTURE.md. A module may import from lower layers and its own package.
"""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "appliance"

# Lower number: nearer to the ground. A unit is a package or module directly under appliance/.
LAYERS = {
    "errors": 0, "limits": 0, "image": 0,
    "config": 1,
    "plan": 2, "dataplane": 2,
    "asynchronous": 3, "capture": 3, "handshake": 3, "net": 3, "pacing": 3, "spec": 3,
    "steering": 4, "refusal": 4, "memory": 4, "observe": 4,
    "attachment": 5, "holding": 5, "record": 5, "dpdk": 5.5,
    "attaching": 6, "port": 6, "consumer": 6,
    "engine": 7, "replay": 7,
    "demo": 8, "bench": 8, "doctor": 8,
    "update": 9,
    "cli": 10,
}

# Library -> the only places (files or folders under the root) that may import it
DOORWAYS = {
    "click": ("appliance/cli",),
    "rich": ("appliance/cli",),
    "pyroute2": ("appliance/net",),
    "bcc": ("appliance/steering/compile_child.py",),
    "cython_ext": ("appliance/dataplane.py",),
    "pydantic": ("appliance/config",),
    "prometheus_client": ("appliance/engine", "appliance/observe"),
}

# Beyond the standard library these may import only what is named
GROUND = {"errors": set(), "limits": set(), "config": {"pydantic"}, "plan": set()}

# Where splitting would hide the idea, the head of the file says "longer than" and why.
LONGER = re.compile(r"longer\s+(\*\s+)?than")
HEAD = 1500  # characters
LINES_MAX = {".py": 300, ".pyx": 400, ".pxd": 400, ".c": 250, ".h": 250}

SOURCES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> list[tuple[int, str]]:
    """(line, module) of every import in the file, also those inside functions."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, name.name) for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            found += [(node.lineno, f"{base}.{name.name}" if base == "appliance" else base)
                      for name in node.names]
    return found


def unit_of(path: Path) -> str | None:
    """The unit that a source file belongs to; None for the package's own __init__ (the facade)."""
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return None if first == "__init__" else first


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_every_unit_has_its_place_among_the_layers():
    units = {unit for path in SOURCES if (unit := unit_of(path))}
    assert units <= set(LAYERS), f"not in LAYERS: {sorted(units - set(LAYERS))}"


def test_imports_point_downward_only():
    upward = []
    for path in SOURCES:
        unit = unit_of(path)
        if unit is None:
            continue
        for line, module in imports(path):
            parts = module.split(".")
            target = parts[1] if parts[0] == "appliance" and len(parts) > 1 else None
            if target in (None, unit):
                continue
            if LAYERS.get(target, 99) >= LAYERS.get(unit, 0):
                upward.append(f"{relative(path)}:{line} imports {module}")
    assert not upward, "\n".join(upward)


def test_each_dependency_has_one_doorway():
    elsewhere = []
    for path in SOURCES:
        for line, module in imports(path):
            allowed = DOORWAYS.get(module.split(".")[0])
            if allowed and not any(Path(relative(path)).is_relative_to(place) for place in allowed):
                elsewhere.append(f"{relative(path)}:{line} imports {module}")
    assert not elsewhere, "\n".join(elsewhere)


@pytest.mark.parametrize("unit", sorted(GROUND))
def test_the_ground_floor_imports_only_the_standard_library(unit):
    foreign = []
    for path in SOURCES:
        if unit_of(path) != unit:
            continue
        for line, module in imports(path):
            top = module.split(".")[0]
            if top not in sys.stdlib_module_names | GROUND[unit] | {"appliance"}:
                foreign.append(f"{relative(path)}:{line} imports {module}")
    assert not foreign, "\n".join(foreign)


def test_modules_import_each_other_by_full_name():
    relative_ones = [f"{relative(path)}:{line}" for path in SOURCES
                     for line, module in imports(path) if module.startswith(".")]
    assert not relative_ones


def test_dpdk_is_declared_in_one_file():
    declaring = [path.name for path in (ROOT / "cython_ext").rglob("*.px*")
                 if re.search(r'cdef extern from "rte_', path.read_text())]
    assert len(declaring) <= 1, declaring


def every_source() -> list[Path]:
    folders = ("appliance", "cython_ext", "xdp", "tools", "tests")
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*")
                  if path.suffix in LINES_MAX and path.is_file())


def test_rooms_are_small():
    limits = {path: LINES_MAX[path.suffix] for path in every_source()
              if path.relative_to(ROOT).parts[0] != "tests"}
    large = [f"{relative(path)}: {count} lines, at most {most}" for path, most in limits.items()
             if not LONGER.search(path.read_text()[:HEAD])
             and (count := len(path.read_text().splitlines())) > most]
    assert not large, "\n".join(large)


def test_functions_are_small():
    large = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                count = (node.end_lineno or node.lineno) - node.lineno + 1
                if count > 70:
                    large.append(f"{relative(path)}:{node.lineno} {node.name}: {count} lines")
    assert not large, "\n".join(large)


def test_lines_have_at_most_100_columns():
    long = [f"{relative(path)}:{number}" for path in every_source()
            for number, line in enumerate(path.read_text().splitlines(), 1)
            if len(line.expandtabs(8)) > 100]
    assert not long, "\n".join(long)


def test_every_file_says_what_it_is_for():
    silent = []
    for path in SOURCES:
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        if len(text) < 20:
            silent.append(relative(path))
    assert not silent, silent
