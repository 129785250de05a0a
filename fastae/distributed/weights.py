"""Modules whose parameters are split over processes by PyTorch's ``fully_shard`` (FSDP2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from ..nn import StackedAutoencoder
from .mesh import PARTS

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def split_weights(module: nn.Module, mesh: DeviceMesh) -> None:
    """Keep this process's part of every parameter of a module, which is changed in place.

    Parameters are gathered while the module is called and in its part of the backward pass. Of a stack or a
    sequence the layers are split one by one, so that at most two of them are whole at a time; those that are
    split already stay as they are. Gradients are summed over all processes of the mesh. Modules on the meta
    device take no memory until ``to_empty``.

    All processes have to call this function alike, and the module; first the outermost one, without
    gradients, where layers are also called by themselves.

    Args:
        module: a stack, a sequence or a layer.
        mesh: of :func:`make_mesh`.
    """
    layers: list[nn.Module] = []
    if isinstance(module, StackedAutoencoder):
        layers = list(module.layers)
    elif isinstance(module, nn.Sequential):
        layers = [layer for layer in module if any(True for _ in layer.parameters())]
    for part in (*layers, module):
        _split(part, mesh)


def _split(module: nn.Module, mesh: DeviceMesh) -> None:
    from torch.distributed.fsdp import FSDPModule, fully_shard

    if isinstance(module, FSDPModule):
        return
    grid = mesh if mesh.size(0) > 1 else mesh[PARTS]
    split = fully_shard(module, mesh=grid)
    # losses are weighed by the share of the rows: gradients are sums over processes
    split.set_gradient_divide_factor(1.0)
    split.set_force_sum_reduction_for_comms(True)  # or float32 takes an operation that only NCCL has
