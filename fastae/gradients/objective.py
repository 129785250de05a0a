"""The whole objective of a one-layer autoencoder as one autograd node."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import Function

from .. import ops, reference
from ..corruption import Gaussian
from ..objective import Objective, kl_count
from ..ops import Encoded
from ..philox import STREAM_CONTRACTION, STREAM_CORRUPTION
from ..share import batch_mean
from ..tensors import sum_dtype
from .layers import decoding_of, target_gradient
from .noise import draw
from .once import Context, first_order
from .prepared import prepare
from .units import UnitShard


class _Saved(NamedTuple):
    """Tensors kept for the backward pass, apart from the codes of the noisy copies."""

    x_in: Tensor  # [M, D], as the encoder sees it
    target: Tensor | None  # [M, D]
    weight: Tensor  # [H, D]
    bias: Tensor | None  # [H]
    decoder_weight: Tensor | None  # [D, H]
    decoder_bias: Tensor | None  # [D]
    seed: Tensor | None  # of the rows' noise
    code_seed: Tensor | None  # of the units'
    code: Tensor  # [M, H]
    decoder_input: Tensor  # [M, H]
    preact: Tensor  # [M, H] or empty
    grad: Tensor  # [M, D], of each row's loss with respect to the decoder's product
    column_sums: Tensor  # [D], of grad
    sq_norms: Tensor | None  # [H]
    slope_sums: Tensor  # [H], with one penalty for all rows
    column_grad: Tensor | None  # [H], of the divergence with respect to the mean activations
    entry_weight: Tensor | None  # [M or 1, D or 1], for the gradient to the target
    given_x: Tensor | None  # before corruption and casts: what second derivatives would be with respect to
    given_weight: Tensor | None
    given_decoder_weight: Tensor | None

    @property
    def decoder(self) -> Tensor:
        return self.weight.t() if self.decoder_weight is None else self.decoder_weight


class AutoencoderObjective(Function):
    """(total, reconstruction, contractive, higher order, l1, kl) of an objective.

    ``x`` is the input before corruption; ``target`` is clean. Products run in ``dtype``, or in that of the
    tensors; gradients come in the dtypes of the tensors. With a ``shard`` the weights and the bias are those
    of some units, and rows, seed and decoder bias are the same in all processes of its group, as are the
    results and the gradients of what they share.
    """

    @staticmethod
    def forward(
        ctx: Context,
        x: Tensor,
        target: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        decoder_weight: Tensor | None,
        decoder_bias: Tensor | None,
        seed: Tensor | None,
        objective: Objective,
        reduction: str,
        dtype: torch.dtype | None = None,
        shard: UnitShard | None = None,
        entry_weight: Tensor | None = None,
    ) -> tuple[Tensor | None, ...]:
        o = objective
        code_seed = seed if seed is None or shard is None else shard.seed_of_units(seed)
        ctx.dtypes = x.dtype, weight.dtype
        given = [t if t is not None and t.requires_grad else None for t in (x, weight, decoder_weight)]
        x_in = _encoder_input(x, seed, o, dtype)
        weight, sq_norms, _ = prepare(weight, dtype, o.contractive != 0.0 or o.higher_order != 0.0)
        if decoder_weight is not None:
            decoder_weight, _, _ = prepare(decoder_weight, dtype)
        encoded = ops.encode(
            x_in,
            weight,
            bias,
            o.activation,
            sq_norms=sq_norms if o.contractive else None,
            l1=o.l1 != 0.0,
            code_sum=o.kl != 0.0,
            reduction=reduction,
            seed=code_seed,
            noise=o.code_noise,
            noise_std=o.code_noise_std,
            dropout=o.dropout,
        )
        decoder_input = encoded.noisy if o.perturbs_code else encoded.code
        reconstruction, grad, column_sums = ops.decode_loss(
            *_to_decode(decoder_input, weight.t() if decoder_weight is None else decoder_weight, shard),
            decoder_bias,
            target,
            **decoding_of(o, seed, entry_weight)._asdict(),
            column_sums=decoder_bias is not None,
            reduction=reduction,
        )
        higher_order, copies = None, []
        if o.higher_order:
            assert seed is not None and sq_norms is not None
            higher_order, copies = _curvature(x_in, weight, bias, encoded, sq_norms, seed, o, reduction)
        terms = [
            reconstruction,
            encoded.penalty if o.contractive else None,
            higher_order,
            encoded.l1 if o.l1 else None,
        ]
        kl, column_grad = _divergence(encoded, o) if o.kl else (None, None)
        if shard is not None:
            *terms[1:], kl = _over_units([*terms[1:], kl], shard)

        ctx.objective, ctx.reduction, ctx.shard = o, reduction, shard
        ctx.set_materialize_grads(False)
        saved = _Saved(
            x_in,
            target if target.requires_grad else None,
            weight,
            bias,
            decoder_weight,
            decoder_bias,
            seed,
            code_seed,
            encoded.code,
            decoder_input,
            encoded.preact,
            grad,
            column_sums,
            sq_norms,
            encoded.slope_sums,
            column_grad,
            entry_weight if target.requires_grad else None,
            *given,
        )
        ctx.save_for_backward(*saved, *(t for copy in copies for t in (copy.code, copy.preact)))
        return (weighted_total(terms, kl, o, kl_count(reduction, x.shape[0])), *terms, kl)

    @staticmethod
    @first_order
    def backward(ctx: Context, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        o: Objective = ctx.objective
        tensors, kept = ctx.saved_tensors, len(_Saved._fields)  # under checkpointing to be read once
        saved, copies = _Saved(*tensors[:kept]), tensors[kept:]
        need = dict(zip(_INPUTS, ctx.needs_input_grad, strict=False))
        g_total, g_reconstruction, g_contractive, g_higher, g_l1, g_kl = grads
        rows = saved.code.shape[0]

        mean, (x_dtype, dtype) = ctx.reduction == "mean", ctx.dtypes
        loss_scale, _ = _scale(1.0, g_total, g_reconstruction)
        if loss_scale is None:
            loss_scale = torch.zeros((), dtype=torch.float32, device=saved.code.device)
        penalty_scale, penalty = _scale(o.contractive, g_total, g_contractive)
        l1_scale, l1 = _scale(o.l1, g_total, g_l1)
        higher_scale, higher = _scale(o.higher_order, g_total, g_higher)
        if higher_scale is not None:
            higher_scale = higher_scale * (higher / (max(rows, 1) if mean else 1))
        column_grad = saved.column_grad
        if column_grad is not None:
            column_grad = column_grad * _kl_scale(o, ctx.reduction, g_total, g_kl, rows)
        extra, u2, noisy_dz = _curvature_gradient(saved, copies, higher_scale, o)
        one_loss_scale = loss_scale.dim() == 0
        dz, db, u, d_decoder_bias = ops.code_grad(
            saved.grad,
            saved.decoder,
            saved.code,
            saved.preact,
            o.activation,
            scale=loss_scale,
            penalty_scale=penalty_scale,
            penalty=penalty,
            sq_norms=saved.sq_norms,
            l1_scale=l1_scale,
            l1=l1,
            mean=mean,
            column_grad=column_grad,
            extra=extra,
            seed=saved.code_seed,
            dropout=o.dropout,
            sums=_dtype_of_sums(saved, bool(noisy_dz)) if need["bias"] or need["decoder_bias"] else None,
            column_sums=saved.column_sums if need["decoder_bias"] and one_loss_scale else None,
        )

        d_x = torch.mm(dz, saved.weight) if need["x"] else None
        d_weight = d_decoder = None
        if need["weight"]:
            own = _diagonal(saved, u, u2, penalty_scale, penalty, mean)
            if saved.decoder_weight is None:
                own.update(a2=saved.decoder_input, b2=saved.grad, scale2=loss_scale)
            own["dtype"] = None if noisy_dz else dtype
            d_weight = ops.weight_grad(dz, saved.x_in, **own, mean=mean)
        if need["decoder_weight"] and saved.decoder_weight is not None:
            d_decoder = ops.weight_grad(saved.grad, saved.decoder_input, loss_scale, mean=mean, dtype=dtype)
        _add_copies(noisy_dz, saved, o, d_x, d_weight, db if need["bias"] else None)
        if d_x is not None and ctx.shard is not None:
            d_x = ctx.shard.reduce(d_x)
        if d_x is not None and o.corruption is not None:
            assert saved.seed is not None
            kind, params = o.corruption.kind, o.corruption.params
            d_x = ops.corrupt_backward(d_x, saved.seed, kind, params, STREAM_CORRUPTION)
        d_x = None if d_x is None else d_x.to(x_dtype)
        d_weight = None if d_weight is None else d_weight.to(dtype)
        d_target = None
        if need["target"] and saved.target is not None:
            d_target = target_gradient(
                *_to_decode(saved.decoder_input, saved.decoder, ctx.shard),
                saved.decoder_bias,
                saved.target,
                decoding_of(o, saved.seed, saved.entry_weight),
                loss_scale / max(rows, 1) if mean else loss_scale,
            )
        if not one_loss_scale and need["decoder_bias"]:
            d_decoder_bias = loss_scale @ saved.grad.to(loss_scale.dtype)
        d_bias = db.to(saved.bias.dtype) if need["bias"] and saved.bias is not None else None
        wanted = need["decoder_bias"] and saved.decoder_bias is not None
        d_decoder_bias = d_decoder_bias.to(saved.decoder_bias.dtype) if wanted else None  # pyright: ignore[reportOptionalMemberAccess]
        return d_x, d_target, d_weight, d_bias, d_decoder, d_decoder_bias, *(None,) * 6


_INPUTS = ("x", "target", "weight", "bias", "decoder_weight", "decoder_bias")


def _encoder_input(x: Tensor, seed: Tensor | None, o: Objective, dtype: torch.dtype | None) -> Tensor:
    """x [M, D] as the encoder sees it: corrupted, and in the dtype of the products."""
    if o.corruption is not None:
        assert seed is not None
        return draw(x, seed, o.corruption, STREAM_CORRUPTION, dtype)
    return x if dtype is None else x.to(dtype)


def _to_decode(code: Tensor, weight: Tensor, shard: UnitShard | None) -> tuple[Tensor, Tensor | None]:
    """The code and the weight for ``decode_loss``; of a shard their product over all units, and ``None``."""
    return (code, weight) if shard is None else (shard.reduce(torch.mm(code, weight.t())), None)


def _over_units(terms: list[Tensor | None], shard: UnitShard) -> list[Tensor | None]:
    """Sums of terms over all units, by one reduction."""
    given = [term for term in terms if term is not None]
    if not given:
        return terms
    sums = iter(
        shard.reduce(torch.cat([term.reshape(-1) for term in given])).split([t.numel() for t in given])
    )
    return [None if term is None else next(sums).view(term.shape) for term in terms]


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """a + b, in the memory of a."""
    return b if a is None else (a if b is None else a.add_(b))


def _scale(weight: float, g_total: Tensor | None, own: Tensor | None) -> tuple[Tensor | None, float]:
    """The gradient that reaches a reduced term, a scalar or [M], and a factor for it."""
    if g_total is None or not weight:
        return own, 1.0
    return (g_total, weight) if own is None else (torch.add(own, g_total, alpha=weight), 1.0)


def _dtype_of_sums(saved: _Saved, added_to: bool) -> torch.dtype | None:
    """The dtype of the biases' gradients; a wide one where they are ``added_to``."""
    bias = saved.decoder_bias if saved.bias is None else saved.bias
    if bias is None:
        return None
    return sum_dtype(bias.dtype) if added_to else bias.dtype


def _diagonal(
    saved: _Saved,
    u: Tensor,
    u2: Tensor | None,
    penalty_scale: Tensor | None,
    penalty: float,
    mean: bool,
) -> dict[str, Any]:
    """The arguments of ``weight_grad`` for diag(u) W, of both penalties."""
    if penalty_scale is None:
        return {} if u2 is None else {"weight": saved.weight, "u": u2}
    if penalty_scale.dim():
        return {"weight": saved.weight, "u": _sum(u, u2)}
    if u2 is None:
        own = {"u": saved.slope_sums, "u_scale": penalty_scale, "u_factor": 2.0 * penalty}
        return {"weight": saved.weight, **own}
    factor = 2.0 * penalty / (max(saved.code.shape[0], 1) if mean else 1)
    return {"weight": saved.weight, "u": u2.add_(saved.slope_sums * (penalty_scale * factor))}


def weighted_total(terms: list[Tensor | None], kl: Tensor | None, o: Objective, count: int) -> Tensor:
    """The weighted sum of reduced terms; ``count`` times the divergence."""
    reconstruction = terms[0]
    assert reconstruction is not None
    total = reconstruction
    for weight, term in zip((o.contractive, o.higher_order, o.l1), terms[1:], strict=True):
        if term is not None:
            total = torch.add(total, term, alpha=weight)
    if kl is not None and count:
        total = total + o.kl * count * kl
    return total.clone() if total is reconstruction else total


# --- higher-order contraction -----------------------------------------------------------------------------


def _noisy_copy(x_in: Tensor, seed: Tensor | None, k: int, o: Objective) -> Tensor:
    assert seed is not None
    noise = Gaussian(o.higher_order_std)
    return ops.corrupt(x_in, seed, noise.kind, noise.params, STREAM_CONTRACTION + k)


def _curvature(
    x_in: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    encoded: Encoded,
    sq_norms: Tensor,
    seed: Tensor,
    o: Objective,
    reduction: str,
) -> tuple[Tensor, list[Encoded]]:
    """The higher-order penalty, reduced, and what was encoded of each noisy copy."""
    copies = [
        ops.encode(
            _noisy_copy(x_in, seed, k, o),
            weight,
            bias,
            o.activation,
            sq_norms=sq_norms,
            base_code=encoded.code,
            base_preact=encoded.preact,
            reduction=reduction,
        )
        for k in range(o.higher_order_samples)
    ]
    penalty = copies[0].penalty.clone()
    for copy in copies[1:]:
        penalty += copy.penalty
    return penalty / o.higher_order_samples, copies


def _curvature_gradient(
    saved: _Saved, copies: tuple[Tensor, ...], scale: Tensor | None, o: Objective
) -> tuple[Tensor | None, Tensor | None, list[Tensor]]:
    """Terms that the higher-order penalty adds to dz and to u, and the dz of each noisy copy."""
    dz = u = None
    noisy: list[Tensor] = []
    if scale is None or saved.sq_norms is None:
        return dz, u, noisy
    for k in range(o.higher_order_samples):
        code, preact = copies[2 * k : 2 * k + 2]
        step = ops.slope_difference_grad(
            saved.code,
            saved.preact,
            code,
            preact,
            o.activation,
            saved.sq_norms,
            scale / o.higher_order_samples,
        )
        dz, u = _sum(dz, step.dz), _sum(u, step.u)
        noisy.append(step.dz2)
    return dz, u, noisy


def _add_copies(
    noisy_dz: list[Tensor],
    saved: _Saved,
    o: Objective,
    d_x: Tensor | None,
    d_weight: Tensor | None,
    db: Tensor | None,
) -> None:
    """Add the parts of the noisy copies, in place, to the gradients that are wanted."""
    for k, dz in enumerate(noisy_dz):
        if db is not None:
            db += dz.sum(0, dtype=db.dtype)
        if d_weight is not None:
            d_weight.addmm_(dz.t(), _noisy_copy(saved.x_in, saved.seed, k, o))
        if d_x is not None:
            d_x.addmm_(dz, saved.weight)


# --- divergence from a mean activation ----------------------------------------------------------------------


def _divergence(encoded: Encoded, o: Objective) -> tuple[Tensor, Tensor]:
    """The divergence, a scalar, and its gradient with respect to the mean activations, [H]."""
    mean = batch_mean(encoded.code_sum / encoded.code.shape[0])
    return reference.kl_divergence(mean, o.kl_target), _kl_column_grad(mean, o.kl_target)


def _kl_column_grad(mean: Tensor, target: float) -> Tensor:
    """d KL / d mean_j, [H]; 0 where the mean is held away from 0 or 1."""
    eps = torch.finfo(mean.dtype).eps
    held = mean.clamp(eps, 1.0 - eps)
    return ((1.0 - target) / (1.0 - held) - target / held) * (held == mean)


def _kl_scale(
    o: Objective, reduction: str, g_total: Tensor | None, g_kl: Tensor | None, rows: int
) -> Tensor | float:
    """d L / d KL over the number of rows."""
    scale: Tensor | float = 0.0
    if g_total is not None:
        scale = o.kl * kl_count(reduction, rows) * g_total.sum()
    if g_kl is not None:
        scale = scale + g_kl
    return scale / max(rows, 1)
