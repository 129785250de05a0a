"""``fastae plot``: the pictures of a run, as files and as one page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch

from ..console import Console
from ..files import check_writable, remove_leftovers, write_whole
from ..optional import require
from ..run import load
from ..train.checkpoint import Checkpoint
from ..train.config import POSITIONAL, TrainConfig
from ..train.evaluation import evaluate
from ..train.reporting import read_log
from .tables import layer_cells, summary_cells

if TYPE_CHECKING:
    from ..plots.page import Picture, Table
    from ..plots.run import Drawing

_PAGE = "report.html"
_FIGURES = {
    "reconstruction": "The loss of the clean rows' reconstruction, summed over features: smaller is better. "
    "A likelihood is given above its least value, which for bce is the entropy of the data.",
    "squared error per feature": "The mean over rows and features of (reconstruction - row)².",
    "R^2": "1 - mse / variance: 1 is perfect, 0 is what predicting the mean reaches, below 0 is worse.",
    "PCA": "The reconstruction by as many principal components as the code has units: the best that a linear "
    "autoencoder of this width can reach.",
    "contractive penalty": "‖∂h/∂x‖², the sum of squares of the encoder's Jacobian: how far the code moves "
    "when a row does. Small where the encoder ignores changes of its input.",
    "probe error": "Share of rows that a logistic regression on the codes gives a wrong label.",
    "classifier error": "Share of rows that the trained classifier gives a wrong label.",
}
_LAYERS = {
    "loss": "Reconstruction of the layer's own input, which for layers above the first is the code below.",
    "penalty": "Contractive penalty ‖∂h/∂x‖² of this layer; the sum over units of slope² times norm².",
    "slope²": "Mean square of the activation's derivative: near 0 where units are saturated.",
    "norm²": "Mean over units of the sum of squares of a unit's weights.",
    "mean code": "Mean of all codes.",
    "sparsity": "0 where all units are equally active, 1 where a single one is (Hoyer 2004), mean over rows.",
    "saturated": "Share of codes whose slope is at most 0.19 of that at 0: they hardly move with the input.",
    "dead": "Units whose code moves by less than 0.001 over all rows.",
}


@dataclass(frozen=True)
class Config:
    """Draw a trained stack: learning curves, filters, reconstructions, codes, contraction, errors.

    Writes each picture as files and all of them, with the figures and the configuration, into one
    report.html that needs no other file. What a run lacks (a log, labels) is left out.

    Attributes:
        run: Folder of a run, or of one of its checkpoints; training may still go on.
        out: Folder to write to. By default plots in the run's folder.
        data: A data set, a file or a folder. By default the data that the run was trained on.
        formats: Formats of the pictures' files.
        rows: Number of rows to draw and to measure Jacobians on.
        projection: Projection of codes to two dimensions.
        shape: Shape of a row as an image, as in 28x28 or 28x28x3; rows of shape 1x64 are drawn as lines. By
            default the shape in the data, and a square for flat rows whose width is one.
    """

    run: Annotated[str, POSITIONAL]
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
    from ..plots import spread
    from ..plots.arrays import image_shape
    from ..plots.explore import explore
    from ..plots.page import render_page
    from ..plots.run import Subject, draw

    trained = load(config.run)
    checkpoint, dataset = trained.checkpoint, trained.load_data(config.data)
    out = folder_of(config.run, config.out)
    stack = checkpoint.stack.eval()
    shape = config.shape or checkpoint.feature_shape
    image_shape(stack.sizes[0], shape)
    rows, part, training = checkpoint.parts(dataset, own=config.data is None)
    figures = evaluate(stack, rows, classifier=checkpoint.classifier, training=training)
    index, targets = spread(len(rows), config.rows), rows.targets
    x = torch.from_numpy(rows.read(index)).to(next(stack.parameters()).detach())
    if stack.input_options.missing:
        with torch.no_grad():
            x = torch.where(x.isnan(), stack.reconstruct(x), x)
    subject = Subject(
        stack,
        x,
        None if targets is None else targets[index],
        shape,
        read_log(checkpoint.path),
        config.projection,
        feature_names=None if config.shape else dataset.feature_names,
        class_names=None if rows.classes is None else [str(name) for name in rows.classes],
        scaling=checkpoint.scaling,
        figures=figures,
    )
    pictures, written = write_pictures(draw(subject), out, config.formats)
    interactive = find_spec("plotly") is not None
    content = render_page(
        f"Autoencoder {' → '.join(map(str, stack.sizes))} on {dataset.name}",
        f"Figures of {len(rows)} rows, the {part} of {dataset.name}, and pictures of {len(index)} of them.",
        pictures,
        _tables(checkpoint, figures),
        facts=_facts(checkpoint, subject.history),
        explore=explore(subject, index) if interactive else None,
    )
    page = write_whole(out / _PAGE, content)
    message = f"{page}: one page with all of it; {written} files of pictures"
    if not interactive:
        message += '. To explore rows and units in it: pip install "fastae[report]"'
    console.print(message)


def folder_of(run: str, out: str | None) -> Path:
    """The folder of a run's pictures, which can be written to."""
    folder = Path(run) / "plots" if out is None else Path(out)
    try:
        check_writable(folder)
        remove_leftovers(folder)
    except OSError as error:
        raise ValueError(f"out: {folder} cannot be written to ({error.strerror})") from error
    return folder


def write_pictures(
    drawings: Iterable[Drawing], out: Path, formats: Sequence[str]
) -> tuple[list[Picture], int]:
    """The pictures of a page, each of them written as files too, and the number of those."""
    from ..plots import render
    from ..plots.page import Picture
    from ..plots.style import NARROW, figures_of

    pictures, written = [], 0
    for drawing in list(drawings):  # what cannot be drawn leaves no files
        figure = drawing.figure
        svg = render(figure, "svg")
        figure.set_layout_engine("none")  # it is laid out now
        for format in dict.fromkeys(formats):
            content = svg if format == "svg" else render(figure, format)
            write_whole(out / f"{drawing.name}.{format}", content)
            written += 1
        with figures_of(NARROW):
            narrow = render(drawing.figure, "svg")
        pictures.append(Picture(*drawing[:4], svg, narrow))
    return pictures, written


def _facts(checkpoint: Checkpoint, history: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Names and values of a line that tells where the run comes from, all of it from the run itself."""
    description = json.loads((checkpoint.path / "config.json").read_text(encoding="utf-8"))
    written = (checkpoint.path / "config.json").stat().st_mtime
    modules = (
        [checkpoint.stack] if checkpoint.classifier is None else [checkpoint.stack, checkpoint.classifier]
    )
    parameters = {id(p): p.numel() for module in modules for p in module.parameters()}
    facts = {
        "trained": datetime.fromtimestamp(written, timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "seconds": (history[-1].get("seconds") or "") if history else "",
        "seed": str(checkpoint.config.get("seed", "")),
        "device": str(checkpoint.config.get("device") or "chosen by itself"),
        "parameters": f"{sum(parameters.values()):,}",
        "checkpoint": checkpoint.path.name,
        "fastae": str(description.get("fastae", "")),
        "drawn with": f"torch {torch.__version__}",
    }
    return {name: value for name, value in facts.items() if value}


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
        Table("Figures, means over rows", ("", "value"), summary_cells(figures), meanings=_FIGURES),
        Table(
            "Layers, each on its own input",
            tuple(layers[0]),
            [tuple(cells.values()) for cells in layers],
            meanings=_LAYERS,
        ),
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
