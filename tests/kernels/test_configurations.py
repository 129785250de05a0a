"""The tiles and schedules that real calls get: every default configuration computes the same function."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from fastae_kernels.launch import target_of
from fastae_kernels.plan import config
from fastae_kernels.plan.config import GemmConfig
from fastae_kernels.tools.aot import TARGETS
from torch import Tensor

from fastae import Masking, functional, philox
from fastae import reference as R
from tests.kernels.comparison import Tensors, assert_like_reference, normal, uniform
from tests.kernels.support import DEVICE, DTYPES, ON_GPU

OPTIONS: dict[str, Any] = {
    "corruption": Masking(0.25),
    "contractive": 0.3,
    "l1": 0.1,
    "kl": 0.2,
    "dropout": 0.2,
}
ALIGNED, ODD = (144, 272, 160), (131, 261, 147)  # rows, features, units: more than one of the largest tile


def configurations(dtype: torch.dtype) -> list[GemmConfig]:
    """The device's own defaults; those of every target in the interpreter, which asks no hardware."""
    targets = [target_of(DEVICE)] if ON_GPU else list(TARGETS.values())
    found = [gemm for target in targets for gemm in config.configurations(target, dtype)]
    found += [gemm for target in targets for gemm in config.configurations(target, dtype, aligned=False)]
    if not ON_GPU:  # nor has it warps or stages
        found = [replace(gemm, warps=4, stages=1, programs=1) for gemm in found]
    return list(dict.fromkeys(found))


CASES = [
    pytest.param(dtype, gemm, shape, tied, id=f"{dtype}-{number}-{shape}-{'tied' if tied else 'untied'}")
    for dtype in DTYPES
    for number, gemm in enumerate(configurations(dtype))
    for shape in (ALIGNED, ODD)
    for tied in (True, False)
    # a tile of this size takes the interpreter seconds: there, each configuration once, as calls get it
    if ON_GPU or (gemm.tma == (shape is ALIGNED) and tied == (shape is ALIGNED))
]


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "gemm", "shape", "tied"), CASES)
def test_a_whole_step_is_the_reference(
    dtype: torch.dtype, gemm: GemmConfig, shape: tuple[int, int, int], tied: bool
):
    rows, features, units = shape
    tensors: Tensors = {
        "x": uniform(rows, features, seed=1),
        "weight": normal(units, features, size=2.0 / features**0.5, seed=2),
        "bias": normal(units, size=0.5, seed=3),
        "decoder_weight": None if tied else normal(features, units, size=2.0 / units**0.5, seed=4),
        "decoder_bias": normal(features, size=0.5, seed=5),
    }

    def ours(**leaves: Tensor) -> Tensors:
        torch.manual_seed(0)
        with config.using(strategy="fused", gemm=gemm):
            return {"total": functional.autoencoder_loss(**leaves, **OPTIONS).total}

    def reference(**leaves: Tensor) -> Tensors:
        torch.manual_seed(0)
        seed = int(philox.draw_seed(DEVICE))
        return {"total": R.autoencoder_loss(**leaves, seed=seed, **OPTIONS).total.mean()}

    with config.using(strategy="fused", gemm=gemm):  # the backward pass, too
        assert_like_reference(ours, reference, tensors, dtype)
