"""Replacing (nn.Linear, activation) pairs of an existing model by fused layers."""

from __future__ import annotations

import copy
import itertools

from torch import nn

from .encoder import EncoderLayer


def _activation_name(module: nn.Module) -> str | None:
    """The fused name of an activation module, or ``None`` where its settings have no fused form."""
    match module:
        case nn.LeakyReLU():
            return "leaky_relu" if module.negative_slope == 0.01 else None
        case nn.Softplus():
            return "softplus" if module.beta == 1 else None
        case nn.ELU():
            return "elu" if module.alpha == 1.0 else None
        case nn.GELU():
            return "gelu" if module.approximate == "none" else "gelu_tanh"
        case _:
            return _PLAIN.get(type(module))


_PLAIN: dict[type[nn.Module], str] = {
    nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh",
    nn.ReLU: "relu",
    nn.SELU: "selu",
    nn.SiLU: "silu",
    nn.Softsign: "softsign",
}


def _has_hooks(module: nn.Module) -> bool:
    return any(
        getattr(module, name, None)
        for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    )


def fuse(model: nn.Module) -> nn.Module:
    """A copy of ``model`` with every (``nn.Linear``, activation) pair of its ``nn.Sequential``s fused.

    Parameters and all other modules are shared with ``model``, which is left as it was. The fused layer
    takes the linear layer's place and an ``nn.Identity`` the activation's: state_dicts and indices stay the
    same. Pairs that would not compute the same are left alone: subclasses, modules with hooks, and
    activations with settings other than PyTorch's defaults.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    return _copy(model, {})


def _copy(module: nn.Module, done: dict[int, nn.Module]) -> nn.Module:
    if id(module) in done:
        return done[id(module)]
    if not module._modules:
        return module
    clone = copy.copy(module)
    done[id(module)] = clone
    # copy.copy shares the dictionaries; the model's own must not see the replacements
    clone.__dict__["_modules"] = modules = dict(module._modules)
    if isinstance(module, nn.Sequential):
        names = list(modules)
        for name, following in itertools.pairwise(names):
            linear, activation = modules[name], modules[following]
            if type(linear) is not nn.Linear or activation is None:
                continue
            fused = _activation_name(activation)
            if fused is None or _has_hooks(linear) or _has_hooks(activation):
                continue
            modules[name] = EncoderLayer.from_linear(linear, fused)
            modules[following] = nn.Identity()
    for name, child in modules.items():
        if child is not None:
            modules[name] = _copy(child, done)
    return clone
