"""Deep autoencoders: the contractive penalty of an encoder of several layers, and the unrolled objective.

||J||_F^2 = E_v ||J^T v||^2 for independent signs v (Hutchinson 1989): one vector-Jacobian product a probe
instead of a Jacobian. With w_L = v and w_{l-1} = (w_l s_l) W_l the estimate is ||w_0||^2; its gradient runs
the same chain forwards and meets the ordinary backward pass in dz_l.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import Function

from . import ops
from .activations import get_activation
from .arguments import (
    REDUCTIONS,
    as_rows,
    autocast_like_linear,
    check_linear,
    check_name,
    check_objective,
    reduce_rows,
)
from .autograd import (
    Context,
    Corrupt,
    DecoderSettings,
    Encode,
    Perturb,
    ReconstructionLoss,
    first_order,
    rows_that_hold_kl,
)
from .corruption import Corruption, Emphasis, mask_width
from .philox import STREAM_CORRUPTION, STREAM_PROBE, draw_seed
from .precision import sum_dtype
from .reference import AutoencoderLoss, kl_penalty, l1_penalty

Layer = tuple[Tensor, "Tensor | None", str]
"""weight [out, in], bias [out], activation."""


class DeepEncode(Function):
    """(code [M, H_L], penalty [M]) of a stack; parameters are w_1, b_1, w_2, b_2, ..."""

    @staticmethod
    def forward(
        ctx: Context,
        x: Tensor,
        seed: Tensor,
        probes: int,
        activations: tuple[str, ...],
        *parameters: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        weights, biases = parameters[::2], parameters[1::2]
        inputs, codes, preacts = [x], [], []
        for weight, bias, activation in zip(weights, biases, activations, strict=True):
            assert weight is not None
            code, _, preact, _, _, _ = ops.encode(
                inputs[-1], weight, bias, activation, None, None, None, False, False, None, "none", 0.0, 0.0
            )
            codes.append(code)
            preacts.append(preact)
            inputs.append(code)
        ctx.probes, ctx.activations = probes, activations
        ctx.save_for_backward(x, seed, *parameters, *codes, *preacts)
        ctx.set_materialize_grads(False)

        slopes = _slopes(activations, codes, preacts)
        penalty = torch.zeros(x.shape[0], dtype=sum_dtype(x.dtype), device=x.device)
        for k in range(probes):
            w = _chain(ops.random_signs(codes[-1], seed, STREAM_PROBE + k), weights, slopes)[0]
            penalty += torch.linalg.vector_norm(w, dim=1, dtype=penalty.dtype).square_()
        return codes[-1].view_as(codes[-1]), penalty / probes

    @staticmethod
    @first_order
    def backward(
        ctx: Context, grad_code: Tensor | None, grad_penalty: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        depth = len(ctx.activations)
        x, seed, *saved = ctx.saved_tensors
        weights, biases = saved[: 2 * depth : 2], saved[1 : 2 * depth : 2]
        codes, preacts = saved[2 * depth : 3 * depth], saved[3 * depth :]
        d_weights: list[Tensor] = [torch.zeros_like(weight) for weight in weights]
        d_biases: list[Tensor | None] = [None] * depth
        extra: list[Tensor | None] = [None] * depth

        if grad_penalty is not None:
            slopes = _slopes(ctx.activations, codes, preacts)
            for k in range(ctx.probes):
                chain = _chain(ops.random_signs(codes[-1], seed, STREAM_PROBE + k), weights, slopes)
                dw = chain[0] * (2.0 / ctx.probes * grad_penalty)[:, None].to(x.dtype)
                for l in range(depth):
                    scaled = chain[l + 1] * slopes[l]
                    d_weights[l].addmm_(scaled.t(), dw)
                    d_scaled = torch.mm(dw, weights[l].t())
                    second = get_activation(ctx.activations[l]).second
                    if second is not None:
                        dz = d_scaled * chain[l + 1] * second(codes[l], slopes[l], preacts[l])
                        extra[l] = dz if extra[l] is None else extra[l] + dz  # pyright: ignore[reportOptionalOperand]
                    dw = d_scaled * slopes[l]

        dh = torch.zeros_like(codes[-1]) if grad_code is None else grad_code
        for l in reversed(range(depth)):
            dz, db, _ = ops.code_grad(
                dh,
                None,
                codes[l],
                preacts[l],
                ctx.activations[l],
                None,
                None,
                None,
                None,
                None,
                extra[l],
                None,
                0.0,
            )
            d_weights[l].addmm_(dz.t(), codes[l - 1] if l else x)
            bias = biases[l]
            d_biases[l] = None if bias is None else db.to(bias.dtype)
            if l or ctx.needs_input_grad[0]:
                dh = torch.mm(dz, weights[l])
        parameters = [g for pair in zip(d_weights, d_biases, strict=True) for g in pair]
        return dh if ctx.needs_input_grad[0] else None, None, None, None, *parameters


def _slopes(activations: tuple[str, ...], codes: list[Tensor], preacts: list[Tensor]) -> list[Tensor]:
    return [
        get_activation(name).derivative(code, preact)
        for name, code, preact in zip(activations, codes, preacts, strict=True)
    ]


def _chain(probe: Tensor, weights, slopes: list[Tensor]) -> list[Tensor]:
    """[w_0, ..., w_L] of the module's formula, from w_L = probe."""
    chain = [probe]
    for weight, s in zip(reversed(weights), reversed(slopes), strict=True):
        chain.append(torch.mm(chain[-1] * s, weight))
    return chain[::-1]


def deep_contractive_encode(
    x: Tensor,
    layers: Sequence[Layer],
    *,
    probes: int = 1,
    reduction: str = "mean",
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """The code of a deep encoder and an unbiased estimate of its penalty ``||dcode/dx||_F^2``.

    Args:
        x: [*, D].
        layers: (weight [out, in], bias [out] or ``None``, activation) of each layer, from the input on.
        probes: random probes a row; the estimate's variance falls as 1 / probes.
        reduction: over rows: ``"mean"``, ``"sum"`` or ``"none"`` (a value a row, [*]).
        generator: of the probes.

    Returns:
        The code [*, H_last] and the penalty; gradients flow to x and every parameter.

    Raises:
        ValueError: an argument that does not fit, named.
    """
    if not layers:
        raise ValueError("layers: needs at least one layer")
    if not isinstance(probes, int) or probes < 1:
        raise ValueError(f"probes: must be a whole number >= 1, got {probes!r}")
    check_name("reduction", reduction, REDUCTIONS)
    activations = tuple(activation for _, _, activation in layers)
    width = x
    for weight, bias, activation in layers:
        check_linear("x" if width is x else "code", width, weight, bias)
        get_activation(activation)
        width = x.new_empty(0, weight.shape[0])
    parameters = [tensor for weight, bias, _ in layers for tensor in (weight, bias)]
    cast, *parameters = autocast_like_linear(x, *parameters)
    seed = draw_seed(x.device, generator)
    code, penalty = DeepEncode.apply(as_rows(cast), seed, probes, activations, *parameters)
    return code.view(*x.shape[:-1], code.shape[-1]), reduce_rows(penalty, reduction, x.shape[:-1])


def deep_autoencoder_loss(
    x: Tensor,
    encoder: Sequence[Layer],
    decoder: Sequence[Layer],
    *,
    loss: str = "bce",
    corruption: Corruption | None = None,
    emphasis: Emphasis | None = None,
    contractive: float = 0.0,
    probes: int = 1,
    l1: float = 0.0,
    kl: float = 0.0,
    kl_target: float = 0.05,
    code_noise: str = "none",
    code_noise_std: float = 0.1,
    dropout: float = 0.0,
    reduction: str = "mean",
    generator: torch.Generator | None = None,
) -> AutoencoderLoss:
    """The objective of an unrolled deep autoencoder: :func:`autoencoder_loss` over several layers a side.

    Args:
        x: [*, D].
        encoder: layers from the input to the code, as in :func:`deep_contractive_encode`.
        decoder: layers from the code to the reconstruction. The last one's activation is the output
            activation for mse and must be ``"linear"`` for bce, which takes logits.
        contractive: weight of the penalty of the whole encoder, estimated with ``probes`` probes a row.
        loss, corruption, emphasis, l1, kl, kl_target, code_noise, code_noise_std, dropout, reduction,
        generator: as in :func:`autoencoder_loss`; the penalties and noise on the code are on the last one.

    Raises:
        ValueError: an argument that does not fit, named.
    """
    if not encoder or not decoder:
        raise ValueError("encoder, decoder: need at least one layer each")
    check_name("reduction", reduction, REDUCTIONS)
    check_objective(
        activation=encoder[-1][2],
        loss=loss,
        output_activation=decoder[-1][2],
        corruption=corruption,
        emphasis=emphasis,
        contractive=contractive,
        higher_order=0.0,
        higher_order_std=0.1,
        higher_order_samples=1,
        l1=l1,
        kl=kl,
        kl_target=kl_target,
        code_noise=code_noise,
        code_noise_std=code_noise_std,
        dropout=dropout,
    )
    check_linear("x", x, encoder[0][0], encoder[0][1])
    if decoder[-1][0].shape[0] != x.shape[-1]:
        raise ValueError(
            f"decoder: its last layer gives {decoder[-1][0].shape[0]} features, but x has {x.shape[-1]}"
        )
    rows = code = as_rows(x)
    settings = DecoderSettings(loss, decoder[-1][2])
    if corruption is not None:
        seed = draw_seed(x.device, generator)
        code = Corrupt.apply(rows, seed, corruption.kind, corruption.params, STREAM_CORRUPTION)
        if emphasis is not None:
            settings = settings._replace(
                seed=seed,
                p=corruption.params[0],
                width=mask_width(corruption.kind),
                corrupted=emphasis.corrupted,
                clean=emphasis.clean,
            )
    terms: dict[str, Tensor] = {}
    if contractive:
        code, terms["contractive"] = deep_contractive_encode(
            code, encoder, probes=probes, reduction="none", generator=generator
        )
    else:
        code = _apply_layers(code, encoder)
    wide = code.to(sum_dtype(code.dtype))
    if l1:
        terms["l1"] = l1_penalty(wide)
    divergence = kl_penalty(wide, kl_target) if kl else None
    if code_noise != "none" or dropout:
        code = Perturb.apply(code, draw_seed(x.device, generator), code_noise, code_noise_std, dropout)
    code = _apply_layers(code, decoder[:-1])
    weight, bias, _ = decoder[-1]
    check_linear("code", code, weight, bias)
    reconstruction = ReconstructionLoss.apply(
        *autocast_like_linear(code, weight, bias), rows, settings, reduction
    )

    terms = {name: reduce_rows(value, reduction, value.shape) for name, value in terms.items()}
    total = reconstruction
    for name, factor in (("contractive", contractive), ("l1", l1)):
        if factor:
            total = total + factor * terms[name]
    if divergence is not None and (held := rows_that_hold_kl(reduction, len(rows))):
        total = total + kl * held * divergence
    values = {"total": total, "reconstruction": reconstruction, **terms}
    if reduction == "none":
        values = {name: value.view(x.shape[:-1]) for name, value in values.items()}
    return AutoencoderLoss(**values, kl=divergence)


def _apply_layers(code: Tensor, layers: Sequence[Layer]) -> Tensor:
    for weight, bias, activation in layers:
        check_linear("code", code, weight, bias)
        code, _ = Encode.apply(*autocast_like_linear(code, weight, bias), activation, False)
    return code
