"""Layers whose units are spread over processes."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..gradients import UnitShard
from ..nn import Autoencoder, EncoderLayer
from ..nn.calls import runs_code
from .spread import spread_tensors

M = TypeVar("M", bound=nn.Module)


def shard_units(module: M, group: Any = None) -> M:
    """Keep this process's part of every layer's units; returns the module, changed in place.

    Each process holds about the same number of units of every :class:`~fastae.nn.Autoencoder` (and other
    :class:`~fastae.nn.EncoderLayer`) in the module, in multiples of 16 but for the last ones: their rows of
    the encoder's weight, their biases, and their columns of the decoder's weight. It holds the whole bias of
    the decoder. All processes of the group call the module with the same rows, and losses, codes and
    gradients are those of whole layers. A step sums one matrix of the input's size over the processes, and
    the penalties. Make the optimizer afterwards; it has to treat each entry alone, as Adam does. Start from
    the same module everywhere, as from a common seed.

        layer = shard_units(Autoencoder(4096, 2**20, contractive=0.1))
        step = TrainingStep(layer, torch.optim.Adam(layer.parameters()))

    Noise is a function of the row and of the unit's place in the whole layer. Seed all processes of a group
    alike. Processes outside of the group may hold the same part and train on other rows; sum their gradients
    as usual.

    Args:
        module: with whole layers, the same in every process.
        group: a process group, as ``mesh.get_group("parts")``; all processes by default.

    Raises:
        ValueError: a process would have no unit of a layer, or a layer is sharded already or has hooks.
    """
    encoders = [part for part in module.modules() if isinstance(part, EncoderLayer)]
    if not encoders:
        raise ValueError(f"module: expected one with an Autoencoder, got {type(module).__name__}")
    if any(encoder.shard is not None for encoder in encoders):
        raise ValueError("module: expected whole layers, got one that is sharded")
    layers = [part for part in module.modules() if isinstance(part, Autoencoder)]
    if any(map(runs_code, [*encoders, *layers, *(layer.decoder for layer in layers)])):
        raise ValueError("module: expected layers without hooks or a forward of their own")
    shards = [UnitShard.of(encoder.out_features, group) for encoder in encoders]
    for encoder, shard in zip(encoders, shards, strict=True):
        encoder.shard = shard
    for name, (shard, dim) in spread_tensors(module).items():
        _put(module, name, shard.own(module.get_parameter(name), dim))
    return module


def gather_units(module: M) -> M:
    """Make the layers that :func:`shard_units` has split whole again, in every process of the group."""
    for name, (shard, dim) in spread_tensors(module).items():
        _put(module, name, shard.gather(module.get_parameter(name).detach(), dim))
    for part in module.modules():
        if isinstance(part, EncoderLayer):
            part.shard = None
    return module


@torch.no_grad()
def _put(module: nn.Module, name: str, value: Tensor) -> None:
    parameter = module.get_parameter(name)
    parameter.data = value.detach().clone(memory_format=torch.contiguous_format)
    parameter.grad = None
