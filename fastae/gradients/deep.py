"""The contractive penalty of an encoder of several layers.

||J||_F^2 = E_v ||J^T v||^2 for independent signs v (Hutchinson 1989): one vector-Jacobian product per probe
instead of a Jacobian. With w_L = v and w_{l-1} = (w_l s_l) W_l the estimate is ||w_0||^2; its gradient runs
the same chain forwards and meets the ordinary backward pass in dz_l.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import Function

from .. import ops
from ..activations import get_activation
from ..philox import STREAM_PROBE
from ..tensors import sum_dtype
from .once import Context, first_order


class _Saved(NamedTuple):
    """Tensors kept for the backward pass, by layer."""

    x: Tensor
    seed: Tensor
    weights: Sequence[Tensor]
    biases: Sequence[Tensor | None]
    codes: Sequence[Tensor]
    preacts: Sequence[Tensor]

    def slopes(self, activations: tuple[str, ...]) -> list[Tensor]:
        """s_l = f'(z_l) of each layer, in the dtype of sums: in float16 the formulas' powers overflow."""
        dtype = sum_dtype(self.x.dtype)
        return [
            get_activation(name).derivative(code.to(dtype), preact.to(dtype))
            for name, code, preact in zip(activations, self.codes, self.preacts, strict=True)
        ]

    def probe(self, k: int) -> Tensor:
        """The k-th probe v, [M, H_L]."""
        return ops.random_signs(self.codes[-1], self.seed, STREAM_PROBE + k)

    def flat(self) -> list[Tensor | None]:
        return [self.x, self.seed, *self.weights, *self.biases, *self.codes, *self.preacts]

    @staticmethod
    def of(flat: Sequence[Tensor], depth: int) -> _Saved:
        x, seed, *layers = flat
        return _Saved(x, seed, *(layers[k * depth : (k + 1) * depth] for k in range(4)))


class DeepEncode(Function):
    """(code [M, H_L], penalty [M]) of a stack; parameters are w_1, ..., w_L, b_1, ..., b_L."""

    @staticmethod
    def forward(
        ctx: Context,
        x: Tensor,
        seed: Tensor,
        probes: int,
        activations: tuple[str, ...],
        *parameters: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        depth = len(activations)
        weights, biases = parameters[:depth], parameters[depth:]
        code, codes, preacts = x, [], []
        for weight, bias, activation in zip(weights, biases, activations, strict=True):
            assert weight is not None
            encoded = ops.encode(code, weight, bias, activation)
            code = encoded.code
            codes.append(code)
            preacts.append(encoded.preact)
        saved = _Saved(x, seed, weights, biases, codes, preacts)  # pyright: ignore[reportArgumentType]
        ctx.probes, ctx.activations = probes, activations
        ctx.save_for_backward(*saved.flat())
        ctx.set_materialize_grads(False)

        slopes = saved.slopes(activations)
        penalty = torch.zeros(x.shape[0], dtype=sum_dtype(x.dtype), device=x.device)
        for k in range(probes):
            w = _chain(saved.probe(k), saved.weights, slopes)[0]
            penalty += torch.linalg.vector_norm(w, dim=1, dtype=penalty.dtype).square_()
        return code.view_as(code), penalty / probes

    @staticmethod
    @first_order
    def backward(
        ctx: Context, grad_code: Tensor | None, grad_penalty: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        activations: tuple[str, ...] = ctx.activations
        depth = len(activations)
        saved = _Saved.of(ctx.saved_tensors, depth)
        d_weights = [torch.zeros_like(weight) for weight in saved.weights]
        d_biases: list[Tensor | None] = [None] * depth
        extra: list[Tensor | None] = [None] * depth
        if grad_penalty is not None:
            scale = 2.0 / ctx.probes * grad_penalty
            extra = _penalty_gradient(saved, activations, scale, ctx.probes, d_weights)
        dh = torch.zeros_like(saved.codes[-1]) if grad_code is None else grad_code
        for l in reversed(range(depth)):
            bias = saved.biases[l]
            dz, db, _, _ = ops.code_grad(
                dh,
                None,
                saved.codes[l],
                saved.preacts[l],
                activations[l],
                extra=extra[l],
                sums=None if bias is None else bias.dtype,
            )
            d_weights[l].addmm_(dz.t(), saved.codes[l - 1] if l else saved.x)
            d_biases[l] = None if bias is None else db
            if l or ctx.needs_input_grad[0]:
                dh = torch.mm(dz, saved.weights[l])
        d_x = dh if ctx.needs_input_grad[0] else None
        return d_x, None, None, None, *d_weights, *d_biases


def _chain(probe: Tensor, weights: Sequence[Tensor], slopes: list[Tensor]) -> list[Tensor]:
    """[w_0, ..., w_L] of the module's formula, from w_L = probe."""
    chain = [probe]
    for weight, s in zip(reversed(weights), reversed(slopes), strict=True):
        chain.append(torch.mm((chain[-1] * s).to(weight.dtype), weight))
    return chain[::-1]


def _penalty_gradient(
    saved: _Saved, activations: tuple[str, ...], scale: Tensor, probes: int, d_weights: list[Tensor]
) -> list[Tensor | None]:
    """Terms that the penalty adds to each dz_l; its weights' gradients are added to ``d_weights``."""
    dtype, slopes = saved.x.dtype, saved.slopes(activations)
    extra: list[Tensor | None] = [None] * len(slopes)
    for k in range(probes):
        chain = _chain(saved.probe(k), saved.weights, slopes)
        dw = (chain[0] * scale[:, None]).to(dtype)
        for l, (name, s) in enumerate(zip(activations, slopes, strict=True)):
            d_weights[l].addmm_((chain[l + 1] * s).to(dtype).t(), dw)
            d_scaled = torch.mm(dw, saved.weights[l].t())
            second = get_activation(name).second
            if second is not None:
                t = second(saved.codes[l].to(s.dtype), s, saved.preacts[l].to(s.dtype))
                dz = d_scaled * chain[l + 1] * t
                before = extra[l]
                extra[l] = dz if before is None else before + dz
            dw = (d_scaled * s).to(dtype)
    return [None if dz is None else dz.to(dtype) for dz in extra]
