"""Kernels compile ahead of time, without a GPU, to what their target is best at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fastae_kernels.launch import INTERPRETED, compile_only
from fastae_kernels.tools import aot

OPERATORS = (
    "encode contractive",
    "decode_loss bce tied",
    "code_grad tied",
    "weight_grad tied",
    "encode 1000",
    "encode 500",
    "corrupt masking",
)


def compile_kernels(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """``python -m fastae_kernels.aot``, outside the interpreter."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env["PYTHONPATH"] = os.pathsep.join(str(Path(path).resolve()) for path in sys.path)
    command = [sys.executable, "-m", "fastae_kernels.aot", *arguments]
    return subprocess.run(command, env=env | environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The exit code, the output and the rows for an H100 in float16."""
    file = tmp_path_factory.mktemp("aot") / "rows.json"
    run = compile_kernels(
        "--target", "cuda:90", "--dtype", "float16", "--operator", *OPERATORS, "--json", str(file)
    )
    return {"code": run.returncode, "out": run.stdout, "errors": run.stderr, **json.loads(file.read_text())}


# --- a GPU that is not there ----------------------------------------------------------------------------


@pytest.mark.slow
def test_every_kernel_compiles_without_problems(compiled: dict[str, Any]):
    assert compiled["code"] == 0, compiled["errors"]
    assert {row["operator"] for row in compiled["rows"]} == set(OPERATORS)
    assert {row["kernel"] for row in compiled["rows"]} == {"gemm", "fold", "elementwise"}
    assert f"{len(compiled['rows'])} kernels compiled" in compiled["out"]
    assert compiled["torch"] == torch.__version__
    assert all(row["spilled"] == 0 and row["stack"] == 0 for row in compiled["rows"])
    assert all(0 < row["registers"] <= 255 and row["seconds"] > 0.0 for row in compiled["rows"])


@pytest.mark.slow
def test_products_run_on_matrix_units_with_wide_pipelined_loads(compiled: dict[str, Any]):
    products = [row for row in compiled["rows"] if row["kernel"] == "gemm"]
    for operator in OPERATORS[:-1]:
        own = [row for row in products if row["operator"] == operator]
        assert len(own) >= 2, f"{operator}: no choice of tiles"
        assert len({row["configuration"] for row in own}) == len(own)
    for row in products:
        assert row["matrix"] == "wgmma", row
        assert row["loads"] in ("16 B", "tma") and row["pipelined"], row
        assert 0 < row["shared"] <= 227 * 1024, row


@pytest.mark.slow
def test_passes_load_16_bytes_at_a_time(compiled: dict[str, Any]):
    passes = [row for row in compiled["rows"] if row["kernel"] == "elementwise"]
    assert {row["operator"] for row in passes} >= {"corrupt masking", "encode contractive", "code_grad tied"}
    assert all(row["loads"] == ("8 B" if row["operator"] == "encode 500" else "16 B") for row in passes), (
        passes
    )


@pytest.mark.slow
@pytest.mark.parametrize("units", aot.STORES)
def test_codes_of_any_even_width_are_stored_in_wide_pieces(units: int, compiled: dict[str, Any]):
    rows = [row for row in compiled["rows"] if row["operator"] == f"encode {units}"]
    assert {row["kernel"] for row in rows} == {"gemm", "elementwise"}
    assert {row["stores"] for row in rows} == {aot.STORES[units]}


# --- what is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--target", "cuda:91"), "invalid choice: 'cuda:91'"),
        (("--operator", "encoder"), "invalid choice: 'encoder'"),
        (("--dtype", "float64"), "invalid choice: 'float64'"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_unknown_names_are_refused(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as exit:
        aot.main(list(arguments))
    error = capsys.readouterr().err
    assert exit.value.code == 2 and message in error
    if "--target" in arguments:
        assert all(target in error for target in aot.TARGETS)


def test_interpreter_is_refused():
    run = compile_kernels("--target", "cuda:90", TRITON_INTERPRET="1")
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1].endswith(
        "error: TRITON_INTERPRET is set: the interpreter does not compile"
    )


@pytest.mark.skipif(not INTERPRETED, reason="kernels were imported for a GPU")
def test_kernels_imported_for_the_interpreter_do_not_compile():
    with (
        pytest.raises(RuntimeError, match="TRITON_INTERPRET is set"),
        compile_only(aot.TARGETS["cuda:90"]),
    ):
        pass


# --- the verdict ----------------------------------------------------------------------------------------

GOOD = aot.Row(
    "cuda:90", "encode", "gemm", "float16", "64x64x64", 88, 0, 0, 81_960, "wgmma", "tma", "16 B", True, 0.4
)


@pytest.mark.parametrize("target", aot.TARGETS)
def test_rows_on_their_matrix_units_have_no_problems(target: str):
    rows = [
        replace(GOOD, target=target, dtype=dtype, matrix=aot.MATRIX_INSTRUCTIONS[target])
        for dtype in ("float16", "bfloat16")
    ]
    single = replace(GOOD, target=target, dtype="float32", matrix="-")
    other = replace(GOOD, target=target, kernel="fold", matrix="-")
    assert aot.problems([*rows, single, other]) == []


@pytest.mark.parametrize("kernel", ["gemm", "elementwise", "fold"])
@pytest.mark.parametrize("dtype", aot.DTYPES)
def test_spills_are_problems_of_every_kernel_and_dtype(kernel: str, dtype: str):
    (problem,) = aot.problems([GOOD, replace(GOOD, kernel=kernel, dtype=dtype, spilled=24)])
    assert "spills 24 bytes" in problem and kernel in problem and dtype in problem


@pytest.mark.parametrize("target", aot.TARGETS)
@pytest.mark.parametrize("found", ["-", "mma.sync", "wgmma"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_products_of_16_bits_off_the_matrix_units_are_problems(target: str, found: str, dtype: str):
    wanted = aot.MATRIX_INSTRUCTIONS[target]
    problems = aot.problems([replace(GOOD, target=target, matrix=found, dtype=dtype)])
    if found == wanted:
        assert problems == []
    else:
        assert len(problems) == 1 and f"no {wanted}, but {found}" in problems[0] and target in problems[0]


def test_narrow_stores_are_problems_where_rows_allow_wide_ones():
    narrow = replace(GOOD, operator="encode 1000", stores="4 B")
    assert aot.problems([narrow, replace(narrow, operator="encode"), replace(narrow, dtype="float32")]) == [
        "cuda:90 encode 1000 (gemm, float16, 64x64x64): stores of 4 B, not of 16 B"
    ]


def test_a_row_may_have_two_problems():
    assert len(aot.problems([replace(GOOD, spilled=8, matrix="-")])) == 2
