"""Fixtures of the command line's tests."""

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("rich")
pytest.importorskip("sklearn")

from fastae.cli import main
from tests.cli.support import QUICK, Outcome


@pytest.fixture
def fastae_(capsys, monkeypatch) -> Callable[[str], Outcome]:
    """Runs one command line in this process."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(line: str) -> Outcome:
        code = main(shlex.split(line))
        out, err = capsys.readouterr()
        return Outcome(code, out, err)

    return run


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> Path:
    """A trained run on digits, with a classifier; tests must not change it."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert main(shlex.split(f"train {QUICK} --classifier --out {folder}")) == 0
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path
