"""Every formula of fastae in plain PyTorch: the definition of correct.

Readable before fast, differentiable by autograd, any floating dtype. Rows are samples:
x [M, D], code h [M, H], encoder weight W [H, D] and bias b [H] as in ``nn.Linear``, decoder weight V [D, H]
and bias c [D]. Losses and penalties are sums over features and units and come one value a row, [M].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import philox
from .activations import get_activation
from .corruption import Corruption, Emphasis, Gaussian, mask_width
from .precision import sum_dtype


class AutoencoderLoss(NamedTuple):
    """The value of an autoencoder's objective and of its parts.

    ``total`` is the weighted sum; the other terms come without their weights, so that runs with different
    weights compare, and are ``None`` where the weight is 0 (they are not computed). All are differentiable.
    Means over rows of sums over features or units; with ``reduction="none"`` all but ``kl`` are [M]. ``kl``
    is always the divergence itself, which the total holds once a row.
    """

    total: Tensor
    reconstruction: Tensor
    contractive: Tensor | None = None
    higher_order: Tensor | None = None
    l1: Tensor | None = None
    kl: Tensor | None = None


# --- encoder and penalties ------------------------------------------------------------------------------


def encode(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """h = f(x W^T + b), [M, H]."""
    return get_activation(activation).function(F.linear(x, weight, bias))


def slopes(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """s = f'(x W^T + b), [M, H]; the Jacobian of a row is dh/dx = diag(s) W."""
    f = get_activation(activation)
    z = F.linear(x, weight, bias)
    return f.derivative(f.function(z), z)


def squared_norms(weight: Tensor) -> Tensor:
    """q_j = sum_i W_ji^2, [H]."""
    return weight.square().sum(1)


def contractive_penalty(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """||dh/dx||_F^2 = sum_j s_j^2 q_j of each row, [M], for any elementwise f (Rifai et al. 2011a, eq. 7)."""
    return slopes(x, weight, bias, activation).square() @ squared_norms(weight)


def higher_order_penalty(
    x: Tensor, noisy: Tensor, weight: Tensor, bias: Tensor | None, activation: str
) -> Tensor:
    """||J(x) - J(noisy)||_F^2 of each row, [M]: the curvature term of CAE+H (Rifai et al. 2011b, eq. 7)."""
    difference = slopes(x, weight, bias, activation) - slopes(noisy, weight, bias, activation)
    return difference.square() @ squared_norms(weight)


def two_layer_penalty(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None], activations: Sequence[str]
) -> Tensor:
    """||dh2/dx||_F^2 of each row, [M]: sum_i s2_i^2 (A G A^T)_ii with A = W2 diag(s1) and G = W1 W1^T."""
    (w1, w2), (b1, b2), (f1, f2) = weights, biases, activations
    s1 = slopes(x, w1, b1, f1)
    s2 = slopes(encode(x, w1, b1, f1), w2, b2, f2)
    a = w2 * s1.unsqueeze(-2)  # [M, H2, H1]
    return (s2.square() * ((a @ (w1 @ w1.T)) * a).sum(-1)).sum(-1)


def hutchinson_penalty(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    activations: Sequence[str],
    probe: Tensor,
) -> Tensor:
    """||J^T v||^2 of each row, [M], for probes v [M, H_last].

    With independent signs for v its mean is ||J||_F^2 of the whole encoder (Hutchinson 1989).
    """
    diagonals: list[Tensor] = []
    for weight, bias, activation in zip(weights, biases, activations, strict=True):
        diagonals.append(slopes(x, weight, bias, activation))
        x = encode(x, weight, bias, activation)
    for weight, s in zip(reversed(weights), reversed(diagonals), strict=True):
        probe = (probe * s) @ weight
    return probe.square().sum(1)


def reconstruction_contraction(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, decoder_weight: Tensor
) -> Tensor:
    """||dr/dx||_F^2 = s^T [(V^T V) o (W W^T)] s of each row, [M], for a linear decoder r = h V^T + c."""
    s = slopes(x, weight, bias, activation)
    gram = (decoder_weight.T @ decoder_weight) * (weight @ weight.T)
    return ((s @ gram) * s).sum(1)


def l1_penalty(code: Tensor) -> Tensor:
    """sum_j |h_j| of each row, [M]."""
    return code.abs().sum(1)


def kl_divergence(mean: Tensor, target: float) -> Tensor:
    """sum_j KL(target || mean_j) between Bernoulli distributions, a scalar, for means [H] in [0, 1].

    Means are kept an epsilon away from 0 and 1, where the divergence is infinite.
    """
    eps = torch.finfo(mean.dtype).eps
    mean = mean.clamp(eps, 1.0 - eps)
    entropy = target * math.log(target) + (1.0 - target) * math.log1p(-target)
    return (entropy - target * mean.log() - (1.0 - target) * torch.log1p(-mean)).sum()


def kl_penalty(code: Tensor, target: float) -> Tensor:
    """sum_j KL(target || mean_n h_nj), a scalar, for codes in (0, 1) (Ng 2011, CS294A notes, sec. 3)."""
    return kl_divergence(code.mean(0), target)


# --- reconstruction losses ------------------------------------------------------------------------------


def reconstruction_loss(
    code: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    loss: str,
    output_activation: str = "linear",
    entry_weights: Tensor | None = None,
) -> Tensor:
    """The loss of each row, [M], summed over features; ``entry_weights`` [M, D] weigh the entries.

    With a = h V^T + c: ``mse`` is (f_out(a) - x)^2; ``bce`` is softplus(a) - x a, the cross-entropy of x
    against sigmoid(a).
    """
    entries = reconstruction_entries(F.linear(code, weight, bias), target, loss, output_activation)
    if entry_weights is not None:
        entries = entries * entry_weights
    return entries.sum(1)


def reconstruction_entries(a: Tensor, target: Tensor, loss: str, output_activation: str = "linear") -> Tensor:
    """The loss of each entry, [M, D], of the decoder's product a [M, D]."""
    if loss == "mse":
        return (get_activation(output_activation).function(a) - target).square()
    if loss == "bce":
        return F.binary_cross_entropy_with_logits(a, target, reduction="none")
    raise ValueError(f"loss: {loss!r} is not one of mse, bce")


# --- corruption -----------------------------------------------------------------------------------------


def corrupted_entries(
    x: Tensor, corruption: Corruption, seed: int, stream: int = philox.STREAM_CORRUPTION
) -> Tensor:
    """Which entries of x [M, D] the corruption touches (bool [M, D]); Gaussian noise touches every one."""
    if corruption.kind == "gaussian":
        return torch.ones(x.shape, dtype=torch.bool)
    probability = corruption.params[0]
    if probability == 0.0:
        return torch.zeros(x.shape, dtype=torch.bool)
    width = mask_width(corruption.kind)
    bits = philox.random_bits(seed, x.shape[0], x.shape[1], stream, width=width)
    return bits <= philox.threshold(probability, width)


def _add_noise(x: Tensor, std: float, bits: Tensor) -> Tensor:
    """x plus normal noise, added in float32 or float64 and rounded once."""
    wide = sum_dtype(x.dtype)
    return (x.to(wide) + std * philox.standard_normal(bits)[:, : x.shape[1]].to(wide)).to(x.dtype)


def corrupt(x: Tensor, corruption: Corruption, seed: int, stream: int = philox.STREAM_CORRUPTION) -> Tensor:
    """A draw of x~ ~ C(x~ | x) for x [M, D], a pure function of (seed, stream, row, column)."""
    rows, columns = x.shape
    if corruption.kind == "gaussian":
        bits = philox.random_bits(seed, rows, columns + columns % 2, stream)
        return _add_noise(x, corruption.params[0], bits)
    hit = corrupted_entries(x, corruption, seed, stream)
    if corruption.kind == "masking":
        return x.masked_fill(hit, 0.0)
    bits = philox.random_bits(seed, rows, columns, stream, width=mask_width(corruption.kind))
    if corruption.kind == "salt_and_pepper":
        p, low, high = corruption.params
        salt = bits > philox.threshold(p / 2.0)
        return torch.where(hit, torch.where(salt, high, low).to(x.dtype), x)
    # given a hit the draw is uniform among the hits: its place there picks the row
    draw = bits.to(torch.int64) + 2**31
    source = draw * rows // philox.hit_count(corruption.params[0], 32)
    return torch.where(hit, x.gather(0, source.clamp_max(rows - 1)), x)


# --- the whole objective --------------------------------------------------------------------------------


def perturb_code(code: Tensor, seed: int, noise: str, noise_std: float, dropout: float) -> Tensor:
    """What the decoder sees: the code with Gaussian or Bernoulli noise, then dropout scaled by 1 / (1 - p).

    Bernoulli codes pass their gradient straight through (Bengio et al. 2013).
    """
    rows, units = code.shape
    if noise == "gaussian":
        bits = philox.random_bits(seed, rows, units + units % 2, philox.STREAM_CODE_NOISE)
        code = _add_noise(code, noise_std, bits)
    elif noise == "bernoulli":
        bits = philox.random_bits(seed, rows, units, philox.STREAM_CODE_NOISE)
        uniform = bits.bitwise_right_shift(8).bitwise_and(0xFFFFFF).to(sum_dtype(code.dtype)) * 2.0**-24
        code = code + ((uniform < code).to(code.dtype) - code).detach()
    if dropout > 0.0:
        bits = philox.random_bits(seed, rows, units, philox.STREAM_DROPOUT, width=philox.MASK_WIDTH)
        code = code * (bits > philox.threshold(dropout)) * philox.keep_scale(dropout)
    return code


def autoencoder_loss(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    decoder_weight: Tensor | None,
    decoder_bias: Tensor | None,
    *,
    seed: int = 0,
    activation: str = "sigmoid",
    loss: str = "bce",
    output_activation: str = "linear",
    corruption: Corruption | None = None,
    emphasis: Emphasis | None = None,
    contractive: float = 0.0,
    higher_order: float = 0.0,
    higher_order_std: float = 0.1,
    higher_order_samples: int = 1,
    l1: float = 0.0,
    kl: float = 0.0,
    kl_target: float = 0.05,
    code_noise: str = "none",
    code_noise_std: float = 0.1,
    dropout: float = 0.0,
    target: Tensor | None = None,
) -> AutoencoderLoss:
    """The objective of ``fastae.functional.autoencoder_loss``, one value a row (kl: a scalar)."""
    target = x if target is None else target
    noisy = x if corruption is None else corrupt(x, corruption, seed)
    code = encode(noisy, weight, bias, activation)

    entry_weights = None
    if emphasis is not None and corruption is not None:
        hit = corrupted_entries(x, corruption, seed)
        entry_weights = torch.where(hit, emphasis.corrupted, emphasis.clean).to(x.dtype)
    decoder_input = perturb_code(code, seed, code_noise, code_noise_std, dropout)
    decoder_weight = weight.T if decoder_weight is None else decoder_weight
    total = reconstruction = reconstruction_loss(
        decoder_input, decoder_weight, decoder_bias, target, loss, output_activation, entry_weights
    )
    terms: dict[str, Tensor] = {}
    if contractive:
        terms["contractive"] = contractive_penalty(noisy, weight, bias, activation)
        total = total + contractive * terms["contractive"]
    if higher_order:
        copies = [
            corrupt(noisy, Gaussian(higher_order_std), seed, philox.STREAM_CONTRACTION + k)
            for k in range(higher_order_samples)
        ]
        rows = [higher_order_penalty(noisy, copy, weight, bias, activation) for copy in copies]
        terms["higher_order"] = torch.stack(rows).mean(0)
        total = total + higher_order * terms["higher_order"]
    if l1:
        terms["l1"] = l1_penalty(code)
        total = total + l1 * terms["l1"]
    if kl:
        terms["kl"] = kl_penalty(code, kl_target)
        total = total + kl * terms["kl"]
    return AutoencoderLoss(total, reconstruction, **terms)
