"""The configuration: one definition for Python, the command line and the checkpoint."""

import json
import math
import re
from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from fastae import Emphasis, Gaussian, Masking, Swap
from fastae.activations import ACTIVATIONS
from fastae.commands.help import command_help
from fastae.commands.options import parse
from fastae.losses import LOSSES
from fastae.nn import Options
from fastae.objective import CODE_NOISES, Objective
from fastae.train import Stage, TrainConfig
from fastae.train.config import attribute_docs
from tests.support import OPTIMIZERS

PARAMETER = torch.zeros(3, 2, requires_grad=True)
SCHEDULES = {
    "ConstantLR": (),
    "CosineAnnealingLR": (),
    "CosineAnnealingWarmRestarts": ("T_0=4",),
    "CyclicLR": ("base_lr=0.001", "max_lr=0.01", "cycle_momentum=false"),
    "ExponentialLR": ("gamma=0.9",),
    "LinearLR": (),
    "MultiStepLR": ("milestones=[3,6]",),
    "OneCycleLR": (),
    "PolynomialLR": (),
    "StepLR": ("step_size=3",),
}


def names(argument: str, *words: str) -> Any:
    """A ValueError that begins with the argument's name and holds every word."""
    return pytest.raises(
        ValueError, match=f"^{re.escape(argument)}: " + "".join(f".*{re.escape(word)}" for word in words)
    )


# Defaults -------------------------------------------------------------------------------------------------


def test_the_defaults_make_a_plain_stack():
    config = TrainConfig()
    assert (config.data, config.scaling, config.validation, config.seed) == ("digits", "auto", 0.1, 0)
    assert (config.sizes, config.resume, config.classifier, config.out) == ((), False, False, None)
    assert config.pretrain == config.finetune == Stage(batch_size=0, optimizer="adam", lr=1e-3)
    assert (config.supervised.lr, config.supervised.schedule) == (3e-3, "CosineAnnealingLR")
    for options in config.layer_options(2):
        assert (options.activation, options.loss, options.tied) == ("sigmoid", "bce", True)
        assert options.corruption is None and options.emphasis is None
        assert (options.contractive, options.l1, options.kl, options.dropout) == (0.0, 0.0, 0.0, 0.0)


def test_configurations_are_immutable():
    with pytest.raises(AttributeError):
        TrainConfig().seed = 3  # type: ignore[misc]
    with pytest.raises(AttributeError):
        Stage().lr = 3.0  # type: ignore[misc]


# JSON -----------------------------------------------------------------------------------------------------

EVERYTHING = TrainConfig(
    data="a.npy",
    test="b.npy",
    label=("kind",),
    labels="c.npy",
    drop=("id",),
    test_fraction=0.2,
    scaling="standard",
    sizes=(6, 5, 4),
    activation=("sigmoid", "tanh"),
    loss=("bce", "mse"),
    output_activation=("linear", "sigmoid"),
    missing=(True, False),
    tied=(True, False),
    corruption=("masking:0.25", "none"),
    emphasis=(1.0, 0.5),
    contractive=(0.1, 0.2),
    higher_order=(0.1, 0.0),
    higher_order_std=(0.2,),
    higher_order_samples=(2,),
    code_noise_std=(0.2, 0.3),
    bias=(True, False),
    l1=(0.01,),
    kl=(0.1, 0.0),
    kl_target=(0.1,),
    code_noise=("bernoulli", "none"),
    dropout=(0.2, 0.0),
    probes=3,
    pretrain=Stage(epochs=3, batch_size=7, optimizer="SGD", lr=0.1, optimizer_options=("momentum=0.9",)),
    finetune=Stage(epochs=2, schedule="StepLR", schedule_options=("step_size=3",), clip_norm=1.5),
    classifier=True,
    supervised=Stage(epochs=1, patience=2),
    supervised_dropout=0.1,
    supervised_input_dropout=0.2,
    validation=0.25,
    precision="bfloat16",
    products="medium",
    device="cpu",
    graph=False,
    compile=True,
    seed=-7,
    out="runs/x",
    resume=True,
    checkpoint_seconds=0.5,
    timeout=60.0,
    memory_gib=0.25,
    window_mib=64.0,
    shard="weights",
    shard_size=2,
    tensorboard=False,
)


@pytest.mark.parametrize("config", [TrainConfig(), EVERYTHING], ids=["defaults", "everything"])
def test_json_gives_the_same_configuration_back(config):
    values = json.loads(json.dumps(config.to_dict(), allow_nan=False))
    assert TrainConfig.from_dict(values) == config
    assert values.keys() == {field.name for field in fields(TrainConfig)}


def test_everything_differs_from_the_defaults():
    """Or the test above would not see a field that is lost."""
    assert not [
        f.name
        for f in fields(TrainConfig)
        if f.name != "hidden" and getattr(EVERYTHING, f.name) == getattr(TrainConfig(), f.name)
    ]
    hidden = TrainConfig(hidden=(5, 4))
    assert TrainConfig.from_dict(hidden.to_dict()) == hidden and hidden.sizes_for(6) == (6, 5, 4)


def test_from_dict_names_an_unknown_option():
    with pytest.raises((TypeError, ValueError), match="nonsense"):
        TrainConfig.from_dict({**TrainConfig().to_dict(), "nonsense": 1})


# Validation -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("epochs", -1),
        ("epochs", 1.5),
        ("batch_size", -1),
        ("batch_size", 2.0),
        ("patience", -1),
        ("patience", "3"),
        ("lr", -1.0),
        ("lr", math.nan),
        ("lr", math.inf),
        ("clip_norm", -0.1),
        ("clip_norm", math.nan),
        ("clip_norm", math.inf),
    ],
)
def test_a_stage_refuses_numbers_that_make_no_sense(argument, value):
    with names(f"pretrain.{argument}", repr(value)):
        TrainConfig(pretrain=Stage(**{argument: value}))


@pytest.mark.parametrize("name", ["epochs", "batch_size", "patience", "lr", "clip_norm"])
def test_a_stage_takes_zero(name):
    assert getattr(TrainConfig(pretrain=Stage(**{name: 0})).pretrain, name) == 0


@pytest.mark.parametrize(
    ("argument", "changes", "words"),
    [
        ("sizes", {"sizes": (6,)}, ["at least one code", "[6]"]),
        ("sizes", {"sizes": (6, 0)}, ["[6, 0]"]),
        ("sizes", {"sizes": (6, -2)}, ["[6, -2]"]),
        ("validation", {"validation": 1.0}, ["[0, 1)", "1.0"]),
        ("validation", {"validation": -0.1}, ["-0.1"]),
        ("validation", {"validation": math.nan}, ["nan"]),
        ("supervised_dropout", {"supervised_dropout": 1.0}, ["[0, 1)", "1.0"]),
        ("supervised_input_dropout", {"supervised_input_dropout": -0.1}, ["[0, 1)", "-0.1"]),
        ("checkpoint_seconds", {"checkpoint_seconds": -1.0}, ["-1.0"]),
        ("checkpoint_seconds", {"checkpoint_seconds": math.nan}, ["nan"]),
        ("timeout", {"timeout": 0.0}, ["above", "0.0"]),
        ("timeout", {"timeout": math.nan}, ["nan"]),
        ("shard", {"shard": "rows"}, ["'rows'", "data", "weights", "units"]),
        ("shard_size", {"shard_size": -1}, ["-1"]),
        ("memory_gib", {"memory_gib": -1.0}, ["-1.0"]),
        ("memory_gib", {"memory_gib": math.nan}, ["nan"]),
        ("memory_gib", {"memory_gib": math.inf}, ["inf"]),
        ("resume", {"resume": True}, ["out"]),
        ("seed", {"seed": 2**63}, ["64 bits"]),
        ("seed", {"seed": -(2**63) - 1}, ["64 bits"]),
        ("pretrain.patience", {"pretrain": Stage(patience=1), "validation": 0.0}, ["validation"]),
        ("finetune.patience", {"finetune": Stage(patience=1), "validation": 0.0}, ["validation"]),
        ("supervised.patience", {"supervised": Stage(patience=1), "validation": 0.0}, ["validation"]),
        ("corruption", {"corruption": ("salt:0.1",)}, ["'salt:0.1'", "masking", "gaussian", "swap"]),
        ("corruption", {"corruption": ("masking:x",)}, ["'masking:x'", "number"]),
        ("corruption", {"corruption": ("masking",)}, ["'masking'"]),
        ("corruption", {"corruption": ("masking:1.5",)}, ["Masking", "[0, 1]", "1.5"]),
        ("corruption", {"corruption": ("none", "gaussian:-1")}, ["Gaussian", "-1.0"]),
        ("activation", {"sizes": (6, 5, 4), "activation": ("tanh",) * 3, "loss": ("mse",)}, ["3", "2"]),
        ("contractive", {"sizes": (6, 5), "contractive": (0.1, 0.2)}, ["2", "1 layers"]),
        ("corruption", {"sizes": (6, 5, 4), "corruption": ("none",) * 3}, ["3", "2 layers"]),
        ("loss", {"sizes": (6, 5, 4), "activation": ("relu",)}, ["layer 2", "relu", "['bce', 'mse']"]),
        ("contractive", {"sizes": (6, 5), "contractive": (-1.0,)}, ["-1.0"]),
        ("l1", {"sizes": (6, 5), "l1": (math.inf,)}, ["inf"]),
        ("dropout", {"sizes": (6, 5), "dropout": (1.0,)}, ["[0, 1)"]),
        ("kl", {"sizes": (6, 5), "kl": (0.1,), "activation": ("relu",)}, ["relu"]),
        ("kl_target", {"sizes": (6, 5), "kl": (0.1,), "kl_target": (1.0,)}, ["(0, 1)"]),
        ("code_noise", {"sizes": (6, 5), "code_noise": ("bernoulli",), "activation": ("tanh",)}, ["tanh"]),
        ("output_activation", {"sizes": (6, 5), "output_activation": ("sigmoid",)}, ["bce"]),
        ("emphasis", {"sizes": (6, 5), "emphasis": (1.0, 0.5), "corruption": ("gaussian:0.1",)}, ["clean"]),
        ("Emphasis", {"sizes": (6, 5), "emphasis": (-1.0, 0.5), "corruption": ("swap:0.1",)}, ["-1.0"]),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused_by_name(argument, changes, words):
    with names(argument, *words):
        TrainConfig(**changes)


# The command line -----------------------------------------------------------------------------------------

NEEDS = {
    "output_activation": ["--loss", "mse"],
    "emphasis": ["--corruption", "masking:0.1"],
}


def another(name: str) -> tuple[list[str], Any]:
    """A value that is not the default, as it is typed and as the objective holds it."""
    default = getattr(Options(), name)
    if name == "corruption":
        return ["swap:0.125"], Swap(0.125)
    if name == "emphasis":
        return ["1.0", "0.5"], Emphasis(1.0, 0.5)
    if isinstance(default, str):
        *_, last = {"loss": ["huber:0.5"], "code_noise": CODE_NOISES}.get(name, ACTIVATIONS)
        value = last if last != default else "mse"
        return [value], value
    value = (not default) if isinstance(default, bool) else type(default)(default + 0.125) or 1
    value = value + 1 if value == default else value
    return [str(value)], value


@pytest.mark.parametrize("name", [field.name for field in fields(Options)])
def test_every_option_of_the_objective_can_be_typed(name):
    words, value = another(name)
    assert value != getattr(Options(), name)
    flag = "--" + name.replace("_", "-")
    config = parse(TrainConfig, ["--sizes", "6", "5", *NEEDS.get(name, []), flag, *words])
    (options,) = config.layer_options(1)
    assert getattr(options, name) == value
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("name", [f.name for f in fields(Options) if f.name not in ("emphasis", "missing")])
def test_every_option_of_the_objective_takes_one_value_per_layer(name):
    (word,), value = another(name)
    default = getattr(Options(), name)
    flag, own = "--" + name.replace("_", "-"), "none" if default is None else str(default)
    extra = {"output_activation": ["--loss", "mse"], "loss": ["--activation", "sigmoid"]}.get(name, [])
    config = parse(TrainConfig, ["--sizes", "6", "5", "4", *extra, flag, own, word])
    assert [getattr(options, name) for options in config.layer_options(2)] == [default, value]


def test_the_help_lists_what_the_tables_hold():
    text = " ".join(command_help(None, TrainConfig, "fastae train", everything=True).split())
    for table in (ACTIVATIONS, LOSSES, CODE_NOISES):
        assert ", ".join(table) in text or "|".join(table) in text
    with pytest.raises(ValueError, match=r"^activation: 'swish' is not one of .*mish"):
        TrainConfig(activation=("swish",))
    docs = {**attribute_docs(Objective), **attribute_docs(Options)}
    assert docs.keys() == {field.name for field in fields(Options)}
    assert docs["kl_target"] in text and "``" not in text


# Optimizers and schedules -----------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [str.lower, str.upper, str], ids=["lower", "upper", "own"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_go_by_name_in_any_case(name, change):
    optimizer = Stage(optimizer=change(name), lr=0.125).make_optimizer([PARAMETER])
    assert type(optimizer) is getattr(torch.optim, name)
    assert optimizer.param_groups[0]["lr"] == 0.125


@pytest.mark.parametrize("change", [str.lower, str.upper, str], ids=["lower", "upper", "own"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_go_by_name_in_any_case(name, change):
    stage = Stage(schedule=change(name), schedule_options=SCHEDULES[name])
    schedule = stage.make_schedule(stage.make_optimizer([PARAMETER]), 7)
    assert type(schedule) is getattr(torch.optim.lr_scheduler, name)


def test_every_optimizer_that_an_unknown_name_is_offered_can_be_used():
    with names("finetune.optimizer", "'adamm'", "Adam", "SGD") as error:
        TrainConfig(finetune=Stage(optimizer="adamm"))
    offered = str(error.value).split(" is not one of ")[1].split(", ")
    assert set(OPTIMIZERS) <= set(offered)
    unusable = []
    for name in offered:
        try:
            Stage(optimizer=name).make_optimizer([PARAMETER, torch.zeros(2, requires_grad=True)])
        except ValueError as refusal:
            unusable.append(str(refusal))
    assert not unusable


@pytest.mark.parametrize("error", [RuntimeError, TypeError])
def test_optimizers_are_fused_only_where_they_can_be(monkeypatch, error):
    """As torch 2.11 has no fused Adagrad on CUDA, and says so in the first step."""

    class Adagrad(torch.optim.Adagrad):
        def step(self, closure=None):
            if self.param_groups[0]["fused"]:
                raise error("supported devices: ['cpu']")
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "Adagrad", Adagrad)
    optimizer = Stage(optimizer="adagrad").make_optimizer([PARAMETER])
    assert not optimizer.param_groups[0]["fused"]
    TrainConfig(pretrain=Stage(optimizer="adagrad"))
    monkeypatch.undo()
    assert Stage(optimizer="adagrad").make_optimizer([PARAMETER]).param_groups[0]["fused"]


def test_an_unknown_schedule_is_offered_the_known_ones():
    with names("supervised.schedule", "'cosine'", "CosineAnnealingLR", "StepLR") as error:
        TrainConfig(supervised=Stage(schedule="cosine"))
    offered = str(error.value).split(" is not one of ")[1].split(", ")
    assert set(SCHEDULES) <= set(offered)
    assert not {"LRScheduler", "LambdaLR", "ReduceLROnPlateau"} & set(offered)


@pytest.mark.parametrize("name", ["lbfgs", "sparseadam", "optimizer"])
def test_optimizers_that_cannot_train_a_stack_are_refused(name):
    with names("pretrain.optimizer", f"'{name}'", "Adam"):
        TrainConfig(pretrain=Stage(optimizer=name))


@pytest.mark.parametrize("name", ["ReduceLROnPlateau", "LambdaLR", "SequentialLR", "lrscheduler"])
def test_schedules_that_need_code_are_refused(name):
    with names("pretrain.schedule", f"'{name}'", "CosineAnnealingLR"):
        TrainConfig(pretrain=Stage(schedule=name))


@pytest.mark.parametrize("name", ["none", "None", "NONE"])
def test_without_a_schedule_there_is_none(name):
    stage = Stage(schedule=name)
    assert stage.make_schedule(stage.make_optimizer([PARAMETER]), 7) is None


def test_options_are_json_or_text():
    stage = Stage(optimizer="sgd", optimizer_options=("momentum=0.9", "nesterov=true", "weight_decay=1e-4"))
    group = stage.make_optimizer([PARAMETER]).param_groups[0]
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.9, True, 1e-4)
    stage = Stage(optimizer="adam", optimizer_options=("betas=[0.8, 0.9]", "fused=false"))
    group = stage.make_optimizer([PARAMETER]).param_groups[0]
    assert tuple(group["betas"]) == (0.8, 0.9) and group["fused"] is False
    stage = Stage(schedule="CyclicLR", schedule_options=(*SCHEDULES["CyclicLR"], "mode=exp_range"))
    schedule: Any = stage.make_schedule(stage.make_optimizer([PARAMETER]), 7)
    assert schedule.mode == "exp_range"


@pytest.mark.parametrize(
    ("schedule", "attribute"),
    [("CosineAnnealingLR", "T_max"), ("OneCycleLR", "total_steps"), ("LinearLR", "total_iters")],
)
def test_the_length_of_a_schedule_is_the_stage_unless_it_is_given(schedule, attribute):
    for options, length in (((), 37), ((f"{attribute}=50",), 50)):
        stage = Stage(schedule=schedule, schedule_options=options)
        made = stage.make_schedule(stage.make_optimizer([PARAMETER]), 37)
        assert getattr(made, attribute) == length


def test_one_cycle_peaks_at_the_rate_of_the_stage():
    stage = Stage(schedule="OneCycleLR", lr=0.25)
    optimizer = stage.make_optimizer([PARAMETER])
    schedule = stage.make_schedule(optimizer, 100)
    assert schedule is not None
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert max(rates) == pytest.approx(0.25, rel=0.01)


@pytest.mark.parametrize("share", ["0.1", "0.2", "0.3"])
def test_one_cycle_takes_the_usual_warm_ups(share):
    """The schedule is tried over more steps than leave the cycle's first phase empty."""
    TrainConfig(pretrain=Stage(schedule="OneCycleLR", schedule_options=(f"pct_start={share}",)))


@pytest.mark.parametrize(
    ("kind", "name", "option", "word"),
    [
        ("optimizer", "adam", "momentum=0.9", "momentum"),
        ("optimizer", "adam", "betas", "name=value"),
        ("optimizer", "adam", "=3", "name=value"),
        ("optimizer", "adam", "betas=[1.5, 0.9]", "1.5"),
        ("optimizer", "adam", "betas=[0.9]", ""),
        ("optimizer", "adam", "betas=abc", ""),
        ("optimizer", "adam", "lr=0.1", "lr"),
        ("optimizer", "adam", "function=3", "function"),
        ("optimizer", "sgd", "nesterov=true", "momentum"),
        ("schedule", "StepLR", "gamma=0.5", "step_size"),
        ("schedule", "StepLR", "step_size=0", ""),
        ("schedule", "CosineAnnealingLR", "T_max=0", ""),
        ("schedule", "CosineAnnealingLR", "nonsense=1", "nonsense"),
        ("schedule", "LinearLR", "start_factor=7", "greater than 0"),
        ("schedule", "OneCycleLR", "anneal_strategy=up", "up"),
    ],
)
def test_wrong_options_are_refused_before_any_data_is_read(kind, name, option, word):
    with names(f"pretrain.{kind}_options", word):
        TrainConfig(pretrain=Stage(**{kind: name, f"{kind}_options": (option,)}))


# Batches ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch_size", "rows", "expected"),
    [
        (0, 10, 10),
        (0, 100, 16),
        (0, 800, 16),
        (0, 5_000, 100),
        (0, 12_800, 256),
        (0, 60_000, 256),
        (7, 100, 7),
        (1000, 100, 100),
        (1, 100, 1),
    ],
)
def test_the_batch_is_a_fiftieth_of_the_rows_within_bounds_unless_it_is_given(batch_size, rows, expected):
    assert Stage(batch_size=batch_size).rows_per_step(rows) == expected


@pytest.mark.parametrize(
    ("rows", "layers", "changes", "expected"),
    [
        (160, 2, {}, (300, 300, 300)),  # of 10 steps
        (1350, 2, {}, (60, 60, 60)),
        (54_000, 3, {}, (15, 15, 30)),
        (54_000, 1, {}, (15, 0, 30)),
        (160, 2, {"pretrain": Stage(epochs=2)}, (2, 2, 300)),
        (160, 2, {"pretrain": Stage(epochs=0)}, (0, 0, 300)),
        (160, 1, {"finetune": Stage(epochs=3)}, (300, 3, 300)),
        (160, 2, {"finetune": Stage(epochs=0), "supervised": Stage(epochs=1)}, (300, 0, 1)),
        (160, 2, {"pretrain": Stage(batch_size=1)}, (19, 19, 300)),
    ],
)
def test_epochs_are_enough_for_3000_steps_unless_they_are_given(rows, layers, changes, expected):
    chosen = TrainConfig(**changes).with_epochs(rows, layers)
    assert tuple(stage.epochs for stage in chosen.stages.values()) == expected
    assert chosen.with_epochs(5, 1) == chosen


# Layers -----------------------------------------------------------------------------------------------------


def test_one_value_is_for_all_layers_and_several_are_one_each():
    config = TrainConfig(
        sizes=(6, 5, 4, 3),
        activation=("sigmoid",),
        tied=(True, False, True),
        contractive=(0.1, 0.2, 0.3),
        corruption=("masking:0.25", "gaussian:0.5", "none"),
        dropout=(0.5,),
    )
    layers = config.layer_options(3)
    assert [layer.tied for layer in layers] == [True, False, True]
    assert [layer.contractive for layer in layers] == [0.1, 0.2, 0.3]
    assert [layer.corruption for layer in layers] == [Masking(0.25), Gaussian(0.5), None]
    assert [layer.dropout for layer in layers] == [0.5] * 3


def test_emphasis_is_for_the_layers_that_have_a_corruption():
    config = TrainConfig(sizes=(6, 5, 4), corruption=("masking:0.25", "none"), emphasis=(1.0, 0.5))
    assert [layer.emphasis for layer in config.layer_options(2)] == [Emphasis(1.0, 0.5), None]
    config = replace(config, corruption=("swap:0.25",))
    assert [layer.emphasis for layer in config.layer_options(2)] == [Emphasis(1.0, 0.5)] * 2
