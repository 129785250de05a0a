"""Values and gradients of a public function on kernels against the reference's, in one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from tests.kernels.support import DEVICE, assert_accurate

Tensors = Mapping[str, Tensor | None]
Function = Callable[..., Tensors]

STRIDED: dict[str, Callable[[Tensor], Tensor]] = {
    "part of wider rows": lambda t: torch.cat((t, t), 1)[:, : t.shape[1]],
    "every second row": lambda t: t.repeat_interleave(2, 0)[::2],
    "transposed": lambda t: t.t().contiguous().t(),
}


def normal(*shape: int, size: float = 1.0, seed: int = 0) -> Tensor:
    """Standard normal numbers times ``size``, float64."""
    return size * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    """Numbers in [0, 1), float64."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_upstream(like: Tensor) -> Tensor:
    """A gradient that every dtype holds exactly, without a zero."""
    g = torch.Generator().manual_seed(like.numel())
    return ((torch.randint(16, like.shape, generator=g) - 7.5) / 8.0).to(like)


def constant_upstream(like: Tensor) -> Tensor:
    """A gradient with strides of 0, as those of a sum are."""
    return torch.full((), 0.75, dtype=like.dtype, device=like.device).expand(like.shape)


def outcome(
    function: Function, tensors: Tensors, dtype: torch.dtype, device: torch.device, upstream: Callable
) -> dict[str, Tensor]:
    """The outputs of ``function`` of copies of the tensors, and the gradients to all of them."""
    leaves = {
        name: None if t is None else t.to(device, dtype, copy=True).requires_grad_()
        for name, t in tensors.items()
    }
    outputs = {name: value for name, value in function(**leaves).items() if value is not None}
    wanted = {name: leaf for name, leaf in leaves.items() if leaf is not None}
    gradients = torch.autograd.grad(
        list(outputs.values()),
        list(wanted.values()),
        [upstream(value) for value in outputs.values()],
        allow_unused=True,
        materialize_grads=True,
    )
    return outputs | {f"d {name}": g for name, g in zip(wanted, gradients, strict=True)}


def assert_like_reference(
    ours: Function,
    reference: Function,
    tensors: Tensors,
    dtype: torch.dtype,
    *,
    upstream: Callable[[Tensor], Tensor] = random_upstream,
    units: float = 8.0,
) -> None:
    """Every output and every gradient is as accurate as PyTorch's; units are of ``dtype``, sums' too."""
    rounded = {name: None if t is None else t.to(dtype) for name, t in tensors.items()}
    cpu = torch.device("cpu")
    actual = outcome(ours, rounded, dtype, DEVICE, upstream)
    exact = outcome(reference, rounded, torch.float64, cpu, upstream)
    pytorch = outcome(reference, rounded, dtype, cpu, upstream)
    assert list(actual) == list(exact)
    for name, value in actual.items():
        wider = torch.finfo(dtype).eps / torch.finfo(value.dtype).eps
        assert_accurate(
            name, value.detach(), exact[name].detach(), pytorch[name].detach(), units=units * wider
        )
