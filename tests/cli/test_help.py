"""The help: essentials on one screen, everything on request, and what its docstring says of each option."""

import dataclasses
import re

import pytest

from fastae.cli import main
from fastae.commands import COMMANDS, load_command
from fastae.commands.help import command_help
from fastae.commands.options import options_of
from fastae.train import Stage, TrainConfig
from fastae.train.config import attribute_docs


def configurations() -> list[tuple[str, str, type]]:
    """Command, its own command if any, and the class of its options."""
    found = []
    for name in COMMANDS:
        command = load_command(name)
        configs = getattr(command, "CONFIGS", None) or {"": command.Config}
        found += [(name, sub, config) for sub, config in configs.items()]
    return found


CONFIGS = configurations()
IDS = [f"{name} {sub}".strip() for name, sub, _ in CONFIGS]
NOISE = re.compile(r"\{|\(default|None|\[\w+ \[|<class|tyro")


def shown(name: str, sub: str, config: type, everything: bool, width: int, monkeypatch) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(width))
    prog = f"fastae {name} {sub}".strip()
    return command_help(load_command(name), config, prog, everything).splitlines()


@pytest.mark.parametrize(("name", "sub", "config"), CONFIGS, ids=IDS)
def test_the_help_is_one_screen_of_sentences(name, sub, config, monkeypatch):
    lines = shown(name, sub, config, False, 80, monkeypatch)
    text = "\n".join(lines)
    assert len(lines) <= 40 and max(map(len, lines)) <= 80
    assert lines[0].startswith(f"usage: fastae {name}") and not NOISE.search(text)
    narrow = shown(name, sub, config, True, 40, monkeypatch)
    texts = [line.split() for line in narrow if line.startswith("    ") and len(line) > 40]
    assert all(len(words) == 1 for words in texts)  # which cannot be broken


@pytest.mark.parametrize(("name", "sub", "config"), CONFIGS, ids=IDS)
def test_every_option_is_explained_once_by_a_sentence(name, sub, config, monkeypatch):
    lines = shown(name, sub, config, True, 80, monkeypatch)
    for option in options_of(config):
        pattern = rf"  {re.escape(option.flag)}( |$)"
        own = [line for line in lines if re.match(pattern, line.replace("[no-]", ""))]
        once = not option.only_positional and len(option.fields) != 1
        assert len(own) == once, option.flag
        assert len(option.text.split()) >= 2, "not in the docstring"
        assert re.match(r"[A-Z1-9]", option.text) and option.text.rstrip(")").endswith("."), option.text
        assert not option.text.startswith(("Of ", "Whether to ")), "goes on from the option's name"


def test_the_texts_are_those_of_the_docstrings(monkeypatch):
    text = " ".join(" ".join(shown("train", "", TrainConfig, True, 80, monkeypatch)).split())
    docs = {name: doc for base in TrainConfig.__mro__ for name, doc in attribute_docs(base).items()}
    for field in dataclasses.fields(TrainConfig):
        assert field.type == "Stage" or docs[field.name] in text
    assert all(doc in text for doc in attribute_docs(Stage).values())
    assert "Default: 0.001 (supervised: 0.003)." in text  # a stage's own default
    for stage in ("pretrain", "finetune", "supervised"):
        assert text.count(f"--{stage}.") == 1  # as an example: the nine options are listed once


@pytest.mark.parametrize(
    "line", ["--help", "-h", "train --epochs 3 --help", "sae --help", "sae train -h", "info --help-all"]
)
def test_help_is_no_error(fastae_, line):
    code, out, err = fastae_(line)
    assert (code, err) == (0, "") and out.startswith("usage: fastae")


@pytest.mark.parametrize("line", ["", "sae"])
def test_no_command_is_an_error_that_lists_them(fastae_, line):
    code, out, err = fastae_(line)
    assert (code, out) == (2, "") and "\n  train " in err and "--help explains a command" in err


def test_the_version(capsys):
    assert main(["--version"]) == main(["-V"]) == 0
    assert re.fullmatch(r"(fastae \S+\n){2}", capsys.readouterr().out)


def test_the_options_of_one_screen_exist():
    for name in COMMANDS:
        command = load_command(name)
        for names in getattr(command, "ESSENTIAL", {}).values():
            assert set(names) <= {option.name for option in options_of(command.Config)}
