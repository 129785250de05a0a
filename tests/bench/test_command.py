"""``fastae bench`` and the same cases under pytest-benchmark, as a user calls them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastae import functional
from fastae.bench import providers
from fastae.bench.results import Results
from fastae.bench.suite import Suite
from fastae.cli import main

ROOT = Path(__file__).parents[2]
TINY = "bench --device cpu --no-compile --shapes 8x12x16 --groups encode inference --seconds 60 --out"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def known_peaks(monkeypatch) -> None:
    """Measuring the machine's own takes seconds."""
    monkeypatch.setattr(
        Suite, "machine_peaks", lambda *_: {"bytes_per_second": 1e10, "flops_per_second": 1e11}
    )


def test_measures_writes_and_skips(here, capsys):
    assert main([*TINY.split(), "r.json"]) == 0
    names = {path.name for path in here.iterdir()}
    assert names == {"r.json", "r.md", "r-ratios.png", "r-roofline-float32.png"}
    written = json.loads((here / "r.json").read_text())
    assert written["format"] == 1 and set(written["cases"]) == {
        "encode float32 8x12x16",
        "inference float32 8x12x16",
    }
    assert set(written["peaks"]["float32"]) == {"bytes_per_second", "flops_per_second"}
    assert "encode, float32" in capsys.readouterr().out
    assert main([*TINY.split(), "r.json"]) == 0
    assert capsys.readouterr().out.count("done before") == 2
    assert json.loads((here / "r.json").read_text())["cases"] == written["cases"]


def test_a_wrong_result_ends_with_1_and_is_still_written(here, capsys, known_peaks, monkeypatch):
    right = functional.contractive_encode

    def wrong(*args):
        code, penalty = right(*args)
        return code, 1.01 * penalty

    monkeypatch.setattr(functional, "contractive_encode", wrong)
    assert main([*TINY.split(), "r.json"]) == 1
    err = capsys.readouterr().err
    assert "encode float32 8x12x16: fastae off by" in err.replace("\n", " ")
    case = Results.load(here / "r.json").cases["encode float32 8x12x16"]
    assert case.ratio("full", "fastae") is None and case.ratio("full", "eager") is not None
    assert "wrong" in (here / "r.md").read_text()


def test_report_and_compare_measure_nothing(here, capsys, results, monkeypatch):
    monkeypatch.setattr("fastae.commands.bench.Suite", None)
    results(fastae=1.5, eager=2.0).save(here / "a.json")
    results(fastae=1.2, eager=2.0).save(here / "b.json")
    assert main(["bench", "--report", "a.json"]) == 0
    assert {path.name for path in here.iterdir()} == {
        "a.json",
        "b.json",
        "a.md",
        "a-ratios.png",
        "a-roofline-float32.png",
        "a-scaling-float32.png",
    }
    assert "1.50 ±0.08" in capsys.readouterr().out
    assert main(["bench", "--compare", "a.json", "b.json"]) == 0
    assert "0.800   faster" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--groups encode nonsense", "nonsense"),
        ("--shapes 8x12", "8x12"),
        ("--shapes 8x0x4", "8x0x4"),
        ("--dtype int8", "int8"),
        ("--seconds -1", "seconds"),
        ("--quick --full", "quick"),
        ("--device nowhere", "nowhere"),
        ("--data nowhere.npy", "nowhere.npy"),
        ("--compare a.json", "compare"),
        ("--compare a.json b.json", "a.json"),
        ("--report a.json", "a.json"),
        ("--report cut.json", "cut off"),
        ("--out cut.json --device cpu", "cut off"),
    ],
)
def test_bad_arguments_and_files_end_with_2(here, capsys, line, message):
    (here / "cut.json").write_text('{"format": 1, "head"')
    assert main(["bench", *line.split()]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in here.iterdir()] == ["cut.json"]


def test_without_a_compiler_the_rest_goes_on(here, capsys, known_peaks, monkeypatch):
    def broken(*args, **options):
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(torch, "compile", broken)
    providers.compile_problem.cache_clear()
    line = [word for word in TINY.split() if word != "--no-compile"]
    assert main([*line, "r.json"]) == 0
    providers.compile_problem.cache_clear()
    case = Results.load(here / "r.json").cases["encode float32 8x12x16"]
    assert "C++ compiler" in case.notes["compile"] and case.ratio("full", "fastae") is not None
    assert "C++ compiler" in capsys.readouterr().out


@pytest.mark.slow
def test_a_compiled_provider(here, known_peaks):
    line = [word for word in TINY.split() if word not in ("--no-compile", "encode")]
    assert main([*line, "r.json"]) == 0
    (case,) = Results.load(here / "r.json").cases.values()
    assert case.errors["compile"] <= case.tolerance and case.ratio("forward", "compile") is not None


@pytest.mark.slow
def test_pytest_benchmark_runs_the_same_cases(here):
    command = [
        sys.executable,
        "-m",
        "pytest",
        str(ROOT / "benchmarks"),
        "--benchmark-only",
        "--benchmark-max-time=0.01",
        "--benchmark-min-rounds=1",
        "-q",
        "-k",
        "test_group and (products or fastae or jacobian)",
        "--shapes",
        "8x12x16",
        "--benchmark-json",
        "out.json",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "--rootdir",
        str(ROOT),
        "-c",
        str(ROOT / "pyproject.toml"),
    ]
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    environment = {**own, "OMP_NUM_THREADS": "1", "PYTHONPATH": path.rstrip(os.pathsep)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert result.returncode == 0, result.stdout[-3000:]
    found = json.loads((here / "out.json").read_text())["benchmarks"]
    assert {entry["group"] for entry in found} == {
        *(
            f"{group} {mode} float32 8x12x16"
            for group in ("step", "encode", "reconstruction_loss")
            for mode in ("forward", "backward", "full")
        ),
        "corruption forward float32 8x12x16",
        "inference forward float32 8x12x16",
        "sparse full float32 8x12x16",
    }
    for entry in found:
        assert entry["extra_info"]["shape"] == [8, 12, 16] and entry["extra_info"]["ratio"] > 0.0
