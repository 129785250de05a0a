"""Every formula of fastae in plain PyTorch: the definition of correct.

Readable before fast, differentiable by autograd, any floating dtype. Rows are samples:
x [M, D], code h [M, H], encoder weight W [H, D] and bias b [H] as in ``nn.Linear``, decoder weight V [D, H]
and bias c [D]. Losses and penalties are sums over features and units and come one value a row, [M].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from . import philox
from .activations import get_activation, softplus
from .corruption import Corruption, Event, Gaussian, SaltAndPepper, Swap
from .losses import LEAST_LENGTH, get_loss, log_softplus
from .objective import AutoencoderLoss, Objective, ObjectiveOptions
from .tensors import fill_missing, sum_dtype

if TYPE_CHECKING:
    from typing_extensions import Unpack


# --- encoder and penalties ------------------------------------------------------------------------------


def encode(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """h = f(x W^T + b), [M, H]."""
    return get_activation(activation).function(F.linear(x, weight, bias))


def slopes(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """s = f'(x W^T + b), [M, H]; the Jacobian per row is dh/dx = diag(s) W."""
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
    missing: bool = False,
    entry_weight: Tensor | None = None,
) -> Tensor:
    """The loss of each row, [M]: the sum over features of ``entry_weight`` times the loss of each entry.

    With ``missing``, entries whose target is NaN have no loss.

    With a = h V^T + c and the reconstruction r = f_out(a): ``mse`` is (r - x)^2; ``huber:d`` is
    (r - x)^2 / 2 within d of x and d (|r - x| - d / 2) beyond (Huber 1964); ``bce`` is softplus(a) - x a, the
    cross-entropy of x against sigmoid(a). For counts x with the mean m = softplus(a), without the terms of x
    alone: ``poisson`` is m - x log m, and ``negative_binomial:t``, whose variance is m + m^2 / t, is
    (x + t) log(1 + m / t) - x log m. ``cosine`` is 1 - cos(r, x), with the weights in all three of its sums.
    """
    a = F.linear(code, weight, bias)
    return reconstruction_entries(a, target, loss, output_activation, missing, entry_weight).sum(1)


def _cosine(r: Tensor, x: Tensor, _: float) -> Tensor:
    """(r / |r| - x / |x|)^2 / 2, whose sum over features is 1 - cos(r, x).

    Lengths are held at 1e-8 from below; what shorter rows lack of a length of 1 is spread over the features.
    """
    r, x = (t / torch.linalg.vector_norm(t, dim=-1, keepdim=True).clamp_min(LEAST_LENGTH) for t in (r, x))
    lack = 1.0 - 0.5 * (r.square() + x.square()).sum(-1, keepdim=True)
    return 0.5 * (r - x).square() + lack / r.shape[-1]


LOSSES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "mse": lambda r, x, _: (r - x).square(),
    "huber": lambda r, x, delta: F.huber_loss(r, x, reduction="none", delta=delta),
    "bce": lambda a, x, _: F.binary_cross_entropy_with_logits(a, x, reduction="none"),
    "poisson": lambda a, x, _: softplus(a) - x * log_softplus(a),
    "negative_binomial": lambda a, x, t: (x + t) * torch.log1p(softplus(a) / t) - x * log_softplus(a),
    "cosine": _cosine,
}
"""Each entry's loss, of the reconstruction, or of a where the loss brings its own link function.

The third argument is the loss's number.
"""


def known(target: Tensor, missing: bool, entry_weight: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The target and the weights of its entries (``None``: all 1), both 0 for entries that are left out."""
    weight = entry_weight
    if missing:
        present = (~target.isnan()).to(target.dtype)
        target, weight = fill_missing(target), present if weight is None else present * weight
    if entry_weight is not None:
        target = target.masked_fill(entry_weight == 0.0, 0.0)  # NaN times 0 would be NaN
    return target, weight


def reconstruction_entries(
    a: Tensor,
    target: Tensor,
    loss: str,
    output_activation: str = "linear",
    missing: bool = False,
    entry_weight: Tensor | None = None,
) -> Tensor:
    """The loss of each entry, [M, D], of the decoder's product a [M, D]; weights broadcast to it."""
    table, formula = get_loss(loss, output_activation), LOSSES[loss.partition(":")[0]]
    v = get_activation(output_activation).function(a)
    target, weight = known(target, missing, entry_weight)
    if weight is None:
        return formula(v, target, table.parameter)
    if table.of_rows:
        return formula(v * weight.sqrt(), target * weight.sqrt(), table.parameter)
    return weight * formula(v, target, table.parameter)


def errors_of_any(
    a: Tensor, target: Tensor, loss: str, output_activation: str = "linear", missing: bool = False
) -> Tensor:
    """:func:`reconstruction_entries` of any values, as a measure of how far off a reconstruction is.

    Values that the loss is not defined for count as the nearest ones that it is, plus the square of their
    distance to them. The loss as it stands would fall without end the further they lie outside.
    """
    table = get_loss(loss)
    if not table.is_bounded:
        return reconstruction_entries(a, target, loss, output_activation, missing)
    nearest = target.clamp(*table.bounds)
    beyond = fill_missing(target - nearest, missing).square()
    return reconstruction_entries(a, nearest, loss, output_activation, missing) + beyond


# --- corruption -----------------------------------------------------------------------------------------


def _bits(x: Tensor, event: Event, seed: int, stream: int) -> Tensor:
    return philox.random_bits(seed, x.shape[0], x.shape[1], stream, width=event.width).to(x.device)


def corrupted_entries(
    x: Tensor, corruption: Corruption, seed: int, stream: int = philox.STREAM_CORRUPTION
) -> Tensor:
    """The entries of x [M, D] that the corruption touches (bool [M, D]); without an event, all of them."""
    event = corruption.event
    if event is None:
        return torch.ones(x.shape, dtype=torch.bool, device=x.device)
    if event.p == 0.0:
        return torch.zeros(x.shape, dtype=torch.bool, device=x.device)
    return _bits(x, event, seed, stream) <= event.threshold


def _add_noise(x: Tensor, std: float, seed: int, stream: int) -> Tensor:
    """x plus normal noise, added in float32 or float64 and rounded once."""
    rows, columns = x.shape
    bits = philox.random_bits(seed, rows, columns + columns % 2, stream)
    wide = sum_dtype(x.dtype)
    return (x.to(wide) + std * philox.standard_normal(bits)[:, :columns].to(x.device, wide)).to(x.dtype)


def _gaussian(x: Tensor, corruption: Gaussian, seed: int, stream: int) -> Tensor:
    return _add_noise(x, corruption.std, seed, stream)


def _salt_and_pepper(x: Tensor, corruption: SaltAndPepper, seed: int, stream: int) -> Tensor:
    salt = _bits(x, corruption.event, seed, stream) > corruption.event.half
    extreme = torch.where(salt, x.new_full((), corruption.high), x.new_full((), corruption.low))
    return torch.where(corrupted_entries(x, corruption, seed, stream), extreme, x)


def _swap(x: Tensor, corruption: Swap, seed: int, stream: int) -> Tensor:
    # given a hit the draw is uniform among the hits: its place there picks the row
    draw = _bits(x, corruption.event, seed, stream).to(torch.int64) + 2**31
    source = (draw * len(x) // corruption.event.hits).clamp_max(len(x) - 1)
    return torch.where(corrupted_entries(x, corruption, seed, stream), x.gather(0, source), x)


CORRUPTIONS: dict[str, Callable[..., Tensor]] = {
    "masking": lambda x, *draw: x.masked_fill(corrupted_entries(x, *draw), 0.0),
    "gaussian": _gaussian,
    "salt_and_pepper": _salt_and_pepper,
    "swap": _swap,
}
"""By the kind of corruption."""


def corrupt(x: Tensor, corruption: Corruption, seed: int, stream: int = philox.STREAM_CORRUPTION) -> Tensor:
    """A draw of x~ ~ C(x~ | x) for x [M, D], a pure function of (seed, stream, row, column)."""
    return x.clone() if corruption.is_identity else CORRUPTIONS[corruption.kind](x, corruption, seed, stream)


# --- the whole objective --------------------------------------------------------------------------------


def perturb_code(code: Tensor, seed: int, noise: str, noise_std: float, dropout: float) -> Tensor:
    """The decoder's input: the code with Gaussian or Bernoulli noise, then dropout scaled by 1 / (1 - p).

    Bernoulli codes pass their gradient straight through (Bengio et al. 2013).
    """
    rows, units = code.shape
    if noise == "gaussian":
        code = _add_noise(code, noise_std, seed, philox.STREAM_CODE_NOISE)
    elif noise == "bernoulli":
        bits = philox.random_bits(seed, rows, units, philox.STREAM_CODE_NOISE).to(code.device)
        code = code + ((philox.uniform(bits) < code).to(code.dtype) - code).detach()
    if dropout > 0.0:
        bits = philox.random_bits(seed, rows, units, philox.STREAM_DROPOUT, width=philox.MASK_WIDTH)
        code = code * (bits > philox.threshold(dropout)).to(code.device) * philox.keep_scale(dropout)
    return code


def autoencoder_loss(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    decoder_weight: Tensor | None,
    decoder_bias: Tensor | None,
    *,
    seed: int = 0,
    target: Tensor | None = None,
    entry_weight: Tensor | None = None,
    **options: Unpack[ObjectiveOptions],
) -> AutoencoderLoss:
    """The objective of ``fastae.functional.autoencoder_loss``, one value per row (kl: a scalar)."""
    o = Objective(**options)
    target = x if target is None else target
    x = fill_missing(x, o.missing)
    noisy = x if o.corruption is None else corrupt(x, o.corruption, seed)
    code = encode(noisy, weight, bias, o.activation)

    if o.emphasis is not None and o.corruption is not None:
        hit = corrupted_entries(x, o.corruption, seed)
        corrupted, clean = (x.new_tensor(value) for value in (o.emphasis.corrupted, o.emphasis.clean))
        emphasis = torch.where(hit, corrupted, clean)
        entry_weight = emphasis if entry_weight is None else emphasis * entry_weight
    decoder_input = perturb_code(code, seed, o.code_noise, o.code_noise_std, o.dropout)
    decoder_weight = weight.T if decoder_weight is None else decoder_weight
    total = reconstruction = reconstruction_loss(
        decoder_input,
        decoder_weight,
        decoder_bias,
        target,
        o.loss,
        o.output_activation,
        o.missing,
        entry_weight,
    )
    terms: dict[str, Tensor] = {}
    if o.contractive:
        terms["contractive"] = contractive_penalty(noisy, weight, bias, o.activation)
    if o.higher_order:
        noise = Gaussian(o.higher_order_std)
        copies = [
            corrupt(noisy, noise, seed, philox.STREAM_CONTRACTION + k) for k in range(o.higher_order_samples)
        ]
        rows = [higher_order_penalty(noisy, copy, weight, bias, o.activation) for copy in copies]
        terms["higher_order"] = torch.stack(rows).mean(0)
    if o.l1:
        terms["l1"] = l1_penalty(code)
    if o.kl:
        terms["kl"] = kl_penalty(code, o.kl_target)
    for name, value in terms.items():
        total = total + getattr(o, name) * value
    return AutoencoderLoss(total, reconstruction, **terms)
