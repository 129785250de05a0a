"""The whole objective on kernels: every term and every gradient, for every option."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastae import Emphasis, Gaussian, Masking, SaltAndPepper, Swap, functional, philox
from fastae import reference as R
from fastae.activations import ACTIVATIONS
from tests.kernels.comparison import (
    STRIDED,
    Tensors,
    assert_like_reference,
    constant_upstream,
    normal,
    uniform,
)
from tests.kernels.support import DEVICE, DTYPES, small_tiles

Options = dict[str, Any]

EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
TIED = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
SHAPE = (17, 19, 20)  # rows, features, units: two tiles of rows, and two parts of a tile of columns
SMALL = (6, 11, 10)  # for what does not depend on the tiles


def autoencoder(rows: int, features: int, units: int, *, tied: bool = False, target: bool = True) -> Tensors:
    """Pre-activations of size 1; x and target lie in [0, 1]."""
    return {
        "x": uniform(rows, features, seed=1),
        "weight": normal(units, features, size=2.0 / features**0.5, seed=2),
        "bias": normal(units, size=0.5, seed=3),
        "decoder_weight": None if tied else normal(features, units, size=2.0 / units**0.5, seed=4),
        "decoder_bias": normal(features, size=0.5, seed=5),
        "target": uniform(rows, features, seed=6) if target else None,
    }


def seed_of(number: int) -> int:
    """The seed that a noisy call after ``torch.manual_seed(number)`` draws on the tests' device."""
    torch.manual_seed(number)
    return int(philox.draw_seed(DEVICE))


def terms_of(loss: R.AutoencoderLoss) -> Tensors:
    return {name: term for name, term in loss._asdict().items() if term is not None}


def objective(
    number: int = 0, reduction: str = "none", **options: Any
) -> tuple[Callable[..., Tensors], Callable[..., Tensors]]:
    """The function on kernels and its reference, of the same seed."""

    def ours(**tensors: Tensor) -> Tensors:
        torch.manual_seed(number)
        return terms_of(functional.autoencoder_loss(**tensors, reduction=reduction, **options))

    def reference(**tensors: Tensor) -> Tensors:
        terms = terms_of(R.autoencoder_loss(**tensors, seed=seed_of(number), **options))
        if reduction == "none":
            return terms
        reduce = {"mean": torch.mean, "sum": torch.sum}[reduction]
        return {name: term if name == "kl" else reduce(term) for name, term in terms.items()}

    return ours, reference


def assert_objective(
    tensors: Tensors, dtype: torch.dtype, *, upstream: Callable | None = None, **options: Any
):
    if options.get("code_noise") == "bernoulli":
        options["number"] = clear_draws(tensors, dtype, options)
    given = {} if upstream is None else {"upstream": upstream}
    assert_like_reference(*objective(**options), tensors, dtype, **given)


def clear_draws(tensors: Tensors, dtype: torch.dtype, options: Options) -> int:
    """A seed whose binary draws are the same for codes that differ in rounding."""
    x, weight, bias = (None if t is None else t.to(dtype).double() for t in list(tensors.values())[:3])
    for number in range(1000):
        seed = seed_of(number)
        corruption = options.get("corruption")
        noisy = x if corruption is None else R.corrupt(x, corruption, seed)
        code = R.encode(noisy, weight, bias, "sigmoid")
        bits = philox.random_bits(seed, *code.shape, philox.STREAM_CODE_NOISE)
        draw = (bits.bitwise_right_shift(8) & 0xFFFFFF).double() * 2.0**-24
        if not code.numel() or (draw - code).abs().min() > 2.0 * torch.finfo(dtype).eps:
            return number
    raise AssertionError("no such seed")


# --- options ----------------------------------------------------------------------------------------------

EVERYTHING: Options = {
    "corruption": Masking(0.3),
    "emphasis": Emphasis(2.0, 0.5),
    "contractive": 0.3,
    "higher_order": 0.2,
    "higher_order_std": 0.3,
    "l1": 0.1,
    "kl": 0.4,
    "kl_target": 0.1,
    "code_noise": "gaussian",
    "code_noise_std": 0.2,
    "dropout": 0.3,
}
OPTIONS: dict[str, Options] = {
    "plain": {},
    "contractive": {"contractive": 0.3},
    "higher order": {"higher_order": 0.2, "higher_order_samples": 2, "higher_order_std": 0.5},
    "both contractions": {"contractive": 0.3, "higher_order": 0.2},
    "l1": {"l1": 0.1},
    "kl": {"kl": 0.4},
    "gaussian code": {"code_noise": "gaussian", "code_noise_std": 0.4},
    "gaussian code, dropout": {"code_noise": "gaussian", "dropout": 0.5},
    "dropout": {"dropout": 0.4},
    "masking": {"corruption": Masking(0.4)},
    "masking all": {"corruption": Masking(1.0), "emphasis": Emphasis(2.0, 0.5)},
    "masking none": {"corruption": Masking(0.0), "emphasis": Emphasis(2.0, 0.5)},
    "gaussian": {"corruption": Gaussian(0.4)},
    "salt and pepper": {"corruption": SaltAndPepper(0.4, -1.0, 2.0)},
    "swap": {"corruption": Swap(0.4)},
    "emphasised masking": {"corruption": Masking(0.4), "emphasis": Emphasis(2.0, 0.5)},
    "emphasised salt and pepper": {"corruption": SaltAndPepper(0.4), "emphasis": Emphasis(1.0, 0.0)},
    "emphasised swap": {"corruption": Swap(0.4), "emphasis": Emphasis(0.0, 1.0)},
}


def fitting(options: Options, activation: str) -> Options:
    """The options without those that ask for codes in [0, 1], where the activation has others."""
    if ACTIVATIONS[activation].in_unit_interval:
        return options
    return {name: value for name, value in options.items() if name not in ("kl", "kl_target")}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_option_is_the_reference(options: Options, strategy: str):
    """Of the input that is its own target: gradients reach it through the corruption and without."""
    assert_objective(autoencoder(*SHAPE, target=False), torch.float32, **options)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@EVERY_DTYPE
def test_binary_codes_are_the_reference(dropout: float, dtype: torch.dtype, strategy: str):
    options = {"code_noise": "bernoulli", "dropout": dropout}
    assert_objective(autoencoder(5, 19, 6, tied=True), dtype, **options)


@pytest.mark.parametrize(("reduction", "tied"), [("mean", True), ("sum", False), ("none", True)])
@EVERY_DTYPE
def test_all_options_together_are_the_reference(
    reduction: str, tied: bool, dtype: torch.dtype, strategy: str
):
    assert_objective(autoencoder(*SHAPE, tied=tied), dtype, reduction=reduction, **EVERYTHING)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_is_the_reference(activation: str):
    options = {"contractive": 0.3, "higher_order": 0.2, "higher_order_std": 0.5, "l1": 0.1, "dropout": 0.3}
    assert_objective(autoencoder(*SMALL, tied=True), torch.float32, activation=activation, **options)


@pytest.mark.parametrize("activation", ["linear", "tanh", "relu"])
def test_sparsity_has_no_slope_at_codes_of_zero(activation: str):
    tensors = autoencoder(*SMALL)
    tensors["x"][::2] = 0.0
    tensors["bias"].zero_()
    ours, reference = (
        lambda f=f, **tensors: {"l1": f(**tensors)["l1"]} for f in objective(activation=activation, l1=0.1)
    )
    assert_like_reference(ours, reference, tensors, torch.float32)


@pytest.mark.parametrize("output_activation", ACTIVATIONS)
def test_every_output_activation_is_the_reference(output_activation: str):
    options = {"loss": "mse", "output_activation": output_activation, "contractive": 0.1}
    assert_objective(autoencoder(*SMALL, tied=True), torch.float32, **options)


@pytest.mark.parametrize("loss", ["bce", "mse"])
@pytest.mark.parametrize(
    "corruption", [Masking(0.3), Gaussian(0.3), SaltAndPepper(0.3), Swap(0.3)], ids=lambda c: c.kind
)
@EVERY_DTYPE
def test_every_corruption_is_the_reference(corruption, loss: str, dtype: torch.dtype):
    """Of an input that is its own target, with tied weights: every path to a gradient at once."""
    tensors = autoencoder(*SMALL, tied=True, target=False)
    assert_objective(tensors, dtype, loss=loss, corruption=corruption, contractive=0.3, dropout=0.3)


@EVERY_DTYPE
def test_default_tiles_are_the_reference(dtype: torch.dtype):
    options = fitting(EVERYTHING, "silu")
    assert_objective(autoencoder(65, 70, 67, tied=True), dtype, activation="silu", **options)


# --- gradients of parts -----------------------------------------------------------------------------------


@TIED
@pytest.mark.parametrize("term", ["reconstruction", "contractive", "higher_order", "l1", "kl"])
def test_each_term_has_gradients_by_itself(term: str, tied: bool):
    ours, reference = (
        lambda f=f, **tensors: {term: f(**tensors)[term]} for f in objective(reduction="sum", **EVERYTHING)
    )
    assert_like_reference(ours, reference, autoencoder(*SMALL, tied=tied), torch.float32)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_upstream_gradients_may_have_strides_of_zero(reduction: str):
    tensors, options = autoencoder(*SMALL), {"reduction": reduction, **EVERYTHING}
    assert_objective(tensors, torch.float32, upstream=constant_upstream, **options)


TENSORS = ["x", "weight", "bias", "decoder_weight", "decoder_bias", "target"]


def test_gradient_is_the_same_where_it_is_the_only_one():
    tensors = {name: t.to(DEVICE, torch.float32) for name, t in autoencoder(*SMALL).items()}

    def gradients(names: list[str]) -> tuple[Tensor, ...]:
        leaves = {name: t.clone().requires_grad_(name in names) for name, t in tensors.items()}
        torch.manual_seed(0)
        total = functional.autoencoder_loss(**leaves, **EVERYTHING).total
        return torch.autograd.grad(total, [leaves[name] for name in names])

    for name, expected in zip(TENSORS, gradients(TENSORS), strict=True):
        assert torch.equal(gradients([name])[0], expected), name


@pytest.mark.parametrize("absent", ["bias", "decoder_bias", "target"])
def test_tensors_may_be_absent(absent: str):
    assert_objective({**autoencoder(*SMALL), absent: None}, torch.float32, **EVERYTHING)


# --- shapes and strides -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 35, 33), (2, 1, 17), (16, 32, 32), (33, 5, 1)], ids=str)
def test_any_shape_is_the_reference(shape: tuple[int, int, int], strategy: str):
    options = {"corruption": Swap(0.3), "contractive": 0.3, "l1": 0.1, "kl": 0.4, "dropout": 0.3}
    assert_objective(autoencoder(*shape, tied=True), torch.float32, **options)


@TIED
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_no_rows_have_no_loss_and_no_gradient(tied: bool, reduction: str):
    tensors = autoencoder(0, *SHAPE[1:], tied=tied)
    leaves = {n: t if t is None else t.to(DEVICE, torch.float32).requires_grad_() for n, t in tensors.items()}
    terms = terms_of(functional.autoencoder_loss(**leaves, reduction=reduction, **EVERYTHING))
    assert terms.pop("kl").isnan()  # the divergence of a mean over no rows
    for name, term in terms.items():
        assert term.shape == ((0,) if reduction == "none" else ())
        assert term.isnan() if reduction == "mean" else not term.any(), name
    wanted = [leaf for leaf in leaves.values() if leaf is not None]
    total = sum(term.sum() for term in terms.values())
    for gradient, leaf in zip(torch.autograd.grad(total, wanted), wanted, strict=True):
        assert gradient.shape == leaf.shape and not gradient.any()


@pytest.mark.parametrize("view", STRIDED.values(), ids=STRIDED)
@pytest.mark.parametrize("place", ["x", "weight", "decoder_weight", "target"])
def test_any_strides_are_taken(view: Callable[[Tensor], Tensor], place: str):
    ours, reference = objective(corruption=Swap(0.4), contractive=0.3)

    def strided(**tensors: Tensor) -> Tensors:
        return ours(**{**tensors, place: view(tensors[place])})

    assert_like_reference(strided, reference, autoencoder(*SMALL), torch.float32)


def test_three_dimensions_are_rows():
    tensors = {name: t.to(DEVICE, torch.float32) for name, t in autoencoder(18, 7, 6).items()}
    results = []
    for leading in ((18,), (2, 9)):
        given = {**tensors, **{name: tensors[name].view(*leading, 7) for name in ("x", "target")}}
        torch.manual_seed(0)
        results.append(terms_of(functional.autoencoder_loss(**given, reduction="none", **EVERYTHING)))
    for name, flat in results[0].items():
        shaped = results[1][name]
        assert shaped.shape == (() if name == "kl" else (2, 9))
        assert torch.equal(shaped.flatten(), flat.flatten())


# --- drawn at random --------------------------------------------------------------------------------------

_weights = st.sampled_from([0.0, 0.3])


@st.composite
def _options(draw: Callable[[Any], Any]) -> Options:
    activation = draw(st.sampled_from(list(ACTIVATIONS)))
    loss = draw(st.sampled_from(["bce", "mse"]))
    corruption = draw(
        st.sampled_from([None, Masking(0.4), Gaussian(0.5), SaltAndPepper(0.4, -1.0, 2.0), Swap(0.4)])
    )
    options = {
        "activation": activation,
        "loss": loss,
        "output_activation": draw(st.sampled_from(list(ACTIVATIONS))) if loss == "mse" else "linear",
        "corruption": corruption,
        **{name: draw(_weights) for name in ("contractive", "higher_order", "l1", "kl", "dropout")},
        "code_noise": draw(st.sampled_from(["none", "gaussian"])),
        "reduction": draw(st.sampled_from(["mean", "sum", "none"])),
    }
    if corruption is not None and corruption.kind != "gaussian" and draw(st.booleans()):
        options["emphasis"] = Emphasis(2.0, 0.5)
    return fitting(options, activation)


@given(
    shape=st.tuples(*[st.integers(1, 40)] * 3),
    options=_options(),
    tied=st.booleans(),
    target=st.booleans(),
    strategy=st.sampled_from(["fused", "split"]),
    dtype=st.sampled_from(DTYPES),
)
@settings(max_examples=16, deadline=None, derandomize=True)
def test_any_shapes_and_options_are_the_reference(shape, options, tied, target, strategy, dtype):
    with small_tiles(strategy):
        assert_objective(autoencoder(*shape, tied=tied, target=target), dtype, **options)
