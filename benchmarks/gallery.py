"""The pictures of the documentation, from data that need no download.

``python benchmarks/gallery.py`` draws all of them into the folder gallery, ``python benchmarks/gallery.py
filters`` one; ``--out docs/images`` replaces those of the documentation. The same versions of the
libraries give the same files.
"""

from __future__ import annotations

import argparse
import io
import math
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

import fastae
from fastae import diagnostics, plots
from fastae.train import Dataset, Stage, TrainConfig, TrainResult, load_dataset, train

SHAPE = (8, 8)


@cache
def digits() -> Dataset:
    return load_dataset("digits")


def test_rows() -> Tensor:
    rows = digits().test
    assert rows is not None
    return torch.from_numpy(rows.read())


@cache
def trained(*sizes: int, epochs: int, decay: float = 0.0, **options: Any) -> TrainResult:
    """A stack on digits; every option of a layer takes one value."""
    stage = Stage(
        epochs=epochs, lr=2e-3, optimizer="adamw", optimizer_options=(f"weight_decay={decay}",),
        schedule="CosineAnnealingLR",
    )  # fmt: skip
    layers: Any = {name: (value,) for name, value in options.items()}
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            sizes=sizes, pretrain=stage, finetune=Stage(epochs=0), out=f"{folder}/run", device="cpu",
            tensorboard=False, **layers,
        )  # fmt: skip
        return train(config, dataset=digits())


def filters() -> Figure:
    """Strokes and their surroundings: what a denoising autoencoder's units look for."""
    layer = trained(64, 60, epochs=150, decay=0.1, corruption="masking:0.25").stack.autoencoders[0]
    title = "Filters of a denoising autoencoder (digits, 25 % of the pixels masked)"
    return plots.filters(layer.encoder.weight, shape=SHAPE, title=title)


def reconstructions() -> Figure:
    """Test rows with two fifths of their pixels gone, and what the autoencoder makes of them."""
    stack = trained(64, 256, epochs=80, corruption="masking:0.4").stack
    x = test_rows()[:14]
    corrupted = fastae.functional.corrupt(x, fastae.Masking(0.4), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        reconstructed = stack.reconstruct(corrupted)
    title = "Reconstructions of test rows with 40 % of the pixels masked"
    return plots.reconstructions(x, reconstructed, corrupted, shape=SHAPE, title=title)


def vector_field() -> Figure:
    """A denoising autoencoder of two features sends every point back to the spiral it was trained on."""
    torch.manual_seed(0)
    angle = torch.linspace(1.0, 3.6, 1000) * math.pi
    data = 0.5 * torch.stack([angle * angle.cos(), angle * angle.sin()], 1)
    model = fastae.nn.Autoencoder(
        2, 300, activation="tanh", loss="mse", tied=False, corruption=fastae.Gaussian(0.3)
    )
    torch.nn.init.uniform_(model.encoder.bias, -4.0, 4.0)  # units that bend all over the plane
    optimizer, steps = torch.optim.Adam(model.parameters(), lr=1e-2), 2000
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        model(data).total.backward()
        optimizer.step()
        schedule.step()
    title = "Where a denoising autoencoder moves each point of the plane"
    return plots.vector_field_2d(data, model.eval(), title=title, margin=0.12, grid=20)


def spectrum() -> Figure:
    """The contractive penalty flattens the encoder in all directions but those that the data need."""
    kinds = {
        "plain": {},
        "denoising, masking 0.4": {"corruption": "masking:0.4"},
        "contractive, weight 0.1": {"contractive": 0.1},
    }
    x = test_rows()
    values = {
        name: diagnostics.jacobian_spectrum(trained(64, 256, epochs=80, **options).stack, x)
        for name, options in kinds.items()
    }
    return plots.spectrum(
        values, title="Singular values of the encoder's Jacobian (digits, 256 sigmoid units)"
    )


def code_map() -> Figure:
    """Codes of test rows: the digits part without a label having been used."""
    rows = digits().test
    assert rows is not None
    stack = trained(64, 256, 64, epochs=60, corruption="masking:0.25").stack
    with torch.no_grad():
        codes = stack.encode(test_rows())
    return plots.code_map(
        codes, rows.labels, method="tsne", title="Codes of the digits' test rows, 64 → 256 → 64"
    )


def learning_curves() -> Figure:
    """Every term of the objective, layer by layer."""
    history = trained(64, 128, 64, epochs=60, corruption="masking:0.25", contractive=0.05).history
    title = "Learning curves of a denoising, contractive stack (digits)"
    return plots.learning_curves(history, title=title)


PICTURES: dict[str, Callable[[], Figure]] = {
    "filters": filters,
    "reconstructions": reconstructions,
    "vector-field": vector_field,
    "spectrum": spectrum,
    "code-map": code_map,
    "learning-curves": learning_curves,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="The pictures of the documentation.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"by default all of {', '.join(PICTURES)}")
    parser.add_argument("--out", type=Path, default=Path("gallery"), help="folder; by default gallery")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(PICTURES):
        parser.error(f"names: {min(unknown)!r} is not one of {', '.join(PICTURES)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.names or PICTURES:
        path = arguments.out / f"{name}.png"
        save(plots.render(PICTURES[name]()), path)
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def save(png: bytes, path: Path) -> None:
    """Write a picture with a palette of 96 colours, in a third of the space."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    image.quantize(96, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    main()
