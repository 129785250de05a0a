"""Sums over processes of what each has of a batch: gradients, and the terms of the loss."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..share import Share
from .world import World

_BUCKET_BYTES = 25 * 2**20
"""Gradients of at most this size are summed at once; DistributedDataParallel sums others in such buckets,
each as soon as the backward pass has filled it."""


class _Loss(nn.Module):
    """A loss as the module of its parameters, whose gradients DistributedDataParallel sums."""

    def __init__(self, loss: Callable[..., Any], parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.parts, self._loss = nn.ParameterList(parameters), loss

    def forward(self, *batch: Tensor | None) -> Any:
        return self._loss(*batch)


class Sums:
    """Sums of gradients and of the loss over the parts of a batch that processes of a world compute.

    Each process weighs its mean over rows by its share of the batch, so that sums are means over the batch.

    Args:
        world: the processes.
        loss: what is minimised; called as :attr:`loss`.
        parameters: what it depends on.
        sharded: whether the modules sum the gradients themselves.
        bucket_bytes: size of the gradients that are summed at once.

    Attributes:
        overlapped: whether gradients are summed in buckets while the backward pass goes on.
    """

    def __init__(
        self,
        world: World,
        loss: Callable[..., Any],
        parameters: Sequence[Tensor],
        *,
        sharded: bool = False,
        bucket_bytes: int | None = None,
    ) -> None:
        bucket_bytes = _BUCKET_BYTES if bucket_bytes is None else bucket_bytes
        self.world, self.loss, self._parameters = world, loss, list(parameters)
        size = sum(p.numel() * p.element_size() for p in parameters)
        self.overlapped = not sharded and size > bucket_bytes and world.row_size > 1
        self._sharded = sharded
        self._summed_already = sharded or self.overlapped
        if self.overlapped:
            module = _Loss(loss, self._parameters)  # pyright: ignore[reportArgumentType]
            self.loss = DistributedDataParallel(
                module,
                process_group=world.group,
                broadcast_buffers=False,
                bucket_cap_mb=bucket_bytes / 2**20,
                gradient_as_bucket_view=True,
            )
            # PyTorch refuses annotations that are strings, which those of this module are
            self.loss.register_comm_hook(None, lambda state, bucket: _sum(bucket.buffer(), world.group))

    def capture_problem(self) -> str | None:
        """Why a step cannot be captured as a CUDA graph, if so; see PyTorch's notes on CUDA graphs."""
        if self._sharded:
            return "parameters are gathered within the step"
        if self.overlapped:
            return "sums of gradients overlap with the backward pass in several buckets"
        if self._parameters[0].device.type != "cuda":
            return None
        if torch.cuda.nccl.version() < (2, 9, 6):  # pyright: ignore[reportAttributeAccessIssue]
            return "NCCL before 2.9.6 cannot be captured"
        if os.environ.get("TORCH_NCCL_ASYNC_ERROR_HANDLING") != "0":
            return "a graph of collectives needs TORCH_NCCL_ASYNC_ERROR_HANDLING=0"
        return None

    def backward(self, total: Tensor, values: Tensor, share: Share) -> Tensor:
        """Compute the gradients of a batch.

        Args:
            total: the mean loss over this process's rows.
            values: means over them, [T].
            share: the part of the batch that these are.

        Returns:
            The means over the whole batch, [T] in float64.
        """
        self.world.arrivals += 1
        values = values * share.weight
        waiting: Any = None
        if self._summed_already:
            waiting = torch.distributed.all_reduce(values, group=self.world.group, async_op=True)
        total.backward(total.new_full((), share.weight))
        if waiting is not None:
            waiting.wait()
        if self._summed_already or self.world.row_size == 1:
            return values
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        flat = torch.cat([*(g.reshape(-1) for g in gradients), values.to(gradients[0].dtype)])
        torch.distributed.all_reduce(flat, group=self.world.group)
        *parts, values = flat.split([*(g.numel() for g in gradients), len(values)])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
        return values.to(torch.float64)


def _sum(bucket: Tensor, group: Any) -> torch.futures.Future[Tensor]:
    """The sum over processes, where DistributedDataParallel would take the mean."""
    work: Any = torch.distributed.all_reduce(bucket, group=group, async_op=True)
    return work.get_future().then(lambda future: future.value()[0])
