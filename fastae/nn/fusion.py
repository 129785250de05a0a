"""Replacing (nn.Linear, activation) pairs of an existing model by fused layers."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

from torch import nn

from .encoder import EncoderLayer

_NAMES: dict[type[nn.Module], Callable[[Any], str | None]] = {
    nn.Sigmoid: lambda module: "sigmoid",
    nn.Tanh: lambda module: "tanh",
    nn.ReLU: lambda module: "relu",
    nn.LeakyReLU: lambda module: "leaky_relu" if module.negative_slope == 0.01 else None,
    nn.Softplus: lambda module: "softplus" if module.beta == 1 and module.threshold >= 20 else None,
    nn.ELU: lambda module: "elu" if module.alpha == 1 else None,
    nn.SELU: lambda module: "selu",
    nn.GELU: lambda module: "gelu" if module.approximate == "none" else "gelu_tanh",
    nn.SiLU: lambda module: "silu",
    nn.Softsign: lambda module: "softsign",
    nn.Mish: lambda module: "mish",
    nn.Hardtanh: lambda module: "hardtanh" if (module.min_val, module.max_val) == (-1, 1) else None,
    nn.ReLU6: lambda module: "relu6",
}


def _activation_name(module: nn.Module) -> str | None:
    """The fused name of an activation module, or ``None`` where it or its settings have no fused form."""
    name = _NAMES.get(type(module))
    return None if name is None else name(module)


def _has_hooks(module: nn.Module) -> bool:
    return any(
        getattr(module, name, None)
        for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    )


def fuse(model: nn.Module) -> nn.Module:
    """A copy of ``model`` with every (``nn.Linear``, activation) pair of its ``nn.Sequential``s fused.

    Parameters and the other modules without children are shared with ``model``, whose structure stays as it
    was. The fused layer takes the linear layer's place and an ``nn.Identity`` the activation's: state_dicts
    and indices stay the same. Pairs that would not compute the same are left alone: subclasses, modules with
    hooks, and activations with settings other than PyTorch's defaults.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    return _copy(model, {})


def _copy(module: nn.Module, done: dict[int, nn.Module]) -> nn.Module:
    if id(module) in done:
        return done[id(module)]
    if not module._modules:
        return module
    clone = module.__new__(type(module))
    done[id(module)] = clone
    # dictionaries of their own: what is registered or replaced in one must not show in the other
    clone.__dict__.update({k: copy.copy(v) if isinstance(v, dict) else v for k, v in vars(module).items()})
    modules = clone._modules
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        names = list(modules)
        for name, following in itertools.pairwise(names):
            linear, activation = modules[name], modules[following]
            if type(linear) is not nn.Linear or activation is None:
                continue
            fused = _activation_name(activation)
            if fused is None or _has_hooks(linear) or _has_hooks(activation):
                continue
            modules[name] = EncoderLayer.from_linear(linear, fused)
            modules[following] = nn.Identity().train(activation.training)
    for name, child in modules.items():
        if child is not None:
            modules[name] = _copy(child, done)
    return clone
