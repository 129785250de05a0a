"""The modules of a run, whole or split over processes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..distributed import split_weights
from ..nn import Autoencoder, Options, StackedAutoencoder

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def new_stack(
    sizes: Sequence[int],
    options: Sequence[Options],
    probes: int,
    dtype: torch.dtype,
    device: torch.device,
    mesh: DeviceMesh | None,
) -> StackedAutoencoder:
    """A stack with parameters drawn on the host, the same with and without a mesh; one layer at a time.

    With a mesh it is on the device, without one on the host.
    """
    if mesh is None:
        return StackedAutoencoder(sizes, options, probes=probes, dtype=dtype)
    stack = StackedAutoencoder(sizes, options, probes=probes, dtype=dtype, device="meta")
    for number, own in enumerate(options):
        layer = Autoencoder(sizes[number], sizes[number + 1], own, dtype=dtype).to(device)
        stack.layers[number] = layer
        split_weights(layer, mesh)
    split_weights(stack, mesh)
    return stack


@torch.no_grad()
def new_classifier(
    stack: StackedAutoencoder, classes: int, dropout: float, input_dropout: float, mesh: DeviceMesh | None
) -> nn.Sequential:
    """A classifier with encoders of its own, which start as those of the stack."""
    if mesh is None:
        return copy.deepcopy(stack).classifier(classes, dropout, input_dropout)
    options = [layer.options for layer in stack.autoencoders]
    first = stack.autoencoders[0].encoder.weight
    fresh = StackedAutoencoder(stack.sizes, options, device="meta", dtype=first.dtype)
    classifier = fresh.classifier(classes, dropout, input_dropout)
    split_weights(classifier, mesh)
    classifier.to_empty(device=first.device)
    for own, layer in zip(fresh.autoencoders, stack.autoencoders, strict=True):
        own.encoder.load_state_dict(layer.encoder.state_dict())
    for parameter in classifier[-1].parameters():
        parameter.zero_()
    return classifier


def check_optimizer(make: Callable[[Sequence[Tensor]], Optimizer], mesh: DeviceMesh) -> None:
    """Take a step on small parameters of which each process has a part; whatever the optimizer raises."""
    linear = nn.Linear(2, 2 * mesh.size())
    split_weights(linear, mesh)
    parameters = list(linear.parameters())
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    make(parameters).step()


@torch.no_grad()
def settle(stack: StackedAutoencoder) -> StackedAutoencoder:
    """Call a split stack once, before its layers: FSDP2 takes what is called first for the root."""
    weight = stack.autoencoders[0].encoder.weight
    stack.eval()(torch.zeros(1, stack.sizes[0], dtype=weight.dtype, device=weight.device))
    return stack
