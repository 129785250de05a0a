"""On MNIST: a linear autoencoder finds the principal subspace, and a stack learns to classify."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fastae.train import Dataset, Stage, TrainConfig, dataset_from_arrays, load_dataset, train
from fastae.train.evaluation import evaluate
from tests.train.files import MNIST, needs_mnist

linalg = pytest.importorskip("scipy.linalg")

pytestmark = [pytest.mark.slow, needs_mnist]


@pytest.fixture(scope="module")
def mnist() -> Dataset:
    """The first 10,000 rows to train on and 2,000 to test on, divided by 255."""
    whole = load_dataset(str(MNIST))
    assert (len(whole.train), whole.feature_shape, whole.num_classes) == (60_000, (28, 28), 10)
    assert whole.scaling.name == "pixel" and whole.test is not None
    train_part, test_part = whole.train.subset(slice(10_000)), whole.test.subset(slice(2_000))
    return dataset_from_arrays(
        "mnist", train_part.read(), train_part.labels, test_part.read(), test_part.labels, scaling="none"
    )


def linear(tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        sizes=(784, 16),
        activation=("linear",),
        loss=("mse",),
        tied=(True,),
        validation=0.0,
        pretrain=Stage(epochs=80, batch_size=1000, lr=0.01, schedule="CosineAnnealingLR"),
        out=str(tmp_path / "run"),
        tensorboard=False,
        device="cpu",
    )


def test_a_linear_autoencoder_spans_the_principal_subspace(mnist, tmp_path):
    x = mnist.train.read()
    x -= x.mean(0)
    result = train(linear(tmp_path), dataset=dataset_from_arrays("centred", x, scaling="none"))
    components = np.linalg.eigh(x.T @ x)[1][:, -16:]
    weight = result.stack.autoencoders[0].encoder.weight.detach().numpy()
    assert np.degrees(linalg.subspace_angles(components, weight.T)).max() < 1.0
    best = ((x - x @ components @ components.T) ** 2).sum(1).mean()
    assert result.history[-1]["train_reconstruction"] == pytest.approx(best, rel=1e-3)


def test_the_biases_absorb_the_mean(mnist, tmp_path):
    """Without centring: what is left over has mean 0 in every pixel, and is hardly more than PCA's."""
    x = mnist.train.read()
    result = train(linear(tmp_path), dataset=mnist)
    with torch.no_grad():
        left = x - result.stack.reconstruct(torch.from_numpy(x)).numpy()
    assert np.abs(left.mean(0)).max() < 0.01 < np.abs(x.mean(0)).max()
    centred = x - x.mean(0)
    beyond = np.linalg.eigvalsh(centred.T @ centred / len(x))[:-16].sum()
    assert 0.999 < (left**2).sum(1).mean() / beyond < 1.06


def test_a_short_stacked_run_reconstructs_and_classifies(mnist, tmp_path):
    stage = Stage(epochs=6, batch_size=100, lr=2e-3)
    config = TrainConfig(
        sizes=(784, 200, 64),
        corruption=("masking:0.25", "masking:0.1"),
        pretrain=stage,
        finetune=stage,
        classifier=True,
        supervised_dropout=0.1,
        supervised=Stage(epochs=12, batch_size=100, lr=5e-3, schedule="CosineAnnealingLR"),
        out=str(tmp_path / "run"),
        tensorboard=False,
        device="cpu",
    )
    result = train(config, dataset=mnist)
    assert mnist.test is not None
    figures = evaluate(result.stack, mnist.test, classifier=result.classifier, probe_rows=mnist.train)
    variance = float(((mnist.test.read() - mnist.train.read().mean(0)) ** 2).mean())
    assert figures["mse"] < 0.35 * variance
    assert figures["classifier_error"] < 0.09
    assert figures["probe_error"] < 0.15
    assert figures["layers"][0]["dead_units"] < 50
