"""Every option is in the help, with what its docstring says."""

import dataclasses
import re

import pytest

from fastae.train import Stage, TrainConfig
from fastae.train.config import attribute_docs
from tests.cli.support import flat, python


def documented(cls: type, prefix: str = "") -> dict[str, str]:
    """The options of a configuration and what the docstrings of its classes say of each."""
    docs = {name: text for base in cls.__mro__ for name, text in attribute_docs(base).items()}
    names = [field.name for field in dataclasses.fields(cls)]
    return {f"--{prefix}{name.replace('_', '-')}": docs.get(name, "") for name in names}


def options_of_train() -> dict[str, str]:
    options = documented(TrainConfig)
    for stage in ("pretrain", "finetune", "supervised"):
        del options[f"--{stage}"]
        options |= documented(Stage, f"{stage}.")
    return options


@pytest.fixture(scope="module")
def train_help() -> str:
    result = python(
        "import sys; from fastae.cli import main; sys.exit(main())", "train", "--help", COLUMNS="80"
    )
    assert (result.returncode, result.stderr) == (0, "")
    return flat(result.stdout[result.stdout.index("-h, --help") :])  # the examples above name options, too


@pytest.mark.parametrize("option", options_of_train())
def test_the_help_of_train_explains_every_option(train_help, option):
    text = options_of_train()[option]
    assert len(text.split()) >= 2, "not in the docstring"
    entries = re.split(r" (?=--[a-z])", train_help)
    (number,) = (i for i, entry in enumerate(entries) if re.match(rf"{re.escape(option)}(,| |$)", entry))
    own = entries[number]
    if own.endswith(","):  # "--classifier, --no-classifier whether ..."
        own = entries[number + 1]
    assert text[:40] in own and "(default: " in own


@pytest.mark.parametrize("command", ["", "train", "encode", "evaluate", "info"])
def test_help_is_no_error(fastae_, command):
    code, out, err = fastae_(f"{command} --help")
    assert (code, err) == (0, "") and "usage: fastae" in out


@pytest.mark.parametrize("command", ["encode", "evaluate"])
def test_the_other_commands_explain_their_options(fastae_, command):
    text = flat(fastae_(f"{command} --help").out)
    for word in ("a run's folder, or one checkpoint's", "by default the one the run was trained on"):
        assert word in text
