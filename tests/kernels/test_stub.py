"""Launches on a driver that checks them and runs nothing: kernels per step, grids, tensor maps."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = Path(__file__).parent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("gcc") is None, reason="the stub driver needs a C compiler"),
]


def printed_by(program: str, folder: Path) -> dict[str, Any]:
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env["PYTHONPATH"] = os.pathsep.join(str(Path(path).resolve()) for path in sys.path)
    env |= {"FASTAE_BACKEND": "triton", "FASTAE_CACHE": str(folder)}
    run = subprocess.run(
        [sys.executable, str(PROGRAMS / program)], env=env, capture_output=True, text=True, timeout=600
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return printed_by("launches.py", tmp_path_factory.mktemp("untuned"))


@pytest.fixture(scope="module")
def repeated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, dict[str, Any]]]:
    return printed_by("repeated.py", tmp_path_factory.mktemp("untuned"))


# Kernels of Triton and of the library in a forward and backward pass on (256, 784, 1000): masking, sigmoid,
# contractive penalty, tied weights, cross-entropy; in TrainingStep also autocast, Adam and the sums. Several
# steps in a call share the rows of data, seeds, rates, counts of Adam, sums and copies of both arguments.
KERNELS = {
    "step, fused": (9, 2),
    "step, overlapped": (9, 2),
    "step, split": (9, 7),
    "step, eager": (0, 46),
    "TrainingStep, fused": (9, 7),
    "TrainingStep, split": (9, 12),
    "TrainingStep of 4, fused": (9 * 4 + 1, 4 + 9),
}


@pytest.mark.parametrize("case", KERNELS)
def test_a_step_has_so_many_kernels(case: str, report: dict[str, Any]):
    kernels = report["cases"][case]["kernels"]
    own = [name for name, grid, *_ in kernels if grid is not None]
    others = [name for name, grid, *_ in kernels if grid is None]
    assert (len(own), len(others)) == KERNELS[case], (own, others)


@pytest.mark.parametrize("case", ["step, fused", "step, overlapped", "step, split"])
def test_a_step_moves_the_bytes_of_the_cost_model(case: str, report: dict[str, Any]):
    """By the arguments of its launches; between 15 and 26 MB at (256, 784, 1000)."""
    seen = report["cases"][case]
    assert seen["moved"] == seen["counted"] > 15e6


def test_grids_are_the_tiles_of_the_results(report: dict[str, Any]):
    """With tiles of 64 x 64; K does not count."""
    kernels = report["cases"]["step, fused"]["kernels"]
    grids = [grid for name, grid, *_ in kernels if name == "gemm"]
    encode = code_grad = [4 * 16, 1, 1]
    assert grids == [encode, [4 * 13, 1, 1], code_grad, [16 * 13, 1, 1]]
    overlapped = [
        grid for name, grid, *_ in report["cases"]["step, overlapped"]["kernels"] if name == "overlapped_gemm"
    ]
    assert overlapped == [[2 * 4, 1, 1]] * 3  # with tiles of 128 x 256


@pytest.mark.parametrize(
    ("case", "kernel"),
    [("selections, overlapped", "overlapped_gemm"), ("selections, not in float32", "gemm")],
)
def test_selections_overlap_where_a_tile_in_float32_fits(case: str, kernel: str, report: dict[str, Any]):
    """Two products of 512 columns and one of 1024, with 256 rows; tiles of 128 x 256."""
    kernels = report["cases"][case]["kernels"]
    products = [(name, grid[0]) for name, grid, *_ in kernels if grid and "gemm" in name]
    assert products == [(kernel, 2 * 2), (kernel, 2 * 2), (kernel, 2 * 4)]


def test_operands_of_products_are_described_for_tma_where_they_are_aligned(report: dict[str, Any]):
    maps = {case: seen["tensor_maps"] for case, seen in report["cases"].items()}
    assert maps["step, fused"] == 2 + 2 + 2 + 4  # of one product each, and of two
    assert maps["step, overlapped"] == maps["step, fused"]
    assert maps["step, split"] == maps["odd sizes, fused"] == 0


def test_every_kernel_is_launched(report: dict[str, Any]):
    launched = {name for seen in report["cases"].values() for name, grid, *_ in seen["kernels"] if grid}
    sparse = {"segment_sums", "fold_chunks", "keep_largest", "adam_rows", "segment_loss"}
    assert launched == {"gemm", "overlapped_gemm", "elementwise", "fold", "squared_norms", "adam"} | sparse


REFUSALS = {
    "address": "a tensor at 0x408, which is not aligned to 16 bytes",
    "stride": "stride 0 of a tensor is 136 bytes",
    "side": "side 1 of a box is 512",
    "swizzle": "a box whose rows are 256 bytes with swizzle 3",
    "scratch": "allocates memory, which a graph cannot capture",
    "no memory": "an operand of shape [16, 16] has no memory",
    "grid": "a grid of 1 x 70000 x 1",
    "shared memory": "out of resource: shared memory",
}


def test_what_the_driver_would_refuse_is_refused(report: dict[str, Any]):
    refused = report["refused"]
    assert refused.keys() == REFUSALS.keys() | {"good map"} and refused["good map"] is None
    for name, message in REFUSALS.items():
        assert message in (refused[name] or ""), name


def test_what_is_launched_again_is_what_triton_would_launch(repeated: dict[str, dict[str, dict[str, Any]]]):
    """The compiled kernels, grids and arguments, after launches or calls that differ in one thing."""
    others = [(group, name) for group, calls in repeated.items() for name in calls if not calls[name]["same"]]
    assert not others
    launches = repeated["launch"]
    assert [seen["looked up"] for name, seen in launches.items() if not name.endswith(", 0")] == [0] * (
        3 * len(launches) // 4
    )


def test_a_call_is_played_from_the_third_time_on(repeated: dict[str, dict[str, dict[str, Any]]]):
    """Not where it launches nothing, or computes by other means."""
    never = {"no rows", "float64"}
    played = {name: seen["played"] for name, seen in repeated["encode"].items() if name.endswith(", 3")}
    assert played == {name: int(name.removesuffix(", 3") not in never) for name in played}
    assert {seen["played"] for seen in repeated["step"].values()} == {11}
