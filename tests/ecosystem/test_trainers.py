"""Training by Lightning, by skorch and by a plain loop."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fastae.nn

X = torch.rand(64, 12, generator=torch.Generator().manual_seed(0))
Y = (X.sum(1) > 6.0).long()


def model() -> fastae.nn.Autoencoder:
    torch.manual_seed(0)
    return fastae.nn.Autoencoder(12, 5, contractive=0.01)


def plain_losses(epochs: int) -> list[float]:
    network, losses = model(), []
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(epochs):
        for rows in X.split(16):
            total = network(rows).total
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            losses.append(total.item())
    return losses


def test_a_plain_loop_learns():
    losses = plain_losses(10)
    assert losses[-1] < 0.9 * losses[0]


class Record:
    """The losses that a trainer logs, step by step."""

    def callback(self, lightning):
        record = self
        record.losses, record.names = [], set()

        class Callback(lightning.Callback):
            def on_train_batch_end(self, trainer, module, outputs, batch, index):
                record.losses.append(float(outputs["loss"]))

            def on_validation_end(self, trainer, module):
                record.names |= set(trainer.callback_metrics)

        return Callback()


@pytest.mark.parametrize("labelled", [False, True])
def test_lightning_takes_the_steps_of_the_plain_loop(tmp_path, labelled):
    lightning = pytest.importorskip("lightning")
    from fastae.lightning import AutoencoderModule

    record = Record()
    rows = DataLoader(TensorDataset(*((X, Y) if labelled else (X,))), batch_size=16)
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[record.callback(lightning)],
    )
    module = AutoencoderModule(model(), lr=1e-2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, rows, rows)
    assert record.losses == pytest.approx(plain_losses(2), rel=1e-6)
    assert {"train_total", "train_contractive", "validation_total"} <= record.names
    codes = torch.cat(trainer.predict(module, rows))  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(codes, module.model.encode(X).detach())

    trainer.save_checkpoint(tmp_path / "run.ckpt")
    again = AutoencoderModule.load_from_checkpoint(tmp_path / "run.ckpt", model=model())
    assert torch.equal(again.model.encode(X), module.model.encode(X))


def test_lightning_names_an_unknown_optimizer():
    pytest.importorskip("lightning")
    from fastae.lightning import AutoencoderModule

    with pytest.raises(ValueError, match=r"^optimizer: torch.optim has no 'adam2'"):
        AutoencoderModule(model(), "adam2")


def test_skorch_trains_a_model_with_fused_layers():
    skorch = pytest.importorskip("skorch")

    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 2))

    def fit(module: nn.Module) -> Tensor:
        classifier = skorch.NeuralNetClassifier(
            module,
            criterion=nn.CrossEntropyLoss,
            max_epochs=3,
            lr=0.1,
            verbose=0,
            iterator_train__shuffle=False,
        )
        classifier.fit(X, Y)
        return torch.from_numpy(classifier.predict_proba(X))

    torch.testing.assert_close(fit(fastae.fuse(network())), fit(network()), rtol=1e-5, atol=1e-6)
