"""The guide's examples and commands run as they stand, in its order."""

import re
import shlex
from pathlib import Path

import pytest

pytest.importorskip("rich")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from fastae.cli import main

DOCS = Path(__file__).parents[1] / "docs"
GUIDE = (DOCS / "guide.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(?:python|sh)\n.*?```", GUIDE, re.DOTALL)


@pytest.mark.slow
def test_every_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for number, block in enumerate(BLOCKS, 1):
        language, code = re.fullmatch(r"```(\w+)\n(.*)```", block, re.DOTALL).groups()  # pyright: ignore
        if language == "python":
            exec(compile(code, f"guide, block {number}", "exec"), names)
            continue
        for line in code.splitlines():
            command, *arguments = shlex.split(line)
            assert command == "fastae"
            assert main([*arguments, *(["--no-tensorboard"] if arguments[0] == "train" else [])]) == 0, line
    assert (tmp_path / "runs" / "denoising" / "plots" / "reconstructions.svg").is_file()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_export_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    text = (DOCS / "export.md").read_text(encoding="utf-8")
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        if "onnx" in code:
            pytest.importorskip("onnxscript", reason="needs onnxscript")
        exec(compile(code, "export.md", "exec"), names)
    assert {"encoder.pt", "encoder.pt2", "encoder.ts", "encoder.onnx"} <= {p.name for p in tmp_path.iterdir()}


def test_every_kind_has_an_example_and_a_command():
    kinds = re.split(r"^## ", GUIDE, flags=re.MULTILINE)[2:-2]
    assert len(kinds) == 10
    for kind in kinds:
        assert "```python" in kind and "```sh\nfastae train" in kind, kind.splitlines()[0]
