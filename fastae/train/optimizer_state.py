"""An optimizer's state as JSON values and tensors, and back."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim import Optimizer

_OF_THE_DEVICE = ("fused", "foreach", "capturable")  # options that are the new optimizer's own


def optimizer_state(optimizer: Optimizer) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(what JSON can hold, tensors as ``<parameter>.<name>``)."""
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        group["lr"] = float(group["lr"])  # a captured step's is on the device
    scalars, tensors = {}, {}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            (tensors if isinstance(value, Tensor) else scalars)[f"{index}.{name}"] = value
    return {"param_groups": state["param_groups"], "scalars": scalars}, tensors


def restore_optimizer(optimizer: Optimizer, values: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Give an optimizer what :func:`optimizer_state` took; KeyError, TypeError, ValueError: does not fit."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**values["scalars"], **tensors}.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    own = [
        {name: group[name] for name in _OF_THE_DEVICE if name in group} for group in optimizer.param_groups
    ]
    optimizer.load_state_dict({"state": state, "param_groups": values["param_groups"]})
    for group, kept in zip(optimizer.param_groups, own, strict=True):
        group.update(kept)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, entries in state.items():
        kept = optimizer.state[parameters[index]]
        for name, value in entries.items():
            if isinstance(value, Tensor):  # loading casts to the parameter's dtype what had its own
                kept[name] = value.to(kept[name].device)
