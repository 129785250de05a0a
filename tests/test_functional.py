"""Values and gradients of every function against the reference under autograd, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastae import AutoencoderLoss, Emphasis, Gaussian, Masking, SaltAndPepper, Swap, functional
from fastae import reference as R
from fastae.activations import ACTIVATIONS
from fastae.losses import LOSSES
from tests.support import EVERYTHING

EXACT = {"rtol": 1e-10, "atol": 1e-10}
EVERY = pytest.mark.parametrize("activation", ACTIVATIONS)
REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
TIED = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])

Options = dict[str, Any]


def scalar(value: Tensor, reduction: str) -> Tensor:
    """A scalar to differentiate: rows weighted at random, or the reduced value itself."""
    return value @ torch.linspace(-0.5, 1.5, len(value)).to(value) if reduction == "none" else value


def reduced(rows: Tensor, reduction: str) -> Tensor:
    return {"mean": rows.mean, "sum": rows.sum, "none": lambda: rows}[reduction]()


def assert_same(
    values: Sequence[Tensor], expected: Sequence[Tensor], leaves: Sequence[Tensor], **tolerance: float
) -> None:
    """The values agree, and so do the gradients of a linear combination of all of them."""
    tolerance = tolerance or EXACT
    gradients = []
    for value, right in zip(values, expected, strict=True):
        torch.testing.assert_close(value, right, equal_nan=True, **tolerance)
    for outputs in (values, expected):
        combined = sum((k + 1.0) * scalar(v, "none" if v.dim() else "mean") for k, v in enumerate(outputs))
        gradients.append(torch.autograd.grad(combined, leaves, allow_unused=True, materialize_grads=True))
    for gradient, right in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, right, **tolerance)


# --- encode, contractive_encode, reconstruction_loss -----------------------------------------------------


@EVERY
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no bias"])
def test_encode_is_the_reference(activation: str, has_bias: bool, parameters):
    x, w, b, *_ = parameters().leaves()
    b = b if has_bias else None
    leaves = (x, w, b) if has_bias else (x, w)
    codes = (f(x, w, b, activation).flatten() for f in (functional.encode, R.encode))
    assert_same([next(codes)], [next(codes)], leaves)


@EVERY
@REDUCTIONS
@pytest.mark.parametrize("use", ["code", "penalty", "both"])
def test_contractive_encode_is_the_reference(activation: str, reduction: str, use: str, parameters):
    x, w, b, *_ = parameters().leaves()
    code, penalty = functional.contractive_encode(x, w, b, activation, reduction=reduction)
    expected = R.encode(x, w, b, activation), R.contractive_penalty(x, w, b, activation)
    pairs = {
        "code": (code.flatten(), expected[0].flatten()),
        "penalty": (penalty, reduced(expected[1], reduction)),
    }
    used = list(pairs.values()) if use == "both" else [pairs[use]]
    assert_same(*zip(*used, strict=True), (x, w, b))


OUTPUTS = [
    ("bce", "linear"),
    ("huber", "linear"),
    ("huber:0.3", "tanh"),
    ("poisson", "linear"),
    ("negative_binomial", "linear"),
    ("negative_binomial:3", "linear"),
    ("cosine", "linear"),
    ("cosine", "sigmoid"),
    *(("mse", name) for name in ACTIVATIONS),
]
EVERY_LOSS = pytest.mark.parametrize(
    ("loss", "output_activation"), OUTPUTS, ids=[f"{loss} {output}" for loss, output in OUTPUTS]
)


@EVERY_LOSS
@REDUCTIONS
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no bias"])
def test_reconstruction_loss_is_the_reference(
    loss: str, output_activation: str, reduction: str, has_bias: bool, parameters
):
    _, _, _, v, c, target = parameters().leaves()
    code = parameters(5, 6, 1).leaves().x
    c = c if has_bias else None
    value = functional.reconstruction_loss(
        code, v, c, target, loss, output_activation=output_activation, reduction=reduction
    )
    rows = R.reconstruction_loss(code, v, c, target, loss, output_activation)
    leaves = (code, v, target, c) if has_bias else (code, v, target)
    assert_same([value], [reduced(rows, reduction)], leaves)


def weighed_rows(loss: str, a: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """The loss per row, [M], for weights that broadcast to the target [M, D]."""
    if loss != "cosine":
        return (weight * R.reconstruction_entries(a, target, loss)).sum(1)
    root = weight.sqrt()
    return 1.0 - F.cosine_similarity(root * a, root * target)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_missing_entries_have_no_loss_and_no_gradient(loss: str, reduction: str, parameters):
    _, _, _, v, c, target = parameters().leaves()
    code = parameters(5, 6, 1).leaves().x
    gone = torch.rand(target.shape, generator=torch.Generator().manual_seed(1)) < 0.4
    gone[2] = True
    given = target.detach().masked_fill(gone, math.nan).requires_grad_()
    value = functional.reconstruction_loss(code, v, c, given, loss, missing=True, reduction=reduction)
    expected = reduced(weighed_rows(loss, F.linear(code, v, c), target, (~gone).double()), reduction)
    torch.testing.assert_close(value, expected, **EXACT)
    gradients = torch.autograd.grad(value.sum(), (code, v, c, given))
    exact = torch.autograd.grad(expected.sum(), (code, v, c, target))
    for gradient, right in zip(gradients, exact, strict=True):
        torch.testing.assert_close(gradient, right, **EXACT)
    assert not gradients[0][2].any() and not gradients[3][gone].any()
    assert functional.reconstruction_loss(code, v, c, given, loss).isnan()


def weights_of(x: Tensor, form: str) -> tuple[Tensor, Tensor]:
    """Weights in a form that broadcasts to x [M, D], of which some are 0, and NaN where those are."""
    weight = torch.rand(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    weight = weight.masked_fill(weight < 0.3, 0.0)
    weight = {"features": weight[1], "rows": weight[:, 1:2], "entries": weight}[form]
    return weight, torch.zeros_like(x).masked_fill(weight == 0.0, math.nan)


WEIGHTS = pytest.mark.parametrize("form", ["features", "rows", "entries"])


@pytest.mark.parametrize("loss", LOSSES)
@WEIGHTS
def test_weights_of_entries_are_those_of_the_reference(loss: str, form: str, parameters):
    _, _, _, v, c, target = parameters().leaves()
    code = parameters(5, 6, 1).leaves().x
    weight, gone = weights_of(target, form)
    if loss == "cosine" and form == "rows":
        with pytest.raises(ValueError, match=r"entry_weight: .* whole rows do not change cosine"):
            functional.reconstruction_loss(code, v, c, target, loss, entry_weight=weight)
        return
    given = (target + gone).detach().requires_grad_()
    options = {"entry_weight": weight.requires_grad_(), "reduction": "none"}
    rows = functional.reconstruction_loss(code, v, c, given, loss, **options)
    exact = weighed_rows(loss, F.linear(code, v, c), target, weight.detach())
    reference = R.reconstruction_loss(code, v, c, given, loss, entry_weight=weight.detach())
    for value in (rows, reference):
        gradients = torch.autograd.grad(value.sum(), (code, v, c, given))
        expected = torch.autograd.grad(exact.sum(), (code, v, c, target), retain_graph=True)
        torch.testing.assert_close([value, *gradients], [exact, *expected], **EXACT)
    gradcheck(lambda *t: functional.reconstruction_loss(*t, loss, **options), code, v, c, target)
    with pytest.raises(RuntimeError, match="not have been used"):
        value = functional.reconstruction_loss(code, v, c, given, loss, **options)
        torch.autograd.grad(value.sum(), weight)


@pytest.mark.parametrize("plainly", [False, True], ids=["fused", "plain"])
@TIED
@WEIGHTS
def test_objectives_weigh_entries(
    form: str, tied: bool, plainly: bool, everything, parameters, seeded, monkeypatch
):
    if plainly:
        monkeypatch.setattr(functional.plain, "is_wanted", lambda device: True)
    tensors = tied_or_not(parameters().leaves(), tied)
    weight, gone = weights_of(tensors[-1], form)
    tensors[-1] = (tensors[-1] + gone).detach().requires_grad_()
    assert_same_objective(tensors, seeded, entry_weight=weight, **everything)
    x, w, b, v, c, _ = parameters()
    x[1, 2], missing = math.nan, {"loss": "mse", "missing": True}
    exact = R.autoencoder_loss(x, w, b, v, c, entry_weight=weight, **missing).total
    deep = functional.deep_autoencoder_loss(
        torch.stack([x, x]),
        [(w, b, "sigmoid")],
        [(v, c, "linear")],
        entry_weight=weight,
        reduction="none",
        **missing,
    )
    torch.testing.assert_close(deep.total, torch.stack([exact, exact]), **EXACT)


@pytest.mark.parametrize("plainly", [False, True], ids=["fused", "plain"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"loss": "mse", "contractive": 0.3, "corruption": Masking(0.3), "emphasis": Emphasis(2.0, 0.5)},
        {"loss": "poisson", "l1": 0.1, "corruption": Gaussian(0.1), "dropout": 0.3},
    ],
    ids=["bce", "mse with emphasis", "poisson with noise"],
)
def test_encoder_sees_zeros_in_place_of_missing_entries(
    options: Options, plainly: bool, parameters, monkeypatch
):
    if plainly:
        monkeypatch.setattr(functional.plain, "is_wanted", lambda device: True)
    x, w, b, v, c, _ = parameters().leaves()
    gone = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.4
    given = x.detach().masked_fill(gone, math.nan).requires_grad_()
    filled = x.detach().masked_fill(gone, 0.0).requires_grad_()

    def terms(x: Tensor, **changes: Any) -> AutoencoderLoss:
        torch.manual_seed(0)
        return functional.autoencoder_loss(x, w, b, v, c, **{**options, **changes})

    ours = terms(given, missing=True)
    exact = terms(filled, missing=True, target=given)
    assert_same([ours.total, ours.reconstruction], [exact.total, exact.reconstruction], (w, b, v, c))
    (gradient,) = torch.autograd.grad(terms(given, missing=True).total, (given,))
    assert gradient.isfinite().all() and not gradient[gone].any() and gradient[~gone].any()
    free = {"loss": options.get("loss", "bce"), "missing": True}
    rows = R.autoencoder_loss(given, w, b, v, c, **free).total
    torch.testing.assert_close(
        functional.autoencoder_loss(given, w, b, v, c, **free).total, rows.mean(), **EXACT
    )
    layers = [(w, b, "sigmoid")], [(v, c, "linear")]
    unrolled = functional.deep_autoencoder_loss(given, *layers, **free)
    torch.testing.assert_close(unrolled.total, rows.mean(), **EXACT)


# --- autoencoder_loss -----------------------------------------------------------------------------------

SINGLE: dict[str, Options] = {
    "plain": {},
    "contractive": {"contractive": 0.3},
    "higher order": {"higher_order": 0.2},
    "higher order, 3 samples": {"higher_order": 0.2, "higher_order_samples": 3, "higher_order_std": 0.5},
    "both contractions": {"contractive": 0.3, "higher_order": 0.2},
    "l1": {"l1": 0.1},
    "kl": {"kl": 0.4},
    "gaussian code": {"code_noise": "gaussian", "code_noise_std": 0.4},
    "bernoulli code": {"code_noise": "bernoulli"},
    "bernoulli code, dropout": {"code_noise": "bernoulli", "dropout": 0.5},
    "dropout": {"dropout": 0.4},
    "masking": {"corruption": Masking(0.4)},
    "masking all": {"corruption": Masking(1.0)},
    "masking none": {"corruption": Masking(0.0), "emphasis": Emphasis(2.0, 0.5)},
    "gaussian": {"corruption": Gaussian(0.4)},
    "salt and pepper": {"corruption": SaltAndPepper(0.4, -1.0, 2.0)},
    "swap": {"corruption": Swap(0.4)},
    "emphasised masking": {"corruption": Masking(0.4), "emphasis": Emphasis(2.0, 0.5)},
    "emphasised salt and pepper": {"corruption": SaltAndPepper(0.4), "emphasis": Emphasis(1.0, 0.0)},
    "emphasised swap": {"corruption": Swap(0.4), "emphasis": Emphasis(0.0, 1.0)},
    "everything": EVERYTHING,
}


def fitting(options: Options, activation: str) -> Options:
    """The options without those that ask for codes in [0, 1], where the activation has others."""
    if ACTIVATIONS[activation].in_unit_interval:
        return options
    options = {name: value for name, value in options.items() if name not in ("kl", "kl_target")}
    return {**options, "code_noise": "none"} if options.get("code_noise") == "bernoulli" else options


def both(
    tensors: Sequence[Tensor | None], seeded: Callable[[], int], reduction: str, options: Options
) -> tuple[R.AutoencoderLoss, R.AutoencoderLoss]:
    """The fused objective and the reference's, of x, weight, bias, decoder weight and bias, and target."""
    *tensors, target = tensors
    seed = seeded()
    fused = functional.autoencoder_loss(*tensors, target=target, reduction=reduction, **options)
    rows = R.autoencoder_loss(*tensors, target=target, seed=seed, **options)
    terms = {name: value for name, value in rows._asdict().items() if value is not None}
    terms = {name: v if name == "kl" else reduced(v, reduction) for name, v in terms.items()}
    return fused, R.AutoencoderLoss(**terms)


def assert_same_objective(
    tensors: Sequence[Tensor | None], seeded: Callable[[], int], reduction: str = "mean", **options: Any
) -> None:
    """All terms are there and agree, and so do the gradients of the total and of all terms combined."""
    leaves = [t for t in tensors if t is not None and t.requires_grad]
    pairs = both(tensors, seeded, reduction, options)
    assert [term is None for term in pairs[0]] == [term is None for term in pairs[1]]
    assert_same([pairs[0].total], [pairs[1].total], leaves)
    fused, expected = (
        [t for t in terms if t is not None] for terms in both(tensors, seeded, reduction, options)
    )
    assert_same(fused, expected, leaves)


def tied_or_not(p: Any, tied: bool, target: bool = True) -> list[Tensor | None]:
    x, w, b, v, c, t = p
    return [x, w, b, None if tied else v, c, t if target else None]


@TIED
@REDUCTIONS
@pytest.mark.parametrize("options", SINGLE.values(), ids=SINGLE)
def test_objective_is_the_reference_for_every_option(
    options: Options, reduction: str, tied: bool, parameters, seeded
):
    tensors = tied_or_not(parameters().leaves(), tied, target=False)
    assert_same_objective(tensors, seeded, reduction, **options)


@TIED
@EVERY
@pytest.mark.parametrize("name", ["contractive", "both contractions", "everything"])
def test_objective_is_the_reference_for_every_activation(
    activation: str, name: str, tied: bool, parameters, seeded
):
    tensors = tied_or_not(parameters().leaves(), tied)
    assert_same_objective(tensors, seeded, activation=activation, **fitting(SINGLE[name], activation))


@TIED
@EVERY_LOSS
@pytest.mark.parametrize("name", ["plain", "everything"])
def test_objective_is_the_reference_for_every_loss(
    loss: str, output_activation: str, name: str, tied: bool, parameters, seeded
):
    tensors = tied_or_not(parameters().leaves(), tied)
    assert_same_objective(tensors, seeded, loss=loss, output_activation=output_activation, **SINGLE[name])


_corruptions = st.one_of(
    st.none(),
    st.builds(Masking, st.sampled_from([0.0, 0.3, 1.0])),
    st.builds(Gaussian, st.sampled_from([0.0, 0.5])),
    st.builds(SaltAndPepper, st.sampled_from([0.2, 1.0])),
    st.builds(Swap, st.sampled_from([0.4, 1.0])),
)
_weights = st.sampled_from([0.0, 0.3])


@st.composite
def _options(draw: Callable[[Any], Any]) -> Options:
    activation = draw(st.sampled_from(list(ACTIVATIONS)))
    loss, output_activation = draw(st.sampled_from(OUTPUTS))
    options = {
        "corruption": draw(_corruptions),
        **{name: draw(_weights) for name in ("contractive", "higher_order", "l1", "kl", "dropout")},
        "higher_order_samples": draw(st.integers(1, 2)),
        "code_noise": draw(st.sampled_from(["none", "gaussian", "bernoulli"])),
    }
    if options["corruption"] is not None and options["corruption"].kind != "gaussian" and draw(st.booleans()):
        options["emphasis"] = Emphasis(2.0, 0.5)
    names = {"activation": activation, "loss": loss, "output_activation": output_activation}
    return names | fitting(options, activation)


@given(
    shape=st.tuples(st.integers(0, 9), st.integers(1, 9), st.integers(1, 9)),
    options=_options(),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    tied=st.booleans(),
    absent=st.sets(st.sampled_from(["bias", "decoder_bias", "target"])),
    frozen=st.sets(st.sampled_from(["x", "weight", "bias", "decoder_weight", "decoder_bias", "target"])),
)
@settings(max_examples=120, deadline=None, derandomize=True)
def test_objective_is_the_reference_for_any_shapes_and_options(
    shape, options, reduction, tied, absent, frozen, parameters, seeded
):
    p = parameters(*shape).leaves()
    for name in frozen:
        getattr(p, name).requires_grad_(False)
    p = p._replace(**dict.fromkeys(absent), **({"decoder_weight": None} if tied else {}))
    if not any(t is not None and t.requires_grad for t in p):
        p.x.requires_grad_()
    assert_same_objective(p, seeded, reduction, **options)


@TIED
def test_divergence_of_silent_units_is_held_as_in_the_reference(tied: bool, parameters, seeded):
    """A mean below the rounding unit counts as the rounding unit, and gets no gradient."""
    p = parameters()
    p.weight[:3] = 0.0
    p.bias[:3] = torch.tensor([-38.0, -800.0, 38.0])
    assert_same_objective(tied_or_not(p.leaves(), tied), seeded, kl=0.4)


# --- the terms ------------------------------------------------------------------------------------------

TERMS = ["reconstruction", "contractive", "higher_order", "l1", "kl"]


@TIED
@REDUCTIONS
@pytest.mark.parametrize("term", TERMS)
def test_each_term_is_differentiable_by_itself(term: str, reduction: str, tied: bool, parameters, seeded):
    tensors = tied_or_not(parameters().leaves(), tied)
    fused, expected = both(tensors, seeded, reduction, EVERYTHING)
    leaves = [t for t in tensors if t is not None]
    assert_same([getattr(fused, term)], [getattr(expected, term)], leaves)


@REDUCTIONS
def test_total_is_the_weighted_sum_of_the_terms(reduction: str, parameters):
    x, w, b, v, c, _ = parameters()
    terms = functional.autoencoder_loss(x, w, b, v, c, reduction=reduction, **EVERYTHING)
    weighted = terms.reconstruction + sum(EVERYTHING[name] * getattr(terms, name) for name in TERMS[1:-1])
    kl_share = len(x) if reduction == "sum" else 1
    torch.testing.assert_close(terms.total, weighted + EVERYTHING["kl"] * kl_share * terms.kl, **EXACT)


@pytest.mark.parametrize("on", [(), *((name,) for name in TERMS[1:]), TERMS[1:]], ids=str)
def test_terms_with_weight_zero_are_none(on: Sequence[str], parameters):
    terms = functional.autoencoder_loss(*parameters()[:5], **dict.fromkeys(on, 0.1))
    assert [name for name in TERMS if getattr(terms, name) is not None] == ["reconstruction", *on]


# --- numerical differentiation --------------------------------------------------------------------------


def gradcheck(function: Callable[..., Any], *inputs: Tensor) -> None:
    assert torch.autograd.gradcheck(function, inputs, eps=1e-6, atol=1e-6, rtol=1e-5)


@EVERY
def test_gradcheck_of_encoders(activation: str, parameters):
    x, w, b, *_ = parameters(3, 4, 3).leaves()
    gradcheck(lambda *t: functional.encode(*t, activation), x, w, b)
    gradcheck(lambda *t: functional.contractive_encode(*t, activation, reduction="none"), x, w, b)


@EVERY_LOSS
def test_gradcheck_of_the_reconstruction_loss(loss: str, output_activation: str, parameters):
    _, _, _, v, c, target = parameters(3, 4, 3).leaves()
    code = parameters(3, 3, 1).leaves().x

    def function(*t: Tensor) -> Tensor:
        return functional.reconstruction_loss(*t, loss, output_activation=output_activation, reduction="none")

    gradcheck(function, code, v, c, target)


@EVERY
@TIED
def test_gradcheck_of_the_objective(activation: str, tied: bool, parameters):
    tensors = tied_or_not(parameters(3, 4, 3).leaves(), tied)

    def function(*leaves: Tensor) -> list[Tensor]:
        torch.manual_seed(0)
        given = iter(leaves)
        *rest, target = (None if t is None else next(given) for t in tensors)
        terms = functional.autoencoder_loss(
            *rest, target=target, activation=activation, **fitting(EVERYTHING, activation)
        )
        return [term for term in terms if term is not None]

    gradcheck(function, *(t for t in tensors if t is not None))


@pytest.mark.parametrize("corruption", [Masking(0.4), Gaussian(0.4), SaltAndPepper(0.4), Swap(0.4)], ids=str)
def test_gradcheck_of_corruption(corruption, parameters):
    def function(x: Tensor) -> Tensor:
        torch.manual_seed(0)
        return functional.corrupt(x, corruption)

    gradcheck(function, parameters().leaves().x)
