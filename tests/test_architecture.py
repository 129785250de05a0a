"""Imports point only downwards through the floors of docs/architecture.md."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "images" / "floors.svg"
FLOORS = [
    re.findall(r"\w+", line) for line in re.findall(r">([^<]*)</text><!-- rooms -->", PICTURE.read_text())
]
"""The rooms of each floor, the lowest floor last; a room may import those to its left and those below."""
ORDER = [room for floor in reversed(FLOORS) for room in floor]


def module_of(path: Path) -> list[str]:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return parts[parts[0] == "kernels" : len(parts) - (parts[-1] == "__init__")]


def room_of(module: list[str]) -> str:
    """The module or package below ``fastae``; the kernels are one room."""
    return module[0] if module[0] == "fastae_kernels" else (module[1:2] or ["fastae"])[0]


FILES = [*ROOT.glob("fastae/**/*.py"), *ROOT.glob("kernels/**/*.py")]
MODULES = {".".join(module_of(path)) for path in FILES}
ROOMS = sorted({room_of(module_of(path)) for path in FILES} - {"fastae"})


def imports(path: Path) -> Iterator[list[str]]:
    """The modules of this project that a file imports, also within functions."""
    package = module_of(path if path.name == "__init__.py" else path.parent / "__init__.py")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            names = [f"{base}.{a.name}" if f"{base}.{a.name}" in MODULES else base for a in node.names]
        yield from (name.split(".") for name in names if name.split(".")[0] in ("fastae", "fastae_kernels"))


def test_every_room_is_on_one_floor():
    assert sorted(ORDER) == ROOMS, f"{PICTURE.name} has other rooms than the package"


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_down(room: str):
    below = set(ORDER[: ORDER.index(room) + 1])
    for path in (path for path in FILES if room_of(module_of(path)) == room):
        for target in imports(path):
            assert room_of(target) in below, f"{path.relative_to(ROOT)} imports {'.'.join(target)}"


def test_importing_fastae_does_not_import_the_compiler_or_triton():
    """Either takes seconds, and a process that compiles nothing needs neither."""
    code = "import sys, torch; before = set(sys.modules); import fastae; print(*set(sys.modules) - before)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    added = {name for name in result.stdout.split() if name in ("torch._dynamo", "triton", "sklearn", "rich")}
    assert result.returncode == 0 and not added, result.stderr
