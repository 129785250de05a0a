"""Fused autoencoder layers and losses as functions of tensors.

Convention everywhere: sums over features and units, means over rows. Leading dimensions are arbitrary, as in
``torch.nn.functional.linear``; all of them together are the rows. Under autocast the matrix products run in
autocast's dtype, as ``nn.Linear``'s do, and losses and penalties come in float32. Second derivatives raise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .activations import get_activation
from .arguments import (
    REDUCTIONS,
    as_rows,
    autocast_like_linear,
    check_corruption,
    check_floating,
    check_like,
    check_linear,
    check_loss,
    check_name,
    check_objective,
    check_target,
    reduce_rows,
)
from .autograd import AutoencoderObjective, Corrupt, DecoderSettings, Encode, Objective, ReconstructionLoss
from .corruption import Corruption, Emphasis
from .deep import deep_autoencoder_loss, deep_contractive_encode
from .philox import STREAM_CORRUPTION, draw_seed
from .reference import AutoencoderLoss

__all__ = [
    "AutoencoderLoss",
    "autoencoder_loss",
    "contractive_encode",
    "corrupt",
    "deep_autoencoder_loss",
    "deep_contractive_encode",
    "encode",
    "reconstruction_loss",
]


def encode(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "sigmoid") -> Tensor:
    """The code ``h = f(x W^T + b)``.

    Args:
        x: input, [*, D].
        weight: [H, D], as in ``nn.Linear``; any strides.
        bias: [H].
        activation: one of the names in :data:`fastae.activations.ACTIVATIONS`.

    Returns:
        The code, [*, H].

    Raises:
        ValueError: a shape, dtype, device or name that does not fit, named.
    """
    check_linear("x", x, weight, bias)
    get_activation(activation)
    x, weight, bias = autocast_like_linear(x, weight, bias)
    code, _ = Encode.apply(as_rows(x), weight, bias, activation, False)
    return code.view(*x.shape[:-1], code.shape[-1])


def contractive_encode(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str = "sigmoid",
    *,
    reduction: str = "mean",
) -> tuple[Tensor, Tensor]:
    """The code and its contractive penalty ``||dh/dx||_F^2``, exact, for any of the activations.

    With s = f'(x W^T + b) and q_j = ||W_j||^2 the penalty of a row is ``sum_j s_j^2 q_j`` (Rifai et al. 2011,
    eq. 7, for the sigmoid): no Jacobian is formed, and its gradients to x, weight and bias are exact, too.

    Args:
        x, weight, bias, activation: as in :func:`encode`.
        reduction: over rows, of the sum over units and features: ``"mean"``, ``"sum"``, or ``"none"`` for a
            value a row, [*].

    Returns:
        The code [*, H] and the penalty.

    Raises:
        ValueError: a shape, dtype, device or name that does not fit, named.
    """
    check_linear("x", x, weight, bias)
    get_activation(activation)
    check_name("reduction", reduction, REDUCTIONS)
    x, weight, bias = autocast_like_linear(x, weight, bias)
    code, penalty = Encode.apply(as_rows(x), weight, bias, activation, True)
    return code.view(*x.shape[:-1], code.shape[-1]), reduce_rows(penalty, reduction, x.shape[:-1])


def reconstruction_loss(
    code: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    loss: str = "bce",
    *,
    output_activation: str = "linear",
    reduction: str = "mean",
) -> Tensor:
    """The loss of the reconstruction from a code; the reconstruction itself is never kept.

    With a = h V^T + c: ``"mse"`` sums (f_out(a) - x)^2 over features; ``"bce"`` sums softplus(a) - x a, the
    cross-entropy of x in [0, 1] against sigmoid(a), and takes logits: it has no ``output_activation``.

    Args:
        code: [*, H].
        weight: the decoder's, [D, H] as in its ``nn.Linear``; pass ``encoder_weight.t()`` for tied weights.
        bias: [D].
        target: [*, D].
        loss: ``"mse"`` or ``"bce"``.
        output_activation: f_out, for mse.
        reduction: over rows: ``"mean"``, ``"sum"``, or ``"none"`` for a value a row, [*].

    Raises:
        ValueError: a shape, dtype, device or name that does not fit, named.
    """
    check_linear("code", code, weight, bias)
    check_name("reduction", reduction, REDUCTIONS)
    check_loss(loss, output_activation)
    check_target(target, (*code.shape[:-1], weight.shape[0]), code)
    code, weight, bias = autocast_like_linear(code, weight, bias)
    settings = DecoderSettings(loss, output_activation)
    value = ReconstructionLoss.apply(as_rows(code), weight, bias, as_rows(target), settings, reduction)
    return value.view(code.shape[:-1]) if reduction == "none" else value


def corrupt(x: Tensor, corruption: Corruption | None, *, generator: torch.Generator | None = None) -> Tensor:
    """A draw from the corruption process C(x~ | x): a new tensor like ``x`` [*, D].

    The noise is a pure function of a seed drawn from torch's generator (or ``generator``), the row and the
    column; ``torch.manual_seed`` makes it repeatable. Gradients flow where an entry was kept.

    Raises:
        ValueError: ``x`` is not a floating-point tensor with rows, or ``corruption`` is not a corruption.
    """
    check_floating("x", x)
    if x.dim() < 1:
        raise ValueError("x: expected at least one dimension [*, D], got a scalar")
    if corruption is None:
        return x.clone()
    check_corruption(corruption)
    seed = draw_seed(x.device, generator)
    out = Corrupt.apply(as_rows(x), seed, corruption.kind, corruption.params, STREAM_CORRUPTION)
    return out.view(x.shape)


def autoencoder_loss(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    decoder_weight: Tensor | None,
    decoder_bias: Tensor | None,
    *,
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
    reduction: str = "mean",
    generator: torch.Generator | None = None,
) -> AutoencoderLoss:
    """The objective of a one-layer autoencoder as a single autograd node: five matrix products a step.

    ``L = mean_n l_n + contractive mean_n P_n + higher_order mean_n C_n + l1 mean_n sum_j |h_nj|
    + kl sum_j KL(kl_target || mean_n h_nj)`` with the code h = f(x~ W^T + b), the loss l of
    :func:`reconstruction_loss` against the clean target, and the penalty P of :func:`contractive_encode` at
    the encoder's actual input x~.

    Args:
        x: input, [*, D].
        weight, bias: the encoder's, [H, D] and [H].
        decoder_weight: [D, H], or ``None`` for tied weights, V = W^T.
        decoder_bias: [D].
        activation: of the code.
        loss, output_activation: as in :func:`reconstruction_loss`.
        corruption: of the input (denoising; Vincent et al. 2010).
        emphasis: weighs the loss of corrupted and of clean entries apart (Vincent et al. 2010, sec. 4.3).
        contractive: weight of the penalty (Rifai et al. 2011a).
        higher_order: weight of C = E ||J(x~) - J(x~ + e)||_F^2, e normal with ``higher_order_std``, estimated
            from ``higher_order_samples`` draws a row (Rifai et al. 2011b); one more encoder product a draw.
        l1: weight of the codes' absolute sum.
        kl: weight of the divergence of the units' mean activations from ``kl_target``; sigmoid codes only.
        code_noise: what the decoder sees of the code: ``"none"``; ``"gaussian"``, with ``code_noise_std``
            added; ``"bernoulli"``, a binary draw whose gradient passes straight through (sigmoid codes only).
        dropout: probability that a unit is dropped from the decoder's input, the others scaled by
            1 / (1 - dropout). Penalties see the code without noise and dropout.
        target: [*, D], in place of x.
        reduction: over rows: ``"mean"``, ``"sum"`` or ``"none"`` (every term but kl is then [*]).
        generator: of the noise; torch's default generator of the device otherwise.

    Returns:
        ``AutoencoderLoss``: the total, then each term without its weight (``None`` where the weight is 0).

    Raises:
        ValueError: an argument that does not fit, named.
    """
    check_linear("x", x, weight, bias)
    features = (weight.shape[1], weight.shape[0])
    if decoder_weight is not None:
        check_like("decoder_weight", decoder_weight, features, weight)
    if decoder_bias is not None:
        check_like("decoder_bias", decoder_bias, features[:1], weight)
    check_name("reduction", reduction, REDUCTIONS)
    check_objective(
        activation=activation,
        loss=loss,
        output_activation=output_activation,
        corruption=corruption,
        emphasis=emphasis,
        contractive=contractive,
        higher_order=higher_order,
        higher_order_std=higher_order_std,
        higher_order_samples=higher_order_samples,
        l1=l1,
        kl=kl,
        kl_target=kl_target,
        code_noise=code_noise,
        code_noise_std=code_noise_std,
        dropout=dropout,
    )
    if target is None:
        target = x
    else:
        check_target(target, x.shape, x)

    random = corruption is not None or code_noise != "none" or dropout or higher_order
    seed = draw_seed(x.device, generator) if random else None
    objective = Objective(
        activation,
        loss,
        output_activation,
        "none" if corruption is None else corruption.kind,
        [] if corruption is None else corruption.params,
        None if emphasis is None else (emphasis.corrupted, emphasis.clean),
        contractive,
        higher_order,
        higher_order_std,
        higher_order_samples,
        l1,
        kl,
        kl_target,
        code_noise,
        code_noise_std,
        dropout,
        reduction,
    )
    cast, weight, bias, decoder_weight, decoder_bias = autocast_like_linear(
        x, weight, bias, decoder_weight, decoder_bias
    )
    terms = AutoencoderObjective.apply(
        as_rows(cast), as_rows(target), weight, bias, decoder_weight, decoder_bias, seed, objective
    )
    if reduction == "none" and x.dim() != 2:
        *rows, divergence = terms
        terms = (*(None if row is None else row.view(x.shape[:-1]) for row in rows), divergence)
    return AutoencoderLoss(*terms)  # pyright: ignore[reportArgumentType]
