"""What the public functions ask of their arguments, and the forms in which the operators take them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .activations import get_activation
from .checks import check_nonnegative, check_share
from .corruption import Corruption, Emphasis
from .ops.backend import PROBLEM
from .precision import autocast_enabled

LOSSES = ("mse", "bce")
REDUCTIONS = ("mean", "sum", "none")
CODE_NOISES = ("none", "gaussian", "bernoulli")


def as_rows(x: Tensor) -> Tensor:
    """[*, D] as [M, D] with unit last stride, without a copy where the strides allow."""
    rows = x.reshape(-1, x.shape[-1]) if x.numel() else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return rows if rows.stride(-1) == 1 or rows.shape[-1] <= 1 else rows.contiguous()


def reduce_rows(rows: Tensor, reduction: str, leading: torch.Size) -> Tensor:
    if reduction == "none":
        return rows.view(leading)
    return rows.mean() if reduction == "mean" else rows.sum()


def autocast_like_linear(x: Tensor, *others: Tensor | None) -> tuple[Tensor, ...]:
    """The tensors as ``nn.Linear`` would see them under autocast: in its dtype, float64 as it is."""
    device = x.device.type
    if not autocast_enabled(device):
        return x, *others  # pyright: ignore[reportReturnType]
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        t.to(dtype) if t is not None and t.is_floating_point() and t.dtype != torch.float64 else t
        for t in (x, *others)
    )  # pyright: ignore[reportReturnType]


def check_floating(name: str, x: Tensor) -> None:
    if PROBLEM is not None:
        raise ValueError(PROBLEM)
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise ValueError(f"{name}: expected a floating-point tensor, got {x.dtype}")


def check_like(name: str, tensor: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name}: expected shape {list(shape)}, got {list(tensor.shape)}")
    if tensor.device != like.device:
        raise ValueError(f"{name}: is on {tensor.device}, but the weight on {like.device}")
    if tensor.dtype != like.dtype and not autocast_enabled(like.device.type):
        raise ValueError(f"{name}: is {tensor.dtype}, but the weight is {like.dtype}")


def check_linear(name: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    check_floating(name, x)
    check_floating("weight", weight)
    if weight.dim() != 2:
        raise ValueError(f"weight: expected two dimensions [out, in], got shape {list(weight.shape)}")
    if x.dim() < 1 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"{name}: expected shape [*, {weight.shape[1]}] for the weight, got {list(x.shape)}")
    check_like(name, x, tuple(x.shape), weight)
    if bias is not None:
        check_like("bias", bias, (weight.shape[0],), weight)


def check_target(target: Tensor, shape: tuple[int, ...] | torch.Size, like: Tensor) -> None:
    check_floating("target", target)
    if tuple(target.shape) != tuple(shape):
        raise ValueError(f"target: expected shape {list(shape)}, got {list(target.shape)}")
    if target.device != like.device:
        raise ValueError(f"target: is on {target.device}, but the input on {like.device}")


def check_name(argument: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{argument}: {value!r} is not one of {', '.join(known)}")


def check_loss(loss: str, output_activation: str) -> None:
    check_name("loss", loss, LOSSES)
    get_activation(output_activation, "output_activation")
    if loss == "bce" and output_activation != "linear":
        raise ValueError(
            f"output_activation: bce takes logits and applies the sigmoid itself, got {output_activation!r}"
        )


def check_corruption(corruption: Corruption) -> None:
    if not isinstance(corruption, Corruption):
        raise ValueError(
            "corruption: expected Masking, Gaussian, SaltAndPepper, Swap or None, got "
            f"{type(corruption).__name__} {corruption!r}"
        )


def check_objective(
    *,
    activation: str,
    loss: str,
    output_activation: str,
    corruption: Corruption | None,
    emphasis: Emphasis | None,
    contractive: float,
    higher_order: float,
    higher_order_std: float,
    higher_order_samples: int,
    l1: float,
    kl: float,
    kl_target: float,
    code_noise: str,
    code_noise_std: float,
    dropout: float,
) -> None:
    """Raises ``ValueError`` naming the argument of :func:`autoencoder_loss` that does not fit the others."""
    f = get_activation(activation)
    check_loss(loss, output_activation)
    check_name("code_noise", code_noise, CODE_NOISES)
    if corruption is not None:
        check_corruption(corruption)
    if emphasis is not None and not isinstance(emphasis, Emphasis):
        raise ValueError(f"emphasis: expected Emphasis or None, got {type(emphasis).__name__} {emphasis!r}")
    if emphasis is not None and (corruption is None or corruption.kind == "gaussian"):
        raise ValueError(
            "emphasis: needs a corruption that leaves entries clean (masking, salt_and_pepper, swap)"
        )
    weights = {"contractive": contractive, "higher_order": higher_order, "l1": l1, "kl": kl}
    for name, value in {**weights, "code_noise_std": code_noise_std}.items():
        check_nonnegative(f"{name}:", value)
    check_share("dropout:", dropout)
    if higher_order and (higher_order_samples < 1 or not higher_order_std > 0.0):
        raise ValueError(
            "higher_order: needs higher_order_samples >= 1 and higher_order_std > 0, got "
            f"{higher_order_samples!r} and {higher_order_std!r}"
        )
    if (kl or code_noise == "bernoulli") and not f.in_unit_interval:
        name = "kl" if kl else "code_noise"
        raise ValueError(
            f"{name}: needs codes in [0, 1] (activation='sigmoid'), got activation={activation!r}"
        )
    if kl and not 0.0 < kl_target < 1.0:
        raise ValueError(f"kl_target: must be in (0, 1), got {kl_target!r}")


def resolve_device(name: str) -> torch.device:
    """A device that tensors can be made on; ``"auto"`` takes an accelerator where there is one.

    Raises:
        ValueError: there is no such device, or it cannot be used.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("meta"):
        raise ValueError(f"device: {name!r} has no memory to train in")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: {name!r} cannot be used ({str(error).splitlines()[0]})") from None
    return device
