"""Calls of operators whose epilogue is to be run by its PTX; as a program, its results beside given ones.

The tests make the calls in Triton's interpreter and keep what goes into the epilogue and what comes out. The
program compiles the same epilogue for the warps of :mod:`fastae_kernels.device.overlapped` and runs that.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportAssignmentType=false
# pyright: reportCallIssue=false, reportOperatorIssue=false, reportIndexIssue=false
# (Gluon's own annotations know neither numbers for constants nor its loops)

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from fastae_kernels import operators
from fastae_kernels.device import noise
from fastae_kernels.operators import run
from fastae_kernels.plan import config
from fastae_kernels.plan.schedules import PassConfig
from torch import Tensor

ROWS, COLUMNS, BM, PART, PARTS = 60, 28, 64, 16, 2
"""A tile of BM rows in PARTS parts, larger than the matrix."""

Make = Callable[..., Tensor]
Handle = Callable[[Any, Any, Any, Tensor], None]


def some(seed: int, *shape: int, positive: bool = False) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.sigmoid() if positive else values


def product() -> Tensor:
    """A product as it is handed over, in bfloat16."""
    return (2.0 * some(99, ROWS, COLUMNS)).bfloat16().float()


def calls(make: Make, seed: Tensor) -> dict[str, Callable[[], object]]:
    """Calls on ``make``'s tensors, between them with every part of the epilogues."""
    M, N, K = ROWS, COLUMNS, 8
    q, half = make(4, N, positive=True), noise.Mask(seed, 0, -9000, noise.BITS[16])
    dropout = half._replace(stream=1, keep_scale=1.5)
    rare = noise.Mask(seed, 2, -300_000_000, noise.BITS[32], 1.25)
    x, w, bias, weight = make(1, M, K), make(2, N, K), make(3, N), make(7, N, K)
    sums = {"sums": torch.float32}
    return {
        "encode, sums over rows": lambda: operators.encode(
            x, w, bias, "sigmoid", sq_norms=q, reduction="mean", l1=True, code_sum=True, dropout=dropout
        ),
        "encode, sums per row": lambda: operators.encode(
            x, w, bias, "gelu", sq_norms=q, l1=True, dropout=rare
        ),
        "encode, difference": lambda: operators.encode(
            x, w, bias, "tanh", sq_norms=q, base_code=make(5, M, N)
        ),
        "decode_loss, logits": lambda: operators.decode_loss(
            x, weight, bias, make(8, M, N, positive=True), "bce", column_sums=True, reduction="mean"
        ),
        "decode_loss, emphasis": lambda: operators.decode_loss(
            x, weight, bias, make(8, M, N), "mse", "sigmoid", mask=half, corrupted=2.0, clean=0.5,
            entry_weight=make(6, M, N, positive=True), column_sums=True,
        ),
        "code_grad, one scale": lambda: operators.code_grad(
            x, w.t(), make(8, M, N, positive=True), None, "sigmoid", scale=make(12), penalty_scale=make(13),
            sq_norms=q, mean=True, **sums,
        ),
        "code_grad, scales per row": lambda: operators.code_grad(
            x, w.t(), make(11, M, N), make(14, M, N), "gelu", dropout=dropout, scale=make(15, M),
            penalty_scale=make(16, M), sq_norms=q, l1_scale=make(12), column_grad=make(17, N), **sums,
        ),
    }  # fmt: skip


@contextmanager
def handled(handle: Handle) -> Iterator[None]:
    """Products inside are ``handle``'s: it gets the epilogue, arguments, the plan and the first output."""

    def instead(a: Any, b: Any, epilogue: Any, args: Any, plan: Any, out: Tensor, **_: Any) -> None:
        handle(epilogue, args, plan, out)

    parts = PassConfig(BM, PART, 4)
    with mock.patch.object(run, "product", instead), config.using(strategy="split", elementwise=parts):
        yield


def tensors_of(args: Any) -> dict[str, np.ndarray]:
    return {name: value.numpy().copy() for name, value in args._asdict().items() if isinstance(value, Tensor)}


def main(path: str) -> dict[str, dict[str, float]]:
    """The largest error of each output, over its largest entry."""
    from fastae_kernels.device.overlapped import _end
    from fastae_kernels.launch import Target, compile_only, launch
    from triton.experimental import gluon
    from triton.experimental.gluon import language as gl

    from tests.kernels.ptx import Block, Memory

    @gluon.jit
    def ended(source, M, N, EPILOGUE: gl.constexpr, args, BM: gl.constexpr, PART: gl.constexpr,
              PARTS: gl.constexpr, WARPS: gl.constexpr, num_warps: gl.constexpr):  # fmt: skip
        """The end of a tile [BM, PARTS PART] that is read from memory."""
        layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BM, PART], gl.bfloat16)
        held: gl.constexpr = gl.BlockedLayout([1, 8], [256 // PART, PART // 8], [WARPS, 1], [1, 0])
        parts = gl.allocate_shared_memory(gl.bfloat16, [PARTS, BM, PART], layout)
        row = gl.arange(0, BM, gl.SliceLayout(1, held))[:, None]
        col = gl.arange(0, PART, gl.SliceLayout(0, held))[None, :]
        for part in gl.static_range(PARTS):
            value = gl.load(source + row * (PARTS * PART) + part * PART + col)
            parts.index(part).store(value.to(gl.bfloat16))
        _end(parts, 0, PARTS, 0, 1, 1, M, N, EPILOGUE, args, 1, WARPS)

    def meta(seed: int, *shape: int, positive: bool = False) -> Tensor:
        return torch.empty(shape, device="meta")

    with open(path, "rb") as file:
        given = pickle.load(file)  # what the test wrote
    tile = np.zeros((BM, PARTS * PART), np.float32)
    tile[:ROWS, :COLUMNS] = product().numpy()
    errors: dict[str, dict[str, float]] = {}
    for name, call in calls(meta, torch.empty(1, dtype=torch.int64, device="meta")).items():
        got: list[Any] = []
        with compile_only(Target("cuda", 90, 132)) as kernels:
            with handled(lambda epilogue, args, plan, out, got=got: got.append((epilogue, args))):
                call()
            (epilogue, args), before = got[0], len(kernels)
            source = torch.empty(tile.shape, device="meta")
            options = {"BM": BM, "PART": PART, "PARTS": PARTS, "WARPS": 4, "num_warps": 4}
            launch(ended, 1, source.device, source, ROWS, COLUMNS, epilogue, args, **options)
        memory, (first, last) = Memory(), given[name]
        parameters = [memory.put("tile", tile), ROWS, COLUMNS]
        for field, value in args._asdict().items():
            if isinstance(value, Tensor):
                parameters.append(memory.put(field, first[field]))
            elif isinstance(value, float):
                parameters.append(int(np.float32(value).view(np.uint32)))
            elif isinstance(value, int) and value != 1:  # which Triton makes a constant
                parameters.append(value)
        Block(kernels[before].kernel.asm["ptx"], memory, [*parameters, 0, 0], 128).run()
        errors[name] = {
            field: float(np.abs(memory.get(field) - value).max() / np.abs(value).max())
            for field, value in last.items()
            if not np.array_equal(value, first[field], equal_nan=True)
        }
    return errors


if __name__ == "__main__":
    json.dump(main(sys.argv[1]), sys.stdout)
