"""Options as people type them: accepted, or refused with what they may have meant."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest

from fastae.bench.problems import Shape
from fastae.commands import options
from fastae.commands.options import parse
from fastae.commands.plot import Config as PlotConfig
from fastae.commands.tune import Config as TuneConfig
from fastae.train import TrainConfig
from fastae.train.config import POSITIONAL


@dataclass(frozen=True)
class Inner:
    """Settings.

    Attributes:
        size: A size.
        name: A name.
    """

    size: int = 1
    name: str = "x"


@dataclass(frozen=True)
class Example:
    """An example.

    Attributes:
        run: A run.
        kind: A kind.
        ratio: A ratio.
        flags: Flags.
        pair: A pair.
        path: A path.
        wanted: Wanted.
        first: The first.
        second: The second.
    """

    run: Annotated[str, POSITIONAL]
    kind: Literal["float32", "silu"] = "silu"
    ratio: float | None = None
    flags: tuple[bool, ...] = ()
    pair: tuple[float, float] | None = None
    path: Path | None = None
    wanted: bool = True
    first: Inner = field(default_factory=Inner)
    second: Inner = field(default_factory=lambda: Inner(2))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("r", Example("r")),
        ("r --ratio 0.5 --no-wanted", Example("r", ratio=0.5, wanted=False)),
        ("--kind=FP32 r", Example("r", kind="float32")),
        ("--kind swish r", Example("r", kind="silu")),
        ("--flags true False -- r", None),
        ("r --flags true,False", Example("r", flags=(True, False))),
        ("r --pair 1 -2e0 --path a/b", None),
        ("r --pair 1 -2.5 --path a/b", Example("r", pair=(1.0, -2.5), path=Path("a/b"))),
        ("r --size 5 --second.size 6", Example("r", first=Inner(5), second=Inner(6))),
        ("r --second.size 6 --size 5 --name y", Example("r", first=Inner(5, "y"), second=Inner(6, "y"))),
    ],
)
def test_a_line_becomes_a_configuration(line, expected):
    if expected is None:
        with pytest.raises(ValueError, match=r"^--"):
            parse(Example, line.split())
    else:
        assert parse(Example, line.split()) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("digits", {"data": "digits"}),
        ("--epochs 3 mine.npy", {"data": "mine.npy"}),
        ("--hidden 100 50", {"hidden": (100, 50)}),
        ("--sizes 64,256,128", {"sizes": (64, 256, 128)}),
        ("--sizes 64x256x128", {"sizes": (64, 256, 128)}),
        ("--labels y.npy --test-fraction 0.2", {"labels": "y.npy", "test_fraction": 0.2}),
        ("--test_fraction 0.2", {"test_fraction": 0.2}),
        ("--test t.npy", {"test": "t.npy"}),
        ("--precision bf16", {"precision": "bfloat16"}),
        ("--precision FP32", {"precision": "float32"}),
        ("--activation swish ReLU --sizes 9 8 7 --loss mse", {"activation": ("silu", "relu")}),
        ("--loss binary_crossentropy", {"loss": ("bce",)}),
        ("--gpu", {"device": "cuda"}),
        ("--device gpu", {"device": "gpu"}),
        ("--corruption masking:0.1 gaussian:0.2", {"corruption": ("masking:0.1", "gaussian:0.2")}),
        ("--emphasis 1 0.5", {"emphasis": (1.0, 0.5)}),
    ],
)
def test_guesses_that_are_taken_by_train(line, expected):
    config = parse(TrainConfig, line.split())
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("line", "setting", "value"),
    [
        ("--bs 7", "batch_size", 7),
        ("--learning-rate 0.5", "lr", 0.5),
        ("--patience 3", "patience", 3),
        ("--schedule steplr --schedule-options step_size=3", "schedule", "steplr"),
        ("--clip-norm 2", "clip_norm", 2.0),
    ],
)
def test_a_setting_without_a_stage_is_that_of_every_stage(line, setting, value):
    config = parse(TrainConfig, line.split())
    assert [getattr(stage, setting) for stage in config.stages.values()] == [value] * 3


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("--noise 0.2", "--corruption (of the input) or --code-noise"),
        ("--nois 0.2", "--code-noise"),
        ("--verbose", "progress is always shown"),
        ("--wd 0.1", "--optimizer-options weight_decay="),
        ("--weight_decay=0.1", "--optimizer-options weight_decay="),
        ("--latent-dim 2", "did you mean --hidden?"),
        ("--epoch 3", "did you mean --epochs?"),
        ("--supervised-epochs 3", "did you mean --supervised.epochs"),
        ("--output x", "did you mean --out?"),
        ("-o x", "did you mean --out?"),
        ("--zzz", "fastae train --help-all shows all options"),
        ("--activation swsh", "did you mean silu?"),
        ("--activation leakyrelu", "did you mean leaky_relu?"),
        ("--precision half", "did you mean bfloat16?"),
        ("--scaling standart", "did you mean standard?"),
        ("--hidden 10 fish", "--hidden: expected a whole number, got 'fish'"),
        ("--out=", "--out: is empty"),
    ],
)
def test_guesses_that_are_refused_by_train_with_a_way_on(line, answer):
    with pytest.raises(ValueError, match=r"^--?\w") as error:
        parse(TrainConfig, line.split(), "fastae train")
    assert answer in str(error.value)


def test_what_is_suggested_exists():
    flags = {option.flag for option in options.options_of(TrainConfig)}
    for meant in [
        *options._MEANT.values(),
        *(words[0] for flag, words in options._SHORT.items() if flag != "--test"),
    ]:
        assert meant.split()[0] in flags
    assert not {f"--{name}" for name in (*options._MEANT, *options._UNNEEDED)} & flags


def test_shapes_have_one_spelling():
    assert parse(TuneConfig, ["--shapes", "2x3x4", "5x6x7"]).shapes == (Shape(2, 3, 4), Shape(5, 6, 7))
    assert parse(PlotConfig, ["run", "--shape", "8x8"]).shape == (8, 8)
    with pytest.raises(ValueError, match="expected rows x features x units as in 256x784x1000, got '256'"):
        parse(TuneConfig, ["--shapes", "256", "784", "1000"])
