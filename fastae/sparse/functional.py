"""Sparse dictionaries as functions of tensors: exact selections, sparse sums, and the whole objective.

The conventions are those of :mod:`fastae.functional`. No [N, H] matrix is formed: memory beyond weights and
gradients does not depend on the number of latents H.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..arguments import check_floating, check_like, check_linear, check_target
from ..plain import refuse_transforms
from ..tensors import as_rows, autocast_like_linear
from .bags import entries_of, fixed_offsets
from .code import SparseAutoencoderLoss, SparseCode
from .gradients import Decode
from .objective import Weights, encode, evaluate
from .options import SparseObjective
from .specs import AuxK, BatchTopK, Gated, JumpReLU, Matryoshka, Sparsity, TopK
from .streamed import Vectors


class Gate(NamedTuple):
    """The parameters of a gated code beside the encoder's weight, [H] each; see :class:`fastae.Gated`."""

    bias: Tensor
    magnitude: Tensor
    magnitude_bias: Tensor


def topk_encode(x: Tensor, weight: Tensor, bias: Tensor | None = None, k: int = 32) -> SparseCode:
    """The k largest of z = x W^T + b per row, then ReLU, without forming z.

    Selection compares sums in float32 (float64 for float64) and is exact; ties go to the lower latent, and
    NaN counts as the largest value. Gradients are those of the ReLU at the selected entries.

    Args:
        x: input, [*, D].
        weight: [H, D], as in ``nn.Linear``.
        bias: [H].
        k: entries per row, at most H.

    Returns:
        A code with values relu(z), high to low, and their latents (int64), both [*, k].

    Raises:
        ValueError: a shape, dtype, device or ``k`` that does not fit, named.
    """
    check_linear("x", x, weight, bias)
    rule = TopK(k)
    if rule.k > len(weight):
        raise ValueError(f"k: expected at most the {len(weight)} rows of the weight, got {k}")
    x, weight, bias = autocast_like_linear(x, weight, bias)
    # the decoder's weight takes no part
    w = Weights(weight, bias, weight, None, None, Vectors())
    code = encode(rule, w, as_rows(x), None)
    leading = x.shape[:-1]
    return SparseCode(code.values.view(*leading, rule.k), code.indices.view(*leading, rule.k))


def sparse_decode(
    values: Tensor,
    indices: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    offsets: Tensor | None = None,
) -> Tensor:
    """The reconstruction sum_k values_k W[indices_k] + b of a sparse code.

    Args:
        values: [*, k], or [E] with ``offsets``.
        indices: latents, int64, in the shape of ``values``.
        weight: [H, Do], a row per latent (the transpose of an ``nn.Linear`` decoder's weight).
        bias: [Do].
        offsets: of a code with any number of entries per row, [N + 1]; see :class:`SparseCode`.

    Returns:
        [*, Do], or [N, Do] with ``offsets``.

    Raises:
        ValueError: a shape, dtype, device or index that does not fit, named.
    """
    check_floating("values", values)
    check_floating("weight", weight)
    if weight.dim() != 2:
        raise ValueError(f"weight: expected two dimensions [H, Do], got shape {list(weight.shape)}")
    if values.dim() < 1 or values.shape != indices.shape:
        shapes = f"{list(values.shape)} and {list(indices.shape)}"
        raise ValueError(f"indices: expected the shape of values, [*, k], got {shapes}")
    if indices.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"indices: expected int64, got {indices.dtype}")
    if bias is not None:
        check_like("bias", bias, (weight.shape[1],), weight)
    if offsets is None:
        leading, k = values.shape[:-1], values.shape[-1]
        offsets = fixed_offsets(leading.numel(), k, values.device)
    else:
        if values.dim() != 1 or offsets.dim() != 1 or offsets.dtype != torch.int64 or not len(offsets):
            raise ValueError(
                f"offsets: expected int64 [N + 1] with values [E], got {offsets.dtype} "
                f"{list(offsets.shape)} with values {list(values.shape)}"
            )
        leading = (len(offsets) - 1,)
    refuse_transforms("sums of sparse codes", "a product with the dense code")
    latents = indices.reshape(-1).long()
    # a graph cannot raise on values
    if values.device.type == "cpu" and len(latents) and not torch.compiler.is_compiling():
        low, high = (int(v) for v in latents.aminmax())
        if low < 0 or high >= len(weight):
            raise ValueError(f"indices: expected 0 to {len(weight) - 1}, got {low} to {high}")
    weight, bias = autocast_like_linear(weight, bias)
    entries = entries_of(latents, offsets, len(weight))
    out = Decode.apply(values.reshape(-1), weight, None, *entries).view(*leading, weight.shape[1])
    return out if bias is None else out + bias


def sparse_autoencoder_loss(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    decoder_weight: Tensor,
    decoder_bias: Tensor | None,
    *,
    activation: Sparsity | str,
    threshold: Tensor | None = None,
    gate: Gate | tuple[Tensor, Tensor, Tensor] | None = None,
    target: Tensor | None = None,
    center: bool = True,
    skip: Tensor | None = None,
    auxk: AuxK | None = None,
    dead: Tensor | None = None,
    matryoshka: Matryoshka | None = None,
    l1: float = 0.0,
    l0: float = 0.0,
    l0_target: float | None = None,
) -> tuple[SparseAutoencoderLoss, SparseCode]:
    """The objective of a sparse autoencoder or transcoder, and its code.

    With x_c = x - b_dec (or x), z = x_c W^T + b, the code h of the sparsity rule and the reconstruction
    r = h W_dec + b_dec (+ x S^T)::

        total = mean_n |t_n - r_n|^2  or the Matryoshka sum  + auxk.weight A + l1 L1 + l0 L0

    where A is the loss of :class:`fastae.AuxK`, L1 = mean_n sum_j h_nj |W_dec,j|, and L0 the mean number of
    active latents, or with ``l0_target`` T its mean squared relative distance (n / T - 1)^2. A gated code is
    penalised by relu of its gate in place of h, and adds the reconstruction by the gates alone through
    decoder weights held constant, with weight 1.

    Args:
        x: input, [*, D].
        weight, bias: the encoder's, [H, D] and [H]; a gated code has no bias.
        decoder_weight: [H, Do], a row per latent.
        decoder_bias: [Do].
        activation: the rule or its text: ``"topk:32"``, ``"batch_topk:32"``, ``"jump_relu"``, ``"relu"``,
            ``"gated"``.
        threshold: [H] for jump_relu. For batch_topk a scalar, which then replaces the selection over the
            batch by the comparison z > threshold.
        gate: the parameters of a gated code.
        target: [*, Do] in place of x (transcoders).
        center: whether the decoder's bias is subtracted from the input; needs Do = D.
        skip: S [Do, D], a linear term of the input.
        auxk, dead: the auxiliary loss and the latents (bool [H]) that it revives.
        matryoshka: prefixes of the dictionary that reconstruct on their own.
        l1, l0, l0_target: weights of the penalties above.

    Returns:
        The loss and its terms, and the code in order of rows: [*, k] for topk, ragged for the others.

    Raises:
        ValueError: an argument that does not fit, named.
    """
    objective = SparseObjective(
        activation=activation,  # pyright: ignore[reportArgumentType]
        center=center and decoder_bias is not None,
        auxk=auxk,
        matryoshka=matryoshka,
        l1=l1,
        l0=l0,
        l0_target=l0_target,
    )
    w = prepare(objective, x, weight, bias, decoder_weight, decoder_bias, threshold, gate, skip, target, dead)
    rows = as_rows(x)
    outcome = evaluate(objective, w, rows, rows if target is None else as_rows(target), dead, True)
    code = outcome.code
    assert code is not None
    if code.offsets is None and x.dim() != 2:
        shape = (*x.shape[:-1], code.values.shape[-1])
        code = SparseCode(code.values.view(shape), code.indices.view(shape))
    return outcome.loss, code


def prepare(
    o: SparseObjective,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    decoder_weight: Tensor,
    decoder_bias: Tensor | None,
    threshold: Tensor | None,
    gate: Gate | tuple[Tensor, Tensor, Tensor] | None,
    skip: Tensor | None,
    target: Tensor | None,
    dead: Tensor | None,
    total: int | None = None,
) -> Weights:
    """The checked parameters, in autocast's dtype where that is on, of all ``total`` latents or some."""
    check_linear("x", x, weight, bias)
    latents, features = weight.shape
    check_floating("decoder_weight", decoder_weight)
    if decoder_weight.dim() != 2 or len(decoder_weight) != latents:
        shape = list(decoder_weight.shape)
        raise ValueError(f"decoder_weight: expected shape [{latents}, Do], a row per latent, got {shape}")
    outputs = decoder_weight.shape[1]
    check_like("decoder_weight", decoder_weight, (latents, outputs), weight)
    if decoder_bias is not None:
        check_like("decoder_bias", decoder_bias, (outputs,), weight)
    if o.center and outputs != features:
        raise ValueError(f"center: needs an output of {features} features as the input has, got {outputs}")
    if target is None and outputs != features:
        raise ValueError(f"target: expected a target [*, {outputs}] for the decoder's outputs, got None")
    if target is not None:
        check_target(target, (*x.shape[:-1], outputs), x)
    if skip is not None:
        check_like("skip", skip, (outputs, features), weight)
    if o.auxk is not None and dead is None:
        raise ValueError("dead: expected the dead latents, bool [H], as auxk is given")
    if dead is not None and (dead.dtype != torch.bool or tuple(dead.shape) != (latents,)):
        raise ValueError(f"dead: expected bool [{latents}], got {dead.dtype} {list(dead.shape)}")
    o.check_latents(latents if total is None else total)
    vectors = _vectors(o.activation, latents, weight, bias, threshold, gate)
    weight, bias, decoder_weight, skip = autocast_like_linear(weight, bias, decoder_weight, skip)
    return Weights(weight, bias, decoder_weight, decoder_bias, skip, vectors)


def _vectors(
    rule: Sparsity,
    latents: int,
    weight: Tensor,
    bias: Tensor | None,
    threshold: Tensor | None,
    gate: Gate | tuple[Tensor, Tensor, Tensor] | None,
) -> Vectors:
    if isinstance(rule, JumpReLU):
        if threshold is None or tuple(threshold.shape) != (latents,):
            shape = None if threshold is None else list(threshold.shape)
            raise ValueError(f"threshold: expected shape [{latents}] for jump_relu, got {shape}")
    elif threshold is not None and not (isinstance(rule, BatchTopK) and threshold.dim() == 0):
        raise ValueError(
            "threshold: expected one per latent for jump_relu, a scalar for batch_topk, or None, "
            f"got shape {list(threshold.shape)} for {rule}"
        )
    if not isinstance(rule, Gated):
        if gate is not None:
            raise ValueError(f"gate: expected None for {rule}, got {type(gate).__name__}")
        return Vectors(threshold)
    if gate is None:
        raise ValueError("gate: expected (bias, magnitude, magnitude_bias), [H] each, for gated, got None")
    if bias is not None:
        raise ValueError("bias: expected None for gated, which has gate_bias and magnitude_bias")
    gate = Gate(*gate)
    for name, vector in gate._asdict().items():
        check_like(f"gate.{name}", vector, (latents,), weight)
    return Vectors(None, *gate)
