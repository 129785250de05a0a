"""The deep penalty and the unrolled objective against autograd through plain PyTorch."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastae import Emphasis, Gaussian, Masking, functional, ops, philox, reference
from fastae.activations import ACTIVATIONS, get_activation
from fastae.functional import deep_autoencoder_loss, deep_contractive_encode

STACKS = [
    ("sigmoid",),
    ("gelu",),
    ("relu",),
    ("tanh", "sigmoid"),
    ("linear", "softplus"),
    ("leaky_relu", "linear"),
    ("gelu", "silu"),
    ("elu", "gelu_tanh", "softsign"),
    ("mish", "hardtanh", "relu6"),
    ("selu", "relu", "tanh"),
]
EVERY_STACK = pytest.mark.parametrize("activations", STACKS, ids="-".join)
CLOSE = {"rtol": 1e-10, "atol": 1e-10}
WIDTHS = (5, 4, 6, 3)
Layers = list[tuple[Tensor, "Tensor | None", str]]


def make_layers(
    activations: tuple[str, ...],
    *,
    widths: tuple[int, ...] = WIDTHS,
    bias: bool = True,
    transposed: bool = False,
    seed: int = 0,
) -> Layers:
    """Weights and biases of size 1 that require gradients, in double precision."""
    g = torch.Generator().manual_seed(seed)
    layers: Layers = []
    for activation, (before, after) in zip(activations, itertools.pairwise(widths), strict=False):
        weight = torch.randn(after, before, generator=g, dtype=torch.float64)
        if transposed:
            weight = weight.t().contiguous().t()
        b = torch.randn(after, generator=g, dtype=torch.float64).requires_grad_() if bias else None
        layers.append((weight.requires_grad_(), b, activation))
    return layers


def inputs(*leading: int, seed: int = 1) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(*leading, WIDTHS[0], generator=g, dtype=torch.float64).requires_grad_()


def leaves(*stacks: Layers) -> list[Tensor]:
    return [tensor for layers in stacks for *pair, _ in layers for tensor in pair if tensor is not None]


def seeds(count: int, seed: int = 0) -> list[Tensor]:
    """Successive draws of operations from a generator seeded with ``seed``."""
    g = torch.Generator().manual_seed(seed)
    return [philox.draw_seed(torch.device("cpu"), g) for _ in range(count)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def plain(x: Tensor, layers: Layers) -> Tensor:
    for weight, bias, activation in layers:
        x = get_activation(activation).function(F.linear(x, weight, bias))
    return x


def estimate(x: Tensor, layers: Layers, seed: Tensor, probes: int) -> Tensor:
    """Hutchinson's estimate of each row by the reference, with the operator's own probes."""
    weights, biases, activations = zip(*layers, strict=True)
    like = x.new_empty(x.shape[0], weights[-1].shape[0])
    draws = [ops.random_signs(like, seed, philox.STREAM_PROBE + k) for k in range(probes)]
    rows = [reference.hutchinson_penalty(x, weights, biases, activations, probe) for probe in draws]
    return torch.stack(rows).mean(0)


def jacobians(x: Tensor, layers: Layers) -> Tensor:
    return torch.func.vmap(torch.func.jacrev(lambda row: plain(row, layers)))(x)


# --- the penalty ----------------------------------------------------------------------------------------


@EVERY_STACK
@pytest.mark.parametrize("probes", [1, 3])
def test_code_and_penalty_are_the_references_with_the_same_probes(activations, probes):
    layers, x = make_layers(activations), inputs(7)
    code, penalty = deep_contractive_encode(x, layers, probes=probes, reduction="none", generator=seeded())
    torch.testing.assert_close(code, plain(x, layers), **CLOSE)
    torch.testing.assert_close(penalty, estimate(x, layers, seeds(1)[0], probes), **CLOSE)
    assert penalty.min() > 0


@EVERY_STACK
@pytest.mark.parametrize("part", ["code", "penalty", "both"])
@pytest.mark.parametrize("probes", [1, 3])
@pytest.mark.parametrize(
    "form", [{}, {"bias": False}, {"transposed": True}], ids=["", "no bias", "transposed"]
)
def test_gradients_are_those_of_autograd_through_the_reference(activations, part, probes, form):
    layers, x = make_layers(activations, **form), inputs(7)
    chosen = {"code": slice(0, 1), "penalty": slice(1, 2), "both": slice(0, 2)}[part]
    own = deep_contractive_encode(x, layers, probes=probes, reduction="none", generator=seeded())[chosen]
    other = (plain(x, layers), estimate(x, layers, seeds(1)[0], probes))[chosen]
    g = torch.Generator().manual_seed(9)
    upstream = [torch.randn(t.shape, generator=g, dtype=t.dtype) for t in other]

    def gradients(outputs) -> tuple[Tensor, ...]:
        every = [x, *leaves(layers)]
        return torch.autograd.grad(outputs, every, upstream, allow_unused=True, materialize_grads=True)

    expected = gradients(other)
    # a piecewise linear penalty does not depend on x or on biases; everything depends on the weights
    weights = [gradient for gradient in expected[1:] if gradient.dim() == 2]
    assert len(weights) == len(layers)
    assert all(gradient.abs().max() > 1e-3 for gradient in weights)
    for own_gradient, gradient in zip(gradients(own), expected, strict=True):
        torch.testing.assert_close(own_gradient, gradient, **CLOSE)


@pytest.mark.parametrize("wanted", ["x", "weight", "bias"])
def test_gradients_to_one_argument_alone(wanted):
    layers, x = make_layers(("tanh", "gelu")), inputs(7)
    every = [x, layers[0][0], layers[0][1]]
    leaf = every[["x", "weight", "bias"].index(wanted)]
    expected = torch.autograd.grad(estimate(x, layers, seeds(1)[0], 1).mean() + plain(x, layers).sum(), leaf)
    for tensor in [x, *leaves(layers)]:
        tensor.requires_grad_(tensor is leaf)
    code, penalty = deep_contractive_encode(x, layers, generator=seeded())
    torch.testing.assert_close(torch.autograd.grad(penalty + code.sum(), leaf), expected, **CLOSE)


@pytest.mark.parametrize(
    "activations", [("tanh",), ("silu", "sigmoid"), ("tanh", "softplus", "gelu")], ids="-".join
)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradcheck(activations, reduction):
    layers, x = make_layers(activations, widths=(5, 2, 3, 2)), inputs(3)

    def function(x, *parameters):
        rebuilt = [(w, b, a) for w, b, a in zip(parameters[::2], parameters[1::2], activations, strict=True)]
        return deep_contractive_encode(x, rebuilt, probes=2, reduction=reduction, generator=seeded())

    assert torch.autograd.gradcheck(function, (x, *leaves(layers)))


@pytest.mark.parametrize("activations", STACKS[:1] + STACKS[3:4] + STACKS[-2:], ids="-".join)
def test_the_mean_over_all_signs_is_the_jacobians_norm(activations):
    layers, x = make_layers(activations), inputs(4).detach()
    weights, biases, names = zip(*layers, strict=True)
    units = weights[-1].shape[0]
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=units)), dtype=torch.float64)
    rows = [reference.hutchinson_penalty(x, weights, biases, names, sign.expand(4, -1)) for sign in signs]
    torch.testing.assert_close(torch.stack(rows).mean(0), jacobians(x, layers).square().sum((1, 2)))


def exact_and_deviation(x: Tensor, layers: Layers) -> tuple[Tensor, Tensor]:
    """||J||_F^2 of each row, and the standard deviation of one probe's estimate of it."""
    j = jacobians(x, layers)
    gram = j @ j.mT
    off = gram - torch.diag_embed(gram.diagonal(dim1=1, dim2=2))
    return j.square().sum((1, 2)), (2.0 * off.square().sum((1, 2))).sqrt()


@pytest.mark.parametrize("activations", STACKS[:1] + STACKS[3:4] + STACKS[-2:], ids="-".join)
@pytest.mark.parametrize("draws", ["rows", "probes"])
def test_the_mean_over_many_probes_is_the_jacobians_norm(activations, draws):
    layers, x = make_layers(activations), inputs(3).detach()
    exact, deviation = exact_and_deviation(x, layers)
    if len(activations) == 2:
        weights, biases, names = zip(*layers, strict=True)
        torch.testing.assert_close(reference.two_layer_penalty(x, weights, biases, names), exact)
    count, probes = (4000, 1) if draws == "rows" else (8, 500)
    many = x.repeat_interleave(count, 0)
    _, penalty = deep_contractive_encode(many, layers, probes=probes, reduction="none", generator=seeded())
    mean = penalty.view(3, count).mean(1)
    error = deviation / (count * probes) ** 0.5
    assert (error < 0.05 * exact).all()  # the test can tell
    assert ((mean - exact).abs() < 4.0 * error).all()


@pytest.mark.parametrize("activation", ["sigmoid", "softsign", "leaky_relu"])
def test_the_mean_penalty_of_one_layer_is_the_contractive_penalty(activation):
    layers, x = make_layers((activation,)), inputs(3).detach()
    _, deviation = exact_and_deviation(x, layers)
    _, penalty = deep_contractive_encode(
        x.repeat_interleave(4000, 0), layers, reduction="none", generator=seeded()
    )
    exact = reference.contractive_penalty(x, *layers[0])
    assert ((penalty.view(3, -1).mean(1) - exact).abs() < 4.0 * deviation / 4000**0.5).all()


@pytest.mark.parametrize("leading", [(), (6,), (2, 3), (0,), (2, 0)], ids=str)
def test_leading_dimensions_and_reductions(leading):
    layers, x = make_layers(("tanh", "sigmoid")), inputs(*leading)
    code, rows = deep_contractive_encode(x, layers, reduction="none", generator=seeded())
    assert code.shape == (*leading, WIDTHS[2])
    assert rows.shape == leading
    torch.testing.assert_close(code, plain(x, layers))
    for reduction, expected in (("mean", rows.mean()), ("sum", rows.sum())):
        _, penalty = deep_contractive_encode(x, layers, reduction=reduction, generator=seeded())
        torch.testing.assert_close(penalty, expected, equal_nan=True)
    _, default = deep_contractive_encode(x, layers, generator=seeded())
    torch.testing.assert_close(default, rows.mean(), equal_nan=True)


def test_inputs_of_any_strides():
    layers, x = make_layers(("tanh", "sigmoid")), inputs(WIDTHS[0]).t()
    values = deep_contractive_encode(x, layers, generator=seeded())
    torch.testing.assert_close(values, deep_contractive_encode(x.contiguous(), layers, generator=seeded()))


def test_the_probes_follow_torchs_seed_where_no_generator_is_given():
    layers, x = make_layers(("tanh", "sigmoid")), inputs(7)
    values = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        values.append(deep_contractive_encode(x, layers)[1])
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])


def test_single_precision_sums_in_single_precision_and_agrees_with_double():
    layers, x = make_layers(("tanh", "sigmoid")), inputs(7)
    single = [(w.float(), b.float(), a) for w, b, a in layers if b is not None]
    code, penalty = deep_contractive_encode(x.float(), single, generator=seeded())
    assert code.dtype == penalty.dtype == torch.float32
    expected = deep_contractive_encode(x, layers, generator=seeded())
    torch.testing.assert_close((code.double(), penalty.double()), expected, rtol=1e-5, atol=1e-5)


def test_under_autocast_codes_come_in_its_dtype_and_the_penalty_in_float32():
    layers, x = make_layers(("tanh", "sigmoid")), inputs(7)
    single = [(w.detach().float().requires_grad_(), b.float(), a) for w, b, a in layers if b is not None]
    with torch.autocast("cpu", torch.bfloat16):
        code, penalty = deep_contractive_encode(x.float(), single, generator=seeded())
    assert (code.dtype, penalty.dtype) == (torch.bfloat16, torch.float32)
    expected = deep_contractive_encode(x, layers, generator=seeded())
    torch.testing.assert_close((code.double(), penalty.double()), expected, rtol=0.05, atol=0.05)
    own = torch.autograd.grad(penalty, single[0][0])[0].double()
    other = torch.autograd.grad(expected[1], layers[0][0])[0]
    assert (own - other).norm() < 0.05 * other.norm()


@pytest.mark.parametrize("part", [0, 1], ids=["code", "penalty"])
def test_a_second_derivative_raises(part):
    layers, x = make_layers(("tanh", "sigmoid")), inputs(7)
    value = deep_contractive_encode(x, layers)[part].sum()
    (gradient,) = torch.autograd.grad(value, x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()


# --- the unrolled objective -----------------------------------------------------------------------------


def autoencoder(
    loss: str, encoder=("tanh", "sigmoid"), decoder=("gelu", "linear"), **form
) -> tuple[Layers, Layers]:
    """5-4-6 and back."""
    activations = decoder if loss == "bce" else (*decoder[:-1], "softsign")
    return make_layers(encoder, **form), make_layers(activations, widths=(6, 3, 5), seed=5, **form)


def plain_entries(x: Tensor, a: Tensor, loss: str) -> Tensor:
    if loss == "bce":
        return F.binary_cross_entropy_with_logits(a, x, reduction="none")
    return (a - x).square()


@pytest.mark.parametrize("loss", ["bce", "mse"])
@pytest.mark.parametrize(
    "form", [{}, {"bias": False}, {"transposed": True}], ids=["", "no bias", "transposed"]
)
def test_the_loss_and_its_gradients_are_those_of_plain_pytorch(loss, form):
    encoder, decoder = autoencoder(loss, **form)
    x = inputs(7)
    terms = deep_autoencoder_loss(x, encoder, decoder, loss=loss)
    expected = plain_entries(x, plain(plain(x, encoder), decoder), loss).sum(1).mean()
    torch.testing.assert_close(terms.total, expected, **CLOSE)
    torch.testing.assert_close(terms.reconstruction, expected, **CLOSE)
    assert terms[2:] == (None,) * 4
    every = [x, *leaves(encoder, decoder)]
    gradients = torch.autograd.grad(expected, every)
    assert all(g.abs().max() > 1e-4 for g in gradients)
    torch.testing.assert_close(torch.autograd.grad(terms.total, every), gradients, **CLOSE)


@pytest.mark.parametrize("loss", ["bce", "mse"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("noise", ["none", "gaussian", "bernoulli"])
def test_every_term_and_its_gradients_are_those_of_plain_pytorch(loss, reduction, noise):
    (encoder, decoder), x = autoencoder(loss), inputs(7)
    corruption, emphasis = Masking(0.4), Emphasis(3.0, 0.5)
    drawn = seeds(3)
    hit = reference.corrupted_entries(x, corruption, int(drawn[0]))
    noisy = reference.corrupt(x, corruption, int(drawn[0]))
    code = plain(noisy, encoder)
    seen = reference.perturb_code(code, int(drawn[2]), noise, 0.3, 0.25)
    weighted = torch.where(hit, 3.0, 0.5) * plain_entries(x, plain(seen, decoder), loss)
    rows = {
        "reconstruction": weighted.sum(1),
        "contractive": estimate(noisy, encoder, drawn[1], 2),
        "l1": code.abs().sum(1),
    }
    mean = code.mean(0)
    kl = (0.15 * (0.15 / mean).log() + 0.85 * (0.85 / (1.0 - mean)).log()).sum()
    rows["total"] = rows["reconstruction"] + 0.1 * rows["contractive"] + 0.2 * rows["l1"] + 0.3 * kl
    reduce = {"mean": torch.mean, "sum": torch.sum, "none": lambda row: row}[reduction]
    expected = {**{name: reduce(row) for name, row in rows.items()}, "higher_order": None, "kl": kl}

    terms = deep_autoencoder_loss(
        x,
        encoder,
        decoder,
        loss=loss,
        corruption=corruption,
        emphasis=emphasis,
        contractive=0.1,
        probes=2,
        l1=0.2,
        kl=0.3,
        kl_target=0.15,
        code_noise=noise,
        code_noise_std=0.3,
        dropout=0.25,
        reduction=reduction,
        generator=seeded(),
    )._asdict()
    assert terms.keys() == expected.keys()
    every = [x, *leaves(encoder, decoder)]
    for name, value in expected.items():
        if value is None:
            assert terms[name] is None
            continue
        torch.testing.assert_close(terms[name], value, **CLOSE)
        upstream = torch.linspace(-1.0, 2.0, value.numel(), dtype=value.dtype).view(value.shape)
        own, other = (
            torch.autograd.grad(
                loss, every, upstream, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            for loss in (terms[name], value)
        )
        torch.testing.assert_close(own, other, **CLOSE, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("loss", ["bce", "mse"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"corruption": Masking(0.4), "emphasis": Emphasis(2.0, 0.5)},
        {"corruption": Gaussian(0.3)},
        {"l1": 0.2, "kl": 0.3, "kl_target": 0.2},
        {"code_noise": "bernoulli", "dropout": 0.25},
    ],
    ids=str,
)
def test_one_layer_a_side_is_the_one_layer_objective(loss, options):
    encoder, decoder = make_layers(("sigmoid",)), make_layers(("linear",), widths=(4, 5), seed=5)
    x, every = inputs(7), leaves(encoder, decoder)
    deep = deep_autoencoder_loss(x, encoder, decoder, loss=loss, **options, generator=seeded())
    single = functional.autoencoder_loss(x, *every, loss=loss, **options, generator=seeded())
    for name, own, other in zip(deep._fields, deep, single, strict=True):
        if other is None:
            assert own is None, name
        else:
            torch.testing.assert_close(own, other, **CLOSE)
    every = [x, *every]
    own, other = (torch.autograd.grad(terms.total, every) for terms in (deep, single))
    torch.testing.assert_close(own, other, **CLOSE)


def test_under_autocast_every_term_comes_in_float32():
    (encoder, decoder), x = autoencoder("bce"), inputs(64)
    options = {"contractive": 0.1, "l1": 0.2, "kl": 0.3, "kl_target": 0.003}
    exact = deep_autoencoder_loss(x, encoder, decoder, **options, generator=seeded())
    single = [[(w.float(), b.float(), a) for w, b, a in side if b is not None] for side in (encoder, decoder)]
    with torch.autocast("cpu", torch.bfloat16):
        terms = deep_autoencoder_loss(x.float(), *single, **options, generator=seeded())
    for name, value, other in zip(terms._fields, terms, exact, strict=True):
        if name != "higher_order":
            assert value.dtype == torch.float32, name
            assert abs(value.double() - other) < 0.02 * other, name


def test_a_second_derivative_of_the_objective_raises():
    (encoder, decoder), x = autoencoder("bce"), inputs(7)
    (gradient,) = torch.autograd.grad(deep_autoencoder_loss(x, encoder, decoder).total, x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()


# --- errors ---------------------------------------------------------------------------------------------


def layer(out: int, width: int, activation: str = "sigmoid", dtype: torch.dtype = torch.float64):
    return torch.zeros(out, width, dtype=dtype), torch.zeros(out, dtype=dtype), activation


@pytest.mark.parametrize(
    ("layers", "options", "message"),
    [
        ([], {}, "^layers: needs at least one layer$"),
        ([layer(4, 6)], {}, r"^x: expected shape \[\*, 6\] for the weight, got \[3, 5\]$"),
        ([layer(4, 5), layer(2, 3)], {}, r"^code: expected shape \[\*, 3\] for the weight, got \[0, 4\]$"),
        ([layer(4, 5, "swish")], {}, "^activation: 'swish' is not one of linear"),
        ([layer(4, 5), layer(2, 4, "swish")], {}, "^activation: 'swish' is not one of linear"),
        ([(layer(4, 5)[0], torch.zeros(3).double(), "tanh")], {}, r"^bias: expected shape \[4\], got \[3\]$"),
        ([layer(4, 5, dtype=torch.float32)], {}, "^x: is torch.float64, but the weight is torch.float32$"),
        ([layer(4, 5), layer(2, 4, dtype=torch.float32)], {}, "but the weight is torch.float32$"),
        ([layer(4, 5)], {"probes": 0}, "^probes: must be a whole number in 1..4080, got 0$"),
        ([layer(4, 5)], {"reduction": "max"}, "^reduction: 'max' is not one of mean, sum, none$"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_in_the_encoder_is_named(layers, options, message):
    with pytest.raises(ValueError, match=message):
        deep_contractive_encode(torch.zeros(3, 5, dtype=torch.float64), layers, **options)


ENCODER, DECODER = [layer(4, 5), layer(2, 4)], [layer(4, 2), layer(5, 4, "linear")]


@pytest.mark.parametrize(
    ("encoder", "decoder", "options", "message"),
    [
        ([], DECODER, {}, "^encoder, decoder: need at least one layer each$"),
        (ENCODER, [], {}, "^encoder, decoder: need at least one layer each$"),
        (ENCODER, [layer(5, 3, "linear")], {}, r"^code: expected shape \[\*, 3\] for the weight"),
        (
            ENCODER,
            [layer(4, 2), layer(5, 3, "linear")],
            {},
            r"^code: expected shape \[\*, 3\] for the weight",
        ),
        ([layer(4, 5), layer(2, 3)], DECODER, {}, r"^code: expected shape \[\*, 3\] for the weight"),
        (ENCODER, [layer(4, 2), layer(5, 4, "sigmoid")], {}, "^output_activation: bce applies the sigmoid"),
        (ENCODER, [layer(4, 2, "swish"), DECODER[1]], {}, "activation: 'swish' is not one of linear"),
        (ENCODER, DECODER, {"loss": "mae"}, "^loss: 'mae' is not one of mse, huber, bce"),
        (ENCODER, DECODER, {"reduction": "max"}, "^reduction: 'max' is not one of mean, sum, none$"),
        (ENCODER, DECODER, {"emphasis": Emphasis()}, "^emphasis: needs a corruption"),
        (
            ENCODER,
            DECODER,
            {"contractive": 0.1, "probes": 0},
            "^probes: must be a whole number in 1..4080, got 0$",
        ),
        (ENCODER, DECODER, {"l1": -1.0}, "^l1: must be a finite number >= 0, got -1.0$"),
        (ENCODER, DECODER, {"dropout": 1.0}, r"^dropout: must be in \[0, 1\), got 1.0$"),
        ([layer(2, 5, "tanh")], [layer(5, 2, "linear")], {"kl": 1.0}, r"^kl: needs codes in \[0, 1\]"),
        ([layer(2, 6)], DECODER, {}, r"^x: expected shape \[\*, 6\] for the weight, got \[3, 5\]$"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_in_the_objective_is_named(encoder, decoder, options, message):
    with pytest.raises(ValueError, match=message):
        deep_autoencoder_loss(torch.zeros(3, 5, dtype=torch.float64), encoder, decoder, **options)


@pytest.mark.parametrize("loss", ["bce", "mse"])
@pytest.mark.parametrize(("width", "reconstructed"), [(5, 4), (5, 1), (1, 5)])
def test_a_decoder_that_does_not_lead_back_to_the_inputs_width_is_refused(loss, width, reconstructed):
    x = torch.zeros(3, width, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"^(decoder|weight|code|target|x): "):
        deep_autoencoder_loss(x, [layer(2, width)], [layer(reconstructed, 2, "linear")], loss=loss)


# --- the operators --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_random_signs_are_fair_independent_and_a_function_of_seed_and_stream(dtype):
    like, (seed, other) = torch.empty(4000, 5, dtype=dtype), seeds(2)
    signs = ops.random_signs(like, seed, 7)
    assert (signs.dtype, signs.shape) == (dtype, like.shape)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    second_moment = signs.double().T @ signs.double() / 4000
    assert (second_moment - torch.eye(5, dtype=torch.float64)).abs().max() < 4.0 / 4000**0.5
    assert signs.double().mean(0).abs().max() < 4.0 / 4000**0.5
    assert torch.equal(signs, ops.random_signs(like, seed, 7))
    for different in (ops.random_signs(like, seed, 8), ops.random_signs(like, other, 7)):
        assert abs((signs * different).double().mean()) < 4.0 / 20000**0.5


@pytest.mark.parametrize("shape", [(5, 7), (1, 1), (0, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_opcheck_of_random_signs(shape, dtype):
    torch.library.opcheck(ops.random_signs, (torch.rand(shape, dtype=dtype), seeds(1)[0], 7))


@pytest.mark.parametrize("noise", ["none", "gaussian", "bernoulli"])
@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_opcheck_of_perturb(noise, dropout, dtype):
    torch.library.opcheck(ops.perturb, (torch.rand(5, 7, dtype=dtype), seeds(1)[0], noise, 0.3, dropout))


def test_every_activation_is_in_one_of_the_stacks_tested_here():
    assert {name for stack in STACKS for name in stack} == set(ACTIVATIONS)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_half_precision_gradients_of_large_pre_activations_are_finite(activation):
    """|z| of about 25, where the powers in gelu's second derivative are beyond float16."""
    x = torch.full((4, 6), 1.5).half()
    weights = [torch.full((5, 6), 2.8).half(), torch.full((3, 5), 0.01).half()]
    inputs = [t.requires_grad_() for t in (x, *weights)]
    layers = [(weights[0], None, activation), (weights[1], None, "linear")]
    code, penalty = deep_contractive_encode(x, layers, generator=torch.Generator().manual_seed(0))
    grads = torch.autograd.grad(penalty + code.float().sum(), inputs)
    assert all(grad.isfinite().all() for grad in grads)
