"""Tensors of a run whose units are spread over processes: each one's own, and the whole of checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor, nn

from ..distributed import spread_tensors
from ..distributed.spread import Spread
from .checkpoint_files import StoredTensors, read_tensors


def whole_parameters(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a module's state with all units.

    All processes of the group have to take them. Each tensor is whole only until the next one is taken,
    unless it is kept.
    """
    return _whole(module.state_dict().items(), spread_tensors(module))


def whole_state(module: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """A stage's tensors, as its runner saves them, with all units; see :func:`whole_parameters`."""
    return _whole(tensors.items(), _spread_of_state(module, tensors))


def own_state(module: nn.Module, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A stage's stored tensors with this process's units; those of another size stay as they are."""
    spread = _spread_of_state(module, tensors)
    if not spread:
        return tensors
    own = read_tensors(tensors.path, "cpu") if isinstance(tensors, StoredTensors) else dict(tensors)
    for name, (shard, dim) in spread.items():
        if own[name].shape[dim] == shard.total:
            own[name] = shard.own(own[name], dim)
    return own


def _whole(tensors: Iterable[tuple[str, Tensor]], spread: Spread) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors:
        if name in spread:
            shard, dim = spread[name]
            tensor = shard.gather(tensor.detach(), dim)
        yield name, tensor


def _spread_of_state(module: nn.Module, tensors: Mapping[str, Tensor]) -> Spread:
    """Who holds the parts of a stage's tensors: of the optimizer's state and of the best parameters."""
    spread, found = spread_tensors(module), {}
    state, names = module.state_dict(), [name for name, _ in module.named_parameters()]
    for key, tensor in tensors.items():
        kind, _, name = key.partition(".")
        if kind == "optimizer":
            index = name.partition(".")[0]
            name = names[int(index)] if index.isdigit() and int(index) < len(names) else ""
        if name in spread and tensor.dim() == state[name].dim():  # and no count of steps
            found[key] = spread[name]
    return found
