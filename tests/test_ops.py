"""The operators as torch.library sees them: schemas, shapes without data, and untouched inputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastae import ops

M, D, H = 5, 7, 6


def rand(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


SEED, SCALAR = torch.tensor([3]), torch.tensor(0.5)
X, CODE, W, B, V, C = rand(M, D), rand(M, H), rand(H, D), rand(H), rand(D, H), rand(D)
ROWS, NONE, SQ_NORMS = rand(M), torch.empty(0), rand(H) + 1.0
TRANSPOSED = rand(D, H).t()  # a weight as a view of its transpose


def code_grad(
    grad=X, weight: Tensor | None = V, activation="tanh", preact=NONE, **options
) -> tuple[Any, ...]:
    names = "scale", "penalty_scale", "sq_norms", "l1_scale", "column_grad", "extra", "seed", "dropout"
    given = dict.fromkeys(names, None) | {"dropout": 0.0} | options
    return (grad, weight, CODE, preact, activation, *given.values())


PENALTY = {"penalty_scale": SCALAR, "sq_norms": SQ_NORMS}
CASES: dict[str, list[tuple[Any, ...]]] = {
    "corrupt": [
        (X, SEED, "masking", [0.3], 0),
        (X, SEED, "masking", [0.0], 0),
        (X, SEED, "gaussian", [0.3], 16),
        (X, SEED, "salt_and_pepper", [0.3, 0.0, 1.0], 0),
        (X, SEED, "swap", [0.3], 0),
        (rand(M, 2 * D)[:, :D], SEED, "masking", [0.0], 0),
        (X.bfloat16(), SEED, "gaussian", [0.3], 0),
        (X[:0], SEED, "swap", [0.3], 0),
    ],
    "corrupt_backward": [
        *((X, SEED, kind, [0.3], 0) for kind in ("masking", "gaussian", "swap")),
        *((rand(D, M).t(), SEED, kind, [0.3], 0) for kind in ("masking", "gaussian", "swap")),
        *((SCALAR.expand(M, D), SEED, "masking", [p], 0) for p in (0.0, 0.3)),
    ],
    "random_signs": [(CODE, SEED, 3), (CODE.bfloat16(), SEED, 3), (CODE[:0], SEED, 3)],
    "perturb": [
        (code, SEED, noise, 0.2, dropout)
        for code in (CODE, CODE.bfloat16())
        for noise in ("none", "gaussian", "bernoulli")
        for dropout in (0.0, 0.4)
    ],
    "squared_norms": [(W,), (TRANSPOSED,), (W.bfloat16(),)],
    "encode": [
        (X, W, None, "sigmoid", None, None, None, False, False, None, "none", 0.0, 0.0),
        (X, W, B, "sigmoid", SQ_NORMS, None, None, True, True, SEED, "gaussian", 0.1, 0.3),
        (X, TRANSPOSED, B, "sigmoid", SQ_NORMS, None, None, True, True, SEED, "bernoulli", 0.0, 0.0),
        (X, W, B, "gelu", SQ_NORMS, None, None, True, False, SEED, "none", 0.0, 0.3),
        (
            X.bfloat16(),
            W.bfloat16(),
            B.bfloat16(),
            "silu",
            SQ_NORMS,
            None,
            None,
            True,
            True,
            None,
            "none",
            0.0,
            0.0,
        ),
        (X[:0], W, B, "tanh", SQ_NORMS, None, None, True, True, None, "none", 0.0, 0.0),
        (X, W, B, "tanh", SQ_NORMS, CODE, NONE, False, False, None, "none", 0.0, 0.0),
        (X, W, B, "silu", SQ_NORMS, CODE, CODE / 2, False, False, None, "none", 0.0, 0.0),
    ],
    "decode_loss": [
        (CODE, V, C, X, "bce", "linear", None, 0.0, 16, 1.0, 1.0, True),
        (CODE, V, None, X, "mse", "linear", None, 0.0, 16, 1.0, 1.0, False),
        (CODE, W.t(), C, X, "mse", "gelu", SEED, 0.3, 16, 2.0, 0.5, True),
        (CODE.bfloat16(), V.bfloat16(), C.bfloat16(), X, "bce", "linear", SEED, 0.3, 16, 2.0, 0.5, True),
        (CODE[:0], V, C, X[:0], "bce", "linear", None, 0.0, 16, 1.0, 1.0, True),
    ],
    "code_grad": [
        code_grad(),
        code_grad(CODE, None),
        code_grad(CODE.t().contiguous().t(), None),
        code_grad(SCALAR.expand(M, H), None, scale=ROWS, **PENALTY),
        code_grad(activation="gelu", preact=CODE, scale=SCALAR, l1_scale=ROWS, **PENALTY),
        code_grad(weight=W.t(), activation="relu", penalty_scale=ROWS, sq_norms=SQ_NORMS, l1_scale=SCALAR),
        code_grad(column_grad=SQ_NORMS, extra=CODE, seed=SEED, dropout=0.3, scale=ROWS, **PENALTY),
        code_grad(CODE, None, seed=SEED, dropout=0.3),
    ],
    "weight_grad": [
        (CODE, X, None, None, None, None, None, None),
        (CODE, X, SCALAR, None, None, None, None, None),
        (CODE, X, ROWS, W, SQ_NORMS, None, None, None),
        (CODE, X, None, TRANSPOSED, SQ_NORMS, None, None, None),
        (CODE, X, None, None, None, CODE, X, ROWS),
        (CODE, X, None, W, SQ_NORMS, CODE, X, SCALAR),
    ],
    "slope_difference_grad": [
        (CODE, NONE, CODE / 2, NONE, "sigmoid", SQ_NORMS, SCALAR),
        (CODE, NONE, CODE / 2, NONE, "relu", SQ_NORMS, ROWS),
        (CODE, CODE / 2, CODE / 3, CODE / 4, "silu", SQ_NORMS, ROWS),
    ],
}
CASES["decode_loss_target_grad"] = [case[:-1] for case in CASES["decode_loss"]]


def test_every_operator_has_a_case():
    defined = {
        name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("fastae::")
    }
    assert set(CASES) == defined


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        pytest.param(name, arguments, id=f"{name}-{number}")
        for name, cases in CASES.items()
        for number, arguments in enumerate(cases)
    ],
)
def test_operator_is_what_its_schema_and_fake_say(name: str, arguments: tuple[Any, ...]):
    """Shapes, strides and dtypes; no output shares memory with an input, and none is written to."""
    torch.library.opcheck(getattr(ops, name), arguments)


@pytest.mark.parametrize("name", CASES)
def test_operator_works_in_the_dtypes_it_is_given_under_autocast(name: str):
    for arguments in CASES[name]:
        outside = getattr(ops, name)(*arguments)
        with torch.autocast("cpu", torch.bfloat16):
            inside = getattr(ops, name)(*arguments)
        torch.testing.assert_close(inside, outside, rtol=0, atol=0)
