"""Runs saved for the Hugging Face Hub and read back, without a network."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import fastae

huggingface_hub = pytest.importorskip("huggingface_hub")

from fastae.errors import CheckpointError  # noqa: E402
from fastae.hub import HubRun  # noqa: E402
from fastae.train import Stage, TrainConfig, train  # noqa: E402

ROWS = np.random.default_rng(0).uniform(0.0, 5.0, (40, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    np.save(folder / "secret-rows.npy", ROWS)
    config = TrainConfig(
        data=str(folder / "secret-rows.npy"),
        sizes=(6, 3),
        pretrain=Stage(epochs=1),
        finetune=Stage(epochs=0),
        out=str(folder / "run"),
        device="cpu",
        tensorboard=False,
    )
    run = train(config)
    (run.path / "evaluation.json").write_text(json.dumps({"r2": 0.5, "mse": 0.25}))
    return run.path


@pytest.fixture
def saved(run_folder: Path, tmp_path: Path) -> Path:
    HubRun.load(run_folder).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_a_saved_run_gives_the_same_results(run_folder: Path, saved: Path):
    here, there = fastae.load(run_folder), HubRun.from_pretrained(saved)
    assert np.array_equal(here.encode(ROWS), there.encode(ROWS))
    assert np.array_equal(here.reconstruct(ROWS), there.reconstruct(ROWS))
    assert np.array_equal(fastae.load(saved).score(ROWS), there.score(ROWS))


def test_a_saved_run_can_be_saved_again(saved: Path, tmp_path: Path):
    HubRun.from_pretrained(saved).save_pretrained(tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes()


def test_no_path_of_this_machine_is_saved(run_folder: Path, saved: Path):
    assert {path.name for path in saved.iterdir()} >= {"config.json", "model.safetensors", "README.md"}
    for path in saved.iterdir():
        assert str(run_folder.parent).encode() not in path.read_bytes(), path.name


def test_the_card_has_the_architecture_and_the_figures(saved: Path):
    card = huggingface_hub.ModelCard.load(saved / "README.md")
    assert card.data.library_name == "fastae" and "autoencoder" in card.data.tags
    assert "6 - 3" in card.text and "| R² of the reconstruction | 0.5 |" in card.text


def test_a_push_uploads_the_saved_folder(run_folder: Path, monkeypatch: pytest.MonkeyPatch):
    uploaded = {}

    def upload(self, *, folder_path, repo_id, **options):
        uploaded[repo_id] = {path.name for path in Path(folder_path).iterdir()}

    def create(self, repo_id, **options):
        return SimpleNamespace(repo_id=repo_id)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
    HubRun.load(run_folder).push_to_hub("me/digits")
    assert uploaded == {"me/digits": {"config.json", "model.safetensors", "README.md"}}


def test_a_repository_is_downloaded(saved: Path, monkeypatch: pytest.MonkeyPatch):
    asked = {}

    def download(repo_id: str, **options):
        asked[repo_id] = options
        return str(saved)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", lambda **_: str(saved / "config.json"))
    run = HubRun.from_pretrained("me/digits", revision="main")
    assert run.encode(ROWS).shape == (40, 3)
    assert asked["me/digits"]["allow_patterns"] == ["config.json", "model.safetensors"]
    assert asked["me/digits"]["revision"] == "main"


def test_a_folder_without_a_run_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError):
        HubRun.from_pretrained(tmp_path)
