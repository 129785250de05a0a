"""Fused autoencoder layers and losses as functions of tensors.

Convention everywhere: sums over features and units, means over rows. Leading dimensions are arbitrary, as in
``torch.nn.functional.linear``; all of them together are the rows. Under autocast the matrix products run in
autocast's dtype, as ``nn.Linear``'s do, and losses and penalties come in float32. Second derivatives raise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor

from . import plain
from .activations import get_activation
from .arguments import check_floating, check_like, check_linear, check_target, entry_weight_of
from .checks import check_name, check_whole
from .corruption import Corruption, check_corruption
from .gradients import AutoencoderObjective, Decoding, DeepEncode, Encode, ReconstructionLoss, UnitShard
from .gradients.layers import decoding_of
from .losses import get_loss
from .objective import (
    REDUCTIONS,
    AutoencoderLoss,
    Objective,
    ObjectiveOptions,
    kl_count,
    takes_options,
)
from .ops.backend import runs_pytorch
from .philox import MOST_DRAWS, draw_seed
from .reference import kl_divergence, l1_penalty
from .share import batch_mean
from .sparse.functional import sparse_autoencoder_loss, sparse_decode, topk_encode
from .tensors import as_rows, autocast_dtype, autocast_like_linear, fill_missing, reduce_rows, sum_dtype

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "AutoencoderLoss",
    "Layer",
    "autoencoder_loss",
    "contractive_encode",
    "corrupt",
    "deep_autoencoder_loss",
    "deep_contractive_encode",
    "encode",
    "reconstruction_loss",
    "sparse_autoencoder_loss",
    "sparse_decode",
    "topk_encode",
]

Layer = tuple[Tensor, "Tensor | None", str]
"""weight [out, in], bias [out] or ``None``, activation."""


def encode(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "sigmoid") -> Tensor:
    """The code ``h = f(x W^T + b)``.

    Args:
        x: input, [*, D].
        weight: [H, D], as in ``nn.Linear``; any strides.
        bias: [H].
        activation: a name in :data:`fastae.activations.ACTIVATIONS`.

    Returns:
        The code, [*, H].

    Raises:
        ValueError: a shape, dtype, device or name that does not fit, named.
    """
    check_linear("x", x, weight, bias)
    get_activation(activation)
    return _encode(x, weight, bias, activation)


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
        reduction: over rows, of the sum over units and features: ``"mean"``, ``"sum"``, or ``"none"`` for one
            value per row, [*].

    Returns:
        The code [*, H] and the penalty.

    Raises:
        ValueError: a shape, dtype, device or name that does not fit, named.
    """
    check_linear("x", x, weight, bias)
    get_activation(activation)
    check_name("reduction", reduction, REDUCTIONS)
    x, weight, bias = autocast_like_linear(x, weight, bias)
    if plain.is_wanted(x.device):
        code, rows = plain.encode_and_penalty(as_rows(x), weight, bias, activation)
        penalty = reduce_rows(rows, reduction, x.shape[:-1])
    else:
        code, penalty = Encode.apply(as_rows(x), weight, bias, activation, reduction)  # pyright: ignore[reportGeneralTypeIssues]
        penalty = penalty.view(x.shape[:-1]) if reduction == "none" else penalty
    return code.view(*x.shape[:-1], code.shape[-1]), penalty


def reconstruction_loss(
    code: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    loss: str = "bce",
    *,
    output_activation: str = "linear",
    missing: bool = False,
    entry_weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """The loss of the reconstruction from a code; the reconstruction itself is never kept.

    With a = h V^T + c and r = f_out(a), the sum over features of:

    - ``"mse"``: (r - x)^2;
    - ``"huber"`` or ``"huber:d"``: (r - x)^2 / 2 within d of x and d (|r - x| - d / 2) beyond, with d = 1 by
      default (Huber 1964);
    - ``"cosine"``: 1 - cos(r, x), which leaves the length of r free; lengths are held at 1e-8 from below, as
      in ``torch.nn.functional.cosine_similarity``;
    - ``"bce"``: softplus(a) - x a, the cross-entropy of x in [0, 1] against sigmoid(a);
    - ``"poisson"``: m - x log m, the negative log-likelihood of counts x with the mean
      m = softplus(a), without log x!, which is the same for all m;
    - ``"negative_binomial"`` or ``"negative_binomial:t"``: (x + t) log(1 + m / t) - x log m, the same where
      the variance is m + m^2 / t, with t = 1 by default.

    The last three losses take a before any activation and have no ``output_activation``. That the target
    lies in the loss's range is not checked: beyond it, the loss has no least value.

    Args:
        code: [*, H].
        weight: the decoder's, [D, H] as in its ``nn.Linear``; pass ``encoder_weight.t()`` for tied weights.
        bias: [D].
        target: [*, D].
        loss: one of these.
        output_activation: f_out, for mse, huber and cosine.
        missing: whether NaN in the target stands for entries that are missing: they have no loss and no
            gradient. ``target.masked_fill(~mask, torch.nan)`` takes a mask.
        entry_weight: weights of the entries, finite and not negative (which is not checked), in a shape that
            broadcasts to the target's: [D] for features, [*, 1] for rows, or [*, D]. The loss is the sum over
            features of weight times loss; it is not divided by the weights' sum. Entries of weight 0 have no
            loss and no gradient, whatever their target. The weights themselves get no gradient. Cosine has
            them in each of its sums, r x, r r and x x; those of whole rows cancel there and are refused.
        reduction: over rows: ``"mean"``, ``"sum"``, or ``"none"`` for one value per row, [*].

    Raises:
        ValueError: a shape, dtype, device or name that does not fit, named.
    """
    check_linear("code", code, weight, bias)
    check_name("reduction", reduction, REDUCTIONS)
    get_loss(loss, output_activation)
    check_target(target, (*code.shape[:-1], weight.shape[0]), code)
    entry_weight = entry_weight_of(entry_weight, target, loss)
    code, weight, bias = autocast_like_linear(code, weight, bias)
    decoding = Decoding(loss, output_activation, missing=missing, entry_weight=entry_weight)
    value = _reconstruction(as_rows(code), weight, bias, as_rows(target), decoding, reduction)
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
    check_corruption(corruption)
    if corruption is None:
        return x.clone()
    return plain.corrupt(as_rows(x), draw_seed(x.device, generator), corruption).view(x.shape)


@takes_options(Objective)
def autoencoder_loss(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    decoder_weight: Tensor | None,
    decoder_bias: Tensor | None,
    *,
    target: Tensor | None = None,
    entry_weight: Tensor | None = None,
    reduction: str = "mean",
    generator: torch.Generator | None = None,
    **options: Unpack[ObjectiveOptions],
) -> AutoencoderLoss:
    """The objective of a one-layer autoencoder as a single autograd node: five matrix products per step.

    ``L = mean_n l_n + contractive mean_n P_n + higher_order mean_n C_n + l1 mean_n sum_j |h_nj|
    + kl sum_j KL(kl_target || mean_n h_nj)`` with the code h = f(x~ W^T + b), the loss l of
    :func:`reconstruction_loss` against the clean target, and the penalty P of :func:`contractive_encode` at
    the encoder's actual input x~.

    Args:
        x: input, [*, D].
        weight, bias: the encoder's, [H, D] and [H].
        decoder_weight: [D, H], or ``None`` for tied weights, V = W^T.
        decoder_bias: [D].
        target: [*, D], in place of x.
        entry_weight: weights of the loss's entries, as in :func:`reconstruction_loss`; those of ``emphasis``
            are multiplied with them. The encoder sees all of x.
        reduction: over rows: ``"mean"``, ``"sum"`` or ``"none"`` (every term but kl is then [*]).
        generator: of the noise; torch's default generator of the device otherwise.
        **options: the fields of :class:`fastae.objective.Objective`, below.

    Returns:
        ``AutoencoderLoss``: the total, then each term without its weight (``None`` where the weight is 0).

    Raises:
        ValueError: an argument that does not fit, named.
    """
    return objective_loss(
        x,
        weight,
        bias,
        decoder_weight,
        decoder_bias,
        Objective(**options),
        target=target,
        entry_weight=entry_weight,
        reduction=reduction,
        generator=generator,
    )


def objective_loss(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    decoder_weight: Tensor | None,
    decoder_bias: Tensor | None,
    objective: Objective,
    *,
    target: Tensor | None = None,
    entry_weight: Tensor | None = None,
    reduction: str = "mean",
    generator: torch.Generator | None = None,
    shard: UnitShard | None = None,
) -> AutoencoderLoss:
    """:func:`autoencoder_loss` of an :class:`~fastae.objective.Objective`.

    With a ``shard`` the weights and the bias are those of its units, and all processes of its group call this
    with the same rows.
    """
    check_linear("x", x, weight, bias)
    features = (weight.shape[1], weight.shape[0])
    if decoder_weight is not None:
        check_like("decoder_weight", decoder_weight, features, weight)
    if decoder_bias is not None:
        check_like("decoder_bias", decoder_bias, features[:1], weight)
    check_name("reduction", reduction, REDUCTIONS)
    if target is None:
        target = x
    else:
        check_target(target, x.shape, x)
    entry_weight = entry_weight_of(entry_weight, x, objective.loss)
    x = fill_missing(x, objective.missing)
    draw = draw_seed if shard is None else shard.draw_seed
    seed = draw(x.device, generator) if objective.random else None
    layers = weight, bias, decoder_weight, decoder_bias
    if shard is None and plain.is_wanted(x.device):
        cast, *cast_layers = autocast_like_linear(x, *layers)
        parts = plain.parts_of(*cast_layers, objective.activation)  # pyright: ignore[reportCallIssue]
        *terms, divergence = plain.objective(
            as_rows(cast), as_rows(target), parts, seed, objective, reduction, entry_weight
        )
    else:
        options = objective, reduction, autocast_dtype(x), shard, entry_weight
        *terms, divergence = AutoencoderObjective.apply(as_rows(x), as_rows(target), *layers, seed, *options)
    return _as_loss(terms, divergence, x, reduction)


def parts_loss(
    x: Tensor,
    parts: plain.Parts,
    objective: Objective,
    *,
    entry_weight: Tensor | None = None,
    reduction: str = "mean",
    generator: torch.Generator | None = None,
) -> AutoencoderLoss:
    """:func:`objective_loss` of an autoencoder given as functions, which may be modules with hooks."""
    check_floating("x", x)
    check_name("reduction", reduction, REDUCTIONS)
    entry_weight = entry_weight_of(entry_weight, x, objective.loss)
    seed = draw_seed(x.device, generator) if objective.random else None
    rows = as_rows(x)
    seen = fill_missing(rows, objective.missing)
    *terms, divergence = plain.objective(seen, rows, parts, seed, objective, reduction, entry_weight)
    return _as_loss(terms, divergence, x, reduction)


def _as_loss(
    terms: Sequence[Tensor | None], divergence: Tensor | None, x: Tensor, reduction: str
) -> AutoencoderLoss:
    """Terms of rows in the shape of x [*, D], with the divergence, which is a scalar."""
    if reduction == "none" and x.dim() != 2:
        terms = [None if term is None else term.view(x.shape[:-1]) for term in terms]
    return AutoencoderLoss(*terms, divergence)  # pyright: ignore[reportArgumentType, reportCallIssue]


def deep_contractive_encode(
    x: Tensor,
    layers: Sequence[Layer],
    *,
    probes: int = 1,
    reduction: str = "mean",
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """The code of a deep encoder and an unbiased estimate of its penalty ``||dcode/dx||_F^2``.

    The estimate is Hutchinson's (1989), ``||J^T v||^2`` for random signs v.

    Args:
        x: [*, D].
        layers: (weight [out, in], bias [out] or ``None``, activation) of each layer, from the input on.
        probes: random probes per row; the estimate's variance falls as 1 / probes.
        reduction: over rows: ``"mean"``, ``"sum"`` or ``"none"`` (one value per row, [*]).
        generator: of the probes.

    Returns:
        The code [*, H_last] and the penalty; gradients flow to x and every parameter.

    Raises:
        ValueError: an argument that does not fit, named.
    """
    if not layers:
        raise ValueError("layers: needs at least one layer")
    probes = check_whole("probes:", probes, most=MOST_DRAWS)
    check_name("reduction", reduction, REDUCTIONS)
    width = x
    for weight, bias, activation in layers:
        check_linear("x" if width is x else "code", width, weight, bias)
        get_activation(activation)
        width = x.new_empty(0, weight.shape[0])
    weights, biases, activations = zip(*layers, strict=True)
    cast, *parameters = autocast_like_linear(x, *weights, *biases)
    seed = draw_seed(x.device, generator)
    if plain.is_wanted(x.device):
        weights, biases = parameters[: len(layers)], parameters[len(layers) :]
        code, penalty = plain.encode_deep(as_rows(cast), seed, probes, activations, weights, biases)
    else:
        code, penalty = DeepEncode.apply(as_rows(cast), seed, probes, activations, *parameters)  # pyright: ignore[reportGeneralTypeIssues]
    return code.view(*x.shape[:-1], code.shape[-1]), reduce_rows(penalty, reduction, x.shape[:-1])


_OF_LAYERS = ("activation", "output_activation", "higher_order", "higher_order_std", "higher_order_samples")
"""Options that a deep autoencoder takes from its layers, or does not have."""


@takes_options(Objective, without=_OF_LAYERS)
def deep_autoencoder_loss(
    x: Tensor,
    encoder: Sequence[Layer],
    decoder: Sequence[Layer],
    *,
    entry_weight: Tensor | None = None,
    probes: int = 1,
    reduction: str = "mean",
    generator: torch.Generator | None = None,
    **options: Unpack[ObjectiveOptions],
) -> AutoencoderLoss:
    """The objective of an unrolled deep autoencoder: :func:`autoencoder_loss` with several layers per side.

    Args:
        x: [*, D].
        encoder: layers from the input to the code, as in :func:`deep_contractive_encode`.
        decoder: layers from the code to the reconstruction. The last one's activation is the output
            activation for mse, huber and cosine, and must be ``"linear"`` for the other losses.
        probes: random probes per row for the penalty of the whole encoder.
        entry_weight, reduction, generator: as in :func:`autoencoder_loss`.
        **options: as in :func:`autoencoder_loss`; the penalties and the noise are those of the last code.

    Raises:
        ValueError: an argument that does not fit, named.
        TypeError: an option that deep autoencoders do not have.
    """
    for name in options:
        if name in _OF_LAYERS:
            raise TypeError(
                f"{name}: deep_autoencoder_loss has no such option; layers have an activation each"
            )
    if not encoder or not decoder:
        raise ValueError("encoder, decoder: need at least one layer each")
    check_name("reduction", reduction, REDUCTIONS)
    o = Objective(**{**options, "activation": encoder[-1][2], "output_activation": decoder[-1][2]})
    check_linear("x", x, encoder[0][0], encoder[0][1])
    if decoder[-1][0].shape[0] != x.shape[-1]:
        raise ValueError(
            f"decoder: its last layer gives {decoder[-1][0].shape[0]} features, but x has {x.shape[-1]}"
        )
    weight, bias, _ = decoder[-1]

    def reconstruction(code: Tensor, target: Tensor, decoding: Decoding) -> Tensor:
        code = _apply_layers(code, decoder[:-1])
        check_linear("code", code, weight, bias)
        code, *parameters = autocast_like_linear(code, weight, bias)
        return _reconstruction(code, parameters[0], parameters[1], target, decoding, reduction)

    return _deep_loss(
        x,
        o,
        lambda rows: _apply_layers(rows, encoder),
        lambda rows: deep_contractive_encode(
            rows, encoder, probes=probes, reduction="none", generator=generator
        ),
        reconstruction,
        entry_weight,
        reduction,
        generator,
    )


def deep_parts_loss(
    x: Tensor,
    parts: plain.Parts,
    objective: Objective,
    *,
    entry_weight: Tensor | None = None,
    reduction: str = "mean",
    generator: torch.Generator | None = None,
) -> AutoencoderLoss:
    """:func:`deep_autoencoder_loss` of a stack given as functions, which may be modules with hooks."""
    check_floating("x", x)
    check_name("reduction", reduction, REDUCTIONS)

    def reconstruction(code: Tensor, target: Tensor, decoding: Decoding) -> Tensor:
        values = plain.decode_loss(parts.decode(code), target, decoding)
        return reduce_rows(values, reduction, values.shape)

    encoders = parts.encode, parts.encode_and_penalty
    return _deep_loss(x, objective, *encoders, reconstruction, entry_weight, reduction, generator)


def _deep_loss(
    x: Tensor,
    o: Objective,
    encode: Callable[[Tensor], Tensor],
    encode_and_penalty: Callable[[Tensor], tuple[Tensor, Tensor]],
    reconstruction: Callable[[Tensor, Tensor, Decoding], Tensor],
    entry_weight: Tensor | None,
    reduction: str,
    generator: torch.Generator | None,
) -> AutoencoderLoss:
    """The deep objective on x [*, D] of functions of rows; ``reconstruction`` gives the reduced loss."""
    rows, entry_weight = as_rows(x), entry_weight_of(entry_weight, x, o.loss)
    code = fill_missing(rows, o.missing)
    seed = None
    if o.corruption is not None:
        seed = draw_seed(x.device, generator)
        code = plain.corrupt(code, seed, o.corruption)
    terms: dict[str, Tensor] = {}
    if o.contractive:
        code, terms["contractive"] = encode_and_penalty(code)
    else:
        code = encode(code)
    wide = code.to(sum_dtype(code.dtype))
    if o.l1:
        terms["l1"] = l1_penalty(wide)
    divergence = kl_divergence(batch_mean(wide.mean(0)), o.kl_target) if o.kl else None
    if o.perturbs_code:
        code_seed = draw_seed(x.device, generator)
        code = plain.perturb(code, code_seed, o.code_noise, o.code_noise_std, o.dropout)
    total = reconstructed = reconstruction(code, rows, decoding_of(o, seed, entry_weight))
    terms = {name: reduce_rows(value, reduction, value.shape) for name, value in terms.items()}
    for name, value in terms.items():
        total = total + getattr(o, name) * value
    if divergence is not None and (count := kl_count(reduction, len(rows))):
        total = total + o.kl * count * divergence
    values = {"total": total, "reconstruction": reconstructed, **terms}
    if reduction == "none":
        values = {name: value.view(x.shape[:-1]) for name, value in values.items()}
    return AutoencoderLoss(**values, kl=divergence)


def _apply_layers(code: Tensor, layers: Sequence[Layer]) -> Tensor:
    for weight, bias, activation in layers:
        check_linear("code", code, weight, bias)
        code = _encode(code, weight, bias, activation)
    return code


for _name in __all__:
    if _name.islower():
        torch.fx.wrap(_name)  # a single call to symbolic_trace, as layers are


def _encode(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    needs_gradient = torch.is_grad_enabled() and (
        x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    )
    if plain.is_wanted(x.device):
        return plain.encode(x, weight, bias, activation)
    if not needs_gradient and runs_pytorch(x.device):
        z = F.linear(x, weight, bias)
        return get_activation(activation).in_place(z)
    x, weight, bias = autocast_like_linear(x, weight, bias)
    code, _ = Encode.apply(as_rows(x), weight, bias, activation)  # pyright: ignore[reportGeneralTypeIssues]
    return code if x.dim() == 2 else code.view(*x.shape[:-1], code.shape[-1])


def _reconstruction(
    code: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, decoding: Decoding, reduction: str
) -> Tensor:
    """The reconstruction loss of rows, reduced."""
    if not plain.is_wanted(code.device):
        return ReconstructionLoss.apply(code, weight, bias, target, decoding, reduction)  # pyright: ignore[reportReturnType]
    rows = plain.decode_loss(F.linear(code, weight, bias), target, decoding)
    return reduce_rows(rows, reduction, rows.shape)
