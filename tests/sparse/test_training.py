"""Training of dictionaries, its folder, its figures, and the commands."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("rich")
pytest.importorskip("sklearn")

from fastae import SparseCode, formats
from fastae.cli import main
from fastae.errors import CheckpointError
from fastae.nn import SparseAutoencoder
from fastae.sparse.planted import planted_rows, recovered_share
from fastae.train import dictionary as training
from fastae.train import load_dataset
from fastae.train.dictionary import SparseTrainConfig

QUICK = "--latents 64 --epochs 2 --lr 0.005"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on digits; tests must not change it."""
    folder = tmp_path_factory.mktemp("sae") / "run"
    assert main(shlex.split(f"sae train --data digits --activation batch_topk:6 {QUICK} --out {folder}")) == 0
    return folder


def test_planted_rows_are_sparse_sums_of_directions():
    rows, directions = planted_rows(3000, 40, 20, active=3.0, noise=0.0)
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(20))
    code = torch.linalg.lstsq(directions.t(), rows.t()).solution.t()
    present = code > 0.25
    assert abs(float(present.sum(1).float().mean()) - 3.0) < 0.2
    assert ((code[present] > 0.49) & (code[present] < 1.51)).all()
    assert code[~present].abs().max() < 1e-3
    assert torch.equal(planted_rows(3000, 40, 20, 3.0, 0.0).rows, rows)


def test_recovered_share_counts_directions_once():
    directions = torch.eye(4)
    decoder = torch.tensor([[2.0, 0, 0, 0], [1.0, 0.01, 0, 0], [0, 1.0, 1.0, 0]])
    assert recovered_share(decoder, directions) == 0.25
    assert recovered_share(decoder, directions, cosine=0.7) == 0.75


def test_figures_are_those_of_dense_codes():
    torch.manual_seed(0)
    sae = SparseAutoencoder(6, 20, "topk:3").eval()
    x = torch.randn(50, 6)
    figures = training.evaluate(sae, x.split(17))
    error = (sae.reconstruct(x) - x).square().sum().detach()
    assert figures["fvu"] == pytest.approx(float(error / (x - x.mean(0)).square().sum()), rel=1e-5)
    assert figures["mse"] == pytest.approx(float(error / 50), rel=1e-5)
    code = sae.encode(x).to_dense(20)
    assert figures["l0"] == pytest.approx(float((code > 0).sum() / 50))
    assert figures["silent"] == int((code == 0).all(0).sum())
    with pytest.raises(ValueError, match="at least one row"):
        training.evaluate(sae, [])


def test_planted_directions_are_found(tmp_path):
    config = SparseTrainConfig(
        out=str(tmp_path / "run"), latents=64, activation="topk:4", epochs=6, lr=0.005, auxk=0.0
    )
    result = training.train(config)
    assert result.figures["recovered"] > 0.9
    assert result.figures["fvu"] < 0.3
    assert result.figures["l0"] <= 4.0
    with pytest.raises(CheckpointError, match="has a run already"):
        training.train(config)


def test_runs_are_loaded_and_are_dictionaries_of_the_own_format(run):
    result = training.load(run)
    assert result.config.activation == "batch_topk:6"
    assert result.sae.threshold > 0
    assert torch.equal(formats.read(run).decoder.weight, result.sae.decoder.weight)
    torch.testing.assert_close(result.sae.decoder.weight.norm(dim=1), torch.ones(64))
    test = load_dataset("digits", scaling=result.scaling).test
    assert training.evaluate(result.sae, training.rows_of(test)) == result.figures
    log = (run / "log.csv").read_text().splitlines()
    assert log[0] == "epoch,total,reconstruction,auxk,dead" and len(log) == 3
    with pytest.raises(CheckpointError):
        training.load(run.parent)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latents": 10**12}, "latents: 1000000000000, but the dictionary has 64"),
        ({"epochs": "many"}, "epochs: must be a whole number"),
        ({"prefixes": 5.5}, "prefixes: must be a whole number"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(run, tmp_path, change, message):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    values = json.loads((folder / training.DICTIONARY_RUN).read_text())
    values["config"].update(change)
    (folder / training.DICTIONARY_RUN).write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=message):
        training.load(folder)


@pytest.mark.parametrize("given", ["", "--data table.csv"], ids=["images", "table"])
def test_the_report_has_every_picture(run, given, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    rows = load_dataset("digits", scaling="none").test.read()[:60]
    lines = [",".join(f"pixel{n}" for n in range(64)), *(",".join(map(str, row)) for row in rows.tolist())]
    Path("table.csv").write_text("\n".join(lines) + "\n")
    line = f"sae plot {run} --out plots --formats svg --rows 200 {given}"
    assert main(shlex.split(line)) == 0
    assert "4 files of pictures" in capsys.readouterr().out
    names = ["learning-curves", "latents", "activations", "frontier"]
    assert {file.name for file in Path("plots").iterdir()} == {"report.html", *(f"{n}.svg" for n in names)}
    page = Path("plots/report.html").read_text(encoding="utf-8")
    assert [page.index(f'<section id="{name}">') for name in names] == sorted(
        page.index(f'<section id="{name}">') for name in names
    )
    assert "share of the variance not explained" in page and "batch_topk:6" in page


@pytest.mark.parametrize("rule", ["topk:3", "batch_topk:3", "relu", "jump_relu:0.1", "gated"])
def test_the_frontier_falls_to_what_all_activations_leave(rule):
    torch.manual_seed(0)
    x = torch.randn(80, 6)
    sae = SparseAutoencoder(6, 20, rule).initialize_(x).eval()
    points = training.frontier(sae, [x])
    if rule == "gated":
        assert points == []
        return
    active, unexplained = zip(*points, strict=True)
    assert active[0] <= 1.0 and list(active) == sorted(active)
    if rule == "topk:3":
        assert len(points) == 4  # k of 1, 2, 4 and 8, up to 12
        sae.options = dataclasses.replace(sae.options, activation="topk:4")
        assert training.evaluate(sae, [x])["fvu"] == unexplained[2]


def test_strongest_rows_are_those_of_the_dense_code():
    dictionary = pytest.importorskip("fastae.plots.dictionary")
    torch.manual_seed(0)
    x = torch.randn(40, 6)
    for rule in ("topk:3", "relu"):
        subject = dictionary.Dictionary(SparseAutoencoder(6, 20, rule).eval(), x)
        code = subject.sae.encode(x).to_dense(20).detach()
        torch.testing.assert_close(subject.frequency, (code > 0).float().mean(0))
        latents, rows = subject.strongest()
        assert (subject.frequency[latents].diff() <= 0).all()
        values = code[rows, latents[:, None]].where(rows >= 0, 0.0)
        largest = code[:, latents].clamp(min=0.0).topk(rows.shape[1], dim=0).values.t()
        torch.testing.assert_close(values, largest)
        assert ((rows < 0) == (largest == 0)).all()


def test_commands(run, tmp_path, capsys):
    assert main(["sae", "evaluate", str(run), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures == training.load(run).figures
    assert main(["sae", "evaluate", str(run), "--data", "digits", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == pytest.approx(figures)

    codes = tmp_path / "codes.safetensors"
    assert main(["sae", "encode", str(run), "--out", str(codes), "--part", "test"]) == 0
    tensors = load_file(codes)
    code = SparseCode(tensors["values"], tensors["indices"], tensors["offsets"])
    test = load_dataset("digits", scaling=training.load(run).scaling).test
    sae = training.load(run).sae
    expected = sae.encode(torch.from_numpy(test.read())).to_dense(64)
    torch.testing.assert_close(code.to_dense(64), expected)

    assert main(["sae", "convert", str(run), "--out", str(tmp_path / "s"), "--format", "saelens"]) == 0
    assert str(formats.read(tmp_path / "s").options.activation).startswith("jump_relu")
    capsys.readouterr()
    line = ["sae", "evaluate", str(tmp_path / "s"), "--data", "digits", "--scaling", "auto", "--json"]
    assert main(line) == 0
    assert json.loads(capsys.readouterr().out) == pytest.approx(figures, rel=1e-4)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("sae train --activation topk:65 --latents 64", "expected k of at most 64 latents"),
        ("sae train --activation what", "'what' is not one of topk"),
        ("sae train --latents 0", "latents: must be a whole number"),
        ("sae train --lr -1", "lr: must be"),
        ("sae encode nothing --out a.npy", "must end in .safetensors"),
        ("sae convert nothing --out b", "no such file or folder"),
        ("sae evaluate nothing", "nothing"),
    ],
)
def test_refusals(line, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(line)) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_documents_examples_run(tmp_path, monkeypatch, capsys):
    text = (Path(__file__).parents[2] / "docs" / "sparse.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```(python|sh)\n(.*?)```", text, re.DOTALL)
    assert {language for language, _ in blocks} == {"python", "sh"}
    for language, code in blocks:
        if language == "python":
            exec(compile(code, "sparse.md", "exec"), {})
        else:
            for line in code.splitlines():
                assert main(shlex.split(line)[1:]) == 0, line
