"""Autoencoder: the module around the one-layer objective."""

from __future__ import annotations

import copy
import itertools
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from fastae import AutoencoderLoss, Emphasis, Gaussian, Masking, SaltAndPepper, Swap, functional
from fastae.nn import Autoencoder, EncoderLayer, Options, StackedAutoencoder

TIED = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
KINDS = {
    "bce": {},
    "mse": {"loss": "mse"},
    "mse to tanh": {"loss": "mse", "activation": "tanh", "output_activation": "tanh"},
    "mse to softplus": {"loss": "mse", "activation": "gelu", "output_activation": "softplus"},
    "mse to sigmoid": {"loss": "mse", "activation": "relu", "output_activation": "sigmoid"},
}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
NOISE = {
    "corruption": Masking(0.4),
    "emphasis": Emphasis(2.0, 0.5),
    "code_noise": "gaussian",
    "code_noise_std": 0.3,
    "dropout": 0.25,
}
PENALTIES = {"contractive": 0.1, "l1": 0.03}
HIGHER = {"higher_order": 0.2, "higher_order_std": 0.3, "higher_order_samples": 2}


def build(d: int = 6, h: int = 4, **changes) -> Autoencoder:
    """Double precision, with biases other than zero."""
    torch.manual_seed(7)
    model = Autoencoder(d, h, dtype=torch.float64, **changes)
    with torch.no_grad():
        for bias in (model.encoder.bias, model.decoder.bias):
            if bias is not None:
                bias.normal_()
    return model


def rows(*leading: int, d: int = 6) -> Tensor:
    return torch.rand(*leading, d, generator=torch.Generator().manual_seed(8), dtype=torch.float64)


def evaluate(model, x: Tensor, seed: int = 0, **arguments) -> AutoencoderLoss:
    torch.manual_seed(seed)
    return model(x, **arguments)


def assert_terms(actual: AutoencoderLoss, expected: AutoencoderLoss, **tolerance) -> None:
    for name, own, other in zip(actual._fields, actual, expected, strict=True):
        if other is None:
            assert own is None, name
        else:
            torch.testing.assert_close(own, other, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


def names(terms: AutoencoderLoss) -> set[str]:
    return {name for name, value in terms._asdict().items() if value is not None}


# --- the objective --------------------------------------------------------------------------------------


@TIED
@EVERY_KIND
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_training_forward_is_the_functional_with_the_same_seed(tied, kind, reduction):
    options = {**kind, **NOISE, **PENALTIES, **HIGHER}
    model, x = build(tied=tied, **options), rows(3, 2)
    torch.manual_seed(0)
    expected = functional.autoencoder_loss(
        x,
        model.encoder.weight,
        model.encoder.bias,
        None if tied else model.decoder.weight,
        model.decoder.bias,
        reduction=reduction,
        **options,
    )
    assert_terms(evaluate(model, x, reduction=reduction), expected, rtol=0, atol=0)
    assert not torch.equal(evaluate(model, x, seed=1).total, expected.total)


@TIED
@EVERY_KIND
def test_evaluation_forward_is_the_clean_objective(tied, kind):
    model, x = build(tied=tied, **kind, **NOISE, **PENALTIES).eval(), rows(5)
    clean = build(tied=tied, **kind, **PENALTIES)
    clean.load_state_dict(model.state_dict())
    before = torch.get_rng_state()
    first, second = model(x), model(x)
    assert torch.equal(torch.get_rng_state(), before)
    assert_terms(first, second, rtol=0, atol=0)
    assert_terms(first, clean(x), rtol=0, atol=0)
    assert not torch.equal(evaluate(model.train(), x).reconstruction, first.reconstruction)


@EVERY_KIND
def test_the_clean_objective_is_the_loss_of_the_reconstruction(kind):
    model, x = build(tied=False, **kind).eval(), rows(5)
    r = model.reconstruct(x)
    entries = F.binary_cross_entropy(r, x, reduction="none") if "loss" not in kind else (r - x).square()
    torch.testing.assert_close(model(x).total, entries.sum(1).mean())


@pytest.mark.parametrize("model", [Autoencoder(6, 4), StackedAutoencoder([6, 5, 4])], ids=["layer", "stack"])
def test_the_first_batch_is_checked_for_values_beyond_the_loss(model):
    model = copy.deepcopy(model)
    x = torch.linspace(-1.0, 7.0, 12).reshape(2, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.eval()(x)
        torch.func.vmap(lambda row: model.train()(row[None]).total)(x)
        copy.deepcopy(model)(x.sigmoid())
        Autoencoder(6, 4, loss="mse")(x)
        make_fx(lambda rows: model(rows).total)(x)
    with pytest.warns(
        UserWarning, match=r"^x: bce is a loss for values in \[0, 1\], got -1 to 7; "
    ) as caught:
        model(x)
        model(x)
    assert len(caught) == 1 and caught[0].filename == __file__


def test_a_generator_makes_the_noise_repeatable():
    model, x = build(**NOISE, **HIGHER), rows(5)
    values = [model(x, generator=torch.Generator().manual_seed(seed)).total for seed in (1, 1, 2)]
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])


@pytest.mark.parametrize(
    ("name", "weight"), [("contractive", 0.1), ("higher_order", 0.2), ("l1", 0.3), ("kl", 0.4)]
)
@TIED
def test_a_penalty_adds_its_term_times_its_weight_and_nothing_else(name, weight, tied):
    x, plain = rows(5), build(tied=tied)
    terms, before = evaluate(build(tied=tied, **{name: weight}), x), evaluate(plain, x)
    assert names(before) == {"total", "reconstruction"}
    assert names(terms) == {"total", "reconstruction", name}
    torch.testing.assert_close(terms.reconstruction, before.total)
    assert getattr(terms, name) > 0
    torch.testing.assert_close(terms.total, before.total + weight * getattr(terms, name))
    twice = evaluate(build(tied=tied, **{name: 2 * weight}), x)
    torch.testing.assert_close(getattr(twice, name), getattr(terms, name))


@pytest.mark.parametrize(
    ("base", "change"),
    [
        ({}, {"activation": "tanh"}),
        ({}, {"loss": "mse"}),
        ({"loss": "mse"}, {"output_activation": "sigmoid"}),
        ({}, {"corruption": "masking:0.5"}),
        ({}, {"corruption": Gaussian(0.5)}),
        ({}, {"corruption": SaltAndPepper(0.5)}),
        ({}, {"corruption": Swap(0.5)}),
        ({"corruption": Masking(0.5)}, {"corruption": Masking(0.6)}),
        ({"corruption": Masking(0.5)}, {"emphasis": Emphasis(2.0, 1.0)}),
        ({"corruption": Masking(0.5)}, {"emphasis": Emphasis(1.0, 0.0)}),
        ({"higher_order": 1.0}, {"higher_order_std": 0.5}),
        ({"higher_order": 1.0}, {"higher_order_samples": 3}),
        ({"kl": 1.0}, {"kl_target": 0.3}),
        ({}, {"code_noise": "gaussian"}),
        ({}, {"code_noise": "bernoulli"}),
        ({"code_noise": "gaussian"}, {"code_noise_std": 0.5}),
        ({}, {"dropout": 0.5}),
        ({}, {"bias": False}),
    ],
    ids=str,
)
def test_every_option_reaches_the_objective(base, change):
    model, x = build(**base), rows(5)
    other = build(**{**base, **change})
    other.load_state_dict(model.state_dict(), strict="bias" not in change)
    assert not torch.isclose(evaluate(model, x).total, evaluate(other, x).total)
    assert names(evaluate(model, x)) == names(evaluate(other, x))


@TIED
@pytest.mark.parametrize("h", [2, 6, 9], ids=["undercomplete", "square", "overcomplete"])
@pytest.mark.parametrize("bias", [True, False])
def test_any_width_of_code_with_and_without_biases(tied, h, bias):
    model, x = build(h=h, tied=tied, bias=bias), rows(2, 3)
    assert (model.in_features, model.code_features) == (6, h)
    assert model.encode(x).shape == (2, 3, h)
    assert model.reconstruct(x).shape == x.shape
    assert model(x, reduction="none").total.shape == (2, 3)
    model(x).total.backward()
    expected = {
        "encoder.weight": (h, 6),
        "encoder.bias": (h,),
        "decoder.weight": (6, h),
        "decoder.bias": (6,),
    }
    wanted = {
        name: shape
        for name, shape in expected.items()
        if (bias or "bias" not in name) and not (tied and name == "decoder.weight")
    }
    assert {name: tuple(value.shape) for name, value in model.named_parameters()} == wanted
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == wanted
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().min() > 0, name


# --- tied weights ---------------------------------------------------------------------------------------


def test_the_tied_decoder_weight_is_a_view_of_the_encoders():
    model = build(tied=True)
    assert model.decoder_weight.data_ptr() == model.encoder.weight.data_ptr()
    torch.testing.assert_close(model.decoder_weight, model.encoder.weight.t(), rtol=0, atol=0)
    with torch.no_grad():
        model.encoder.weight[1, 2] = 42.0
    assert model.decoder_weight[2, 1] == 42.0


def test_the_untied_decoder_weight_is_the_decoders_own():
    model = build(tied=False)
    assert model.decoder_weight is model.decoder.weight
    assert model.decoder_weight.data_ptr() != model.encoder.weight.data_ptr()


@EVERY_KIND
@pytest.mark.parametrize("extra", [{}, {**NOISE, **PENALTIES, **HIGHER}], ids=["clean", "every option"])
def test_the_gradient_of_a_tied_weight_is_the_sum_of_both_roles(kind, extra):
    tied, untied, x = build(tied=True, **kind, **extra), build(tied=False, **kind, **extra), rows(5)
    with torch.no_grad():
        untied.encoder.load_state_dict(tied.encoder.state_dict())
        untied.decoder.weight.copy_(tied.encoder.weight.t())
        untied.decoder.bias.copy_(tied.decoder.bias)
    losses = evaluate(tied, x).total, evaluate(untied, x).total
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    roles = untied.encoder.weight.grad, untied.decoder.weight.grad.t()
    assert all(role.abs().max() > 1e-3 for role in roles)
    torch.testing.assert_close(tied.encoder.weight.grad, sum(roles))
    torch.testing.assert_close(tied.encoder.bias.grad, untied.encoder.bias.grad)
    torch.testing.assert_close(tied.decoder.bias.grad, untied.decoder.bias.grad)


@TIED
@pytest.mark.parametrize("duplicate", ["state_dict", "deepcopy"])
def test_copies_compute_the_same_and_stay_tied(tied, duplicate):
    model, x = build(tied=tied), rows(5)
    if duplicate == "deepcopy":
        twin = copy.deepcopy(model)
    else:
        torch.manual_seed(99)
        twin = Autoencoder(6, 4, model.options, dtype=torch.float64)
        assert not torch.equal(twin.encoder.weight, model.encoder.weight)
        twin.load_state_dict(model.state_dict())
    assert twin.options == model.options
    torch.testing.assert_close(twin(x).total, model(x).total, rtol=0, atol=0)
    with torch.no_grad():
        twin.encoder.weight.zero_()
    assert bool((twin.decoder_weight == 0).all()) is tied
    assert not torch.equal(twin(x).total, model(x).total)


# --- encode, decode, reconstruct ------------------------------------------------------------------------


@TIED
@EVERY_KIND
def test_reconstruct_is_decode_of_encode_without_noise(tied, kind):
    model, x = build(tied=tied, **kind, **NOISE), rows(2, 3)
    assert model.training
    code = model.encode(x)
    activation = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "gelu": F.gelu, "relu": torch.relu}
    output = {"linear": lambda a: a, "softplus": F.softplus, **activation}
    f = activation[kind.get("activation", "sigmoid")]
    torch.testing.assert_close(code, f(F.linear(x, model.encoder.weight, model.encoder.bias)))
    torch.testing.assert_close(code, model.encoder(x))
    g = torch.sigmoid if "loss" not in kind else output[kind.get("output_activation", "linear")]
    torch.testing.assert_close(
        model.decode(code), g(F.linear(code, model.decoder_weight, model.decoder.bias))
    )
    torch.testing.assert_close(model.reconstruct(x), model.decode(code), rtol=0, atol=0)


def test_a_bce_reconstruction_is_a_probability():
    r = build(h=20).reconstruct(10.0 * rows(50) - 5.0)
    assert 0.0 < r.min() < 0.5 < r.max() < 1.0


@TIED
def test_gradients_flow_through_reconstruct(tied):
    model, x = build(tied=tied), rows(5).requires_grad_()
    model.reconstruct(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in [x, *model.parameters()])


# --- sampling -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["bce", "mse"])
@pytest.mark.parametrize("leading", [(5,), (2, 3)], ids=str)
@pytest.mark.parametrize("steps", [0, 1, 4])
def test_a_chain_has_every_state_from_x_on(loss, leading, steps):
    model, x = build(loss=loss, corruption=Masking(0.3)), rows(*leading)
    chain = model.sample(x, steps, return_chain=True, generator=torch.Generator().manual_seed(0))
    last = model.sample(x, steps, generator=torch.Generator().manual_seed(0))
    assert chain.shape == (steps + 1, *x.shape)
    assert torch.equal(chain[0], x)
    assert torch.equal(chain[-1], last)
    assert torch.equal(last, x) == (steps == 0)


def test_one_step_is_the_default():
    model, x = build(loss="mse"), rows(5)
    torch.testing.assert_close(model.sample(x, std=0.0), model.reconstruct(x))


def test_bce_samples_are_binary_draws_of_the_reconstruction():
    model = build()
    with torch.no_grad():
        model.encoder.weight.zero_()
    torch.manual_seed(0)
    chain = model.sample(torch.zeros(20000, 6, dtype=torch.float64), 2, return_chain=True)
    assert set(chain.unique().tolist()) == {0.0, 1.0}
    for state in chain[1:]:
        torch.testing.assert_close(state.mean(0), torch.sigmoid(model.decoder.bias), rtol=0, atol=0.02)


@pytest.mark.parametrize("loss, dispersion", [("poisson", math.inf), ("negative_binomial:2", 2.0)])
def test_samples_of_counts_have_the_mean_and_variance_of_the_loss(loss, dispersion):
    model = build(loss=loss)
    with torch.no_grad():
        model.encoder.weight.zero_()
        model.decoder.bias.fill_(3.0)
    drawn = model.sample(
        torch.zeros(20000, 6, dtype=torch.float64), generator=torch.Generator().manual_seed(0)
    )
    mean = model.reconstruct(torch.zeros(1, 6, dtype=torch.float64)).mean().item()
    assert torch.equal(drawn, drawn.round()) and abs(drawn.mean() / mean - 1.0) < 0.02
    assert abs(drawn.var() / (mean + mean**2 / dispersion) - 1.0) < 0.05


def test_mse_without_noise_iterates_the_reconstruction():
    model, x = build(loss="mse", tied=False), rows(5)
    chain = model.sample(x, 3, std=0.0, return_chain=True)
    for before, after in itertools.pairwise(chain):
        torch.testing.assert_close(after, model.reconstruct(before))


def test_each_step_corrupts_the_state_before_it():
    model, x = build(loss="mse", corruption=Masking(1.0)), rows(5)
    chain = model.sample(x, 2, std=0.0, return_chain=True)
    blank = model.reconstruct(torch.zeros_like(x))
    torch.testing.assert_close(chain[1:], torch.stack([blank, blank]))


def test_a_chain_corrupts_in_evaluation_mode_too():
    model, x = build(loss="mse", corruption=Masking(1.0)).eval(), rows(5)
    torch.testing.assert_close(model.sample(x, std=0.0), model.reconstruct(torch.zeros_like(x)))


def halving(**changes) -> Autoencoder:
    """r(x) = x / 2 in one dimension."""
    model = Autoencoder(1, 1, activation="linear", loss="mse", bias=False, dtype=torch.float64, **changes)
    with torch.no_grad():
        model.encoder.weight.fill_(math.sqrt(0.5))
    return model


@pytest.mark.parametrize(("std", "deviation"), [(None, 0.5), (0.2, 0.2)], ids=["estimated", "given"])
def test_the_spread_of_mse_samples_is_that_given_or_of_the_first_residual(std, deviation):
    torch.manual_seed(0)
    x = torch.ones(40000, 1, dtype=torch.float64)
    chain = halving().sample(x, 2, std=std, return_chain=True)
    # x1 = 1/2 + s n1 and x2 = x1 / 2 + s n2, the same s in every step
    expected = torch.tensor([0.5, 0.25]), torch.tensor([1.0, math.sqrt(1.25)]) * deviation
    torch.testing.assert_close(chain[1:, :, 0].mean(1), expected[0].double(), rtol=0, atol=0.01)
    torch.testing.assert_close(chain[1:, :, 0].std(1), expected[1].double(), rtol=0.02, atol=0)


@pytest.mark.parametrize("options", [{}, {"loss": "mse"}], ids=["bce", "mse"])
@pytest.mark.parametrize("corruption", [None, Masking(0.5)], ids=str)
def test_a_generator_makes_samples_repeatable_without_the_global_one(options, corruption):
    model, x = build(corruption=corruption, **options), rows(5)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    draws = [model.sample(x, 3, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_samples_carry_no_gradients():
    for options in ({}, {"loss": "mse"}):
        chain = build(**options).sample(rows(5).requires_grad_(), 2, return_chain=True)
        assert not chain.requires_grad


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": -1}, "^steps: must be a whole number >= 0, got -1$"),
        ({"std": -0.5}, "^std: must be a finite number >= 0, got -0.5$"),
        ({"std": math.nan}, "^std: must be a finite number >= 0, got nan$"),
    ],
    ids=str,
)
def test_what_does_not_fit_in_sample_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        build(loss="mse").sample(rows(5), **arguments)


# --- construction ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -3, 2.0, "4", None], ids=repr)
@pytest.mark.parametrize("name", ["in_features", "code_features"])
def test_a_width_that_does_not_fit_is_named(name, value):
    widths = {"in_features": 6, "code_features": 4, name: value}
    with pytest.raises(ValueError, match=f"^{name}: must be a whole number >= 1, got {value!r}$"):
        Autoencoder(**widths)


def test_options_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"^dropout: must be in"):
        Autoencoder(6, 4, dropout=1.0)
    with pytest.raises(ValueError, match=r"^kl: needs codes in"):
        Autoencoder(6, 4, Options(activation="relu"), kl=1.0)
    with pytest.raises(TypeError, match=r"^kontractive: no such option"):
        Autoencoder(6, 4, kontractive=1.0)


def test_keywords_change_the_options_given():
    base = Options(loss="mse", l1=0.5, tied=False)
    model = Autoencoder(6, 4, base, l1=0.25, corruption="swap:0.1")
    assert model.options == Options(loss="mse", l1=0.25, tied=False, corruption=Swap(0.1))
    assert isinstance(model.encoder, EncoderLayer)
    assert base.l1 == 0.5


@TIED
def test_device_and_dtype_arguments_reach_every_parameter(tied):
    model = Autoencoder(6, 4, tied=tied, device="meta", dtype=torch.float64)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.float64)}
    values = build(tied=tied).state_dict()
    model.to_empty(device="cpu").load_state_dict(values)
    torch.testing.assert_close(model(rows(3)).total, build(tied=tied)(rows(3)).total)


@TIED
@pytest.mark.parametrize(
    ("options", "encoder_gain", "decoder_gain"),
    [
        ({}, 4.0, 4.0),
        ({"loss": "mse"}, 4.0, 1.0),
        ({"loss": "mse", "activation": "linear", "output_activation": "sigmoid"}, 1.0, 4.0),
        ({"activation": "softsign"}, 1.0, 4.0),
        ({"activation": "tanh"}, 5 / 3, 4.0),
        ({"activation": "relu"}, math.sqrt(2.0), 4.0),
        ({"activation": "selu"}, 0.75, 4.0),
    ],
    ids=str,
)
def test_initial_weights_fill_glorots_interval_for_the_activation(tied, options, encoder_gain, decoder_gain):
    torch.manual_seed(0)
    model = Autoencoder(80, 120, tied=tied, **options)
    gains = {"encoder.weight": encoder_gain, "decoder.weight": decoder_gain}
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
            continue
        bound = gains[name] * math.sqrt(6.0 / (80 + 120))
        assert 0.999 * bound < parameter.abs().max() <= bound, name
        assert abs(parameter.mean()) < 0.03 * bound, name
        assert abs(parameter.std() / (bound / math.sqrt(3.0)) - 1.0) < 0.03, name


def test_reset_parameters_starts_over():
    model = build(tied=False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.reset_parameters()
    for name, value in model.state_dict().items():
        assert not torch.equal(value, before[name]), name
        assert not name.endswith("bias") or (value == 0).all(), name


def test_repr_shows_the_options_that_were_changed():
    text = repr(Autoencoder(6, 4, corruption="masking:0.25", contractive=0.1, bias=False))
    assert "corruption=masking:0.25, contractive=0.1, bias=False\n" in text
    assert "(encoder): EncoderLayer(in_features=6, out_features=4, bias=False, activation='sigmoid')" in text
    assert "(decoder): TiedDecoder(out_features=6, bias=False, weight tied)" in text


# --- training and compilation ---------------------------------------------------------------------------


@TIED
@EVERY_KIND
@pytest.mark.parametrize("extra", [{}, {"contractive": 0.01, "corruption": Masking(0.1)}], ids=str)
def test_a_few_steps_of_sgd_lower_the_loss(tied, kind, extra):
    model, x = build(tied=tied, **kind, **extra), rows(32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    before = model.eval()(x).total.item()
    model.train()
    for _ in range(60):
        optimizer.zero_grad()
        model(x).total.backward()
        optimizer.step()
    assert model.eval()(x).total.item() < 0.95 * before


@pytest.mark.parametrize(
    "options",
    [
        {"tied": True, "kl": 0.1, **NOISE, **PENALTIES, **HIGHER},
        {"tied": False, "loss": "mse", "activation": "gelu", "output_activation": "tanh"},
    ],
    ids=["tied with every option", "untied mse"],
)
def test_a_compiled_model_equals_the_eager_one(options):
    torch._dynamo.reset()
    model, x = build(**options), rows(5).requires_grad_()
    expected = evaluate(model, x)
    gradients = torch.autograd.grad(expected.total, [x, *model.parameters()])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    actual = evaluate(compiled, x)
    assert_terms(actual, expected)
    torch.testing.assert_close(torch.autograd.grad(actual.total, [x, *model.parameters()]), gradients)
