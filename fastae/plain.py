"""The public functions in PyTorch's own differentiable operators.

They serve where fused operators cannot: under the transforms of :mod:`torch.func` and forward-mode
differentiation, in exported and traced programs, which then need no fastae to run, under torch.compile on a
CPU, where Inductor fuses better what it sees, and where a module's layers have hooks that must run. Values,
dtypes and draws of noise are those of the fused operators; second derivatives exist.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode

from . import ops, reference
from .activations import get_activation
from .corruption import Corruption, Gaussian
from .gradients import Corrupt, Decoding, Perturb
from .gradients.layers import decoding_of
from .gradients.objective import weighted_total
from .objective import Objective, kl_count
from .ops.backend import kernels_on_cpu
from .philox import STREAM_CONTRACTION, STREAM_CORRUPTION, STREAM_PROBE
from .share import batch_mean
from .tensors import reduce_rows, sum_dtype


def is_transformed() -> bool:
    """True if a transform of torch.func or forward-mode differentiation is active."""
    return torch._C._functorch.maybe_current_level() is not None or forward_ad._current_level >= 0  # pyright: ignore[reportAttributeAccessIssue]


def refuse_transforms(name: str, instead: str) -> None:
    """Raise ``RuntimeError`` under a transform, for results that none can see through."""
    if not torch.compiler.is_compiling() and is_transformed():
        raise RuntimeError(
            f"{name}: run under no transform of torch.func and no forward-mode differentiation; use {instead}"
        )


def _is_exporting() -> bool:
    return torch.compiler.is_exporting()


# evaluated when a call is compiled; the compiler of torch 2.11 takes the function itself for true always
_is_exporting._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


def is_wanted(device: torch.device) -> bool:
    """True if a call must consist of PyTorch's own operators, or should."""
    if torch.compiler.is_compiling():
        return _is_exporting() or (device.type == "cpu" and not kernels_on_cpu())
    return is_transformed() or torch._C._get_tracing_state() is not None or torch.onnx.is_in_onnx_export()


def is_concrete(x: Tensor) -> bool:
    """True if the values of a tensor can be looked at."""
    if torch.compiler.is_compiling() or is_wanted(x.device) or type(x) not in (Tensor, torch.nn.Parameter):
        return False
    if _get_current_dispatch_mode() is not None:  # perhaps a tracer's
        return False
    return x.device.type != "meta" and not (x.is_cuda and torch.cuda.is_current_stream_capturing())


# --- layers ---------------------------------------------------------------------------------------------


def encode(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """f(x W^T + b), [*, H]."""
    return get_activation(activation).function(F.linear(x, weight, bias))


def encode_and_penalty(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str
) -> tuple[Tensor, Tensor]:
    """The code [M, H] and the contractive penalty per row, [M]."""
    f = get_activation(activation)
    z = F.linear(x, weight, bias)
    wide = z.to(sum_dtype(z.dtype))
    h = f.function(wide)
    penalty = f.derivative(h, wide).square() @ reference.squared_norms(weight.to(wide.dtype))
    return h.to(z.dtype), penalty


def encode_deep(
    x: Tensor,
    seed: Tensor,
    probes: int,
    activations: Sequence[str],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
) -> tuple[Tensor, Tensor]:
    """The code of a stack [M, H_L] and the estimate of its penalty per row, [M]."""
    wide = sum_dtype(x.dtype)
    layers = [t.to(wide) for t in weights], [None if b is None else b.to(wide) for b in biases]
    code = x
    for weight, bias, activation in zip(weights, biases, activations, strict=True):
        code = encode(code, weight, bias, activation)
    penalty = x.new_zeros(x.shape[0], dtype=wide)
    for k in range(probes):
        probe = ops.random_signs(code.detach(), seed, STREAM_PROBE + k).to(wide)
        penalty = penalty + reference.hutchinson_penalty(x.to(wide), *layers, activations, probe)
    return code, penalty / probes


def decode_loss(a: Tensor, target: Tensor, decoding: Decoding) -> Tensor:
    """The reconstruction loss per row, [M], of the decoder's product a [M, D]."""
    a = a.to(sum_dtype(a.dtype))
    weight = None if decoding.entry_weight is None else decoding.entry_weight.to(a.dtype)
    if decoding.seed is not None:
        emphasis = _emphasis(a, decoding)
        weight = emphasis if weight is None else emphasis * weight
    options = decoding.loss, decoding.output_activation, decoding.missing
    return reference.reconstruction_entries(a, target.to(a.dtype), *options, weight).sum(1)


def _emphasis(a: Tensor, decoding: Decoding) -> Tensor:
    """The weights of hit and of other entries, [M, D].

    The gradient of bce to the target is minus the logit times these.
    """
    a = a.detach()
    ones, zeros = a.new_ones(a.shape[1]), torch.zeros_like(a)
    options = decoding._replace(loss="bce", output_activation="linear", entry_weight=None)._asdict()
    return -ops.decode_loss_target_grad(zeros[:, :1], zeros[:1].t(), ones, zeros, **options)


# --- noise ----------------------------------------------------------------------------------------------


def corrupt(x: Tensor, seed: Tensor, corruption: Corruption, stream: int = STREAM_CORRUPTION) -> Tensor:
    """A draw x~ [M, D] of a corruption of x [M, D]."""
    if not is_transformed():
        return Corrupt.apply(x, seed, corruption, stream)  # pyright: ignore[reportReturnType]

    def draw(values: Tensor) -> Tensor:
        return ops.corrupt(values.detach(), seed, corruption.kind, corruption.params, stream)

    wide = torch.zeros_like(x, dtype=sum_dtype(x.dtype))
    if corruption.kind == "gaussian":
        return (x + draw(wide)).to(x.dtype)
    if corruption.kind == "swap":
        rows = torch.arange(x.shape[0], device=x.device)[:, None]
        return x.gather(0, draw(wide.to(torch.float64) + rows).long())
    offset = draw(torch.zeros_like(x))  # the other corruptions keep an entry or set it
    kept = draw(torch.ones_like(x)) != offset
    return torch.where(kept, x, offset)


def perturb(code: Tensor, seed: Tensor, noise: str, noise_std: float, dropout: float) -> Tensor:
    """The code as the decoder sees it, [M, H]."""
    if not is_transformed():
        return Perturb.apply(code, seed, noise, noise_std, dropout)  # pyright: ignore[reportReturnType]
    if noise != "none":
        drawn = ops.perturb(code.detach(), seed, noise, noise_std)
        code = code + (drawn - code).detach()
    return code * ops.perturb(torch.ones_like(code), seed, "none", dropout=dropout) if dropout else code


# --- the objective --------------------------------------------------------------------------------------


class Parts(NamedTuple):
    """An autoencoder as functions."""

    encode: Callable[[Tensor], Tensor]  # [M, D] -> [M, H]
    encode_and_penalty: Callable[[Tensor], tuple[Tensor, Tensor]]  # the same, and the contractive one, [M]
    decode: Callable[[Tensor], Tensor]  # [M, H] -> a [M, D], without the output activation
    layer: Callable[[], tuple[Tensor, Tensor | None]]  # the encoder's weight and bias, if it is one layer


def parts_of(
    weight: Tensor,
    bias: Tensor | None,
    decoder_weight: Tensor | None,
    decoder_bias: Tensor | None,
    activation: str,
) -> Parts:
    """The parts of an autoencoder with one layer per side; ``None`` for tied weights."""
    decoder = weight.t() if decoder_weight is None else decoder_weight
    return Parts(
        lambda x: encode(x, weight, bias, activation),
        lambda x: encode_and_penalty(x, weight, bias, activation),
        lambda code: F.linear(code, decoder, decoder_bias),
        lambda: (weight, bias),
    )


def objective(
    x: Tensor,
    target: Tensor,
    parts: Parts,
    seed: Tensor | None,
    o: Objective,
    reduction: str,
    entry_weight: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """(total, reconstruction, contractive, higher order, l1, kl) for rows [M, D]."""
    x_in = x
    if o.corruption is not None and seed is not None:
        x_in = corrupt(x, seed, o.corruption)
    # of one product: its gradient to the weight would be two, which compilers do not make one again
    code, penalty = parts.encode_and_penalty(x_in) if o.contractive else (parts.encode(x_in), None)
    wide = code.to(sum_dtype(code.dtype))
    seen = code
    if o.perturbs_code and seed is not None:
        seen = perturb(code, seed, o.code_noise, o.code_noise_std, o.dropout)
    rows = (
        decode_loss(parts.decode(seen), target, decoding_of(o, seed, entry_weight)),
        penalty,
        _curvature(x_in, *parts.layer(), seed, o) if o.higher_order and seed is not None else None,
        reference.l1_penalty(wide) if o.l1 else None,
    )
    terms = [None if row is None else reduce_rows(row, reduction, row.shape) for row in rows]
    kl = reference.kl_divergence(batch_mean(wide.mean(0)), o.kl_target) if o.kl else None
    return weighted_total(terms, kl, o, kl_count(reduction, x.shape[0])), *terms, kl


def _curvature(x: Tensor, weight: Tensor, bias: Tensor | None, seed: Tensor, o: Objective) -> Tensor:
    """The higher-order penalty per row, [M]."""
    noise, wide = Gaussian(o.higher_order_std), sum_dtype(x.dtype)
    layer = weight.to(wide), None if bias is None else bias.to(wide), o.activation
    rows = [
        reference.higher_order_penalty(
            x.to(wide), corrupt(x, seed, noise, STREAM_CONTRACTION + k).to(wide), *layer
        )
        for k in range(o.higher_order_samples)
    ]
    return torch.stack(rows).mean(0)
