"""The help of a command: the most used options on one screen, or all of them."""

from __future__ import annotations

import inspect
import re
import shutil
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import MISSING
from typing import Any, get_args, get_origin

from .options import Option, options_of

_COLUMN, _LEAST_WIDTH, _WIDTH = 26, 30, 100
_LONGEST_CHOICES = 22
_PLAIN = ("Default: 0.", "Default: none.", "Default: auto.")  # not worth their place on one screen
_CITATION = re.compile(r"\s\([^()]*\d{4}[^()]*\)")
_METAVARS = {
    "compare": "A B",
    "corruption": "NOISE",
    "data": "DATA",
    "device": "DEVICE",
    "drop": "COLUMN",
    "label": "COLUMN",
    "labels": "FILE",
    "optimizer_options": "NAME=VALUE",
    "out": "PATH",
    "report": "FILE",
    "schedule_options": "NAME=VALUE",
    "shape": "HxW",
    "shapes": "MxDxH",
    "test": "FILE",
    "why": "MxDxH",
}
_BY_TYPE = {int: "N", float: "X", str: "NAME", bool: "True|False"}


def command_help(command: Any, config: type, prog: str, everything: bool) -> str:
    """The help of a command.

    Args:
        command: its module, which may have ``EXAMPLES`` and ``ESSENTIAL``; see :mod:`fastae.commands`.
        config: its configuration.
        prog: the command as it is typed.
        everything: whether to show all options, and all that is said about them.
    """
    width = min(max(shutil.get_terminal_size().columns, _LEAST_WIDTH), _WIDTH)
    essential: dict[str, tuple[str, ...]] = getattr(command, "ESSENTIAL", {})
    options = options_of(config)
    operands = [o.name.upper() if o.required else f"[{o.name.upper()}]" for o in options if o.positional]
    about, _, more = (inspect.getdoc(config) or "").partition("Attributes:")[0].strip().partition("\n\n")
    about = getattr(command, "ABOUT", about)
    lines = [" ".join(("usage:", prog, *operands, "[OPTIONS]")), "", *_wrapped(about, width)]
    if more and (everything or not essential):
        lines += ["", *_wrapped(more, width)]
    if examples := [line for line in getattr(command, "EXAMPLES", ()) if line.startswith(f"{prog} ")]:
        lines += ["", "examples:", *(f"  {example}" for example in examples)]
    if everything or not essential:
        for heading, members, note in _groups(options, config):
            lines += ["", *_wrapped(f"{heading}:", width), *_wrapped(note, width, "  ")]
            lines += [line for option in members for line in _entry(option, options, width, everything=True)]
    else:
        named = {option.name: option for option in options}
        for heading, names in essential.items():
            lines += ["", f"{heading}:"]
            lines += [line for n in names for line in _entry(named[n], options, width, everything=False)]
        lines += ["", *_wrapped(f"{prog} --help-all explains all options.", width)]
    return "\n".join(lines)


def _groups(options: list[Option], config: type) -> Iterator[tuple[str, list[Option], str]]:
    """Heading, options and note of each group: by the class that declares them."""
    plain = [option for option in options if not option.fields]
    for owner in dict.fromkeys(option.group for option in plain):
        members = [option for option in plain if option.group is owner]
        title = "options" if owner is config else (inspect.getdoc(owner) or "").partition(".")[0]
        yield title, members, ""
    for owner in dict.fromkeys(option.group for option in options if len(option.fields) > 1):
        members = [o for o in options if o.group is owner and len(o.fields) > 1]
        names = members[0].fields
        own = ", ".join(f"--{name}.{members[0].name}" for name in names)
        note = f"A plain {members[0].flag} sets it in all of {', '.join(names)}; {own} in one of them."
        yield (inspect.getdoc(owner) or "").partition(".")[0], members, note


def _entry(option: Option, options: Iterable[Option], width: int, *, everything: bool) -> list[str]:
    """An option and what it does, in two columns or, where there is little room, below each other."""
    first = re.split(r"[.;:]\s", _CITATION.sub("", option.text))[0].rstrip(".")
    parts = [option.text if everything else f"{first}."]
    if everything and option.choices and not _are_short(option.choices):
        parts.append(f"One of {', '.join(option.choices)}.")
    if (default := _default_of(option, options)) and (everything or default not in _PLAIN):
        parts.append(default)
    head = f"  {_head(option)}"
    if width < 2 * _COLUMN:
        return [head, *_wrapped(" ".join(parts), width, "    ")]
    lines = _wrapped(" ".join(parts), width, " " * _COLUMN)
    if len(head) < _COLUMN - 1:
        return [head + lines[0][len(head) :], *lines[1:]]
    return [head, *lines]


def _are_short(choices: tuple[str, ...]) -> bool:
    """Whether choices can stand in place of a value's name."""
    return bool(choices) and len("|".join(choices)) <= _LONGEST_CHOICES


def _head(option: Option) -> str:
    """The option as it is typed."""
    if option.only_positional:
        return option.name.upper()
    if option.hint is bool:
        return f"--[no-]{option.flag[2:]}" if option.default else option.flag
    name = option.name.rpartition(".")[2]
    items = get_args(option.hint) if get_origin(option.hint) is tuple else (option.hint,)
    metavar = _METAVARS.get(name) or _BY_TYPE.get(items[0], "NAME")
    if _are_short(option.choices):
        metavar = "|".join(option.choices)
    if get_origin(option.hint) is not tuple or name == "compare":
        return f"{option.flag} {metavar}"
    several = f"{metavar} ..." if items[-1] is Ellipsis else " ".join([metavar] * len(items))
    return f"{option.flag} {several}"


def _default_of(option: Option, options: Iterable[Option]) -> str:
    """A sentence on the default, and on those of single fields that differ from it."""
    if "default" in option.text:
        return ""
    shown = _shown(option.default)
    if len(option.fields) > 1:
        own = {o.fields[0]: o.default for o in options if o.name.endswith(f".{option.name}")}
        differing = [f"{name}: {_shown(value)}" for name, value in own.items() if value != option.default]
        if differing:
            shown = f"{shown} ({', '.join(differing)})"
    if option.hint is bool:
        return "On by default." if option.default is True else ""
    return f"Default: {shown}." if shown else ""


def _shown(default: Any) -> str:
    if default is MISSING or default is None:
        return ""
    if type(default) is tuple:
        return " ".join(map(_shown, default))
    return f"{default:g}" if isinstance(default, float) else str(default)


def _wrapped(text: str, width: int, indent: str = "") -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()),
        width,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
