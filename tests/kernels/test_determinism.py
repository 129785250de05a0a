"""Every operator on kernels: the same bits twice and for every tile, inputs untouched, PyTorch's values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from fastae_kernels.plan import config
from fastae_kernels.plan.config import GemmConfig, PassConfig
from torch import Tensor

from fastae import Masking, SaltAndPepper, Swap, ops, philox
from fastae import reference as R
from fastae.corruption import Corruption
from fastae.ops import torch_impl
from tests.kernels.comparison import normal, uniform
from tests.kernels.support import DEVICE, DTYPES, assert_accurate, small_tiles
from tests.support import arguments

Arguments = tuple[Any, ...]

M, D, H = 17, 19, 35  # rows, features, units: two tiles of rows and of units, the second of them partial
SEED = torch.tensor([3], device=DEVICE)


# --- cases ------------------------------------------------------------------------------------------------


def _elementwise_cases(dtype: torch.dtype) -> dict[str, list[Arguments]]:
    """The operators that no strategy changes."""
    x, code, weight, sq_norms, rows = (
        t.to(DEVICE) for t in (uniform(M, D), uniform(M, H), normal(H, D), uniform(H) + 1.0, uniform(M))
    )
    x, code, weight, sq_norms, rows = (
        x.to(dtype),
        code.to(dtype),
        weight.to(dtype),
        sq_norms.float(),
        rows.float(),
    )
    scalar, none = rows[0], code.new_empty(0)
    wide, transposed = torch.cat((x, x), 1)[:, :D], x.t().contiguous().t()
    expanded = x[0, 0].expand(M, D)
    index, starts = (torch.tensor(t, device=DEVICE) for t in ([4, 0, 16, 4, 2], [0, 3, 3, 5]))
    kinds = {
        "masking": [0.3],
        "gaussian": [0.3],
        "salt_and_pepper": [0.3, -1.0, 2.0],
        "swap": [0.4],
    }
    return {
        "corrupt": [
            *((x, SEED, kind, params, 0) for kind, params in kinds.items()),
            *((x, SEED, kind, [0.0, *params[1:]], 0) for kind, params in kinds.items()),
            *((x, SEED, kind, [1.0, *params[1:]], 5) for kind, params in kinds.items()),
            *((transposed, SEED, kind, params, 16) for kind, params in kinds.items()),
            (wide, SEED, "swap", [0.4], 0),
            *((x.float(), SEED, "masking", [p], 0, dtype) for p in (0.0, 0.4)),
            (expanded, SEED, "gaussian", [0.3], 0),
            (x[:0], SEED, "swap", [0.4], 0),
            (x[:1], SEED, "swap", [0.4], 0),
        ],
        "corrupt_backward": [
            *((x, SEED, kind, params, 0) for kind, params in kinds.items()),
            (x, SEED, "masking", [0.0], 0),
            (x, SEED, "swap", [1.0], 0),
            *(
                (t, SEED, kind, [0.3], 0)
                for t in (transposed, expanded, x[:0])
                for kind in ("masking", "swap")
            ),
        ],
        "random_signs": [(code, SEED, 4096), (code.t(), SEED, 0), (code[:0], SEED, 0)],
        "perturb": [
            *((code, SEED, noise, 0.2, p) for noise in ("none", "gaussian", "bernoulli") for p in (0.0, 0.4)),
            (code[:0], SEED, "gaussian", 0.2, 0.4),
        ],
        "squared_norms": [(weight,), (weight.t(),), (wide,), (weight[:1, :1],)],
        "cast_weight": [(weight.t(), torch.float16), (weight.float(), dtype), (wide, torch.float32)],
        "segment_sums": [
            (code, index, starts, rows[:5].to(dtype)),
            (code, index, starts, rows[:5].to(dtype), code[:3]),
            (code, index, starts, None, code[:3], torch.tensor([3, 0, 1, 4, 2], device=DEVICE)),
            (code, index[:0], starts[:1], rows[:0].to(dtype)),
        ],
        "segment_loss": [
            (code, index, starts, rows[:5].to(dtype), code[5:8]),
            (code, index, starts, rows[:5], code[5:8].float(), code[0]),
            (code, index[:0], starts[:1], rows[:0], code[:0]),
        ],
        "slope_difference_grad": [
            *(
                (code, none, code / 2, none, activation, sq_norms, scale)
                for activation in ("sigmoid", "relu")
                for scale in (rows, scalar)
            ),
            (code, code / 2, code / 3, code / 4, "silu", sq_norms, rows),
            (code[:0], none, code[:0], none, "tanh", sq_norms, scalar),
        ],
    }


def _product_cases(dtype: torch.dtype) -> dict[str, list[Arguments]]:
    """The operators that have a matrix product; they run fused and split."""
    x, code, weight, bias, decoder, decoder_bias = (
        t.to(DEVICE, dtype)
        for t in (uniform(M, D), uniform(M, H), normal(H, D), normal(H), normal(D, H, seed=1), normal(D))
    )
    sq_norms, rows = (uniform(H) + 1.0).to(DEVICE).float(), uniform(M).to(DEVICE).float()
    scalar, none = rows[0], code.new_empty(0)
    tall, tall_norms = normal(300, 2).to(DEVICE, dtype), uniform(300).to(DEVICE).float()  # many partial sums
    wide_x, wide_code = torch.cat((x, x), 1)[:, :D], torch.cat((code, code), 1)[:, :H]

    def encode(x=x, weight=weight, bias: Tensor | None = bias, activation="sigmoid", **options) -> Arguments:
        return arguments("encode", x, weight, bias, activation, noise_std=0.2, **options)

    def decode(
        code=code,
        weight: Tensor | None = decoder,
        bias: Tensor | None = decoder_bias,
        target=x,
        loss="mse",
        **options,
    ) -> Arguments:
        options = {"column_sums": True} | options
        return arguments("decode_loss", code, weight, bias, target, loss, **options)

    def code_grad(
        grad=x, weight: Tensor | None = decoder, activation="tanh", preact=none, **options
    ) -> Arguments:
        options = {"sums": torch.float32, **options}
        return arguments("code_grad", grad, weight, code[: len(grad)], preact, activation, **options)

    def weight_grad(**options) -> Arguments:
        return arguments("weight_grad", code, x, **options)

    noisy: dict[str, Any] = {"seed": SEED, "dropout": 0.3}
    mask = {"seed": SEED, "kind": "masking", "params": [0.3], "corrupted": 2.0, "clean": 0.5}
    penalty = {"penalty_scale": scalar, "sq_norms": sq_norms}
    second = {"a2": code / 2, "b2": x / 3}
    decodings = [
        decode(loss="bce"),
        decode(bias=None, column_sums=False),
        decode(weight=weight.t(), output_activation="gelu", **mask),
        decode(code=wide_code, loss="bce", target=wide_x, **mask | {"kind": "swap"}),
        decode(target=x.t().contiguous().t(), **mask | {"params": [0.0]}),
        decode(target=x.float(), output_activation="sigmoid"),
        decode(loss="bce", reduction="mean"),
        decode(reduction="sum", column_sums=False, **mask),
        decode(code=x / 2, weight=None, loss="bce", **mask),
        decode(code=wide_x, weight=None, target=x.float(), output_activation="tanh", reduction="mean"),
        decode(loss="bce", entry_weight=x.float(), reduction="mean"),
        decode(loss="cosine", output_activation="tanh", entry_weight=x.float(), reduction="mean"),
        decode(code=wide_x, weight=None, loss="cosine", target=x.float(), missing=True),
        decode(entry_weight=x[:1].double(), missing=True, **mask),
        decode(code=x / 2, weight=None, entry_weight=torch.cat((x, x), 1)[:, D : D + 1]),
        decode(code=code[:0], target=x[:0]),
        decode(code=code[:0], target=x[:0], reduction="sum"),
        decode(
            code=code[:1, :1], weight=decoder[:1, :1], bias=decoder_bias[:1], target=x[:1, :1], loss="bce"
        ),
    ]
    return {
        "encode": [
            encode(bias=None),
            encode(bias=bias.float()),
            encode(sq_norms=sq_norms, l1=True, code_sum=True),
            encode(activation="gelu", sq_norms=sq_norms, l1=True, **noisy),
            encode(weight=decoder.t(), activation="selu", l1=True, noise="gaussian", **noisy),
            encode(x=wide_x, code_sum=True, noise="bernoulli", seed=SEED),
            encode(noise="bernoulli", **noisy),
            encode(activation="tanh", sq_norms=sq_norms, base_code=code, base_preact=none),
            encode(activation="silu", sq_norms=sq_norms, base_code=code, base_preact=code / 2),
            encode(sq_norms=sq_norms, l1=True, code_sum=True, reduction="mean"),
            encode(activation="silu", sq_norms=sq_norms, base_code=code, base_preact=code, reduction="sum"),
            encode(x=x[:0], sq_norms=sq_norms, l1=True, code_sum=True, **noisy),
            encode(x=x[:0], sq_norms=sq_norms, l1=True, reduction="sum"),
            encode(x=x[:1, :1], weight=weight[:1, :1], bias=bias[:1], sq_norms=sq_norms[:1], l1=True),
            encode(x=tall, weight=weight[:3, :2], bias=None, sq_norms=sq_norms[:3], l1=True, code_sum=True),
            encode(x=x[:2, :2], weight=tall, bias=None, sq_norms=tall_norms, l1=True, code_sum=True),
        ],
        "decode_loss": decodings,
        "decode_loss_target_grad": [case[:-2] for case in decodings],
        "code_grad": [
            code_grad(),
            code_grad(code / 2, None),
            code_grad((code / 2).t().contiguous().t(), None, "relu", **penalty),
            code_grad(scalar.to(dtype).expand(M, H), None, scale=rows, penalty_scale=rows, sq_norms=sq_norms),
            code_grad(activation="gelu", preact=code / 2, scale=scalar, l1_scale=rows, **penalty, **noisy),
            code_grad(wide_x, weight.t(), "leaky_relu", l1_scale=scalar, **penalty),
            code_grad(column_grad=sq_norms, extra=code / 3, scale=rows, **penalty, **noisy),
            code_grad(code / 2, None, **noisy),
            code_grad(l1_scale=scalar, l1=0.5, penalty=0.3, mean=True, scale=scalar, **penalty),
            code_grad(scale=scalar, mean=True, column_sums=decoder_bias.float(), sums=dtype),
            code_grad(scale=rows, mean=True, sums=None),
            code_grad(x[:0], penalty_scale=rows[:0], sq_norms=sq_norms),
        ],
        "weight_grad": [
            weight_grad(),
            weight_grad(scale=scalar),
            weight_grad(scale=rows, weight=weight, u=sq_norms),
            weight_grad(weight=decoder.t(), u=sq_norms),
            weight_grad(scale2=rows, **second),
            weight_grad(scale=scalar, weight=weight, u=sq_norms, scale2=scalar, **second),
            weight_grad(
                weight=weight, u=sq_norms, u_scale=scalar, u_factor=0.3, scale2=scalar, mean=True, **second
            ),
            weight_grad(scale=rows, mean=True, dtype=torch.float32),
            weight_grad(weight=weight, u=sq_norms, scale2=scalar, dtype=torch.float32, **second),
            arguments("weight_grad", code[:0], x[:0], None, weight, sq_norms),
            arguments("weight_grad", code[:1, :1], x[:1, :1], scalar),
        ],
    }


def cases(dtype: torch.dtype) -> dict[str, list[Arguments]]:
    return _elementwise_cases(dtype) | _product_cases(dtype)


RUNS = [
    pytest.param(name, number, dtype, strategy, id=f"{name}-{number}-{dtype}-{strategy}")
    for dtype in DTYPES
    for found, strategies in (
        (_elementwise_cases(dtype), ["split"]),
        (_product_cases(dtype), ["fused", "split"] if dtype == torch.float32 else ["fused"]),
    )
    for name, arguments in found.items()
    for number in range(len(arguments))
    for strategy in strategies
]


def test_every_operator_has_cases():
    """Selections are compared exactly, in test_selection.py."""
    assert {*cases(torch.float32), "top_entries"} == set(ops.NAMES)


# --- contracts --------------------------------------------------------------------------------------------


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)


def whole(tensor: Tensor) -> Tensor:
    """A copy of all the memory behind a tensor, also where it is a view of a part."""
    memory = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())
    return memory.clone()


def tensors_of(result: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def pytorch(name: str, arguments: Arguments, dtype: torch.dtype | None = None) -> list[Tensor]:
    """The results of the PyTorch implementation, of the arguments in another dtype if one is given."""
    given = [
        a.to(dtype) if dtype is not None and isinstance(a, Tensor) and a.is_floating_point() else a
        for a in arguments
    ]
    return tensors_of(getattr(torch_impl, name)(*given))


@pytest.mark.parametrize(("name", "number", "dtype", "strategy"), RUNS)
def test_operator_keeps_its_contract(name: str, number: int, dtype: torch.dtype, strategy: str):
    arguments = cases(dtype)[name][number]
    inputs = [a for a in arguments if isinstance(a, Tensor)]
    before = [whole(a) for a in inputs]
    with small_tiles(strategy):
        results, again = (tensors_of(getattr(ops, name)(*arguments)) for _ in range(2))

    for memory, a in zip(before, inputs, strict=True):
        assert torch.equal(whole(a), memory), "an input was written to"
    for result, repeated in zip(results, again, strict=True):
        assert torch.equal(bits(result), bits(repeated)), "two runs differ"
        if result.numel():
            shared = {a.untyped_storage().data_ptr() for a in inputs}
            assert result.untyped_storage().data_ptr() not in shared, "a result is a view of an input"

    theirs, exact = pytorch(name, arguments), pytorch(name, arguments, torch.float64)
    noise = name == "encode" and arguments[10] != "none"
    if noise:  # a binary draw is of the rounded code
        perturbation = SEED, *arguments[10:13]
        theirs[1] = torch_impl.perturb(results[0], *perturbation)
        exact[1] = torch_impl.perturb(results[0].double(), *perturbation)
    for place, (result, own, right) in enumerate(zip(results, theirs, exact, strict=True)):
        assert result.dtype == own.dtype and result.shape == own.shape
        wider = torch.finfo(dtype).eps / torch.finfo(result.dtype).eps
        assert_accurate(f"result {place}", result, right, own, units=8.0 * wider)


# --- tile shapes ------------------------------------------------------------------------------------------

PASSES = [PassConfig(4, 16, 1), PassConfig(16, 32, 4), PassConfig(8, 128, 4)]
GEMMS = [
    GemmConfig(16, 32, 16, 4, 2, subtiles=2),
    GemmConfig(32, 32, 16, 4, 2),
    GemmConfig(64, 64, 32, 4, 2, subtiles=4),
    GemmConfig(16, 64, 16, 4, 2, subtiles=2, group=1, persistent=True),
]


def on_every_tile(call: Callable[[], Tensor | Sequence[Tensor]], *, gemm: bool) -> list[Tensor]:
    """The results, which have the same bits for every shape of tile."""
    settings: list[dict[str, Any]] = [{"strategy": "split", "elementwise": tile} for tile in PASSES]
    settings += [{"strategy": "fused", "gemm": tile} for tile in GEMMS] if gemm else []
    results: list[list[Tensor]] = []
    for given in settings:
        with config.using(**given):
            results.append(tensors_of(call()))
        for one, other in zip(results[0], results[-1], strict=True):
            assert torch.equal(bits(one), bits(other)), given
    return results[0]


def whole_numbers(*shape: int, seed: int = 0) -> Tensor:
    """Small enough that products and sums of them are exact in any order."""
    return normal(*shape, size=2.0, seed=seed).round().to(DEVICE, torch.float32)


ROWS, COLUMNS = 5, 43


@pytest.mark.parametrize("corruption", [Masking(0.3), SaltAndPepper(0.3, -1.0, 2.0), Swap(0.4)], ids=str)
def test_corruption_does_not_depend_on_tiles(corruption):
    x = uniform(ROWS, COLUMNS).to(DEVICE, torch.float32)
    arguments = SEED, corruption.kind, corruption.params, 0
    (noisy,) = on_every_tile(lambda: ops.corrupt(x, *arguments), gemm=False)
    assert torch.equal(noisy.cpu(), R.corrupt(x.cpu(), corruption, 3))
    (gradient,) = on_every_tile(lambda: ops.corrupt_backward(x, *arguments), gemm=False)
    kept = ~R.corrupted_entries(x.cpu(), corruption, 3)
    if corruption.kind != "swap":
        assert torch.equal(gradient.cpu(), x.cpu() * kept)


@pytest.mark.parametrize("noise", ["none", "gaussian", "bernoulli"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_perturbation_does_not_depend_on_tiles(noise: str, dropout: float):
    code = uniform(ROWS, COLUMNS).to(DEVICE, torch.float32)
    (seen,) = on_every_tile(lambda: ops.perturb(code, SEED, noise, 0.2, dropout), gemm=False)
    expected = R.perturb_code(code.cpu(), 3, noise, 0.2, dropout)
    assert torch.equal(seen.cpu() == 0.0, expected == 0.0)
    assert noise != "none" or torch.equal(seen.cpu(), expected)


def test_normal_noise_and_signs_do_not_depend_on_tiles():
    x = uniform(ROWS, COLUMNS).to(DEVICE, torch.float32)
    on_every_tile(lambda: ops.corrupt(x, SEED, "gaussian", [0.3], 0), gemm=False)
    (signs,) = on_every_tile(lambda: ops.random_signs(x, SEED, 7), gemm=False)
    drawn = philox.random_bits(3, ROWS, COLUMNS, 7)
    assert torch.equal(signs.cpu(), torch.where(drawn < 0, -1.0, 1.0))


def test_dropout_of_an_encoder_does_not_depend_on_tiles():
    x, weight = whole_numbers(M, D), whole_numbers(H, D, seed=1)
    code, seen, *_ = on_every_tile(
        lambda: ops.encode(x, weight, None, "linear", l1=True, code_sum=True, seed=SEED, dropout=0.4),
        gemm=True,
    )
    assert torch.equal(code, x @ weight.t())
    assert torch.equal(seen.cpu(), R.perturb_code(code.cpu(), 3, "none", 0.0, 0.4))


def test_dropout_of_a_gradient_does_not_depend_on_tiles():
    grad, weight = whole_numbers(M, D), whole_numbers(D, H, seed=1)
    code, none = uniform(M, H).to(DEVICE, torch.float32), torch.empty(0, device=DEVICE)
    dz, *_ = on_every_tile(
        lambda: ops.code_grad(grad, weight, code, none, "linear", seed=SEED, dropout=0.4)[:1], gemm=True
    )
    assert torch.equal(dz.cpu(), R.perturb_code((grad @ weight).cpu(), 3, "none", 0.0, 0.4))


@pytest.mark.parametrize("corruption", [Masking(0.4), Swap(0.4)], ids=str)
def test_emphasis_does_not_depend_on_tiles(corruption: Corruption):
    """The mean squared error of whole numbers is exact, and so are weights of 2 and 0.5."""
    code, weight, target = whole_numbers(M, D), whole_numbers(H, D, seed=1), whole_numbers(M, H, seed=2)
    tail = ("mse", "linear", SEED, corruption.kind, corruption.params, 2.0, 0.5)
    _, grad, _ = on_every_tile(lambda: ops.decode_loss(code, weight, None, target, *tail, True), gemm=True)
    (to_target,) = on_every_tile(
        lambda: ops.decode_loss_target_grad(code, weight, None, target, *tail), gemm=True
    )
    hit = R.corrupted_entries(target.cpu(), corruption, 3)
    weights = torch.where(hit, 2.0, 0.5).to(DEVICE)
    assert torch.equal(grad, 2.0 * weights * (code @ weight.t() - target))
    assert torch.equal(to_target, -grad)
