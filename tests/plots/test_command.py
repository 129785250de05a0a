"""``fastae plot`` from a run to its files and its page."""

import json
import os
import re
import shlex
import shutil
import struct
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

pytest.importorskip("rich")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from fastae import plots
from fastae.cli import main
from fastae.train import Stage, TrainConfig, dataset_from_arrays, train
from fastae.train.reporting import read_log

QUICK = "--pretrain.epochs 2 --supervised.epochs 1 --no-tensorboard --device cpu"
EVERY_RUN = {
    "reconstructions",
    "filters-1",
    "codes",
    "code-map",
    "spectrum",
    "contraction",
    "tangents",
    "errors",
}
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Content of a page; ``closed`` tells whether every element was closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.closed = True
        self.tags: list[str] = []
        self.pictures: list[dict[str, str | None]] = []
        self.terms: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()
        self.closed &= not self.open

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "svg":
            self.pictures.append(values)
        if "id" in values:
            self.ids.append(values["id"] or "")
        for name in ("href", "xlink:href"):
            if name in values:
                self.links.append((values[name] or "").strip())
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self.closed &= bool(self.open) and self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        if self.open and self.open[-1] == "dt":
            self.terms.append(data)


def fastae(line: str) -> int:
    return main(shlex.split(line))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A small run on digits with a classifier; tests must not change it."""
    folder = tmp_path_factory.mktemp("plots") / "run"
    assert (
        fastae(f"train {QUICK} --sizes 64 12 6 --corruption masking:0.25 none --classifier --out {folder}")
        == 0
    )
    return folder


@pytest.fixture(scope="module")
def drawn(run, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("drawn")
    assert fastae(f"plot {run} --out {out} --rows 60") == 0
    return out


@pytest.fixture
def copy(run, tmp_path) -> Path:
    return shutil.copytree(run, tmp_path / "copy")


@pytest.fixture
def files_alone(monkeypatch) -> None:
    """Draw the PNG files alone, not the page's two pictures of each."""
    render = plots.render
    monkeypatch.setattr(plots, "render", lambda *given: b"<svg/>" if "svg" in given else render(*given))


def names(folder: Path, suffix: str) -> set[str]:
    return {path.stem for path in folder.glob(f"*{suffix}")}


def test_every_picture_becomes_two_files(drawn):
    expected = EVERY_RUN | {"learning-curves", "filters-2"}
    assert names(drawn, ".png") == names(drawn, ".svg") == expected
    assert len(list(drawn.iterdir())) == 2 * len(expected) + 1
    for path in drawn.glob("*.png"):
        width, height = struct.unpack(">II", path.read_bytes()[16:24])
        assert width == 1440 and height > 200
    for path in drawn.glob("*.svg"):
        assert ElementTree.parse(path).getroot().tag.endswith("svg")


def test_the_page_stands_alone_and_holds_every_picture(drawn):
    text = (drawn / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>") and page.closed
    assert all(address.startswith(("#", "data:")) for address in page.links)
    assert not re.search(r"@import|\ssrc=", text)
    assert len(set(page.ids)) == len(page.ids)
    assert names(drawn, ".svg") <= {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert len(page.pictures) == 2 * len(names(drawn, ".svg"))
    for picture in page.pictures:
        assert len(picture["aria-label"] or "") > 20 and "width" not in picture
    assert len(text) < 6_000_000
    assert {"trained", "seconds", "seed", "device", "parameters", "fastae"} <= set(page.terms)
    assert "prefers-color-scheme: dark" in text


def test_the_page_has_the_figures_and_the_configuration(run, drawn):
    page = Page((drawn / "report.html").read_text(encoding="utf-8"))
    values = {row[0]: row[1:] for row in page.rows}
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert values["classifier error"] == [f"{100 * evaluation['classifier_error']:.2f} %"]
    assert [f"{evaluation['mse']:.6f}"] in values.values()
    assert values["corruption"] == ["masking:0.25 none"]
    assert values["pretrain.epochs"] == ["2"]
    assert [row for row in page.rows if row[:3] == ["2", "6", "sigmoid"]]


def test_the_same_run_gives_the_same_bytes(run, drawn, tmp_path):
    assert fastae(f"plot {run} --out {tmp_path} --rows 60") == 0
    for path in drawn.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.usefixtures("files_alone")
def test_by_default_pictures_lie_in_the_run_and_are_replaced(copy, capsys):
    for _ in range(2):
        assert fastae(f"plot {copy} --formats png --rows 30 --projection pca") == 0
    assert "report.html" in capsys.readouterr().out
    assert names(copy / "plots", ".png") == EVERY_RUN | {"learning-curves", "filters-2"}
    assert not names(copy / "plots", ".svg") and not list(copy.rglob(".tmp-*"))
    assert fastae(f"evaluate {copy}") == 0  # the run is still one


@pytest.mark.usefixtures("files_alone")
def test_a_single_checkpoint_and_a_run_without_a_log(copy, tmp_path):
    (checkpoint,) = copy.glob("checkpoint-*")
    assert fastae(f"plot {checkpoint} --out {tmp_path / 'a'} --formats png --rows 20 --projection pca") == 0
    assert "learning-curves" in names(tmp_path / "a", ".png")
    (copy / "log.csv").unlink()
    assert fastae(f"plot {copy} --out {tmp_path / 'b'} --formats png --rows 20 --projection pca") == 0
    assert names(tmp_path / "b", ".png") == EVERY_RUN | {"filters-2"}


def test_a_log_that_was_cut_off(copy):
    (checkpoint,) = copy.glob("checkpoint-*")
    log = copy / "log.csv"
    whole = read_log(checkpoint)
    log.write_text(log.read_text() + "layer 2,")
    assert read_log(checkpoint) == whole
    log.write_bytes(log.read_bytes()[:-30] + b"\xff\x00")
    assert read_log(checkpoint)[: len(whole) - 1] == whole[:-1]


def trained(
    folder: Path, x: np.ndarray, sizes: tuple[int, ...], labels: np.ndarray | None = None, **options
) -> str:
    """A run of one epoch on an array, and the array's file, as arguments of the command."""
    np.savez(folder / "x.npz", **({"x": x} if labels is None else {"x": x, "y": labels}))
    data = dataset_from_arrays(str(folder / "x.npz"), x, labels)
    stage, out = Stage(epochs=1), str(folder / "run")
    config = TrainConfig(sizes=sizes, pretrain=stage, out=out, tensorboard=False, device="cpu", **options)
    train(config, dataset=data)
    return str(folder / "run")


@pytest.mark.usefixtures("files_alone")
@pytest.mark.parametrize(
    ("shape", "sizes", "options"),
    [
        ((30, 2), (2, 5), {"loss": ("mse",), "activation": ("tanh",), "corruption": ("gaussian:0.1",)}),
        ((30, 3, 5), (15, 4), {"corruption": ("salt_and_pepper:0.1",)}),
        ((30, 7), (7, 1, 3), {}),
        ((30, 1), (1, 1), {"validation": 0.0}),
        ((2, 4), (4, 3, 2, 2), {"validation": 0.0, "activation": ("relu",), "loss": ("bce", "mse", "mse")}),
        ((30, 6), (6, 4), {"activation": ("gelu",), "precision": "float64"}),
        ((30, 5, 5, 3), (75, 3), {}),
    ],
)
def test_any_data_without_labels(tmp_path, shape, sizes, options):
    x = np.random.default_rng(0).uniform(size=shape)
    run = trained(tmp_path, x, sizes, **options)
    assert fastae(f"plot {run} --formats png --projection pca") == 0
    filters = {f"filters-{number}" for number in range(2, len(sizes))}
    more = {"vector-field"} if sizes[0] == 2 else set()
    assert names(Path(run) / "plots", ".png") == EVERY_RUN | {"learning-curves"} | filters | more


def test_constant_data_with_one_label(tmp_path):
    run = trained(tmp_path, np.zeros((20, 9)), (9, 4), np.zeros(20, int))
    assert fastae(f"plot {run} --formats svg") == 0


@pytest.mark.usefixtures("files_alone")
def test_other_data_and_its_labels(run, tmp_path):
    generator = np.random.default_rng(0)
    np.savez(tmp_path / "other.npz", x=generator.uniform(size=(12, 64)), y=np.arange(12) % 3)
    assert fastae(f"plot {run} --data {tmp_path / 'other.npz'} --out {tmp_path / 'out'} --formats png") == 0
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "12 rows" in text and "other.npz" in text


@pytest.mark.usefixtures("files_alone")
def test_names_in_the_page_are_escaped(run, tmp_path):
    np.save(tmp_path / "a<b>&.npy", np.random.default_rng(0).uniform(size=(12, 64)))
    assert main(["plot", str(run), "--data", str(tmp_path / "a<b>&.npy"), "--out", str(tmp_path / "o")]) == 0
    text = (tmp_path / "o" / "report.html").read_text(encoding="utf-8")
    assert Page(text).closed and "a&lt;b&gt;&amp;.npy" in text and "<b>" not in text


def test_wide_pictures_keep_the_page_small(tmp_path):
    x = torch.rand(12, 3 * 64 * 64, generator=torch.Generator().manual_seed(0)).numpy().reshape(12, 64, 64, 3)
    run = trained(tmp_path, x, (3 * 64 * 64, 60))
    assert fastae(f"plot {run} --formats png --projection pca") == 0
    assert (Path(run) / "plots" / "report.html").stat().st_size < 6_000_000


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{tmp}/missing", "missing: no such folder"),
        ("{tmp}", "holds no checkpoint"),
        ("{run} --data {tmp}/none.npy", "no such file"),
        ("{run} --rows 0", "rows: must be a whole number >= 1, got 0"),
        ("{run} --out {tmp}/file", "out: {tmp}/file cannot be written to"),
        ("{run} --out {tmp}/file/below", "out: {tmp}/file/below cannot be written to"),
        ("{run} --formats gif", "gif"),
    ],
)
def test_wrong_arguments_are_named_and_exit_with_2(run, tmp_path, capsys, line, message):
    (tmp_path / "file").touch()
    assert fastae("plot " + line.format(run=run, tmp=tmp_path)) == 2
    output = "".join(capsys.readouterr())
    assert message.format(tmp=tmp_path) in " ".join(output.split())


def test_a_width_that_differs(run, tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.ones((3, 5)))
    assert fastae(f"plot {run} --data {tmp_path / 'x.npy'}") == 2
    assert "has rows of 5, the run takes 64" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_leaves_the_old_one(run, tmp_path, monkeypatch):
    assert fastae(f"plot {run} --out {tmp_path} --formats png --rows 20 --projection pca") == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert fastae(f"plot {run} --out {tmp_path} --formats png --rows 30") == 2
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
