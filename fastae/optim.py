"""Constraints on parameters that any optimizer of ``torch.optim`` can keep."""

from __future__ import annotations

from typing import TypeVar

from torch.optim import Optimizer

from .sparse.module import SparseAutoencoder

__all__ = ["constrain"]

AnyOptimizer = TypeVar("AnyOptimizer", bound=Optimizer)


def constrain(optimizer: AnyOptimizer, sae: SparseAutoencoder) -> AnyOptimizer:
    """Keep the decoder rows of a sparse autoencoder at norm 1; returns the optimizer.

    Before each step the part of the decoder's gradient along its rows is removed, and after it the rows are
    scaled to norm 1 (Bricken et al. 2023). Both are row by row, so that parameters sharded over rows work.

        optimizer = constrain(torch.optim.Adam(sae.parameters(), lr=1e-4), sae)

    Raises:
        ValueError: the optimizer does not have the decoder's weight.
    """
    parameters = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if id(sae.decoder.weight) not in parameters:
        raise ValueError("optimizer: expected one that has the decoder's weight, got one without it")
    optimizer.register_step_pre_hook(lambda *_: sae.project_decoder_gradient_())
    optimizer.register_step_post_hook(lambda *_: sae.normalize_decoder_())
    return optimizer
