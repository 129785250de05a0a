"""Options of a command: read off its dataclass, and parsed by argparse.

Each field is an option. Its type hint says which values fit, and its text in the docstring explains it. A
field that is a dataclass itself, such as a stage of training, makes an option ``--field.name`` of each of its
own fields. Where several fields have that class, ``--name`` sets it in all of them.
"""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from types import NoneType
from typing import Annotated, Any, Literal, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from ..train.config import POSITIONAL, attribute_docs

T = TypeVar("T")

_SHORT = {
    "--bs": ("--batch-size",),
    "--cuda": ("--device", "cuda"),
    "--gpu": ("--device", "cuda"),
    "--learning-rate": ("--lr",),
    "--test": ("--part", "test"),
}
"""What is taken for other words, where the option exists and the flag itself does not."""

_SPELLINGS = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "half": "float16",
    "fp32": "float32",
    "single": "float32",
    "fp64": "float64",
    "double": "float64",
    "swish": "silu",
    "identity": "linear",
    "logistic": "sigmoid",
    "binary_crossentropy": "bce",
    "binary_cross_entropy": "bce",
    "nb": "negative_binomial",
    "l2": "mse",
    "mean_squared_error": "mse",
    "squared_error": "mse",
    "t-sne": "tsne",
    "standardize": "standard",
}
"""Other names of values, taken where the name that they stand for is a choice."""

_MEANT = {
    "amp": "--precision bfloat16",
    "code-size": "--hidden",
    "criterion": "--loss",
    "dataset": "--data",
    "early-stopping": "--patience",
    "fp16": "--precision bfloat16",
    "hidden-dim": "--hidden",
    "hidden-sizes": "--hidden",
    "input": "--data",
    "latent-dim": "--hidden",
    "layers": "--hidden",
    "max-epochs": "--epochs",
    "momentum": "--optimizer-options momentum=0.9",
    "name": "--out",
    "noise": "--corruption (of the input) or --code-noise",
    "num-epochs": "--epochs",
    "o": "--out",
    "output": "--out",
    "output-dir": "--out",
    "random-state": "--seed",
    "save": "--out",
    "target": "--label",
    "test-size": "--test-fraction",
    "val-split": "--validation",
    "validation-split": "--validation",
    "wd": "--optimizer-options weight_decay=0.01",
    "weight-decay": "--optimizer-options weight_decay=0.01",
}
"""What people type for options that have other names."""

_UNNEEDED = {
    "verbose": "progress is always shown",
    "progress": "progress is always shown",
    "quiet": "redirect the output instead, as in > log.txt",
    "num-workers": "rows are read without worker processes",
    "workers": "rows are read without worker processes",
}


@dataclass(frozen=True)
class Option:
    """One option of a command.

    Attributes:
        name: the field's, below the one that holds it: ``pretrain.epochs``.
        hint: the type of its value, without ``None``.
        default: its default; ``dataclasses.MISSING`` where it has to be given.
        text: its explanation.
        group: the class that declares it.
        positional: whether it can be given without its name.
        fields: the fields in which it is set, where it belongs to dataclasses that are fields.
    """

    name: str
    hint: Any
    default: Any
    text: str
    group: type
    positional: bool = False
    fields: tuple[str, ...] = ()

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def required(self) -> bool:
        return self.default is MISSING

    @property
    def only_positional(self) -> bool:
        return self.positional and self.required

    @property
    def choices(self) -> tuple[str, ...]:
        """The values that there are, if they are few and have names."""
        hint = get_args(self.hint)[0] if get_origin(self.hint) is tuple else self.hint
        return get_args(hint) if get_origin(hint) is Literal else getattr(hint, "choices", ())


def options_of(cls: type) -> list[Option]:
    """The options that a configuration's class declares; first its own, then those of its base classes."""
    hints = get_type_hints(cls, include_extras=True)
    texts = {name: text for base in reversed(cls.__mro__) for name, text in attribute_docs(base).items()}
    owners = {name: base for base in cls.__mro__ for name in vars(base).get("__annotations__", ())}
    options: list[Option] = []
    for f in fields(cls):
        if is_dataclass(hints[f.name]):
            continue
        hint, *marks = get_args(hints[f.name]) if get_origin(hints[f.name]) is Annotated else [hints[f.name]]
        hint = next(
            (part for part in get_args(hint) if NoneType in get_args(hint) and part is not NoneType), hint
        )
        options.append(Option(f.name, hint, f.default, texts[f.name], owners[f.name], POSITIONAL in marks))
    for kind, names in _held(cls).items():
        own = options_of(kind)
        options += [replace(option, fields=names) for option in own] if len(names) > 1 else []
        for name in names:
            default = _default(cls, name)
            options += [
                replace(o, name=f"{name}.{o.name}", default=getattr(default, o.name), fields=(name,))
                for o in own
            ]
    return options


def parse(cls: type[T], args: Sequence[str], prog: str = "fastae") -> T:
    """The configuration that a command line asks for.

    Raises:
        ValueError: for an unknown option, or a value that does not fit; begins with the option.
    """
    options = options_of(cls)
    parser = _Parser(prog=prog, add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for option in options:
        if option.only_positional:
            continue
        spellings = dict.fromkeys((option.flag, f"--{option.name}"))
        if option.hint is bool:
            parser.add_argument(*spellings, dest=option.name, action=argparse.BooleanOptionalAction)
        elif get_origin(option.hint) is tuple:
            items = get_args(option.hint)
            count = "+" if items[-1] is Ellipsis else len(items)
            parser.add_argument(*spellings, dest=option.name, nargs=count)
        else:
            parser.add_argument(*spellings, dest=option.name)
    flags = {option.flag for option in options}
    short = {flag: words for flag, words in _SHORT.items() if flag not in flags and words[0] in flags}
    given, rest = parser.parse_known_args([word for given in args for word in short.get(given, (given,))])
    values = vars(given)
    for word in rest:
        if word.startswith("-"):
            raise ValueError(_unknown(word.partition("=")[0], options, prog))
    for option in options:
        if option.positional and rest:
            if option.name in values:
                raise ValueError(f"{option.flag}: was given twice, as {values[option.name]} and {rest[0]}")
            values[option.name] = rest.pop(0)
        if option.required and option.name not in values:
            name = option.name.upper() if option.only_positional else option.flag
            raise ValueError(f"{name}: is needed; {prog} --help shows how")
    if rest:
        raise ValueError(f"{rest[0]!r} was not expected; {prog} --help shows the options")
    hints = {option.name: (option.flag, option.hint) for option in options}
    config = _build(cls, {name: _typed(*hints[name], value) for name, value in values.items()})
    names = {
        f"{field}.{option.name}" if len(option.fields) > 1 else option.name
        for option in options
        if option.name in values
        for field in option.fields or [""]
    }
    object.__setattr__(config, _GIVEN, frozenset(names))
    return config


def given_options(config: Any) -> frozenset[str]:
    """The fields that were given on the command line of a configuration, as ``lr`` or ``pretrain.lr``."""
    return getattr(config, _GIVEN, frozenset())


_GIVEN = "_given"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message.removeprefix("argument ").replace("/--no-", ", --no-"))


def _held(cls: type) -> dict[type, tuple[str, ...]]:
    """The fields that are dataclasses themselves, by their class."""
    hints, held = get_type_hints(cls), {}
    for f in fields(cls):
        if is_dataclass(hints[f.name]):
            held[hints[f.name]] = (*held.get(hints[f.name], ()), f.name)
    return held


def _default(cls: type, name: str) -> Any:
    (f,) = (f for f in fields(cls) if f.name == name)
    return f.default if f.default_factory is MISSING else f.default_factory()


def _build(cls: Any, given: Mapping[str, Any]) -> Any:
    """A configuration of the values given by the names of options."""
    held = {name: kind for kind, names in _held(cls).items() for name in names}
    values = {f.name: given[f.name] for f in fields(cls) if f.name in given and f.name not in held}
    for name, kind in held.items():
        settings = {}
        for f in fields(kind):
            for key in (f.name, f"{name}.{f.name}"):  # the option of one field goes before that of all
                if key in given:
                    settings[f.name] = given[key]
        values[name] = replace(_default(cls, name), **settings)
    return cls(**values)


# --- values -----------------------------------------------------------------------------------------------


def _typed(flag: str, hint: Any, value: Any) -> Any:
    """The words of a command line as a value of a type."""
    if hint is bool:
        return value
    if hint is str and not value:
        raise ValueError(f"{flag}: is empty")  # which as a path would be the current folder
    if get_origin(hint) is not tuple:
        return _single(flag, hint, value)
    kind = get_args(hint)[0]
    return tuple(_single(flag, kind, item) for word in value for item in _items(kind, word))


def _items(kind: Any, word: str) -> Iterator[str]:
    """The values of a word: 64,32 and 28x28 are two."""
    separators = {str: None, int: "[,x]"}
    yield from re.split(pattern, word.strip(",")) if (pattern := separators.get(kind, ",")) else [word]


def _single(flag: str, hint: Any, word: str) -> Any:
    if get_origin(hint) is Literal:
        return _choice(flag, get_args(hint), word)
    if hint is bool:
        return _choice(flag, ("True", "False"), word) == "True"
    if choices := getattr(hint, "choices", None):
        name, colon, number = word.partition(":")
        return _choice(flag, choices, name) + colon + number
    if parse := getattr(hint, "parse", None):
        return parse(word)
    expected = {int: "a whole number", float: "a number"}
    try:
        return hint(word)
    except ValueError:
        raise ValueError(f"{flag}: expected {expected.get(hint, hint.__name__)}, got {word!r}") from None


def _choice(flag: str, choices: Sequence[str], word: str) -> str:
    known = {name: choice for name, choice in _SPELLINGS.items() if choice in choices}
    known |= {choice.lower(): choice for choice in choices}
    if word.lower() in known:
        return known[word.lower()]
    close = difflib.get_close_matches(_SPELLINGS.get(word.lower(), word.lower()), known, n=1)
    hint = f"; did you mean {known[close[0]]}?" if close else ""
    raise ValueError(f"{flag}: {word!r} is not one of {', '.join(choices)}{hint}")


# --- guesses ----------------------------------------------------------------------------------------------


def _unknown(flag: str, options: Sequence[Option], prog: str) -> str:
    """Why a flag is refused, and which one may have been meant."""
    name, flags = (
        flag.lstrip("-").replace("_", "-").lower(),
        {o.flag for o in options if not o.only_positional},
    )
    known = {other: meant for other, meant in _MEANT.items() if meant.split()[0] in flags}
    known |= {flag[2:]: flag for flag in flags}
    close = [name] if name in known else difflib.get_close_matches(name, sorted(known), n=2)
    meant = " or ".join(dict.fromkeys(known[other] for other in close))
    if name in _UNNEEDED:
        return f"{flag}: is not an option of {prog}; {_UNNEEDED[name]}"
    hint = f"did you mean {meant}?" if meant else f"{prog} --help-all shows all options"
    return f"{flag}: is not an option of {prog}; {hint}"
