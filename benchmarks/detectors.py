"""Outlier detectors side by side: ROC AUC and time to fit, on data that scikit-learn ships or makes.

python benchmarks/detectors.py [--repeats 5]

Protocol: a detector is fitted on a random half of the usual rows, without labels, and scores the other half
and all unusual rows. Rows are scaled to standard units of the training half for all detectors alike. Every
detector has its default settings.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn import datasets
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import LocalOutlierFactor
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM

from fastae.sklearn import AutoencoderDetector

Split = tuple[np.ndarray, np.ndarray]  # usual and unusual rows


def _one_class(load: Callable[..., Any], usual: int) -> Split:
    x, y = load(return_X_y=True)
    return x[y == usual], x[y != usual]


def _curved_sheet() -> Split:
    """A noisy two-dimensional sheet in 20 dimensions, and rows beside it."""
    random = np.random.default_rng(0)
    x, _ = datasets.make_swiss_roll(2000, noise=0.2, random_state=0)
    x = np.concatenate((x / x.std(0), np.sin(x @ random.normal(size=(3, 17)) / 6.0)), 1)
    return x[:1500], x[1500:] + random.normal(0.0, 0.3, (500, 20))


DATA: dict[str, Callable[[], Split]] = {
    "digits, 0 is usual": lambda: _one_class(datasets.load_digits, 0),
    "digits, 8 is usual": lambda: _one_class(datasets.load_digits, 8),
    "breast cancer, benign is usual": lambda: _one_class(datasets.load_breast_cancer, 1),
    "wine, class 1 is usual": lambda: _one_class(datasets.load_wine, 1),
    "sheet in 20 dimensions": _curved_sheet,
}


def detectors(seed: int) -> dict[str, Any]:
    """New detectors by name. ``score`` functions rise with how usual a row is."""
    found: dict[str, Any] = {
        "fastae AutoencoderDetector": AutoencoderDetector(random_state=seed),
        "IsolationForest": IsolationForest(random_state=seed),
        "LocalOutlierFactor": LocalOutlierFactor(novelty=True),
        "OneClassSVM": OneClassSVM(),
    }
    try:
        from pyod.models.auto_encoder import AutoEncoder  # pyright: ignore[reportMissingImports]
    except ImportError:
        return found
    return found | {"PyOD AutoEncoder": AutoEncoder(random_state=seed, verbose=0)}


def usualness(detector: Any, x: np.ndarray) -> np.ndarray:
    """Scores that are higher for usual rows; PyOD's are higher for outliers."""
    scores = detector.decision_function(x)
    return -scores if type(detector).__module__.startswith("pyod") else scores


def measure(split: Split, seed: int) -> dict[str, tuple[float, float]]:
    """ROC AUC and seconds to fit, by detector."""
    usual, unusual = split
    order = np.random.default_rng(seed).permutation(len(usual))
    half = len(usual) // 2
    scaler = StandardScaler().fit(usual[order[:half]])
    train, rest, unusual = map(scaler.transform, (usual[order[:half]], usual[order[half:]], unusual))
    x, y = np.concatenate((rest, unusual)), np.r_[np.ones(len(rest)), np.zeros(len(unusual))]
    results = {}
    for name, detector in detectors(seed).items():
        start = time.perf_counter()
        detector.fit(train)
        seconds = time.perf_counter() - start
        results[name] = float(roc_auc_score(y, usualness(detector, x))), seconds
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5, help="random halves per data set")
    repeats = parser.parse_args().repeats
    print("| data | detector | ROC AUC, mean ± sd | seconds to fit, median |\n|---|---|---|---|")
    for data, load in DATA.items():
        runs = [measure(load(), seed) for seed in range(repeats)]
        for name in runs[0]:
            areas, seconds = zip(*(run[name] for run in runs), strict=True)
            spread = statistics.stdev(areas) if repeats > 1 else 0.0
            print(
                f"| {data} | {name} | {statistics.mean(areas):.3f} ± {spread:.3f} "
                f"| {statistics.median(seconds):.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
