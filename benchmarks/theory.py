"""Two results of the theory, in numbers: ``python benchmarks/theory.py [--data mnist-folder]``.

1. A linear undercomplete autoencoder trained on the squared error spans the principal subspace of its data
   (Baldi and Hornik 1989): the principal angles between the two subspaces are printed.
2. Denoising with small Gaussian noise is a contraction of the reconstruction function (Alain and Bengio
   2014): for a fixed net r, E ||r(x + e) - x||^2 = ||r(x) - x||^2 + sigma^2 (||dr/dx||_F^2 +
   (r(x) - x) . lap r) + O(sigma^4). The remainder is printed as sigma falls; its order should come out as 4.
"""

from __future__ import annotations

import argparse
import math
import tempfile

import numpy as np
import torch

import fastae
from fastae.diagnostics import principal_angles, principal_components
from fastae.train import Stage, TrainConfig, load_dataset, train


def pca(data: str, units: int, steps: int, out: str) -> None:
    dataset = load_dataset(data)
    epochs = max(1, steps * 512 // len(dataset.train))
    stage = Stage(epochs=epochs, batch_size=512, lr=2e-3, schedule="CosineAnnealingLR")
    config = TrainConfig(
        data=data, sizes=(dataset.width, units), activation=("linear",), loss=("mse",), pretrain=stage,
        validation=0.0, precision="float64", out=out, tensorboard=False,
    )  # fmt: skip
    stack = train(config, dataset=dataset).stack
    x = torch.from_numpy(dataset.train.read()).double()
    variances, components = principal_components(x)
    angles = principal_angles(components[:, :units], stack.autoencoders[0].decoder_weight)
    error = (stack.reconstruct(x) - x).square().sum(1).mean().item()
    print(f"{dataset.name}: {len(x)} rows, {dataset.width} -> {units} linear units, {epochs} epochs")
    print(f"  principal angles, degrees: {', '.join(f'{a:.3f}' for a in angles.tolist())}")
    print(f"  squared error a row: {error:.5f}; PCA's: {variances[units:].sum().item():.5f}")


def denoising() -> None:
    torch.manual_seed(0)
    width, units = 2, 7
    net = fastae.nn.Autoencoder(width, units, activation="tanh", loss="mse", tied=False, dtype=torch.float64)
    x = torch.randn(5, width, dtype=torch.float64)
    weight, bias, v = net.encoder.weight.detach(), net.encoder.bias.detach(), net.decoder_weight.detach()
    contraction = fastae.reference.reconstruction_contraction(x, weight, bias, "tanh", v)
    h = fastae.reference.encode(x, weight, bias, "tanh")
    second = -2.0 * h * (1.0 - h * h)
    laplacian = (second * weight.square().sum(1)) @ v.T
    with torch.no_grad():
        residual = net.reconstruct(x) - x
        clean = residual.square().sum(1)
        linear = contraction + (residual * laplacian).sum(1)
        # Gauss-Hermite quadrature in two dimensions: the expectation over the noise is exact
        nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(40))
        weights = weights / math.sqrt(2.0 * math.pi)
        points = torch.cartesian_prod(nodes, nodes)
        masses = torch.cartesian_prod(weights, weights).prod(1)
        print("sigma      (noisy - clean) / sigma^2   theory    remainder   order")
        before = None
        for sigma in (0.4, 0.2, 0.1, 0.05, 0.025):
            noisy = (net.reconstruct(x[:, None] + sigma * points) - x[:, None]).square().sum(2) @ masses
            excess = noisy - clean
            remainder = (excess - sigma**2 * linear).abs().mean().item()
            order = "" if before is None else f"{math.log2(before / remainder):.3f}"
            mean, theory = (excess / sigma**2).mean().item(), linear.mean().item()
            print(f"{sigma:<10} {mean:<27.8f} {theory:<9.5f} {remainder:<11.3e} {order}")
            before = remainder


def main() -> None:
    parser = argparse.ArgumentParser(description="Two results of the theory, in numbers.")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--units", type=int, default=10)
    parser.add_argument("--steps", type=int, default=7000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pca(arguments.data, arguments.units, arguments.steps, folder + "/run")
    denoising()


if __name__ == "__main__":
    main()
