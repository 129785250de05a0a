"""Modules that must be called, because reading their parameters would miss code of theirs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import nn
from torch.nn.modules import module as torch_module

M = TypeVar("M", bound=nn.Module)

_FORWARDS: set[Callable[..., object]] = {nn.Linear.forward}


def reads_like_its_class(cls: type[M]) -> type[M]:
    """Mark a class whose forward only uses the parameters as they are."""
    _FORWARDS.add(cls.forward)
    return cls


def runs_code(module: nn.Module) -> bool:
    """True if a call of ``module`` runs more than its parameters tell.

    Hooks, also those of all modules, may compute a weight (spectral norm, weight norm, pruning), gather it
    (FSDP) or look at the output; a subclass or a replaced ``forward`` may do anything.
    """
    return bool(
        module._forward_pre_hooks
        or module._forward_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in vars(module)
        or type(module).forward not in _FORWARDS
        or (torch_module._has_any_global_hook() and not _only_watched())
    )


def _only_watched() -> bool:
    """True if all global hooks are those by which PyTorch's counters, as of FLOPs, learn where they are."""
    from torch.utils.module_tracker import ModuleTracker

    hooks = torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks
    if torch_module._global_backward_hooks or torch_module._global_backward_pre_hooks:
        return False
    owners = (getattr(hook, "__self__", None) for group in hooks for hook in group.values())
    return all(isinstance(owner, ModuleTracker) for owner in owners)
