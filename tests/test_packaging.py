"""The source distribution holds the whole project, and the examples run."""

import importlib.util
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.cli.support import environment

ROOT = Path(__file__).parents[1]
FOLDERS = ("benchmarks", "docs", "examples", "fastae", "kernels", "tests")
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
IGNORE = shutil.ignore_patterns("__pycache__", ".*_cache", "*.egg-info", ".benchmarks", ".hypothesis")


def test_source_distribution_is_whole(tmp_path: Path):
    setuptools = pytest.importorskip("setuptools", minversion="77")
    source, out = tmp_path / "source", tmp_path / "out"
    out.mkdir()
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=IGNORE)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, source)
    build = f"from setuptools import build_meta; build_meta.build_sdist({str(out)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (archive,) = out.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        packed = {name.partition("/")[2] for name in tar.getnames()}
    project = {
        str(path.relative_to(source))
        for folder in FOLDERS
        for path in (source / folder).rglob("*")
        if path.is_file() and not any(part.endswith(".egg-info") for part in path.parts)
    }
    top = {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "pyproject.toml"}
    assert project | top <= packed, f"not in the archive of setuptools {setuptools.__version__}"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("sklearn") is None, reason="needs the data of scikit-learn")
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(example: Path, tmp_path: Path):
    subprocess.run([sys.executable, str(example)], cwd=tmp_path, env=environment(), check=True, timeout=120)
