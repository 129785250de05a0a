"""Operators declared by typed Python functions: one signature, its documentation, and its shapes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, get_type_hints

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

DECLARATIONS: dict[str, Callable[..., Any]] = {}
"""The declaring functions by operator name."""

_LIBRARY = torch.library.Library("fastae", "DEF")


def operator(implementation_of: Callable[[str, torch.device], Callable[..., Any]]):
    """Make a decorator that turns a typed function into the operator ``fastae::<name>``.

    The function's signature becomes the operator's schema, defaults included, and its body computes the
    shapes of the results without data. It returns a tensor, or a named tuple of tensors; a call of the
    operator returns the same type.

    Args:
        implementation_of: gives the implementation of an operator for a device. Implementations have the
            declaration's parameters and return a tensor or a tuple of tensors.
    """

    def declare(function: Callable[P, R]) -> Callable[P, R]:
        name = function.__name__
        DECLARATIONS[name] = function
        schema, result = _schema(function)
        _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))

        def dispatch(first: Tensor, *args: Any, **options: Any) -> Any:
            return implementation_of(name, first.device)(first, *args, **options)

        _LIBRARY.impl(name, dispatch, "CompositeExplicitAutograd")
        # gradients are put around the operators, not into them: nothing to look up there at every call
        _LIBRARY.impl(name, torch.library.fallthrough_kernel, "Autograd")
        fake = function if result is Tensor else lambda *args, **options: tuple(function(*args, **options))  # pyright: ignore[reportArgumentType, reportCallIssue]
        torch.library.register_fake(f"fastae::{name}", fake, lib=_LIBRARY)
        overload = getattr(torch.ops.fastae, name).default
        if result is Tensor:
            return overload

        @functools.wraps(function)
        def call(*args: P.args, **options: P.kwargs) -> R:
            return result(*overload(*args, **options))  # pyright: ignore[reportReturnType]

        return call

    return declare


def _schema(function: Callable[..., Any]) -> tuple[str, Any]:
    """The schema of a declaring function, and the type that it returns."""
    hints = get_type_hints(function)
    result = hints.pop("return")
    signature = inspect.signature(function)
    parameters = [p.replace(annotation=hints[p.name]) for p in signature.parameters.values()]
    returned = Tensor if result is Tensor else tuple[(Tensor,) * len(result._fields)]

    def prototype() -> None: ...

    prototype.__signature__ = inspect.Signature(parameters, return_annotation=returned)  # pyright: ignore[reportFunctionMemberAccess]
    return torch.library.infer_schema(prototype, mutates_args=()), result
