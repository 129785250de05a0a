"""Tensors of modules of which processes hold parts, by their units or latents."""

from __future__ import annotations

from torch import Tensor, nn

from ..gradients import UnitShard
from ..nn import Autoencoder, EncoderLayer
from ..sparse.module import SparseAutoencoder

Spread = dict[str, tuple[UnitShard, int]]
"""Who holds the parts of a tensor, and the dimension of its units, by name."""


def spread_tensors(module: nn.Module) -> Spread:
    """The parameters and buffers of a module of which this process holds some units."""
    spread: Spread = {}
    for prefix, part in module.named_modules():
        shard = getattr(part, "shard", None)
        if shard is not None:
            spread |= {f"{prefix}.{name}".lstrip("."): (shard, dim) for name, dim in unit_dims(part).items()}
    return spread


def unit_dims(module: nn.Module) -> dict[str, int]:
    """The dimension of units of a module's own tensors, by name; those without one are left out."""
    if isinstance(module, EncoderLayer):
        return {name: 0 for name, _ in module.named_parameters()}
    if isinstance(module, SparseAutoencoder):
        named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        return {name: 0 for name, t in named.items() if name not in ("decoder.bias", "skip") and t.dim()}
    return {"decoder.weight": 1} if isinstance(module, Autoencoder) and not module.options.tied else {}


def shards_of(module: nn.Module) -> dict[Tensor, UnitShard]:
    """Who holds the other parts of each of a module's parameters of which this process has one."""
    parameters = dict(module.named_parameters())
    return {
        parameters[name]: shard for name, (shard, _) in spread_tensors(module).items() if name in parameters
    }
