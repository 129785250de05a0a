"""``fastae sae``: dictionaries of sparse codes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor

from .. import formats
from ..checks import check_whole
from ..console import Console, print_table
from ..files import write_whole
from ..nn import SparseAutoencoder
from ..optional import require
from ..train import dictionary as training
from ..train.config import POSITIONAL
from ..train.data import Dataset, Rows, load_dataset
from ..train.dictionary import SparseTrainConfig
from ..train.evaluation import PartName, evaluation_parts
from .options import given_options
from .plot import folder_of, write_pictures


@dataclass(frozen=True)
class Encode:
    """Write the sparse codes of a data set to a file.

    Attributes:
        run: Folder of a run, or of any format that fastae sae convert reads.
        out: The .safetensors file to write: values, indices and offsets, row n holding the entries offsets[n]
            to offsets[n + 1].
        data: A data set, a file or a folder. By default the data that the run was trained on.
        part: Part of the data to encode.
        scaling: Scaling of the data, for a dictionary that fastae did not train; a run has its own.
    """

    run: Annotated[str, POSITIONAL]
    out: str
    data: str | None = None
    part: Literal["train", "test"] = "train"
    scaling: str = "none"

    def __post_init__(self) -> None:
        if Path(self.out).suffix != ".safetensors":
            raise ValueError(f"out: {self.out!r} must end in .safetensors")


@dataclass(frozen=True)
class Evaluate:
    """Measure a dictionary: unexplained variance, active latents per row, silent latents.

    Attributes:
        run: Folder of a run, or of any format that fastae sae convert reads.
        data: A data set, a file or a folder. By default the figures of training, on rows held out.
        scaling: Scaling of the data, for a dictionary that fastae did not train; a run has its own.
        json: Print JSON instead of a table.
    """

    run: Annotated[str, POSITIONAL]
    data: str | None = None
    scaling: str = "none"
    json: bool = False


@dataclass(frozen=True)
class Plot:
    """Draw a dictionary: its latents, the rows that activate them, its activations, FVU over active latents.

    Writes each picture as files and all of them, with the figures and the configuration, into one
    report.html that needs no other file.

    Attributes:
        run: Folder of a run.
        out: Folder to write to. By default plots in the run's folder.
        data: A data set, a file or a folder. By default the data that the run was trained on.
        formats: Formats of the pictures' files.
        rows: Number of rows to draw.
    """

    run: Annotated[str, POSITIONAL]
    out: str | None = None
    data: str | None = None
    formats: tuple[Literal["png", "svg", "pdf"], ...] = ("png", "svg")
    rows: int = 1000

    def __post_init__(self) -> None:
        check_whole("rows:", self.rows)


@dataclass(frozen=True)
class Convert:
    """Write a dictionary in another format: fastae, saelens, sparsify, dictionary_learning, openai.

    Attributes:
        run: Folder or file to read; its format is told by its files.
        out: Folder to write.
        format: Format to write.
    """

    run: Annotated[str, POSITIONAL]
    out: str
    format: str = "fastae"


CONFIGS = {
    "train": SparseTrainConfig,
    "encode": Encode,
    "evaluate": Evaluate,
    "plot": Plot,
    "convert": Convert,
}


def run(config: Any, console: Console) -> None:
    """Run the command."""
    _RUNS[type(config)](config, console)


def _train(config: SparseTrainConfig, console: Console) -> None:
    def progress(epoch: int, terms: dict[str, float]) -> None:
        described = "  ".join(f"{name} {value:.5g}" for name, value in terms.items())
        console.print(f"epoch {epoch}/{config.epochs}  {described}")

    if config.resume and (Path(config.out) / training.DICTIONARY_RUN).exists():
        console.print(f"{config.out} is finished: there is nothing left to train")
    result = training.train(config, progress, given=given_options(config))
    _print(console, result.figures, f"{result.config.data}, rows held out")
    console.print(f"Run: {result.path} (model.safetensors, log.csv, train.json)")


def _encode(config: Encode, console: Console) -> None:
    sae, rows, *_ = _load(config.run, config.data, config.part, config.scaling)
    values, indices, counts = [], [], []
    with torch.no_grad():
        for x in _batches(rows):
            code = sae.encode(x)
            values.append(code.values.flatten())
            indices.append(code.indices.flatten())
            if code.offsets is None:
                counts.append(torch.full((len(x),), code.values.shape[-1]))
            else:
                counts.append(code.offsets.diff())
    count = torch.cat(counts)
    offsets = torch.cat((count.new_zeros(1), count.cumsum(0)))
    tensors = {"values": torch.cat(values), "indices": torch.cat(indices), "offsets": offsets}
    out = Path(config.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, save(tensors, {"latents": str(sae.code_features)}))
    console.print(
        f"{out}: {len(count)} rows, {len(tensors['values'])} entries of {sae.code_features} latents",
        highlight=False,
    )


def _evaluate(config: Evaluate, console: Console) -> None:
    if config.data is None:
        result = training.load(config.run)
        figures, title = result.figures, f"{result.config.data}, rows held out"
    else:
        sae, rows, title, _ = _load(config.run, config.data, None, config.scaling)
        figures = training.evaluate(sae, _batches(rows))
    if config.json:
        print(json.dumps(figures, indent=2))
    else:
        _print(console, figures, title)


def _convert(config: Convert, console: Console) -> None:
    file = formats.write(formats.read(config.run), config.out, config.format)
    console.print(f"{file}: {config.format}")


def _plot(config: Plot, console: Console) -> None:
    require("matplotlib", "sae plot")
    from ..plots import dictionary, spread
    from ..plots.page import Table, render_page

    trained = training.load(config.run)
    given = _load(config.run, config.data, None, "none")
    out = folder_of(config.run, config.out)
    index = spread(len(given.rows), config.rows)
    x = given.rows[index] if isinstance(given.rows, Tensor) else torch.from_numpy(given.rows.read(index))
    dataset = given.dataset
    figures = training.evaluate(trained.sae, x.split(4096))
    subject = dictionary.Dictionary(
        trained.sae,
        x,
        () if dataset is None else dataset.feature_shape,
        training.read_log(trained.path),
        [str(n) for n in range(1, x.shape[1] + 1)] if dataset is None else dataset.feature_names,
        figures,
        training.frontier(trained.sae, x.split(4096)),
    )
    pictures, written = write_pictures(dictionary.draw(subject), out, config.formats)
    options = [(name, str(value)) for name, value in asdict(trained.config).items()]
    tables = [
        Table(f"Figures of {len(x)} rows", ("", "value"), _cells(figures)),
        Table("The whole configuration", ("option", "value"), options, numbers=False, folded=True),
    ]
    rule = trained.sae.options.activation
    content = render_page(
        f"Dictionary of {trained.sae.code_features} latents on {trained.config.data}, {rule}",
        f"Figures and pictures of {len(x)} rows of {given.title}.",
        pictures,
        tables,
    )
    page = write_whole(out / "report.html", content)
    console.print(f"{page}: one page with all of it; {written} files of pictures")


class _Given(NamedTuple):
    """A dictionary, rows scaled as its training data were, what they are called, and their data set."""

    sae: SparseAutoencoder
    rows: Rows | Tensor
    title: str
    dataset: Dataset | None


def _batches(rows: Rows | Tensor) -> Iterable[Tensor]:
    return rows.split(4096) if isinstance(rows, Tensor) else training.rows_of(rows)


def _load(run: str, data: str | None, part: PartName | None, scaling: Any) -> _Given:
    """Without a ``part`` the rows are the test part's where there is one."""
    own = None
    if (Path(run) / training.DICTIONARY_RUN).is_file():
        trained = training.load(run)
        sae, scaling = trained.sae, trained.scaling
        named, own = data is not None, trained.config.data
        data = data or own
        if data == "planted":
            if part == "test":
                raise ValueError("part: planted rows have no test part")
            return _Given(sae, training.planted(trained.config).rows, data, None)
    else:
        sae, named = formats.read(run).eval(), True
    if data is None:
        raise ValueError(f"data: {run} does not say what it was trained on; name the data")
    dataset = load_dataset(data, scaling=scaling, download=named)  # a run from elsewhere starts none
    if dataset.width != sae.in_features:
        raise ValueError(
            f"data: {dataset.name} has rows of {dataset.width}, the dictionary takes {sae.in_features}"
        )
    if part is None and dataset.test is None and data != own:
        part = "train"  # as a name of all rows: the dictionary has seen none of them
    rows, name, _ = evaluation_parts(dataset, part=part)
    return _Given(sae, rows, f"{dataset.origin}, {name}", dataset)


_LABELS = {
    "fvu": ("share of the variance not explained", ".4f"),
    "mse": ("squared error per row (sum over features)", ".5g"),
    "l0": ("active latents per row", ".2f"),
    "latents": ("latents", "d"),
    "silent": ("latents active in no row", "d"),
    "recovered": ("share of the planted directions found (cosine 0.9)", ".4f"),
}


def _cells(figures: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (label, format(figures[name], form)) for name, (label, form) in _LABELS.items() if name in figures
    ]


def _print(console: Console, figures: dict[str, Any], title: str) -> None:
    print_table(console, _cells(figures), title=f"{title}: {figures['rows']} rows")


_RUNS: dict[type, Callable[[Any, Console], None]] = {
    SparseTrainConfig: _train,
    Encode: _encode,
    Evaluate: _evaluate,
    Plot: _plot,
    Convert: _convert,
}
