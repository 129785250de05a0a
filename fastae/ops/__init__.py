"""The operators behind :mod:`fastae.functional`: schemas, shapes, and one implementation a device.

Every matrix here is two-dimensional with unit last stride (weights may be transposed views), rows are
samples, and nothing is written to an input. The operators are opaque to torch.compile and know no autograd;
:mod:`fastae.autograd` puts their hand-derived gradients around them. Sums over features, units and rows are
kept in at least float32. A ``scale`` is a scalar tensor or one value a row.

Results that were not asked for come back as tensors of no elements, since operators cannot return ``None``.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ..activations import get_activation
from ..precision import sum_dtype
from . import backend, torch_impl

_LIBRARY = torch.library.Library("fastae", "DEF")

_SCHEMAS = {
    # x~ [M, D]
    "corrupt": "(Tensor x, Tensor seed, str kind, float[] params, int stream) -> Tensor",
    # d loss / dx from grad = d loss / dx~, both [M, D]
    "corrupt_backward": "(Tensor grad, Tensor seed, str kind, float[] params, int stream) -> Tensor",
    # -1 or 1 with equal probability, in the shape and dtype of like [M, H]
    "random_signs": "(Tensor like, Tensor seed, int stream) -> Tensor",
    # the code that the decoder sees, [M, H]: noise, then dropout
    "perturb": "(Tensor code, Tensor seed, str noise, float noise_std, float dropout) -> Tensor",
    # q [H]
    "squared_norms": "(Tensor weight) -> Tensor",
    # code [M, H], noisy code [M, H], pre-activation [M, H], penalty [M], l1 [M], column sums of the code [H];
    # the penalty is of the slopes, or of their difference from those of another input's code
    "encode": (
        "(Tensor x, Tensor weight, Tensor? bias, str activation, Tensor? sq_norms, Tensor? base_code, "
        "Tensor? base_preact, bool l1, bool code_sum, Tensor? seed, str noise, float noise_std, "
        "float dropout) "
        "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
    ),
    # loss of each row [M], its gradient to the pre-activation a [M, D], that one's column sums [D]
    "decode_loss": (
        "(Tensor code, Tensor weight, Tensor? bias, Tensor target, str loss, str output_activation, "
        "Tensor? seed, float p, int width, float corrupted, float clean, bool column_sums) "
        "-> (Tensor, Tensor, Tensor)"
    ),
    # d loss / d target of each row's loss, [M, D]
    "decode_loss_target_grad": (
        "(Tensor code, Tensor weight, Tensor? bias, Tensor target, str loss, str output_activation, "
        "Tensor? seed, float p, int width, float corrupted, float clean) -> Tensor"
    ),
    # dz [M, H], its column sums db [H], u [H]; without a weight, grad is d loss / d code itself
    "code_grad": (
        "(Tensor grad, Tensor? weight, Tensor code, Tensor preact, str activation, Tensor? scale, "
        "Tensor? penalty_scale, Tensor? sq_norms, Tensor? l1_scale, Tensor? column_grad, Tensor? extra, "
        "Tensor? seed, float dropout) -> (Tensor, Tensor, Tensor)"
    ),
    # a^T diag(scale) b + diag(u) W + a2^T diag(scale2) b2
    "weight_grad": (
        "(Tensor a, Tensor b, Tensor? scale, Tensor? weight, Tensor? u, Tensor? a2, Tensor? b2, "
        "Tensor? scale2) -> Tensor"
    ),
    # dz [M, H], dz2 [M, H], u [H] of sum_j (s_j - s2_j)^2 q_j
    "slope_difference_grad": (
        "(Tensor code, Tensor preact, Tensor code2, Tensor preact2, str activation, Tensor sq_norms, "
        "Tensor scale) -> (Tensor, Tensor, Tensor)"
    ),
}


def _none(like: Tensor) -> Tensor:
    return like.new_empty(0)


def _sums(like: Tensor, size: int, wanted: bool = True) -> Tensor:
    return like.new_empty(size if wanted else 0, dtype=sum_dtype(like.dtype))


def _fake_encode(
    x,
    weight,
    bias,
    activation,
    sq_norms,
    base_code,
    base_preact,
    l1,
    code_sum,
    seed,
    noise,
    noise_std,
    dropout,
):
    rows, units = x.shape[0], weight.shape[0]
    code = x.new_empty(rows, units)
    return (
        code,
        torch.empty_like(code) if noise != "none" or dropout else _none(x),
        torch.empty_like(code) if get_activation(activation).needs_preactivation else _none(x),
        _sums(x, rows, sq_norms is not None),
        _sums(x, rows, l1),
        _sums(x, units, code_sum),
    )


def _fake_decode_loss(code, weight, bias, target, loss, output_activation, seed, p, width, *options):
    *_, column_sums = options
    return _sums(code, code.shape[0]), code.new_empty(target.shape), _sums(code, target.shape[1], column_sums)


def _fake_code_grad(
    grad, weight, code, preact, activation, scale, penalty_scale, sq_norms, l1_scale, column_grad, extra,
    seed, dropout,
):  # fmt: skip
    units = code.shape[1]
    dz = code.new_empty(code.shape)
    return dz, _sums(code, units), _sums(code, units, penalty_scale is not None)


def _fake_slope_difference_grad(code, preact, code2, preact2, activation, sq_norms, scale):
    return code.new_empty(code.shape), code.new_empty(code.shape), _sums(code, code.shape[1])


_FAKES = {
    "corrupt": lambda x, seed, kind, params, stream: x.new_empty(x.shape),
    "corrupt_backward": lambda grad, seed, kind, params, stream: grad.new_empty(grad.shape),
    "random_signs": lambda like, seed, stream: like.new_empty(like.shape),
    "perturb": lambda code, *options: code.new_empty(code.shape),
    "squared_norms": lambda weight: _sums(weight, weight.shape[0]),
    "encode": _fake_encode,
    "decode_loss": _fake_decode_loss,
    "decode_loss_target_grad": lambda code, weight, bias, target, *options: target.new_empty(target.shape),
    "code_grad": _fake_code_grad,
    "weight_grad": lambda a, b, *options: a.new_empty(a.shape[1], b.shape[1]),
    "slope_difference_grad": _fake_slope_difference_grad,
}


@functools.cache
def _implementation(name: str, device: torch.device):
    if backend.backend_of(name, device)[0] == "torch":
        return getattr(torch_impl, name)
    from . import triton_impl  # brings Triton along

    return getattr(triton_impl, name)


def forget_backends() -> None:
    """Lets the next call of each operator look at FASTAE_BACKEND again."""
    _implementation.cache_clear()


def _by_device(name: str):
    return lambda *args: _implementation(name, args[0].device)(*args)


for _name, _schema in _SCHEMAS.items():
    _LIBRARY.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(_name, _by_device(_name), "CompositeExplicitAutograd")
    # gradients are put around the operators, not into them: nothing to look up there at every call
    _LIBRARY.impl(_name, torch.library.fallthrough_kernel, "Autograd")
    torch.library.register_fake(f"fastae::{_name}", _FAKES[_name], lib=_LIBRARY)

NAMES = tuple(_SCHEMAS)

corrupt = torch.ops.fastae.corrupt.default
corrupt_backward = torch.ops.fastae.corrupt_backward.default
random_signs = torch.ops.fastae.random_signs.default
perturb = torch.ops.fastae.perturb.default
squared_norms = torch.ops.fastae.squared_norms.default
encode = torch.ops.fastae.encode.default
decode_loss = torch.ops.fastae.decode_loss.default
decode_loss_target_grad = torch.ops.fastae.decode_loss_target_grad.default
code_grad = torch.ops.fastae.code_grad.default
weight_grad = torch.ops.fastae.weight_grad.default
slope_difference_grad = torch.ops.fastae.slope_difference_grad.default
