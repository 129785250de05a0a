"""The operators as torch.library sees them: schemas, shapes without data, and untouched inputs."""

from __future__ import annotations

import importlib.util
import inspect
from typing import Any, get_type_hints

import pytest
import torch
from torch import Tensor

from fastae import corruption, losses, ops, reference
from fastae.ops import torch_impl
from fastae.ops.declaration import DECLARATIONS
from tests.support import arguments

M, D, H = 5, 7, 6


def rand(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


SEED, SCALAR = torch.tensor([3]), torch.tensor(0.5)
X, CODE, W, B, V, C = rand(M, D), rand(M, H), rand(H, D), rand(H), rand(D, H), rand(D)
ROWS, NONE, SQ_NORMS = rand(M), torch.empty(0), rand(H) + 1.0
HIT = {"seed": SEED, "kind": "masking", "params": [0.3], "corrupted": 2.0, "clean": 0.5}
SUMS = {"sq_norms": SQ_NORMS, "l1": True, "code_sum": True}
TRANSPOSED = rand(D, H).t()  # a weight as a view of its transpose


def code_grad(grad=X, weight: Tensor | None = V, activation="tanh", preact=NONE, **options):
    options = {"sums": torch.float32, **options}
    return arguments("code_grad", grad, weight, CODE, preact, activation, **options)


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
        *((X, SEED, "masking", [p], 0, torch.bfloat16) for p in (0.0, 0.3)),
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
    "cast_weight": [(W, torch.float16), (TRANSPOSED, torch.float16), (W.half(), torch.float32)],
    "encode": [
        arguments("encode", X, W, None, "sigmoid"),
        arguments(
            "encode", X, W, B, "sigmoid", **SUMS, seed=SEED, noise="gaussian", noise_std=0.1, dropout=0.3
        ),
        arguments("encode", X, TRANSPOSED, B, "sigmoid", **SUMS, seed=SEED, noise="bernoulli"),
        arguments("encode", X, W, B, "gelu", SQ_NORMS, l1=True, seed=SEED, dropout=0.3),
        arguments("encode", X.bfloat16(), W.bfloat16(), B.bfloat16(), "silu", **SUMS),
        arguments("encode", X[:0], W, B, "tanh", **SUMS),
        arguments("encode", X, W, B, "tanh", **SUMS, reduction="mean"),
        arguments("encode", X, W, B, "tanh", SQ_NORMS, CODE, NONE),
        arguments("encode", X, W, B, "tanh", SQ_NORMS, CODE, NONE, reduction="sum"),
        arguments("encode", X, W, B, "silu", SQ_NORMS, CODE, CODE / 2),
    ],
    "decode_loss": [
        arguments("decode_loss", CODE, V, C, X, "bce", column_sums=True),
        arguments("decode_loss", CODE, V, None, X, "mse"),
        arguments("decode_loss", CODE, W.t(), C, X, "mse", "gelu", **HIT, column_sums=True),
        arguments(
            "decode_loss", CODE.bfloat16(), V.bfloat16(), C.bfloat16(), X, "bce", **HIT, column_sums=True
        ),
        arguments("decode_loss", CODE, V, C, X, "bce", column_sums=True, reduction="mean"),
        arguments("decode_loss", CODE[:0], V, C, X[:0], "bce", column_sums=True),
        arguments("decode_loss", X, None, C, X, "bce", **HIT, column_sums=True, reduction="mean"),
        arguments("decode_loss", X, None, None, X, "mse", "tanh"),
        arguments("decode_loss", CODE, V, C, X, "bce", entry_weight=X),
        arguments("decode_loss", CODE, V, C, X, "cosine", entry_weight=X, column_sums=True),
        arguments("decode_loss", CODE, V, C, X, "mse", **HIT, entry_weight=C.expand(1, D), missing=True),
    ],
    "code_grad": [
        code_grad(),
        code_grad(CODE, None),
        code_grad(CODE.t().contiguous().t(), None),
        code_grad(SCALAR.expand(M, H), None, scale=ROWS, **PENALTY),
        code_grad(activation="gelu", preact=CODE, scale=SCALAR, l1_scale=ROWS, **PENALTY),
        code_grad(weight=W.t(), activation="relu", penalty_scale=ROWS, sq_norms=SQ_NORMS, l1_scale=SCALAR),
        code_grad(column_grad=SQ_NORMS, extra=CODE, seed=SEED, dropout=0.3, scale=ROWS, **PENALTY),
        code_grad(CODE, None, seed=SEED, dropout=0.3, sums=None),
        code_grad(scale=SCALAR, l1_scale=SCALAR, l1=0.5, penalty=0.5, mean=True, column_sums=C, **PENALTY),
        code_grad(scale=SCALAR, column_sums=C, sums=torch.bfloat16),
    ],
    "weight_grad": [
        arguments("weight_grad", CODE, X, **options)
        for options in (
            {},
            {"scale": SCALAR},
            {"scale": ROWS, "weight": W, "u": SQ_NORMS},
            {"weight": TRANSPOSED, "u": SQ_NORMS},
            {"a2": CODE, "b2": X, "scale2": ROWS},
            {"weight": W, "u": SQ_NORMS, "a2": CODE, "b2": X, "scale2": SCALAR},
            {"scale": ROWS, "weight": W, "u": SQ_NORMS, "u_scale": SCALAR, "u_factor": 0.5, "mean": True},
            {"a2": CODE, "b2": X, "scale2": SCALAR, "mean": True, "dtype": torch.float64},
        )
    ],
    "slope_difference_grad": [
        (CODE, NONE, CODE / 2, NONE, "sigmoid", SQ_NORMS, SCALAR),
        (CODE, NONE, CODE / 2, NONE, "relu", SQ_NORMS, ROWS),
        (CODE, CODE / 2, CODE / 3, CODE / 4, "silu", SQ_NORMS, ROWS),
    ],
}
INDEX, STARTS = torch.tensor([4, 0, 0, 3, 1]), torch.tensor([0, 2, 2, 5])
CASES["top_entries"] = [
    arguments("top_entries", X, W, B, 3),
    arguments("top_entries", X.bfloat16(), TRANSPOSED.bfloat16(), None, H),
    arguments("top_entries", X, W, B, 2, torch.tensor([0, 3, 5])),
    arguments("top_entries", X[:0], W, None, 2),
]
CASES["segment_sums"] = [
    arguments("segment_sums", X, INDEX, STARTS, values=rand(5)),
    arguments("segment_sums", X.bfloat16(), INDEX, STARTS, other=rand(3, D)),
    arguments("segment_sums", X, INDEX, STARTS, rand(5), rand(3, D), torch.tensor([3, 0, 1, 4, 2])),
    arguments("segment_sums", X, INDEX[:0], STARTS[:1], rand(0)),
]
CASES["segment_loss"] = [
    arguments("segment_loss", X, INDEX, STARTS, rand(5), rand(3, D), C),
    arguments("segment_loss", X.bfloat16(), INDEX, STARTS, rand(5), rand(3, D)),
    arguments("segment_loss", X, INDEX[:0], STARTS[:1], rand(0), rand(0, D), C),
]
CASES["decode_loss_target_grad"] = [case[:-2] for case in CASES["decode_loss"]]


def test_every_operator_has_a_case():
    defined = {
        name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("fastae::")
    }
    assert set(CASES) == defined


@pytest.mark.parametrize(
    ("name", "given"),
    [
        pytest.param(name, given, id=f"{name}-{number}")
        for name, cases in CASES.items()
        for number, given in enumerate(cases)
    ],
)
def test_operator_is_what_its_schema_and_fake_say(name: str, given: tuple[Any, ...]):
    """Shapes, strides and dtypes; no output shares memory with an input, and none is written to."""
    torch.library.opcheck(getattr(torch.ops.fastae, name).default, given)


@pytest.mark.parametrize("name", CASES)
def test_operator_works_in_the_dtypes_it_is_given_under_autocast(name: str):
    for given in CASES[name]:
        outside = getattr(ops, name)(*given)
        with torch.autocast("cpu", torch.bfloat16):
            inside = getattr(ops, name)(*given)
        torch.testing.assert_close(inside, outside, rtol=0, atol=0)


def parameters(function: Any) -> list[tuple[str, Any, Any]]:
    return [(p.name, p.annotation, p.default) for p in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize("name", ops.NAMES)
def test_pytorch_implementations_have_the_parameters_of_the_declaration(name: str):
    assert parameters(getattr(torch_impl, name)) == parameters(DECLARATIONS[name])


@pytest.mark.parametrize("name", ops.NAMES)
def test_launchers_have_the_parameters_of_the_declaration_but_for_noise(name: str):
    operators = pytest.importorskip("fastae_kernels.operators", reason="needs Triton")
    from fastae.ops import triton_impl

    expected = {parameter for parameter, _, _ in parameters(DECLARATIONS[name])}
    if (of_noise := triton_impl.NOISE.get(name)) is not None:
        described = {parameter for parameter, _, _ in parameters(of_noise)} & expected
        expected = expected - described | of_noise().keys()
    launcher = triton_impl.LAUNCHERS.get(name) or getattr(operators, name)
    assert {parameter for parameter, _, _ in parameters(launcher)} == expected


@pytest.mark.parametrize("name", ops.NAMES)
def test_results_are_named_and_documented(name: str):
    function = DECLARATIONS[name]
    assert function.__doc__
    assert type(getattr(ops, name)(*CASES[name][0])) is get_type_hints(function)["return"]


def test_every_implementation_knows_the_same_corruptions_and_losses():
    corruptions = [corruption.CORRUPTIONS, reference.CORRUPTIONS, torch_impl.PROCESSES]
    formulas = [losses.LOSSES, reference.LOSSES]
    if importlib.util.find_spec("triton"):
        from fastae_kernels.device import losses as device_losses
        from fastae_kernels.device import noise

        corruptions.append(noise.CORRUPTIONS)
        formulas.append(device_losses.LOSSES)
    assert len({tuple(table) for table in corruptions}) == 1
    assert len({tuple(table) for table in formulas}) == 1
