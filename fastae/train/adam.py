"""Adam in a call of several steps: one kernel updates all parameters and prepares the next step's products.

PyTorch's fused Adam leaves it to the next step to read the weights again, for their cast and the norms of the
contractive penalty, and counts steps by a kernel of its own. Within a call of
:class:`~fastae.train.TrainingStep` nobody else changes the weights, so that neither is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.optim.optimizer as torch_optimizer
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

from .. import ops
from ..gradients.prepared import Prepared, keeping
from ..nn.autoencoder import Autoencoder
from ..nn.calls import runs_code

Rate = float | Tensor | None


@contextmanager
def updates(
    optimizer: Optimizer, module: nn.Module | None, steps: int, set_rate: Callable[[float | Tensor], None]
) -> Iterator[Callable[[Rate], None]]:
    """A context that gives the function for the updates of ``steps`` consecutive steps.

    It takes the step's learning rate, or ``None`` for the optimizer's own, and is ``optimizer.step`` unless
    the device has kernels, the optimizer is PyTorch's Adam or AdamW without hooks or special options, and
    ``module``, whose forward pass the steps take, is an autoencoder without hooks: those could change weights
    in between. When the block ends, the optimizer's state is as PyTorch would have left it, up to rounding.

    Args:
        set_rate: sets the optimizer's learning rate.
    """

    def plain(rate: Rate) -> None:
        if rate is not None:
            set_rate(rate)
        optimizer.step()

    device = optimizer.param_groups[0]["params"][0].device
    wanted = steps > 1 and module is not None and not ops.backend.runs_pytorch(device)
    if not (wanted and _only_reads(module) and _by_formula(optimizer)):
        yield plain
        return
    with keeping() as kept:
        own = _Updates(optimizer, steps, plain, kept)
        try:
            yield own
        finally:
            own.settle()
            if own.rate is not None:
                set_rate(own.rate)


def _only_reads(module: Any) -> bool:
    """True if a forward pass runs nothing that might change a parameter."""
    return type(module) is Autoencoder and not any(map(runs_code, module.modules()))


def _by_formula(optimizer: Optimizer) -> bool:
    """True for Adam and AdamW by their formula, in ``step`` and around it."""
    hooks = (
        optimizer._optimizer_step_pre_hooks,
        optimizer._optimizer_step_post_hooks,
        torch_optimizer._global_optimizer_pre_hooks,
        torch_optimizer._global_optimizer_post_hooks,
    )
    return (
        type(optimizer) in (Adam, AdamW)
        and "step" not in vars(optimizer)  # as a scheduler replaces it
        and not any(hooks)
        and not any(
            group["amsgrad"] or group["maximize"] or group["differentiable"] or _on_device(*group["betas"])
            for group in optimizer.param_groups
        )
    )


def _on_device(*numbers: float | Tensor) -> bool:
    return any(isinstance(number, Tensor) for number in numbers)


class _Updates:
    """The updates of one call; ``kept`` is what the forward passes read."""

    rate: Rate = None

    def __init__(
        self,
        optimizer: Optimizer,
        steps: int,
        plain: Callable[[Rate], None],
        kept: dict[Tensor, Prepared],
    ) -> None:
        from fastae_kernels import operators  # imports Triton

        self._operators = operators
        self._optimizer, self._left, self._plain, self._kept = optimizer, steps, plain, kept
        self._taken: dict[Tensor, int] = {}  # steps that the optimizer's own counts lack

    def __call__(self, rate: Rate) -> None:
        self._left -= 1
        if not self._left:
            self._kept.clear()  # there is no next step
        groups = [
            (group, [p for p in group["params"] if p.grad is not None])
            for group in self._optimizer.param_groups
        ]
        if not all(self._fits(p) for _, parameters in groups for p in parameters):
            self.settle()
            self._kept.clear()
            self._plain(rate)
            return
        self.rate = rate
        for group, parameters in groups:
            lr = group["lr"] if rate is None else rate
            decay, decoupled = group["weight_decay"], group["decoupled_weight_decay"]
            if parameters:
                jobs = [self._job(p) for p in parameters]
                self._operators.adam(jobs, lr, group["betas"], group["eps"], decay, decoupled)
            for p in parameters:
                torch.autograd.graph.increment_version(p)
                if p in self._kept:
                    self._kept[p] = self._kept[p]._replace(version=p._version)

    def _fits(self, parameter: Tensor) -> bool:
        """True if the kernel can take a parameter, which has a state after its first step."""
        state = self._optimizer.state.get(parameter, {})
        tensors = parameter, parameter.grad, state.get("exp_avg"), state.get("exp_avg_sq"), state.get("step")
        return all(
            t is not None
            and t.dtype == torch.float32
            and t.layout == torch.strided
            and t.is_contiguous()
            and t.device == parameter.device
            for t in tensors
        )

    def _job(self, p: Any) -> Any:
        """The update of a parameter that fits."""
        state, kept = self._optimizer.state[p], self._kept.get(p)
        step = state["step"]
        self._taken[step] = self._taken.get(step, 0) + 1
        copy = None if kept is None or kept.weight is p else kept.weight
        norms = None if kept is None else kept.sq_norms
        moments = state["exp_avg"], state["exp_avg_sq"]
        return self._operators.Updated(p, p.grad, *moments, step, self._taken[step], copy, norms)

    def settle(self) -> None:
        """Bring the optimizer's counts up to date."""
        if self._taken:
            counts = [float(number) for number in self._taken.values()]
            torch._foreach_add_(list(self._taken), counts)  # pyright: ignore[reportPrivateImportUsage]
            self._taken.clear()
