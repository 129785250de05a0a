"""StackedAutoencoder: layerwise options, the unrolled objective, and what is cut from the stack."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastae import AutoencoderLoss, Emphasis, Gaussian, Masking, Swap, philox, reference
from fastae.nn import Autoencoder, EncoderLayer, Options, StackedAutoencoder
from fastae.nn.dropout import RowDropout
from tests.support import PLAIN

TIED = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
KINDS = {
    "bce": ([6, 5, 4], {}),
    "mse": ([6, 5, 4], {"loss": "mse", "output_activation": "tanh"}),
    "three layers": (
        [6, 5, 7, 3],
        {
            "activation": ("tanh", "gelu", "sigmoid"),
            "loss": ["bce", "mse", "mse"],
            "output_activation": ["linear", "softsign", "softplus"],
        },
    ),
    "some tied": ([6, 5, 4, 3], {"tied": [True, False, True]}),
}
EVERY_KIND = pytest.mark.parametrize(("sizes", "options"), KINDS.values(), ids=KINDS)


def build(sizes=(6, 5, 4), *arguments, **changes) -> StackedAutoencoder:
    """Double precision, with biases other than zero."""
    torch.manual_seed(7)
    stack = StackedAutoencoder(list(sizes), *arguments, dtype=torch.float64, **changes)
    with torch.no_grad():
        for name, parameter in stack.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    return stack


def rows(*leading: int, d: int = 6) -> Tensor:
    return torch.rand(*leading, d, generator=torch.Generator().manual_seed(8), dtype=torch.float64)


def evaluate(model, x: Tensor, seed: int = 0, **arguments) -> AutoencoderLoss:
    torch.manual_seed(seed)
    return model(x, **arguments)


def seeds(count: int, seed: int = 0) -> list[int]:
    """The seeds that operations will draw one after the other from torch seeded with ``seed``."""
    g = torch.Generator().manual_seed(seed)
    return [int(philox.draw_seed(torch.device("cpu"), g)) for _ in range(count)]


def assert_terms(actual: AutoencoderLoss, expected: AutoencoderLoss, **tolerance) -> None:
    for name, own, other in zip(actual._fields, actual, expected, strict=True):
        if other is None:
            assert own is None, name
        else:
            torch.testing.assert_close(own, other, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


def plain_code(stack: StackedAutoencoder, x: Tensor) -> Tensor:
    for layer in stack.autoencoders:
        x = PLAIN[layer.options.activation](F.linear(x, layer.encoder.weight, layer.encoder.bias))
    return x


def plain_reconstruction(stack: StackedAutoencoder, code: Tensor) -> Tensor:
    for layer in reversed(stack.autoencoders):
        weight = layer.encoder.weight.t() if layer.options.tied else layer.decoder.weight
        f = "sigmoid" if layer.options.loss == "bce" else layer.options.output_activation
        code = PLAIN[f](F.linear(code, weight, layer.decoder.bias))
    return code


def plain_loss(stack: StackedAutoencoder, code: Tensor, target: Tensor) -> Tensor:
    """The loss of every entry, from the code on."""
    r = plain_reconstruction(stack, code)
    if stack.autoencoders[0].options.loss == "bce":
        return F.binary_cross_entropy(r, target, reduction="none")
    return (r - target).square()


def hutchinson(stack: StackedAutoencoder, x: Tensor, seed: int) -> Tensor:
    """The estimate of the whole encoder's penalty of each row, with the library's own probes."""
    encoders = [layer.encoder for layer in stack.autoencoders]
    draws = []
    for k in range(stack.probes):
        bits = philox.random_bits(seed, x.shape[0], stack.sizes[-1], philox.STREAM_PROBE + k)
        probe = torch.where(bits < 0, -1.0, 1.0).to(x.dtype)
        lists = zip(*((e.weight, e.bias, e.activation) for e in encoders), strict=True)
        draws.append(reference.hutchinson_penalty(x, *lists, probe))
    return torch.stack(draws).mean(0)


# --- construction ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[6, 4], (6, 9, 4), [6, 5, 4, 3]], ids=str)
def test_sizes_make_the_layers(sizes):
    stack = StackedAutoencoder(sizes)
    assert stack.sizes == list(sizes)
    assert len(stack.layers) == len(sizes) - 1
    shapes = [(layer.in_features, layer.code_features) for layer in stack.autoencoders]
    assert shapes == list(itertools.pairwise(sizes))
    assert stack.autoencoders == list(stack.layers)


@pytest.mark.parametrize("sequence", [list, tuple])
def test_a_list_or_a_tuple_gives_a_value_a_layer_and_anything_else_every_layer(sequence):
    corruptions = sequence(["masking:0.25", None, Gaussian(0.5)])
    stack = StackedAutoencoder(
        [6, 5, 4, 3], corruption=corruptions, l1=sequence([0.1, 0.2, 0.3]), dropout=0.5
    )
    options = [layer.options for layer in stack.autoencoders]
    assert [o.corruption for o in options] == [Masking(0.25), None, Gaussian(0.5)]
    assert [o.l1 for o in options] == [0.1, 0.2, 0.3]
    assert [o.dropout for o in options] == [0.5] * 3


@pytest.mark.parametrize("sequence", [list, tuple])
def test_options_are_one_for_all_or_one_a_layer_and_keywords_change_them(sequence):
    one = StackedAutoencoder([6, 5, 4], Options(l1=0.5), kl=(0.1, 0.2))
    assert [layer.options for layer in one.autoencoders] == [Options(l1=0.5, kl=0.1), Options(l1=0.5, kl=0.2)]
    each = sequence([Options(l1=0.5), Options(tied=False)])
    two = StackedAutoencoder([6, 5, 4], each, dropout=0.5)
    assert [layer.options for layer in two.autoencoders] == [
        Options(l1=0.5, dropout=0.5),
        Options(tied=False, dropout=0.5),
    ]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"sizes": [6]}, ValueError, r"^sizes: needs the input's width and at least one code's, got \[6\]$"),
        ({"sizes": []}, ValueError, r"^sizes: needs .*got \[\]$"),
        ({"sizes": [6, 5, 0]}, ValueError, r"^sizes: must be whole numbers >= 1, got \[6, 5, 0\]$"),
        ({"probes": 0}, ValueError, "^probes: must be a whole number in 1..4080, got 0$"),
        ({"probes": 1.5}, ValueError, "^probes: must be a whole number in 1..4080, got 1.5$"),
        ({"options": [Options()]}, ValueError, "^options: got 1 for 2 layers$"),
        ({"options": (Options(),) * 3}, ValueError, "^options: got 3 for 2 layers$"),
        ({"l1": [0.1]}, ValueError, "^l1: got 1 values for 2 layers$"),
        ({"activation": ("tanh",) * 3}, ValueError, "^activation: got 3 values for 2 layers$"),
        ({"activation": []}, ValueError, "^activation: got 0 values for 2 layers$"),
        ({"dropout": [0.0, 1.0]}, ValueError, r"^dropout: must be in \[0, 1\), got 1.0$"),
        ({"kontractive": 1.0}, TypeError, "^kontractive: no such option"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        StackedAutoencoder(**{"sizes": [6, 5, 4], **arguments})


def test_bce_over_codes_outside_the_unit_interval_is_refused_with_a_fix_that_works():
    message = (
        "loss: layer 3 reconstructs relu codes, which are not in [0, 1] as bce needs; "
        "use loss=['bce', 'bce', 'mse', 'mse']"
    )
    arguments = {"sizes": [7, 6, 5, 4, 3], "activation": ["sigmoid", "relu", "relu", "sigmoid"]}
    with pytest.raises(ValueError) as caught:
        StackedAutoencoder(**arguments)
    assert str(caught.value) == message
    stack = StackedAutoencoder(**arguments, loss=["bce", "bce", "mse", "mse"])
    assert stack(torch.rand(3, 7)).total.isfinite()


def test_bce_over_sigmoid_codes_and_any_code_under_mse_are_taken():
    assert StackedAutoencoder([6, 5, 4]).autoencoders[1].options.loss == "bce"
    assert StackedAutoencoder([6, 5, 4], activation=["sigmoid", "relu"])(torch.rand(3, 6)).total.isfinite()
    StackedAutoencoder([6, 5, 4], activation="relu", loss="mse")


def test_device_and_dtype_reach_every_parameter():
    stack = StackedAutoencoder([6, 5, 4], device="meta", dtype=torch.float64)
    assert {(p.device.type, p.dtype) for p in stack.parameters()} == {("meta", torch.float64)}


@TIED
def test_state_dict_names(tied):
    names = ["encoder.weight", "encoder.bias", *(() if tied else ("decoder.weight",)), "decoder.bias"]
    state = StackedAutoencoder([6, 5, 4], tied=tied).state_dict()
    assert list(state) == [f"layers.{l}.{name}" for l in range(2) for name in names]


@EVERY_KIND
def test_state_dict_round_trip(sizes, options):
    stack, x = build(sizes, **options), rows(3)
    torch.manual_seed(99)
    twin = StackedAutoencoder(sizes, dtype=torch.float64, **options)
    assert not torch.equal(twin(x).total, stack(x).total)
    twin.load_state_dict(stack.state_dict())
    torch.testing.assert_close(twin(x).total, stack(x).total, rtol=0, atol=0)


# --- encode, decode, reconstruct ------------------------------------------------------------------------


@EVERY_KIND
def test_encode_goes_as_deep_as_it_is_told(sizes, options):
    stack, x = build(sizes, **options), rows(2, 3)
    expected = [x]
    for layer in stack.autoencoders:
        expected.append(layer.encode(expected[-1]))
    for depth, code in enumerate(expected):
        assert code.shape == (2, 3, sizes[depth])
        torch.testing.assert_close(stack.encode(x, depth), code, rtol=0, atol=0)
    torch.testing.assert_close(stack.encode(x), expected[-1], rtol=0, atol=0)
    torch.testing.assert_close(stack.encode(x), plain_code(stack, x))


@EVERY_KIND
def test_reconstruct_is_decode_of_encode(sizes, options):
    stack, x = build(sizes, corruption="masking:0.5", **options), rows(2, 3)
    r = stack.reconstruct(x)
    assert r.shape == x.shape
    torch.testing.assert_close(r, stack.decode(stack.encode(x)), rtol=0, atol=0)
    torch.testing.assert_close(r, plain_reconstruction(stack, plain_code(stack, x)))


# --- the parts that are cut from it ---------------------------------------------------------------------


def test_the_encoder_shares_the_stacks_parameters():
    stack, x = build(), rows(3)
    encoder = stack.encoder()
    assert all(isinstance(module, EncoderLayer) for module in encoder)
    assert [m is layer.encoder for m, layer in zip(encoder, stack.layers, strict=True)] == [True, True]
    torch.testing.assert_close(encoder(x), stack.encode(x), rtol=0, atol=0)


@pytest.mark.parametrize("input_dropout", [0.0, 0.5])
@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_the_classifier_is_the_encoders_dropout_and_a_head_of_zeros(dropout, input_dropout):
    stack, x = build(), rows(3)
    classifier = stack.classifier(10, dropout, input_dropout)
    drops = [("input_dropout", input_dropout), ("dropout1", dropout), ("dropout2", dropout)]
    kinds = [RowDropout, EncoderLayer, RowDropout, EncoderLayer, RowDropout, nn.Linear]
    missing = {i for i, (_, p) in zip((0, 2, 4), drops, strict=True) if not p}
    assert [type(module) for module in classifier] == [k for i, k in enumerate(kinds) if i not in missing]
    found = {name: m.p for name, m in classifier.named_children() if isinstance(m, nn.Dropout)}
    assert found == {name: p for name, p in drops if p}
    assert classifier.state_dict().keys() == stack.classifier(10).state_dict().keys()
    encoders = [module for module in classifier if isinstance(module, EncoderLayer)]
    for module, layer in zip(encoders, stack.autoencoders, strict=True):
        assert module is layer.encoder
    head = classifier[-1]
    assert (head.in_features, head.out_features, head.weight.dtype) == (4, 10, torch.float64)
    assert torch.equal(classifier(x), torch.zeros(3, 10, dtype=torch.float64))


def test_the_classifier_is_the_head_of_the_code():
    stack, x = build(), rows(3)
    classifier = stack.classifier(10, dropout=0.5, input_dropout=0.5).eval()
    nn.init.normal_(classifier[-1].weight)
    torch.testing.assert_close(classifier(x), stack.encode(x) @ classifier[-1].weight.t())


def test_the_classifier_drops_entries_of_its_input_after_missing_ones_are_filled():
    stack, x = build(missing=True), rows(8)
    x[0, 0] = torch.nan
    classifier, seen = stack.classifier(2, input_dropout=0.5), []
    classifier.encoder1.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    classifier(x)
    dropped = seen[0] == 0
    assert dropped[0, 0] and 0.25 < dropped.double().mean() < 0.75
    torch.testing.assert_close(seen[0], torch.where(dropped, 0.0, 2 * x))


def test_fine_tuning_the_classifier_moves_the_stack():
    stack, x = build(), rows(16)
    labels = (x[:, 0] > 0.5).long()
    classifier = stack.classifier(2)
    code = stack.encode(x).detach()
    optimizer = torch.optim.SGD(classifier.parameters(), lr=1.0)
    losses = []
    for _ in range(30):
        loss = F.cross_entropy(classifier(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert not torch.allclose(stack.encode(x), code)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1,), "^classes: must be a whole number >= 2, got 1$"),
        ((2.0,), "^classes: must be a whole number >= 2, got 2.0$"),
        ((2, 1.0), r"^dropout: must be in \[0, 1\), got 1.0$"),
        ((2, -0.1), r"^dropout: must be in \[0, 1\), got -0.1$"),
        ((2, 0.0, 1.0), r"^input_dropout: must be in \[0, 1\), got 1.0$"),
    ],
    ids=str,
)
def test_what_does_not_fit_in_the_classifier_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        build().classifier(*arguments)


# --- the objective --------------------------------------------------------------------------------------


@TIED
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_stack_of_one_layer_is_its_autoencoder(tied, training, reduction):
    options = {
        "tied": tied,
        "corruption": Masking(0.4),
        "emphasis": Emphasis(2.0, 0.5),
        "contractive": 0.1,
        "higher_order": 0.2,
        "l1": 0.03,
        "kl": 0.04,
        "code_noise": "gaussian",
        "dropout": 0.25,
    }
    stack, x = build([6, 4], **options).train(training), rows(2, 3)
    layer = Autoencoder(6, 4, Options(**options), dtype=torch.float64).train(training)
    layer.load_state_dict(stack.layers[0].state_dict())
    expected = evaluate(layer, x, reduction=reduction)
    assert_terms(evaluate(stack, x, reduction=reduction), expected, rtol=0, atol=0)


def test_the_penalty_of_one_layer_is_exact():
    stack, x = build([6, 4], contractive=0.1), rows(5)
    encoder = stack.layers[0].encoder
    exact = reference.contractive_penalty(x, encoder.weight, encoder.bias, "sigmoid")
    torch.testing.assert_close(stack(x, reduction="none").contractive, exact)


@TIED
@EVERY_KIND
@pytest.mark.parametrize("bias", [True, False])
def test_the_deep_objective_and_its_gradients_are_those_of_the_plain_composition(sizes, options, tied, bias):
    stack, x = build(sizes, **{"tied": tied, **options}, bias=bias).eval(), rows(5).requires_grad_()
    leaves = [x, *stack.parameters()]
    actual = stack(x)
    expected = plain_loss(stack, plain_code(stack, x), x).sum(1).mean()
    torch.testing.assert_close(actual.total, expected)
    assert torch.equal(actual.total, actual.reconstruction)
    assert actual[2:] == (None,) * 4
    gradients = torch.autograd.grad(actual.total, leaves)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, leaves))
    assert all(gradient.abs().max() > 1e-6 for gradient in gradients)


@EVERY_KIND
@pytest.mark.parametrize("corruption", [Masking(0.4), Gaussian(0.5), Swap(0.5)], ids=str)
def test_training_corrupts_the_input_and_reconstructs_the_clean_one(sizes, options, corruption, seeded):
    others: list = [Masking(1.0)] * (len(sizes) - 2)  # of the other layers: not the deep objective's
    stack, x = build(sizes, **options, corruption=[corruption, *others]), rows(5)
    leaves = list(stack.parameters())
    noisy = reference.corrupt(x, corruption, seeded(3))
    assert not torch.equal(noisy, x)
    actual = stack(x).total
    expected = plain_loss(stack, plain_code(stack, noisy), x).sum(1).mean()
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(torch.autograd.grad(actual, leaves), torch.autograd.grad(expected, leaves))


def test_emphasis_weighs_corrupted_and_clean_entries_apart(seeded):
    corruption = Masking(0.4)
    stack, x = build(corruption=corruption, emphasis=[Emphasis(3.0, 0.5), None]), rows(5)
    seed = seeded(3)
    hit = reference.corrupted_entries(x, corruption, seed)
    assert 0 < hit.sum() < hit.numel()
    entries = plain_loss(stack, plain_code(stack, reference.corrupt(x, corruption, seed)), x)
    expected = (torch.where(hit, 3.0, 0.5) * entries).sum(1).mean()
    actual = stack(x)
    torch.testing.assert_close(actual.total, expected)
    torch.testing.assert_close(actual.reconstruction, expected)
    clean = plain_loss(stack, plain_code(stack, x), x).sum(1).mean()
    torch.testing.assert_close(stack.eval()(x).total, clean)


@pytest.mark.parametrize("probes", [1, 3])
@pytest.mark.parametrize("corruption", [None, Masking(0.4)], ids=str)
def test_every_term_of_the_deep_objective(probes, corruption):
    options = {"contractive": 0.1, "l1": 0.2, "kl": 0.3, "kl_target": 0.15}
    noise = {"code_noise": "gaussian", "code_noise_std": 0.3, "dropout": 0.25}
    first = {name: "bernoulli" if name == "code_noise" else 0.9 for name in (*options, *noise)}  # not used
    changes = {name: [first[name], value] for name, value in {**options, **noise}.items()}
    stack, x = build(**changes, corruption=[corruption, None], probes=probes), rows(5)
    drawn = seeds(3)
    noisy = x
    if corruption is not None:
        noisy = reference.corrupt(x, corruption, drawn.pop(0))
    code = plain_code(stack, noisy)
    seen = reference.perturb_code(code, drawn[1], "gaussian", 0.3, 0.25)
    reconstruction = plain_loss(stack, seen, x).sum(1)
    penalty, l1, mean = hutchinson(stack, noisy, drawn[0]), code.abs().sum(1), code.mean(0)
    kl = (0.15 * (0.15 / mean).log() + 0.85 * (0.85 / (1 - mean)).log()).sum()
    total = reconstruction + 0.1 * penalty + 0.2 * l1 + 0.3 * kl

    expected = AutoencoderLoss(total, reconstruction, penalty, None, l1, kl)
    actual = evaluate(stack, x, reduction="none")
    assert_terms(actual, expected)
    means = AutoencoderLoss(*(None if term is None else term.mean() for term in expected))
    assert_terms(evaluate(stack, x), means)
    leaves = list(stack.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(evaluate(stack, x).total, leaves), torch.autograd.grad(means.total, leaves)
    )


def test_code_penalties_and_noise_are_the_last_layers_options():
    off = {"contractive": 0.0, "l1": 0.0, "kl": 0.0, "code_noise": "none", "dropout": 0.0}
    on = {"contractive": 0.1, "l1": 0.2, "kl": 0.3, "code_noise": "bernoulli", "dropout": 0.25}
    x = rows(5)
    plain = evaluate(build(), x)
    last = evaluate(build(**{name: [off[name], on[name]] for name in on}), x)
    first = evaluate(build(**{name: [on[name], off[name]] for name in on}), x)
    assert_terms(first, plain)
    assert None not in (last.contractive, last.l1, last.kl)
    assert not torch.isclose(last.reconstruction, plain.reconstruction)


@pytest.mark.parametrize("noise", ["gaussian", "bernoulli"])
def test_evaluation_is_clean_and_leaves_the_random_state_alone(noise):
    options = {"l1": 0.2, "kl": 0.3}
    noisy = build(**options, corruption=Masking(0.5), emphasis=Emphasis(2.0), code_noise=noise, dropout=0.5)
    x, clean = rows(5), build(**options)
    assert not torch.isclose(evaluate(noisy, x).reconstruction, clean(x).reconstruction)
    before = torch.get_rng_state()
    assert_terms(noisy.eval()(x), clean(x), rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_more_probes_estimate_the_same_penalty_with_less_variance():
    x = rows(1).expand(400, 6)
    few, many = (evaluate(build(contractive=1.0, probes=k), x, reduction="none").contractive for k in (1, 16))
    torch.testing.assert_close(few.mean(), many.mean(), rtol=0.1, atol=0)
    assert 10 < few.var() / many.var() < 26


@EVERY_KIND
@pytest.mark.parametrize("leading", [(), (4,), (2, 3)], ids=str)
def test_reduction_none_keeps_the_leading_dimensions(sizes, options, leading):
    stack, x = build(sizes, **options, contractive=0.1, l1=0.2), rows(*leading)
    terms = evaluate(stack, x, reduction="none")
    flat = evaluate(stack, x.reshape(-1, 6), reduction="none")
    for name in ("total", "reconstruction", "contractive", "l1"):
        assert getattr(terms, name).shape == leading, name
        torch.testing.assert_close(getattr(terms, name).reshape(-1), getattr(flat, name))
    for reduction, reduced in (("mean", flat.total.mean()), ("sum", flat.total.sum())):
        torch.testing.assert_close(evaluate(stack, x, reduction=reduction).total, reduced)


def test_a_generator_makes_the_noise_repeatable():
    stack, x = build(corruption=Masking(0.5), contractive=0.1, dropout=0.5), rows(5)
    before = torch.get_rng_state()
    values = [stack(x, generator=torch.Generator().manual_seed(seed)).total for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])


# --- sampling, training, compilation --------------------------------------------------------------------


def test_sampling_corrupts_and_draws_as_the_first_layers_options_say():
    options = {"activation": "tanh", "loss": ["mse", "mse"], "corruption": [Masking(1.0), Gaussian(9.0)]}
    stack, x = build(**options), rows(3)
    chain = stack.sample(x, 2, std=0.0, return_chain=True)
    blank = stack.reconstruct(torch.zeros_like(x))
    torch.testing.assert_close(chain, torch.stack([x, blank, blank]))
    assert not chain.requires_grad
    binary = build(loss=["bce", "mse"]).sample(x, 3, generator=torch.Generator().manual_seed(0))
    assert set(binary.unique().tolist()) <= {0.0, 1.0}
    with pytest.raises(ValueError, match=r"^steps: must be a whole number >= 0, got -1$"):
        stack.sample(x, -1)


def test_greedy_pretraining_of_each_layer_lowers_the_deep_loss():
    x = (rows(64) > 0.7).double()
    x[:, 3:] = x[:, :3]  # something to find
    stack = build([6, 5, 3], loss=["bce", "mse"])
    before = copy.deepcopy(stack)
    for depth, layer in enumerate(stack.autoencoders):
        inputs = stack.encode(x, depth).detach()
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
        for _ in range(100):
            optimizer.zero_grad()
            layer(inputs).total.backward()
            optimizer.step()
    assert stack(x).total < 0.8 * before(x).total


@pytest.mark.parametrize("sizes", [[6, 5], [6, 5, 4]], ids=str)
def test_a_compiled_stack_equals_the_eager_one(sizes):
    torch._dynamo.reset()
    options = {"contractive": 0.1, "l1": 0.2, "kl": 0.3, "code_noise": "gaussian", "dropout": 0.25}
    stack = build(sizes, **options, corruption=Masking(0.4), emphasis=Emphasis(2.0), probes=2)
    leaves = list(stack.parameters())
    x = rows(5)
    expected = evaluate(stack, x)
    actual = evaluate(torch.compile(stack, fullgraph=True, backend="aot_eager"), x)
    assert_terms(actual, expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual.total, leaves), torch.autograd.grad(expected.total, leaves)
    )
