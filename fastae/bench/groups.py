"""The groups of cases: each is one piece of work, written once per library and once exactly.

Every function here takes tensors and returns a tuple of outputs. Where the work has noise, the functions in
PyTorch return the noisy input as an additional output: the matrix products need it in memory anyway, and it
lets the gate check the timed tensors, noise included.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import functional, reference
from ..sparse import TopK
from ..sparse import reference as sparse_reference
from .peers import PEERS
from .problems import ACTIVE, CONTRACTIVE, MASKING, Problem

Function = Callable[..., tuple[Tensor, ...]]
Product = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Group:
    """One piece of work.

    Attributes:
        name: as in ``fastae bench --groups``.
        modes: which of forward, backward and full make sense.
        inputs: the functions' arguments, of a problem.
        leaves: what is differentiated to; nothing where the work has no backward pass.
        seeds: the outputs' gradients; a number stands for a mean over rows.
        ours, eager: the work by fastae and as one writes it in PyTorch.
        jacobian: the same with a true Jacobian.
        exact: the outputs without means over rows, from the noisy input and a problem, in its dtype.
        noisy: whether the input is masked first.
        forward, backward: the bare matrix products in it, as pairs of factors.
    """

    name: str
    modes: tuple[str, ...]
    inputs: Callable[[Problem], tuple[Tensor, ...]]
    leaves: Callable[[Problem], tuple[Tensor, ...]]
    seeds: Callable[[Problem], tuple[Tensor | float, ...]]
    ours: Function
    eager: Function
    exact: Callable[[Tensor, Problem], tuple[Tensor, ...]]
    forward: Callable[[Problem], list[Product]]
    backward: Callable[[Problem], list[Product]] = field(default=lambda problem: [])
    jacobian: Function | None = None
    noisy: bool = False


ALL_MODES = ("forward", "backward", "full")


# --- the contractive encoder ----------------------------------------------------------------------------


def _encode(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    h = torch.sigmoid(F.linear(x, weight, bias))
    slope = h * (1.0 - h)
    return h, (slope.square() @ weight.square().sum(1)).mean()


def _jacobian_encode(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    def encode(row: Tensor) -> Tensor:
        return torch.sigmoid(F.linear(row, weight, bias))

    jacobians = torch.func.vmap(torch.func.jacrev(encode))(x)  # [M, H, D]
    return encode(x), jacobians.square().sum((1, 2)).mean()


def _exact_encode(x: Tensor, p: Problem) -> tuple[Tensor, Tensor]:
    code = reference.encode(x, p.weight, p.bias, "sigmoid")
    return code, reference.contractive_penalty(x, p.weight, p.bias, "sigmoid")


ENCODE = Group(
    "encode",
    ALL_MODES,
    inputs=lambda p: (p.x, p.weight, p.bias),
    leaves=lambda p: (p.weight, p.bias),
    seeds=lambda p: (p.code_grad, CONTRACTIVE),
    ours=lambda x, weight, bias: functional.contractive_encode(x, weight, bias),
    eager=_encode,
    exact=_exact_encode,
    jacobian=_jacobian_encode,
    forward=lambda p: [(p.x, p.weight.t())],
    backward=lambda p: [(p.code_grad.t(), p.x)],
)


# --- the loss of the reconstruction from a code, with tied weights --------------------------------------


def _reconstruction_loss(code: Tensor, weight: Tensor, bias: Tensor, x: Tensor) -> tuple[Tensor]:
    logits = F.linear(code, weight.t(), bias)
    return (F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1).mean(),)


def _our_reconstruction_loss(code: Tensor, weight: Tensor, bias: Tensor, x: Tensor) -> tuple[Tensor]:
    return (functional.reconstruction_loss(code, weight.t(), bias, x),)


RECONSTRUCTION_LOSS = Group(
    "reconstruction_loss",
    ALL_MODES,
    inputs=lambda p: (p.code, p.weight, p.decoder_bias, p.x),
    leaves=lambda p: (p.code, p.weight, p.decoder_bias),
    seeds=lambda p: (1.0,),
    ours=_our_reconstruction_loss,
    eager=_reconstruction_loss,
    exact=lambda x, p: (reference.reconstruction_loss(p.code, p.weight.t(), p.decoder_bias, x, "bce"),),
    forward=lambda p: [(p.code, p.weight)],
    backward=lambda p: [(p.x, p.weight.t()), (p.code.t(), p.x)],
)


# --- a whole training step: masking, sigmoid, contractive penalty, tied weights, cross-entropy ----------


def _mask(x: Tensor) -> Tensor:
    return x * (torch.rand_like(x) >= MASKING.p)


def _step(x: Tensor, weight: Tensor, bias: Tensor, decoder_bias: Tensor) -> tuple[Tensor, Tensor]:
    noisy = _mask(x)
    h, penalty = _encode(noisy, weight, bias)
    (loss,) = _reconstruction_loss(h, weight, decoder_bias, x)
    return loss + CONTRACTIVE * penalty, noisy


def _jacobian_step(x: Tensor, weight: Tensor, bias: Tensor, decoder_bias: Tensor) -> tuple[Tensor, Tensor]:
    noisy = _mask(x)
    h, penalty = _jacobian_encode(noisy, weight, bias)
    (loss,) = _reconstruction_loss(h, weight, decoder_bias, x)
    return loss + CONTRACTIVE * penalty, noisy


def _our_step(x: Tensor, weight: Tensor, bias: Tensor, decoder_bias: Tensor) -> tuple[Tensor]:
    loss = functional.autoencoder_loss(
        x, weight, bias, None, decoder_bias, corruption=MASKING, contractive=CONTRACTIVE
    )
    return (loss.total,)


def _exact_step(noisy: Tensor, p: Problem) -> tuple[Tensor]:
    loss = reference.autoencoder_loss(
        noisy, p.weight, p.bias, None, p.decoder_bias, contractive=CONTRACTIVE, target=p.x
    )
    return (loss.total,)


STEP = Group(
    "step",
    ALL_MODES,
    inputs=lambda p: (p.x, *p.parameters),
    leaves=lambda p: p.parameters,
    seeds=lambda p: (1.0,),
    ours=_our_step,
    eager=_step,
    exact=_exact_step,
    jacobian=_jacobian_step,
    noisy=True,
    forward=lambda p: [(p.x, p.weight.t()), (p.code, p.weight)],
    backward=lambda p: [(p.x, p.weight.t()), (p.code_grad.t(), p.x), (p.code.t(), p.x)],
)


# --- without gradients ----------------------------------------------------------------------------------


def _no_leaves(problem: Problem) -> tuple[Tensor, ...]:
    return ()


CORRUPTION = Group(
    "corruption",
    ("forward",),
    inputs=lambda p: (p.x,),
    leaves=_no_leaves,
    seeds=lambda p: (),
    ours=lambda x: (functional.corrupt(x, MASKING),),
    eager=lambda x: (_mask(x),),
    exact=lambda noisy, p: (noisy,),
    noisy=True,
    forward=lambda p: [],  # the floor is a copy
)


def _reconstruct(x: Tensor, weight: Tensor, bias: Tensor, decoder_bias: Tensor) -> tuple[Tensor]:
    h = torch.sigmoid(F.linear(x, weight, bias))
    return (torch.sigmoid(F.linear(h, weight.t(), decoder_bias)),)


def _our_reconstruct(x: Tensor, weight: Tensor, bias: Tensor, decoder_bias: Tensor) -> tuple[Tensor]:
    return (functional.encode(functional.encode(x, weight, bias), weight.t(), decoder_bias),)


def _exact_reconstruct(x: Tensor, p: Problem) -> tuple[Tensor]:
    code = reference.encode(x, p.weight, p.bias, "sigmoid")
    return (reference.encode(code, p.weight.t(), p.decoder_bias, "sigmoid"),)


INFERENCE = Group(
    "inference",
    ("forward",),
    inputs=lambda p: (p.x, *p.parameters),
    leaves=_no_leaves,
    seeds=lambda p: (),
    ours=_our_reconstruct,
    eager=_reconstruct,
    exact=_exact_reconstruct,
    forward=lambda p: [(p.x, p.weight.t()), (p.code, p.weight)],
)

# --- a step of a dictionary ------------------------------------------------------------------------------


def _squared_error(out: Tensor, x: Tensor) -> Tensor:
    return (out - x).square().sum(1).mean()


def topk_step(
    x: Tensor, weight: Tensor, bias: Tensor, decoder_weight: Tensor, decoder_bias: Tensor, k: int = ACTIVE
) -> Tensor:
    """The loss of a topk dictionary as one writes it in PyTorch."""
    z = F.linear(x - decoder_bias, weight, bias)
    values, latents = z.topk(min(k, len(weight)), dim=1, sorted=False)
    code = torch.zeros_like(z).scatter(1, latents, values.relu())
    return _squared_error(code @ decoder_weight + decoder_bias, x)


def our_topk_step(
    x: Tensor, weight: Tensor, bias: Tensor, decoder_weight: Tensor, decoder_bias: Tensor, k: int = ACTIVE
) -> Tensor:
    loss, _ = functional.sparse_autoencoder_loss(
        x, weight, bias, decoder_weight, decoder_bias, activation=TopK(min(k, len(weight)))
    )
    return loss.total


def peer_topk_step(name: str, features: int, k: int = ACTIVE) -> Callable[..., Tensor]:
    """The same by another library; see :mod:`.peers`."""
    reconstruct = PEERS[name].make(features, k)

    def step(x: Tensor, *parameters: Tensor) -> Tensor:
        return _squared_error(reconstruct(x, *parameters), x)

    return step


def tied(step: Callable[..., Tensor]) -> Function:
    """A step of a dictionary whose encoder and decoder are one matrix."""
    return lambda x, weight, bias, decoder_bias: (step(x, weight, bias, weight, decoder_bias),)


def _exact_topk_step(x: Tensor, p: Problem) -> tuple[Tensor]:
    code = sparse_reference.topk(F.linear(x - p.decoder_bias, p.weight, p.bias), min(ACTIVE, len(p.weight)))
    return ((code @ p.weight + p.decoder_bias - x).square().sum(1),)


SPARSE = Group(
    "sparse",
    ("full",),
    inputs=lambda p: (p.x, *p.parameters),
    leaves=lambda p: p.parameters,
    seeds=lambda p: (1.0,),
    ours=tied(our_topk_step),
    eager=tied(topk_step),
    exact=_exact_topk_step,
    forward=lambda p: [(p.x, p.weight.t())],  # the floor is the encoder's product alone
)

GROUPS: dict[str, Any] = {
    group.name: group for group in (STEP, ENCODE, RECONSTRUCTION_LOSS, CORRUPTION, INFERENCE, SPARSE)
}
"""By name. Whole training runs are in :mod:`fastae.bench.runs`."""
