"""The UFLDL tutorial (Ng, Ngiam, Foo, Mai, Suen 2011): a stack of two sparse autoencoders, 784-200-200-10.

The penalties are the tutorial's; rates and epochs are a first guess, and nothing was chosen by any error.
"""

from __future__ import annotations

import torch

from fastae.train import Dataset, Stage
from fastae.train.data import Rows

from .learning import FineTuning, StackSettings, fine_tune, learn, percent_wrong
from .protocol import Figure, Measure, Recipe, Row

# The tutorial's cost has half the squared error: twice its weights, 3 of the sparsity and .003 of the decay.
_SETTINGS = StackSettings(
    (200, 200),
    {
        "loss": ("mse",), "output_activation": ("sigmoid",), "tied": (False,), "kl": (6.0,),
        "kl_target": (0.1,),
    },
    Stage(epochs=30, batch_size=256, lr=1e-3, optimizer_options=("weight_decay=0.006",),
          schedule="CosineAnnealingLR"),
    FineTuning(Stage(epochs=30, batch_size=256, lr=1e-3, schedule="CosineAnnealingLR")),
)  # fmt: skip
_SOFTMAX = FineTuning(Stage(epochs=15, batch_size=256, lr=1e-2, schedule="CosineAnnealingLR"))


def fit(settings: StackSettings, data: Dataset, seed: int) -> Measure:
    """``before``: accuracy in % of a regression on frozen, standardised codes; ``after``: fine-tuned."""
    assert data.train.labels is not None
    stack = learn(data, settings.layers, settings.autoencoder, seed, settings.pretrain)
    softmax = fine_tune(stack.encoder(), data.train, _SOFTMAX, seed, frozen=True)
    classifier = fine_tune(stack.encoder(), data.train, settings.supervised, seed)

    def measure(rows: Rows) -> dict[str, float]:
        assert rows.labels is not None
        x = torch.from_numpy(rows.read())
        return {
            "after": 100 - percent_wrong(classifier, x, rows.labels),
            "before": 100 - percent_wrong(softmax, x, rows.labels),
        }

    return measure


TABLE = Recipe(
    title="UFLDL tutorial: stacked sparse autoencoders 784-200-200-10 on MNIST",
    source="Ng, Ngiam, Foo, Mai, Suen (2011): UFLDL tutorial, exercise on stacked autoencoders",
    rows=(Row("sparse", _SETTINGS, {"before": 87.7, "after": 97.6}),),
    figures=(
        Figure("after", "after %"),
        Figure("before", "before %"),
    ),
    fit=fit,
    shrink=StackSettings.shrink,
    differences=(
        "Accuracy of a softmax regression on the frozen codes, standardised (before), and of the fine-tuned "
        "net (after).",
        "The tutorial runs 400 iterations of L-BFGS on all rows; here Adam on batches, whose mean "
        "activations the sparsity penalty sees.",
        "Fine-tuning starts from a new last layer and has no weight decay.",
    ),
)
