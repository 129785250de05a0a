"""Constraints on parameters that any optimizer of ``torch.optim`` can keep, and one made for dictionaries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed
from torch import Tensor
from torch.optim import Optimizer

from .checks import check_nonnegative
from .ops import adam_rows
from .sparse.deferred import DeferredGradients, RowSums, joined
from .sparse.module import SparseAutoencoder

__all__ = ["DictionaryAdam", "constrain"]

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


class DictionaryAdam(Optimizer):
    """Adam for the parameters of a sparse autoencoder, with decoder rows of norm 1 and no weight gradients.

    Equal to ``constrain(torch.optim.Adam(sae.parameters(), lr, betas, eps), sae)``. The gradients of the
    encoder's and the decoder's weight are formed for some rows at a time and applied, by kernels row by row
    without being written: memory is that of weights and moments. Backward passes leave ``.grad`` of both
    weights unset, and add up until :meth:`zero_grad`. The state is Adam's, in both directions.

    While ``relu``, ``jump_relu`` and ``gated`` codes are dense, their weights still have gradients.

    Args:
        sae: the module, whose backward passes hand their gradients to this optimizer from now on.
        lr: learning rate.
        betas: decay rates of the first and the second moment.
        eps: added to the root of the second moment.

    Raises:
        ValueError: an argument that does not fit, or more than one data-parallel process.
    """

    holds_gradients = False
    """Gradients cannot be clipped."""

    def __init__(
        self,
        sae: SparseAutoencoder,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        check_nonnegative("lr:", float(lr))
        check_nonnegative("eps:", eps)
        if not all(0.0 <= beta < 1.0 for beta in betas):
            raise ValueError(f"betas: expected two numbers from 0 to below 1, got {betas}")
        super().__init__(list(sae.parameters()), {"lr": lr, "betas": tuple(betas), "eps": eps})
        self._sae = sae
        self._deferred = sae.deferred_gradients = DeferredGradients()

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        self._deferred.clear()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update all parameters that have a gradient; returns the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        encoder, decoder = self._sae.encoder.weight, self._sae.decoder.weight
        terms = {encoder: self._deferred.encoder, decoder: self._deferred.decoder}
        for group in self.param_groups:
            for parameter in group["params"]:
                deferred = terms.get(parameter, [])
                if parameter.grad is not None or deferred:
                    self._update(parameter, deferred, group, parameter is decoder)
        return loss

    def _update(self, parameter: Tensor, deferred: list[RowSums], group: dict[str, Any], unit: bool) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        if state["step"].device != parameter.device:  # one of an Adam that keeps its counts on the host
            state["step"] = state["step"].to(parameter.device)
        state["step"] += 1.0
        adam_rows(
            parameter.data,
            state["exp_avg"],
            state["exp_avg_sq"],
            state["step"],
            group["lr"],
            group["betas"],
            group["eps"],
            joined(deferred),
            parameter.grad,
            unit,
        )
