"""Every formula of the sparse dictionaries in plain PyTorch, with dense codes: the definition of correct.

Readable before fast, differentiable by autograd, any floating dtype. Rows are samples: x [N, D], target
[N, Do], encoder weight We [H, D] and bias [H], decoder weight Wd [H, Do], a row per latent, and bias [Do].
Losses are sums over features and latents, means over rows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .code import SparseAutoencoderLoss
from .specs import AuxK, BatchTopK, Gated, JumpReLU, Matryoshka, ReLU, Sparsity, TopK


def largest(z: Tensor, k: int) -> Tensor:
    """A mask [N, H] of the k largest entries per row; ties go to the lower column."""
    kept = z.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return torch.zeros_like(z, dtype=torch.bool).scatter(1, kept, True)


def topk(z: Tensor, k: int) -> Tensor:
    """relu(z) at the k largest entries per row, else 0."""
    return torch.where(largest(z, k), z.relu(), 0.0)


def batch_topk(z: Tensor, k: float) -> Tensor:
    """relu(z) at its int(k N) largest entries over all rows, else 0."""
    kept = largest(z.relu().flatten()[None], int(k * len(z)))
    return torch.where(kept.view_as(z), z.relu(), 0.0)


def window(u: Tensor, kernel: str) -> Tensor:
    """The kernel K(u) of the straight-through estimate; its integral is 1."""
    if kernel == "rectangle":
        return (u.abs() < 0.5).to(u.dtype)
    return (1.0 - u.abs()).clamp_min(0.0)


def jump_relu(z: Tensor, threshold: Tensor, rule: JumpReLU) -> tuple[Tensor, Tensor]:
    """The code h = z 1[z > theta] and the indicator 1[z > theta], both [N, H], with estimated gradients.

    dtheta = -sum_n K((z - theta) / eps) / eps (theta dh + dindicator)
    dz = 1[z > theta] dh (+ K(...) / eps (theta dh + dindicator) with to_input)
    """
    active = (z > threshold).to(z.dtype)
    slope = window((z - threshold) / rule.bandwidth, rule.kernel).detach() / rule.bandwidth
    # zero, with the gradient of the distance to the threshold
    distance = (z if rule.to_input else z.detach()) - threshold
    distance = distance - distance.detach()
    return z * active + slope * threshold.detach() * distance, active + slope * distance


def gated(u: Tensor, gate_bias: Tensor, magnitude: Tensor, magnitude_bias: Tensor) -> tuple[Tensor, Tensor]:
    """The code and relu of the gate's pre-activation, both [N, H], of u = x We^T."""
    gate = u + gate_bias
    return (gate > 0) * (magnitude.exp() * u + magnitude_bias).relu(), gate.relu()


def squared_error(estimate: Tensor, target: Tensor) -> Tensor:
    """mean_n |estimate_n - target_n|^2."""
    return (estimate - target).square().sum(1).mean()


def auxk_loss(
    z: Tensor, decoder_weight: Tensor, residual: Tensor, target: Tensor, dead: Tensor, a: AuxK
) -> Tensor:
    """The auxiliary loss of the dead latents (bool [H]) on a residual [N, Do] that is held constant."""
    width, number = a.width(target.shape[1]), int(dead.sum())
    if not number:
        return z.new_zeros(())
    kept = largest(z.masked_fill(~dead, -torch.inf), min(width, number))
    code = torch.where(kept, z.relu() if a.relu else z, 0.0)
    residual = residual.detach()
    value = squared_error(code @ decoder_weight, residual)
    if a.ramp:
        value = value * min(number / width, 1.0)
    if a.normalize == "none":
        return value
    spread = residual if a.normalize == "residual" else target
    variance = squared_error(spread, spread.mean(0)).detach()
    return value * torch.where(variance > 0, 1.0 / variance, 0.0)


def sparse_autoencoder_loss(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    decoder_weight: Tensor,
    decoder_bias: Tensor | None,
    *,
    activation: Sparsity,
    threshold: Tensor | None = None,
    gate: tuple[Tensor, Tensor, Tensor] | None = None,
    target: Tensor | None = None,
    center: bool = True,
    skip: Tensor | None = None,
    auxk: AuxK | None = None,
    dead: Tensor | None = None,
    matryoshka: Matryoshka | None = None,
    l1: float = 0.0,
    l0: float = 0.0,
    l0_target: float | None = None,
) -> tuple[SparseAutoencoderLoss, Tensor]:
    """The objective of ``fastae.functional.sparse_autoencoder_loss`` and the dense code [N, H]."""
    t = x if target is None else target
    z = F.linear(x - decoder_bias if center and decoder_bias is not None else x, weight, bias)
    penalised = active = None
    preactivation = z
    match activation:
        case TopK():
            h = topk(z, activation.k)
        case BatchTopK():
            h = batch_topk(z, activation.k) if threshold is None else z * (z > threshold.clamp_min(0.0))
        case JumpReLU():
            assert threshold is not None
            h, active = jump_relu(z, threshold.to(z.dtype), activation)
        case Gated():
            assert gate is not None
            h, penalised = gated(z, *gate)
            preactivation = z + gate[0]
        case ReLU():
            h = z.relu()
        case _:
            raise ValueError(f"activation: {activation!r}")

    offset = 0.0 if decoder_bias is None else decoder_bias
    if skip is not None:
        offset = offset + F.linear(x, skip)
    estimate = h @ decoder_weight + offset
    total = reconstruction = squared_error(estimate, t)
    terms: dict[str, Tensor] = {}
    if matryoshka is not None:
        prefixes = [h[:, :m] @ decoder_weight[:m] + offset for m in matryoshka.widths]
        total = terms["matryoshka"] = sum(
            (w * squared_error(p, t) for w, p in zip(matryoshka.factors, prefixes, strict=True)),
            start=z.new_zeros(()),
        )
    if auxk is not None:
        assert dead is not None
        terms["auxk"] = auxk_loss(preactivation, decoder_weight, t - estimate, t, dead, auxk)
        total = total + auxk.weight * terms["auxk"]
    if l1:
        terms["l1"] = ((h if penalised is None else penalised) @ decoder_weight.norm(dim=1)).mean()
        total = total + l1 * terms["l1"]
    if penalised is not None:
        # the gate alone reconstructs, through a decoder that is held constant
        held = offset.detach() if isinstance(offset, Tensor) else offset
        terms["gate"] = squared_error(penalised @ decoder_weight.detach() + held, t)
        total = total + terms["gate"]
    if l0:
        assert active is not None
        number = active.sum(1)
        terms["l0"] = number.mean() if l0_target is None else (number / l0_target - 1.0).square().mean()
        total = total + l0 * terms["l0"]
    return SparseAutoencoderLoss(total, reconstruction, **terms), h
