"""The same training step, done by different providers, on the same tensors.

The step: masking noise, sigmoid encoder, contractive penalty, tied decoder, cross-entropy; forward and
backward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import fastae

MASKING, CONTRACTIVE = 0.25, 0.1

Step = Callable[[], object]


@dataclass
class Problem:
    """Random tensors of one shape: x [M, D], weight [H, D], bias [H], decoder bias [D]."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    decoder_bias: Tensor

    @classmethod
    def make(cls, m: int, d: int, h: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Problem:
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(h, d, generator=generator, dtype=dtype) * d**-0.5
        biases = (torch.randn(size, generator=generator, dtype=dtype) * 0.1 for size in (h, d))
        parameters = [parameter.to(device).requires_grad_() for parameter in (weight, *biases)]
        return cls(torch.rand(m, d, generator=generator, dtype=dtype).to(device), *parameters)

    def cast(self, rows: int, dtype: torch.dtype) -> Problem:
        """A copy with the first ``rows`` rows in another dtype."""
        parameters = [p.detach().to(dtype, copy=True).requires_grad_() for p in self.parameters]
        return Problem(self.x[:rows].to(dtype, copy=True), *parameters)

    @property
    def parameters(self) -> list[Tensor]:
        return [self.weight, self.bias, self.decoder_bias]


def closed_form(x: Tensor, weight: Tensor, bias: Tensor, decoder_bias: Tensor) -> Tensor:
    """The objective as one writes it in PyTorch, with the penalty in closed form."""
    return _closed_form(x * (torch.rand_like(x) >= MASKING), x, weight, bias, decoder_bias)


def clean_closed_form(x: Tensor, weight: Tensor, bias: Tensor, decoder_bias: Tensor) -> Tensor:
    """The same without noise, to compare gradients by."""
    return _closed_form(x, x, weight, bias, decoder_bias)


def _closed_form(noisy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, decoder_bias: Tensor) -> Tensor:
    h = torch.sigmoid(F.linear(noisy, weight, bias))
    slope = h * (1.0 - h)
    penalty = (slope.square() @ weight.square().sum(1)).mean()
    logits = F.linear(h, weight.t(), decoder_bias)
    loss = F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1).mean()
    return loss + CONTRACTIVE * penalty


def jacobian(x: Tensor, weight: Tensor, bias: Tensor, decoder_bias: Tensor) -> Tensor:
    """The same with the true Jacobian of every row, as it is often written today."""
    noisy = x * (torch.rand_like(x) >= MASKING)

    def encode(row: Tensor) -> Tensor:
        return torch.sigmoid(F.linear(row, weight, bias))

    penalty = torch.func.vmap(torch.func.jacrev(encode))(noisy).square().sum((1, 2)).mean()
    logits = F.linear(encode(noisy), weight.t(), decoder_bias)
    loss = F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1).mean()
    return loss + CONTRACTIVE * penalty


def fused(x: Tensor, weight: Tensor, bias: Tensor, decoder_bias: Tensor) -> Tensor:
    """The objective by fastae."""
    return fastae.functional.autoencoder_loss(
        x, weight, bias, None, decoder_bias, corruption=fastae.Masking(MASKING), contractive=CONTRACTIVE
    ).total


def clean_fused(x: Tensor, weight: Tensor, bias: Tensor, decoder_bias: Tensor) -> Tensor:
    """The same without noise."""
    return fastae.functional.autoencoder_loss(
        x, weight, bias, None, decoder_bias, contractive=CONTRACTIVE
    ).total


def step_of(objective: Callable[..., Tensor], problem: Problem) -> Step:
    """Forward and backward, with fresh gradients."""

    def step() -> Tensor:
        for parameter in problem.parameters:
            parameter.grad = None
        loss = objective(problem.x, *problem.parameters)
        loss.backward()
        return loss

    return step


def products_of(problem: Problem) -> Step:
    """The five matrix products of the step and nothing else: encode, decode, dh, and the two of dW."""
    x, weight = problem.x, problem.weight.detach()
    h = torch.rand(len(x), len(weight), dtype=x.dtype, device=x.device)
    dz, g = torch.randn_like(h), torch.randn_like(x)

    def step() -> None:
        torch.mm(x, weight.t())
        torch.mm(h, weight)
        torch.mm(g, weight.t())
        torch.mm(dz.t(), x)
        torch.mm(h.t(), g)

    return step


def steps_of(problem: Problem, compiled: bool = True) -> dict[str, Step]:
    """Every provider of the whole step by its name; the floor first."""
    steps = {
        "products": products_of(problem),
        "fastae": step_of(fused, problem),
        "eager": step_of(closed_form, problem),
    }
    if compiled:
        steps["compile"] = step_of(torch.compile(closed_form), problem)
    return steps
