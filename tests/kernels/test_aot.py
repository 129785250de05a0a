"""Kernels compile ahead of time, without a GPU, to what their target is best at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fastae_kernels.launch import INTERPRETED, compile_only
from fastae_kernels.tools import aot, lanes

OPERATORS = (
    "encode contractive",
    "decode_loss bce tied",
    "code_grad tied",
    "weight_grad tied",
    "encode 1000",
    "encode 500",
    "corrupt masking",
)


def run_python(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Python outside Triton's interpreter."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env["PYTHONPATH"] = os.pathsep.join(str(Path(path).resolve()) for path in sys.path)
    return subprocess.run(
        [sys.executable, *command], env=env | environment, capture_output=True, text=True, timeout=300
    )


def compile_kernels(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run_python("-m", "fastae_kernels.aot", *arguments, **environment)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The exit code, the output and the rows for an H100 in bfloat16."""
    file = tmp_path_factory.mktemp("aot") / "rows.json"
    run = compile_kernels(
        "--target", "cuda:90", "--dtype", "bfloat16", "--operator", *OPERATORS, "--json", str(file)
    )
    return {"code": run.returncode, "out": run.stdout, "errors": run.stderr, **json.loads(file.read_text())}


# --- a GPU that is not there ----------------------------------------------------------------------------


@pytest.mark.slow
def test_every_kernel_compiles_without_problems(compiled: dict[str, Any]):
    assert compiled["code"] == 0, compiled["errors"]
    assert {row["operator"] for row in compiled["rows"]} == set(OPERATORS)
    assert {row["kernel"] for row in compiled["rows"]} == {*aot.PRODUCTS, "fold", "elementwise"}
    assert f"{len(compiled['rows'])} kernels compiled" in compiled["out"]
    assert compiled["torch"] == torch.__version__
    assert all(row["spilled"] == 0 and row["stack"] == 0 for row in compiled["rows"])
    assert all(0 < row["registers"] <= 255 and row["seconds"] > 0.0 for row in compiled["rows"])


@pytest.mark.slow
def test_products_run_on_matrix_units_with_wide_pipelined_loads(compiled: dict[str, Any]):
    products = [row for row in compiled["rows"] if row["kernel"] in aot.PRODUCTS]
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
    assert {row["kernel"] for row in rows} == {*aot.PRODUCTS, "elementwise"}
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


# --- lanes that are not neighbours ------------------------------------------------------------------------

LAYOUTS = {
    "blocked": "#ttg.blocked<{sizePerThread = [1, 1, 4], threadsPerWarp = [2, 8, 2], order = [2, 1, 0]}>",
    "mma": "#ttg.nvidia_mma<{versionMajor = 3, warpsPerCTA = [4, 1], instrShape = [16, 64, 16]}>",
    "operand": "#ttg.dot_op<{opIdx = 0, parent = #mma, kWidth = 2}>",
    "copies": "#ttg.linear<{register = [[1]], lane = [[2], [0], [0], [0], [4]], warp = [[8]], block = []}>",
    "high": "#ttg.linear<{register = [], lane = [[0], [0], [1], [2], [4]], warp = [[8]], block = []}>",
    "cube": "#ttg.linear<{register = [[0, 0, 1]], lane = [[0, 0, 2], [0, 1, 0], [1, 0, 0], [0, 2, 0], "
    "[0, 0, 4]], warp = [[2, 0, 0]], block = []}>",
    "unknown": "#ttg.diagonal<{lane = [[1], [2], [4], [8], [16]]}>",
}


def ttgir(axis: int, shape: str, layout: str, operands: int = 1) -> str:
    """A module with one reduction in line 7 of ``device/own.py``, through a function of Triton's library."""
    tensors = ", ".join([f"tensor<{shape}xf32, {layout}>"] * operands)
    aliases = "\n".join(f"#{name} = {definition}" for name, definition in LAYOUTS.items())
    return f"""{aliases}
#loc = loc("/home/user/device/own.py":3:0)
#loc1 = loc(unknown)
#loc2 = loc("/home/user/device/own.py":7:12)
module attributes {{"ttg.num-warps" = 2 : i32}} {{
    %n = "tt.reduce"(%x) <{{axis = {axis} : i32}}> ({{
    ^bb0(%a: f32 loc(callsite(#loc1 at #loc5)), %b: f32 loc(callsite(#loc1 at #loc5))):
      %c = arith.addf %a, %b : f32 loc(#loc6)
      tt.reduce.return %c : f32 loc(#loc6)
    }}) : ({tensors}) -> f32 loc(#loc6)
    tt.return loc(#loc)
}} loc(#loc)
#loc3 = loc("/env/lib/python3.12/site-packages/triton/language/standard.py":293:36)
#loc5 = loc("n"(#loc2))
#loc6 = loc(callsite(#loc3 at #loc5))
"""


@pytest.mark.parametrize("operands", [1, 2])
@pytest.mark.parametrize(
    ("axis", "shape", "layout", "bits"),
    [
        (0, "4x16x8", "#blocked", None),
        (1, "4x8", "#ttg.slice<{dim = 1, parent = #blocked}>", None),
        (1, "64x64", "#mma", None),
        (0, "64", "#ttg.slice<{dim = 1, parent = #mma}>", None),
        (1, "64x64", "#operand", None),
        (0, "16", "#copies", [0, 4]),
        (0, "4", "#copies", None),  # a tensor so short that the last bit makes copies, too
        (0, "16", "#high", None),
        (0, "4x4x8", "#cube", None),
        (1, "4x4x8", "#cube", [1, 3]),
        (2, "4x4x8", "#cube", [0, 4]),
        (0, "4x8", "#ttg.slice<{dim = 0, parent = #cube}>", [1, 3]),
        (1, "4x4", "#ttg.slice<{dim = 2, parent = #cube}>", [1, 3]),
        (0, "4", "#ttg.slice<{dim = 1, parent = #ttg.slice<{dim = 1, parent = #cube}>}>", None),
        (0, "8", "#ttg.slice<{dim = 0, parent = #ttg.slice<{dim = 1, parent = #cube}>}>", [0, 4]),
        (0, "8", "#ttg.slice<{dim = 0, parent = #ttg.slice<{dim = 0, parent = #cube}>}>", [0, 4]),
    ],
)
def test_reductions_over_lanes_that_are_not_neighbours_are_found(
    axis: int, shape: str, layout: str, bits: list[int] | None, operands: int
):
    found = lanes.scattered_reductions(ttgir(axis, shape, layout, operands))
    message = f"device/own.py:7 reduces over lane bits {bits}, which are not consecutive"
    assert found == ([] if bits is None else [message])


def test_reductions_that_are_not_understood_are_found():
    (found,) = lanes.scattered_reductions(ttgir(0, "32", "#unknown"))
    assert found.startswith("device/own.py:7 reduces a layout that is not understood: #ttg.diagonal<{lane")
    text = ttgir(0, "16", "#high").replace("axis = 0", "dimension = 0")
    assert lanes.scattered_reductions(text) == ["a reduction whose TTGIR is not understood"]


KERNEL = """
    import sys
    import torch, triton, triton.language as tl
    from fastae_kernels.launch import launch
    from fastae_kernels.tools import aot

    @triton.jit
    def scattered(x, y):
        value = tl.load(x + 32 * tl.arange(0, 32)[:, None] + tl.arange(0, 32)[None, :])
        rows = tl.reshape(tl.trans(tl.reshape(value, (32, 4, 8)), (1, 0, 2)), (4, 256))
        tl.store(y + tl.arange(0, 4), tl.sum(rows, 1))

    def run(dtype):
        x = torch.empty(1024, dtype=dtype, device="meta")
        launch(scattered, 1, x.device, x, x)

    aot._cases = lambda: iter([aot._Case("own", run, product=False)])
    sys.exit(aot.main(["--target", "cuda:90", "--dtype", "float32", "--jobs", "1"]))
"""


@pytest.mark.slow
def test_a_compiled_kernel_is_named_with_its_line(tmp_path: Path):
    file = tmp_path / "scattered.py"
    file.write_text(textwrap.dedent(KERNEL).lstrip())
    run = run_python(str(file))
    assert (run.returncode, run.stderr.splitlines()) == (
        1,
        [
            f"cuda:90 own (scattered, float32, 4w): {tmp_path.name}/scattered.py:10 reduces over lane bits "
            "[0, 3, 4], which are not consecutive"
        ],
    ), run.stderr
