"""Support for the kernels' tests: device, tile shapes and tolerances."""

from __future__ import annotations

from typing import Any

import torch
from fastae_kernels.plan import config
from fastae_kernels.plan.config import GemmConfig, PassConfig
from torch import Tensor

import fastae

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
ON_GPU = DEVICE.type == "cuda"
DTYPES = (torch.float32, torch.float16) + ((torch.bfloat16,) if ON_GPU else ())
"""The interpreter's bfloat16 is wrong."""

BY_TMA = GemmConfig(64, 64, 64, 4, 3, subtiles=2, tma=True)
OVERLAPPED = next(gemm for gemm in config.GEMM_CONFIGS["sm90"][2] if gemm.epilogue_warps)
"""Tiles of a GPU for what runs without one."""

EVERYTHING: dict[str, Any] = {
    "corruption": fastae.SaltAndPepper(0.2), "emphasis": fastae.Emphasis(2.0, 0.5), "contractive": 0.1,
    "higher_order": 0.1, "l1": 0.1, "kl": 0.1, "dropout": 0.2, "code_noise": "gaussian", "loss": "mse",
}  # fmt: skip
"""Options of an objective with all of its terms."""


def small_tiles(strategy: str, **gemm: int | bool):
    """Overrides for every plan: tiles of 16 and 32 entries a side, so that small shapes have several."""
    options = {"block_m": 16, "block_n": 32, "block_k": 16, "warps": 4, "stages": 2, "subtiles": 2, **gemm}
    return config.using(
        strategy=strategy,  # pyright: ignore[reportArgumentType]
        gemm=GemmConfig(**options),  # pyright: ignore[reportArgumentType]
        elementwise=PassConfig(16, 32, 4),
    )


def assert_accurate(name: str, actual: Tensor, exact: Tensor, pytorch: Tensor, *, units: float = 8.0) -> None:
    """The error of ``actual`` is at most twice PyTorch's own in the same dtype, plus a few units of rounding.

    ``exact`` is float64; a unit is the dtype's epsilon at the size of the largest exact value. On a GPU
    subnormal numbers of float32 may count as 0.
    """
    assert actual.shape == exact.shape, f"{name}: shape {tuple(actual.shape)}, expected {tuple(exact.shape)}"
    if not exact.numel():
        return
    exact = exact.to(actual.device)
    assert not actual.isnan().any(), f"{name}: {int(actual.isnan().sum())} entries are nan"
    error = (actual.double() - exact).abs().max()
    own = (pytorch.to(actual.device).double() - exact).abs().max()
    allowed = 2.0 * own + units * torch.finfo(actual.dtype).eps * exact.abs().max()
    if ON_GPU:
        allowed += torch.finfo(torch.float32).tiny
    assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g} (PyTorch's own {own:.3g})"
