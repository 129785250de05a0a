"""Options: defaults, validation, and the ways in and out."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
from typing import get_type_hints

import pytest
import torch

from fastae import Emphasis, Gaussian, Masking, SaltAndPepper, Swap, functional
from fastae.activations import ACTIVATIONS
from fastae.nn import Options
from fastae.nn.options import OptionChanges
from fastae.objective import Objective, ObjectiveOptions, attribute_docs

CHANGES = {
    "activation": "tanh",
    "loss": "mse",
    "output_activation": "softplus",
    "missing": True,
    "corruption": SaltAndPepper(0.3, -1.0, 2.0),
    "emphasis": Emphasis(2.0, 0.5),
    "contractive": 0.1,
    "higher_order": 0.2,
    "higher_order_std": 0.3,
    "higher_order_samples": 4,
    "l1": 0.5,
    "kl": 0.6,
    "kl_target": 0.7,
    "code_noise": "bernoulli",
    "code_noise_std": 0.8,
    "dropout": 0.9,
    "tied": False,
    "bias": False,
}
NEEDS = {"output_activation": {"loss": "mse"}, "emphasis": {"corruption": "masking:0.5"}}
EVERY_CHANGE = pytest.mark.parametrize("name", CHANGES)
CORRUPTIONS = [
    None,
    Masking(0.1),
    Masking(1.0),
    Gaussian(1e-5),
    Gaussian(1 / 3),
    SaltAndPepper(0.25),
    SaltAndPepper(0.1, -1.5, 1e20),
    Swap(0.07),
]


def changed(name: str) -> Options:
    return Options(**NEEDS.get(name, {}), **{name: CHANGES[name]})


def test_the_changes_tested_here_are_all_options():
    assert list(CHANGES) == [field.name for field in dataclasses.fields(Options)]


def test_the_defaults():
    assert dataclasses.asdict(Options()) == {
        "activation": "sigmoid",
        "loss": "bce",
        "output_activation": "linear",
        "missing": False,
        "tied": True,
        "corruption": None,
        "emphasis": None,
        "contractive": 0.0,
        "higher_order": 0.0,
        "higher_order_std": 0.1,
        "higher_order_samples": 1,
        "l1": 0.0,
        "kl": 0.0,
        "kl_target": 0.05,
        "code_noise": "none",
        "code_noise_std": 0.1,
        "dropout": 0.0,
        "bias": True,
    }


def test_names_and_defaults_are_those_of_the_objective():
    parameters = inspect.signature(functional.autoencoder_loss).parameters
    for name, value in vars(Objective()).items():
        assert parameters[name].default == value == getattr(Options(), name), name


@pytest.mark.parametrize(("options", "types"), [(Objective, ObjectiveOptions), (Options, OptionChanges)])
def test_the_types_of_keyword_arguments_are_those_of_the_fields(options, types):
    assert get_type_hints(types) == get_type_hints(options)


def test_every_option_is_documented():
    docs = attribute_docs(Options)
    assert list(docs) == list(CHANGES)
    assert all(docs[name] in (functional.autoencoder_loss.__doc__ or "") for name in vars(Objective()))


def test_options_are_immutable_hashable_and_compare_by_value():
    options = changed("corruption")
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.l1 = 1.0  # pyright: ignore[reportAttributeAccessIssue]
    assert options == changed("corruption") != Options()
    assert len({options, changed("corruption"), Options()}) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "swish"}, "activation: 'swish' is not one of linear, sigmoid"),
        ({"loss": "mae"}, "loss: 'mae' is not one of mse, huber, bce"),
        (
            {"loss": "mse", "output_activation": "swish"},
            "output_activation: 'swish' is not one of linear, sigmoid",
        ),
        ({"output_activation": "sigmoid"}, "output_activation: bce applies the sigmoid itself"),
        (
            {"corruption": 0.3},
            "corruption: expected Masking, Gaussian, SaltAndPepper, Swap or None, got float",
        ),
        ({"corruption": "blur:1"}, "corruption: 'blur:1' is not one of none, masking"),
        ({"corruption": "masking"}, "corruption: 'masking' has 0 numbers; masking takes p"),
        ({"corruption": "masking:1.5"}, "corruption: Masking: p must be in [0, 1], got 1.5"),
        ({"emphasis": Emphasis(2.0)}, "emphasis: needs a corruption that leaves entries clean"),
        (
            {"emphasis": Emphasis(2.0), "corruption": "gaussian:1"},
            "emphasis: needs a corruption that leaves entries clean",
        ),
        ({"contractive": -1.0}, "contractive: must be a finite number >= 0, got -1.0"),
        ({"higher_order": math.inf}, "higher_order: must be a finite number >= 0, got inf"),
        (
            {"higher_order": 1.0, "higher_order_std": 0.0},
            "higher_order: needs higher_order_samples in 1..4080",
        ),
        (
            {"higher_order": 1.0, "higher_order_samples": 0},
            "higher_order: needs higher_order_samples in 1..4080",
        ),
        ({"l1": math.nan}, "l1: must be a finite number >= 0, got nan"),
        ({"kl": -0.5}, "kl: must be a finite number >= 0, got -0.5"),
        ({"kl": 1.0, "activation": "tanh"}, "kl: needs codes in [0, 1] (activation='sigmoid'), got"),
        ({"kl": 1.0, "kl_target": 0.0}, "kl_target: must be in (0, 1), got 0.0"),
        ({"kl": 1.0, "kl_target": 1.0}, "kl_target: must be in (0, 1), got 1.0"),
        ({"code_noise": "uniform"}, "code_noise: 'uniform' is not one of none, gaussian, bernoulli"),
        ({"code_noise": "bernoulli", "activation": "relu"}, "code_noise: needs codes in [0, 1]"),
        ({"code_noise_std": -0.1}, "code_noise_std: must be a finite number >= 0, got -0.1"),
        ({"dropout": 1.0}, "dropout: must be in [0, 1), got 1.0"),
        ({"dropout": -0.1}, "dropout: must be in [0, 1), got -0.1"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("way", ["constructor", "make", "from_dict"])
def test_what_does_not_fit_is_named(way, changes, message):
    if way == "from_dict" and "emphasis" in changes:
        changes = {**changes, "emphasis": dataclasses.asdict(changes["emphasis"])}
    build = {
        "constructor": lambda: Options(**changes),
        "make": lambda: Options.make(None, changes),
        "from_dict": lambda: Options.from_dict(changes),
    }[way]
    with pytest.raises(ValueError) as caught:
        build()
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("value", [(2.0, 1.0), 2.0, {"corrupted": 2.0}], ids=str)
def test_an_emphasis_of_another_type_is_named(value):
    with pytest.raises((TypeError, ValueError), match=r"^emphasis: "):
        Options(corruption=Masking(0.5), emphasis=value)


@pytest.mark.parametrize(
    ("text", "corruption"),
    [
        ("none", None),
        ("masking:0.25", Masking(0.25)),
        ("gaussian:0.5", Gaussian(0.5)),
        ("salt-and-pepper:0.1", SaltAndPepper(0.1)),
        ("salt_and_pepper:0.1:-1:1", SaltAndPepper(0.1, -1.0, 1.0)),
        ("Swap:0.1", Swap(0.1)),
    ],
)
def test_a_text_corruption_is_parsed(text, corruption):
    assert Options(corruption=text).corruption == corruption  # pyright: ignore[reportArgumentType]
    assert Options.make(Options(corruption=Masking(0.9)), {"corruption": text}).corruption == corruption


@EVERY_CHANGE
def test_every_option_survives_json(name):
    options = changed(name)
    values = options.to_dict()
    assert list(values) == list(CHANGES)
    back = Options.from_dict(json.loads(json.dumps(values)))
    assert back == options
    assert getattr(back, name) == CHANGES[name] != getattr(Options(), name)


@pytest.mark.parametrize("corruption", CORRUPTIONS, ids=str)
def test_every_corruption_survives_json(corruption):
    options = Options(corruption=corruption)
    back = Options.from_dict(json.loads(json.dumps(options.to_dict(), allow_nan=False)))
    assert back == options
    assert type(back.corruption) is type(corruption)


@pytest.mark.parametrize("emphasis", [Emphasis(), Emphasis(1.0, 0.0), Emphasis(1 / 3, 1e-9)], ids=str)
def test_every_emphasis_survives_json(emphasis):
    options = Options(corruption=Swap(0.5), emphasis=emphasis)
    back = Options.from_dict(json.loads(json.dumps(options.to_dict(), allow_nan=False)))
    assert back == options
    assert isinstance(back.emphasis, Emphasis)


def test_from_dict_leaves_out_what_keeps_its_default_and_the_dictionary_as_it_was():
    values = {"corruption": "masking:0.5", "emphasis": {"corrupted": 2.0, "clean": 1.0}}
    kept = json.dumps(values)
    assert Options.from_dict(values) == Options(corruption=Masking(0.5), emphasis=Emphasis(2.0, 1.0))
    assert json.dumps(values) == kept


@pytest.mark.parametrize("values", [{"kontractive": 1.0}, {"emphasis": {"kontractive": 1.0}}], ids=str)
def test_from_dict_names_a_key_that_is_none_of_its_own(values):
    with pytest.raises((TypeError, ValueError), match="kontractive"):
        Options.from_dict(values)


def test_make_names_an_option_that_does_not_exist_and_lists_those_that_do():
    with pytest.raises(
        TypeError, match=r"^kontractive: no such option; the options are activation, .*, bias$"
    ):
        Options.make(None, {"l1": 1.0, "kontractive": 1.0})


@EVERY_CHANGE
def test_make_changes_only_what_it_is_told(name):
    base = Options(**{"l1": 0.25, **NEEDS.get(name, {})})
    made = Options.make(base, {name: CHANGES[name]})
    assert made == dataclasses.replace(base, **{name: CHANGES[name]})
    different = {field for field in CHANGES if getattr(made, field) != getattr(base, field)}
    assert different == {name}
    assert base == Options(**{"l1": 0.25, **NEEDS.get(name, {})})


def test_make_without_a_base_starts_from_the_defaults():
    assert Options.make(None, {}) == Options()
    assert Options.make(None, {"l1": 0.5}) == Options(l1=0.5)


def test_the_objective_outside_training_drops_noise_and_only_noise():
    options = Options(
        corruption=Masking(0.5),
        emphasis=Emphasis(2.0),
        contractive=0.1,
        higher_order=0.2,
        higher_order_std=0.3,
        higher_order_samples=2,
        l1=0.4,
        kl=0.5,
        kl_target=0.6,
        code_noise="gaussian",
        code_noise_std=0.7,
        dropout=0.8,
    )
    clean = {"corruption": None, "emphasis": None, "code_noise": "none", "dropout": 0.0}
    assert vars(options.without_noise()) == {**vars(options), **clean}
    assert Options(l1=0.5).without_noise() == Options(l1=0.5)


@EVERY_CHANGE
@pytest.mark.parametrize("training", [True, False])
def test_every_objective_is_one_that_the_functional_takes(name, training):
    g = torch.Generator().manual_seed(0)
    x, weight = torch.rand(4, 3, generator=g), torch.randn(2, 3, generator=g)
    options = changed(name) if training else changed(name).without_noise()
    given = {k: v for k, v in vars(options).items() if k not in ("tied", "bias")}
    terms = functional.autoencoder_loss(x, weight, None, None, None, **given)
    assert terms.total.isfinite()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "sigmoid"),
        ({"loss": "mse"}, "linear"),
        ({"loss": "mse", "output_activation": "tanh"}, "tanh"),
    ],
    ids=str,
)
def test_the_reconstruction_activation(changes, expected):
    assert Options(**changes).reconstruction_activation == expected


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_only_sigmoid_codes_are_in_the_unit_interval(activation):
    assert Options(activation=activation).code_in_unit_interval == (activation == "sigmoid")
