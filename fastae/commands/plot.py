"""``fastae plot``: the pictures of a run, as files and as one page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
import tyro

from ..console import Console
from ..files import check_writable, write_whole
from ..optional import require
from ..run import load_with_data
from ..train.checkpoint import Checkpoint
from ..train.config import TrainConfig
from ..train.evaluation import evaluate
from ..train.reporting import read_log
from .tables import layer_cells, summary_cells

if TYPE_CHECKING:
    from ..plots.page import Table

_PAGE = "report.html"
_PAGE_BYTES = 2_200_000  # of pictures in the page; a third more in base64
_COARSER = (110, 75)  # dots an inch, for pictures that would take more


@dataclass(frozen=True)
class Config:
    """Draw a trained stack: learning curves, filters, reconstructions, codes, contraction, errors.

    Writes each picture as files and all of them, with the figures and the configuration, into one
    report.html that needs no other file. What a run lacks (a log, labels) is left out.

    Attributes:
        run: a run's folder, or one checkpoint's; training may still go on.
        out: the folder to write to; by default plots in the run's folder.
        data: a data set's name or a path; by default the one the run was trained on.
        formats: of the pictures' files.
        rows: how many rows of the test part (or the only one) to draw and to measure Jacobians on.
        projection: how codes are drawn in two dimensions.
        shape: of a row as an image, as in 28 28; with 1 and its width, rows are drawn as lines and strips. By
            default that of the data; a flat row whose width is a square is taken for a square image.
    """

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    out: str | None = None
    data: str | None = None
    formats: tuple[Literal["png", "svg", "pdf"], ...] = ("png", "svg")
    rows: int = 1000
    projection: Literal["tsne", "pca"] = "tsne"
    shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"rows: must be a whole number >= 1, got {self.rows!r}")
        if self.shape and (len(self.shape) not in (2, 3) or min(self.shape) < 1):
            raise ValueError(
                f"shape: expected height and width, and perhaps channels, got {list(self.shape)}"
            )


def run(config: Config, console: Console) -> None:
    """Run the command.

    Each file appears whole or not at all. The same checkpoint and log give the same bytes.

    Raises:
        ValueError: ``out`` cannot be written to or ``shape`` is not that of a row, before anything is drawn.
        MissingPackageError: a package of the extra ``train`` is missing.
    """
    require("sklearn.manifold", "plot")
    from ..plots import render, spread
    from ..plots.arrays import image_shape
    from ..plots.page import Picture, render_page
    from ..plots.run import Subject, draw

    checkpoint, dataset = load_with_data(config.run, config.data)
    out = Path(config.run) / "plots" if config.out is None else Path(config.out)
    try:
        check_writable(out)
    except OSError as error:
        raise ValueError(f"out: {out} cannot be written to ({error.strerror})") from error
    stack = checkpoint.stack.eval()
    shape = config.shape or checkpoint.feature_shape
    image_shape(stack.sizes[0], shape)
    rows, part, training = checkpoint.parts(dataset, own=config.data is None)
    figures = evaluate(stack, rows, classifier=checkpoint.classifier, training=training)
    index, targets = spread(len(rows), config.rows), rows.targets
    subject = Subject(
        stack,
        torch.from_numpy(rows.read(index)).to(next(stack.parameters()).detach()),
        None if targets is None else targets[index],
        shape,
        read_log(checkpoint.path),
        config.projection,
        feature_names=None if config.shape else dataset.feature_names,
        class_names=None if rows.classes is None else [str(name) for name in rows.classes],
        scaling=checkpoint.scaling,
        figures=figures,
    )
    drawings = list(draw(subject))
    pngs = [render(drawing.figure) for drawing in drawings]
    written = []
    for drawing, png in zip(drawings, pngs, strict=True):
        for format in dict.fromkeys(config.formats):
            content = png if format == "png" else render(drawing.figure, format)
            written.append(write_whole(out / f"{drawing.name}.{format}", content))
    for dpi in _COARSER:
        if sum(map(len, pngs)) > _PAGE_BYTES:
            pngs = [render(drawing.figure, dpi=dpi) for drawing in drawings]
    pictures = [Picture(*drawing[:4], png) for drawing, png in zip(drawings, pngs, strict=True)]
    page = render_page(
        f"Autoencoder {' → '.join(map(str, stack.sizes))} on {dataset.name}",
        f"Figures of {len(rows)} rows, the {part} of {dataset.name}, and pictures of {len(index)} of them; "
        f"{checkpoint.path.name}.",
        pictures,
        _tables(checkpoint, figures),
    )
    page = write_whole(out / _PAGE, page)
    message = f"{page}: one page with all of it; {len(written)} files of pictures"
    console.print(message)


# --- tables ---------------------------------------------------------------------------------------------


def _tables(checkpoint: Checkpoint, figures: dict[str, Any]) -> list[Table]:
    """Figures of the whole and of each layer, and the configuration: what was chosen, and all of it."""
    from ..plots.page import Table

    layers = [
        {"layer": "", "units": "", "activation": layer.options.activation, **cells}  # in this order
        for layer, cells in zip(checkpoint.stack.autoencoders, layer_cells(figures["layers"]), strict=True)
    ]
    options, defaults = _flat(checkpoint.config), _flat(TrainConfig().to_dict())
    chosen = [(name, value) for name, value in options.items() if defaults.get(name) != value]
    tables = [
        Table("Figures, means over rows", ("", "value"), summary_cells(figures)),
        Table("Layers, each on its own input", tuple(layers[0]), [tuple(cells.values()) for cells in layers]),
        Table("The whole configuration", ("option", "value"), [*options.items()], numbers=False, folded=True),
    ]
    if chosen:
        changed = "Configuration, where it differs from the defaults"
        tables.append(Table(changed, ("option", "value"), chosen, numbers=False))
    return tables


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """{"pretrain.epochs": "15"} from nested options, as they are typed on the command line."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return flat
