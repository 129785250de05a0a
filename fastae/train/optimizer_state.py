"""An optimizer's state as JSON values and tensors, and back, checked against what the optimizer keeps."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

_OF_THE_DEVICE = {"fused", "foreach", "capturable", "differentiable"}


def optimizer_state(optimizer: Optimizer) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(values that JSON can hold, tensors), both by ``<number of the parameter>.<name>``."""
    state, scalars, tensors = optimizer.state_dict(), {}, {}
    for group in state["param_groups"]:
        group["lr"] = float(group["lr"])  # a captured step's is on the device
    for index, entries in state["state"].items():
        for name, value in entries.items():
            (tensors if isinstance(value, Tensor) else scalars)[f"{index}.{name}"] = value
    return {"param_groups": state["param_groups"], "scalars": scalars}, tensors


def restore_optimizer(
    optimizer: Optimizer, make: Callable[[Sequence[Tensor]], Optimizer], values: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Give an optimizer the values that :func:`optimizer_state` took, and tensors to be filled.

    Fused optimizers read and write memory by the size of the parameter, so every tensor has the shape and
    dtype that the optimizer itself gives it. Options are the new optimizer's own.

    Args:
        optimizer: a new one.
        make: makes another one like it for other parameters.
        values: what JSON held.

    Returns:
        The tensors of the optimizer's state, by the names of :func:`optimizer_state`.

    Raises:
        ValueError: a value is missing, unexpected, or of another type; begins with the file's name.
    """
    scalars = values.get("scalars") if isinstance(values, Mapping) else None
    if not isinstance(scalars, Mapping):
        raise ValueError("state.json: optimizer.scalars is missing")
    _check_groups(optimizer, values.get("param_groups"))
    scalars, tensors = dict(scalars), {}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, parameter in enumerate(parameters):
        entries = _entries(make, parameter)
        for name, like in entries.items():
            key = f"{index}.{name}"
            if isinstance(like, Tensor):
                tensors[key] = like
            elif key not in scalars or type(scalars[key]) is not type(like):
                raise ValueError(f"state.json: optimizer.scalars.{key}: expected {type(like).__name__}")
            else:
                entries[name] = scalars.pop(key)
        optimizer.state[parameter] = entries
    if scalars:
        raise ValueError(f"state.json: optimizer.{reprlib.repr(min(scalars))[1:-1]}: is not expected")
    return tensors


def _check_groups(optimizer: Optimizer, groups: Any) -> None:
    """Refuse options of another optimizer; which device they were for makes no difference."""
    own = optimizer.state_dict()["param_groups"]
    if not isinstance(groups, list) or len(groups) != len(own):
        raise ValueError(f"state.json: optimizer.param_groups: expected {len(own)} groups")
    for mine, group in zip(own, groups, strict=True):
        if not isinstance(group, Mapping):
            raise ValueError("state.json: optimizer.param_groups: expected objects")
        if missing := sorted(mine.keys() - group.keys() - _OF_THE_DEVICE):
            raise ValueError(f"state.json: optimizer.param_groups: {missing[0]} is missing")


def _entries(make: Callable[[Sequence[Tensor]], Optimizer], parameter: Tensor) -> dict[str, Any]:
    """An optimizer's state of one parameter after a step, found by taking one on zeros."""
    zeros = torch.zeros_like(parameter).requires_grad_()
    zeros.grad = torch.zeros_like(parameter)
    trial = make([zeros])
    trial.step()
    return dict(trial.state[zeros])
