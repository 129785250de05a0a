"""Values checked against type hints: what a file or a caller gives becomes plain Python values."""

from __future__ import annotations

import operator
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from numbers import Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np


def typed(name: str, value: Any, hint: Any) -> Any:
    """``value`` as the type that ``hint`` names.

    NumPy's numbers become Python's, lists become tuples, and mappings become dataclasses, where the hint says
    so. A single value where the hint is ``tuple[T, ...]`` becomes a tuple of one.

    Raises:
        ValueError: the value does not fit; begins with ``name``.
    """
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, UnionType):
        if value is None and NoneType in args:
            return None
        (hint,) = (option for option in args if option is not NoneType)
        return typed(name, value, hint)
    if (choices := args if origin is Literal else getattr(hint, "choices", None)) is not None:
        if not isinstance(value, str) or (value if origin else value.partition(":")[0]) not in choices:
            raise ValueError(f"{name}: {reprlib.repr(value)} is not one of {', '.join(choices)}")
        return value
    if origin is tuple:
        return _tuple(name, value, args)
    if origin is list and isinstance(value, list):
        return [typed(f"{name}[{number}]", item, args[0]) for number, item in enumerate(value)]
    if origin is dict and isinstance(value, Mapping):
        return {
            typed(name, key, args[0]): typed(f"{name}.{reprlib.repr(key)[1:-1]}", item, args[1])
            for key, item in value.items()
        }
    if is_dataclass(hint):
        return _dataclass(name, value, hint)
    return _plain(name, value, hint)


def typed_fields(cls: type, values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The fields of a dataclass from a mapping, each as its type hint says.

    Raises:
        ValueError: a field that the class does not have, that has no default and is missing, or that does
            not fit; named.
    """
    hints = _hints(cls)
    if unknown := [str(name) for name in values if name not in hints]:
        raise ValueError(f"{prefix}{reprlib.repr(unknown[0])[1:-1]}: is not known")
    required = {f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING}
    if missing := sorted(required - values.keys()):
        raise ValueError(f"{prefix}{missing[0]}: is missing")
    return {name: typed(f"{prefix}{name}", value, hints[name]) for name, value in values.items()}


@cache
def _hints(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in fields(cls)}


def _tuple(name: str, value: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    several = isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)
    if len(args) == 2 and args[1] is Ellipsis:
        items = tuple(value) if several else (value,)
        args = (args[0],) * len(items)
    else:
        items = tuple(value) if several else ()
        if len(items) != len(args):
            raise ValueError(f"{name}: expected {len(args)} values, got {reprlib.repr(value)}")
    return tuple(typed(name, item, hint) for item, hint in zip(items, args, strict=True))


def _dataclass(name: str, value: Any, cls: Any) -> Any:
    if isinstance(value, cls):
        value = {field.name: getattr(value, field.name) for field in fields(cls)}
    elif not isinstance(value, Mapping):
        raise ValueError(f"{name}: expected {cls.__name__}, got {reprlib.repr(value)}")
    return cls(**typed_fields(cls, value, f"{name}."))


def _plain(name: str, value: Any, kind: Any) -> Any:
    if kind is bool and isinstance(value, bool | np.bool_):
        return bool(value)
    if kind is str and isinstance(value, str):
        return str(value)
    if kind is int and not isinstance(value, bool | np.bool_):
        try:
            return operator.index(value)
        except TypeError:
            raise ValueError(f"{name}: must be a whole number, got {reprlib.repr(value)}") from None
    if kind is float and isinstance(value, Real) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ValueError(f"{name}: is beyond float64") from None
    words = {bool: "true or false", float: "a number", str: "text"}
    raise ValueError(f"{name}: expected {words.get(kind, kind)}, got {reprlib.repr(value)}")
