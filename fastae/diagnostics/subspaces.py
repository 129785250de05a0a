"""Linear subspaces: principal components, and the angles between two spans."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..arguments import check_floating
from ..nn import Autoencoder, StackedAutoencoder
from ..tensors import sum_dtype
from .networks import autoencoders, check_finite, check_rows, chunks, measurement


@measurement
def principal_angles(a: Tensor, b: Tensor) -> Tensor:
    """Angles in degrees between the column spaces of a [D, i] and b [D, j], largest first, [min(i, j)].

    Computed from sines and cosines, so that angles near 0 and near 90 degrees are accurate (Björck and Golub
    1973).

    Raises:
        ValueError: matrices of other shapes, dtypes or devices, not finite, or with dependent columns.
    """
    for name, matrix in (("a", a), ("b", b)):
        check_floating(name, matrix)
        if matrix.dim() != 2:
            raise ValueError(f"{name}: expected two dimensions [D, k], got shape {list(matrix.shape)}")
        check_finite(name, matrix)
    if b.shape[0] != a.shape[0] or b.dtype != a.dtype or b.device != a.device:
        raise ValueError(
            f"b: expected [{a.shape[0]}, k] in {a.dtype} on {a.device} as a is, got {list(b.shape)} in "
            f"{b.dtype} on {b.device}"
        )
    large, small = _orthonormal("a", a), _orthonormal("b", b)
    if large.shape[1] < small.shape[1]:
        large, small = small, large
    shared = large.t() @ small
    sines = torch.linalg.svdvals(small - large @ shared)  # of the angles from the largest on
    cosines = torch.linalg.svdvals(shared).flip(0)
    return torch.rad2deg(torch.atan2(sines, cosines))


def _orthonormal(name: str, matrix: Tensor) -> Tensor:
    """An orthonormal basis [D, k] of the column space of a matrix [D, k]."""
    basis, values, _ = torch.linalg.svd(matrix.to(sum_dtype(matrix.dtype)), full_matrices=False)
    columns = matrix.shape[1]
    floor = torch.finfo(basis.dtype).eps * max(matrix.shape)
    rank = int((values > floor * values[:1]).sum())
    if rank < columns:
        raise ValueError(f"{name}: its {columns} columns span only {rank} dimensions")
    return basis


@measurement
def principal_components(x: Tensor) -> tuple[Tensor, Tensor]:
    """Variances [D] of x [*, D] along its principal components, largest first, and the components [D, D].

    Components are columns. Variances are means of squares over rows.

    Raises:
        ValueError: no rows, not a floating-point tensor, or not finite.
    """
    check_rows("x", x)
    check_finite("x", x)
    rows, features = math.prod(x.shape[:-1]), x.shape[-1]
    mean = x.new_zeros(features, dtype=sum_dtype(x.dtype))
    for _, chunk in chunks(x, features):
        mean += chunk.sum(0) / rows
    covariance = mean.new_zeros(features, features)
    for _, chunk in chunks(x, features):
        centred = chunk - mean
        covariance.addmm_(centred.t(), centred, alpha=1.0 / rows)
    values, vectors = torch.linalg.eigh(covariance)
    return values.flip(0), vectors.flip(1)


@measurement
def pca_angles(model: Autoencoder | StackedAutoencoder | Tensor, x: Tensor) -> Tensor:
    """Angles in degrees between a decoder's span and the principal subspace of x, largest first, [k].

    A linear undercomplete autoencoder of k units trained on the squared error spans the first k principal
    components of its data (Baldi and Hornik 1989): all angles are 0.

    Args:
        model: an autoencoder or a stack, or a decoder's weight [D, k], as in its ``nn.Linear``. A stack's
            decoder must be linear except for its output activation; its span is that of the weights' product.
        x: the data, [*, D], with rows. If its k-th and next variance are equal, the principal subspace is
            not unique.

    Raises:
        ValueError: an argument that does not fit, named; as many units as features or more; data that vary in
            fewer than k dimensions.
    """
    weight = model if isinstance(model, Tensor) else _decoder_map(model)
    check_floating("model", weight)
    if weight.dim() != 2 or weight.shape[0] <= weight.shape[1]:
        raise ValueError(
            f"model: expected a decoder weight [D, k] of fewer units than features, got {list(weight.shape)}"
        )
    check_rows("x", x)
    if x.shape[-1] != weight.shape[0]:
        raise ValueError(f"x: expected shape [*, {weight.shape[0]}] for the decoder, got {list(x.shape)}")
    if x.device != weight.device:
        raise ValueError(f"x: is on {x.device}, but the decoder on {weight.device}")
    variances, components = principal_components(x)
    units, eps = weight.shape[1], torch.finfo(variances.dtype).eps
    # of the eigenvalues, and of centring
    rounding = max(8 * eps * float(variances[0]), (8 * eps * float(x.abs().max())) ** 2)
    if (varied := int((variances > rounding).sum())) < units:
        raise ValueError(f"x: varies in {varied} dimensions only, which have no {units} principal components")
    dtype = torch.promote_types(components.dtype, sum_dtype(weight.dtype))
    return principal_angles(weight.to(dtype), components[:, :units].to(dtype))


def _decoder_map(model: Autoencoder | StackedAutoencoder) -> Tensor:
    """The product of the decoder's weights, [D, code]."""
    bottom, *above = autoencoders(model)
    for layer in above:
        if (activation := layer.options.reconstruction_activation) != "linear":
            raise ValueError(f"model: an inner layer of its decoder is {activation}; pass a weight [D, k]")
    weight = bottom.decoder_weight
    weight = weight.to(sum_dtype(weight.dtype))
    for layer in above:
        weight = weight @ layer.decoder_weight.to(weight.dtype)
    return weight
