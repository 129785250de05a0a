"""``fastae tune`` and what ``fastae info`` says of measured choices, by the interpreter and without it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("rich")
pytest.importorskip("triton")

from fastae_kernels.plan import config
from fastae_kernels.tools import tune

from fastae.cli import main
from fastae.commands.tune import Config

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="runs on the interpreter")
TINY = "tune --shapes 24x32x40 --dtypes float32 --operators encode corrupt"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FASTAE_CACHE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "120")
    config.forget_choices()
    yield tmp_path
    config.forget_choices()


def test_tune_measures_keeps_and_prints(capsys, cache, monkeypatch):
    assert main(shlex.split(TINY)) == 0
    out, err = capsys.readouterr()
    assert err == "" and "plans on interpreter" in out and str(cache) in out.replace("\n", "")
    for word in ("encode float32", "corrupt float32", "24x40x32", "24x32x0"):
        assert word in out
    keys = [
        entry["key"] for entry in json.loads((cache / "tables" / "interpreter.json").read_text())["entries"]
    ]
    assert [(key["operator"], key["M"], key["N"], key["K"]) for key in keys] == [
        ("encode", 24, 40, 32),
        ("corrupt", 24, 32, 0),
    ]
    monkeypatch.setenv("FASTAE_BACKEND", "triton")
    assert main(["info"]) == 0
    assert "measured choices, cpu  0 shipped, 2 cache" in capsys.readouterr().out


def test_json_says_what_was_chosen_and_what_was_there_before(capsys, monkeypatch):
    monkeypatch.setattr(
        tune, "wall_timer", lambda: lambda runs: [float(len(runs) - i) for i in range(len(runs))]
    )
    rows = {}
    for run in ("first", "second", "again"):
        assert main(shlex.split(f"{TINY} --json" + (" --again" if run == "again" else ""))) == 0
        printed = json.loads(capsys.readouterr().out)
        assert printed["device"] == "interpreter"
        rows[run] = printed["results"]
    encode, corrupt = rows["first"]
    assert encode["verdict"] == "chosen" and encode["default"].startswith("fused 64x64x64")
    assert encode["chosen"].startswith("split") and encode["gain"] == 0.5
    assert [row["verdict"] for row in rows["second"]] == ["kept from before"] * 2
    assert rows["again"] == rows["first"]
    assert corrupt["product"] == [24, 32, 0] and corrupt["dropped"] == []


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("tune --shapes 1x2", "shapes: 1x2 256x784x1000"),
        ("tune --shapes 0x2x3", "shapes: 0x2x3"),
        ("tune --shapes", "shapes"),
        ("tune --dtypes int8", "--dtypes int8 bfloat16"),
        ("tune --operators encoder", "--operators encoder encode"),
        ("tune --device cuda:77 --shapes 8x8x8 --dtypes float32", "device: 'cuda:77'"),
        ("tune --device meta --shapes 8x8x8 --dtypes float32", "device: 'meta'"),
        ("tune", "shapes: TRITON_INTERPRET=1"),
        ("tune --shapes 8x8x8", "dtypes: bfloat16 interpreter"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(line, names, capsys, cache):
    assert main(shlex.split(line)) == 2
    out, err = capsys.readouterr()
    assert [name for name in names.split() if name not in err] == [] and "Traceback" not in out + err
    assert not list(cache.iterdir())


def test_a_cache_that_cannot_be_written_is_refused_before_anything_is_measured(capsys, cache, monkeypatch):
    (cache / "file").write_text("")
    monkeypatch.setenv("FASTAE_CACHE", str(cache / "file"))
    monkeypatch.setattr(tune, "tune", lambda *_, **__: pytest.fail("it was measured"))
    assert main(shlex.split(TINY)) == 2
    assert capsys.readouterr().err.startswith(f"fastae: FASTAE_CACHE: cannot write to {cache / 'file'}")


def test_ctrl_c_ends_with_exit_code_130_and_keeps_what_is_done(capsys, cache, monkeypatch):
    table = cache / "tables" / "interpreter.json"

    def timer(runs: list[tune.Run]) -> list[float]:
        if table.exists():  # the first operator is done
            raise KeyboardInterrupt
        return [1.0] * len(runs)

    monkeypatch.setattr(tune, "wall_timer", lambda: timer)
    assert main(shlex.split(TINY)) == 130
    assert capsys.readouterr() == ("", "fastae: interrupted\n")
    assert [entry["key"]["operator"] for entry in json.loads(table.read_text())["entries"]] == ["encode"]


@pytest.mark.parametrize("field", ["shapes", "dtypes", "operators"])
def test_nothing_to_tune_is_refused(field):
    with pytest.raises(ValueError, match=f"{field}: expected at least one"):
        Config(**{field: ()})


def test_without_a_gpu_it_says_what_was_looked_for(cache):
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths.rstrip(os.pathsep), "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-m", "fastae", "tune"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("fastae: device: no GPU was found (torch.cuda.is_available() is False")
    assert result.stderr.count("\n") == 1 and not list(cache.iterdir())
