"""Autoencoders as scikit-learn estimators: a transformer, an outlier detector and a classifier.

They take arrays, data frames and SciPy's sparse matrices, as scikit-learn does, and give NumPy arrays.
Scaling is part of each estimator. Sparse input stays sparse: only the rows of a batch become dense. Training
runs in float32; results are computed in the dtype of the input.

Needs scikit-learn, from the extra ``train``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .devices import resolve_device
from .diagnostics import reconstruction_errors
from .losses import get_loss
from .nn import Options, StackedAutoencoder
from .optional import require
from .train import TrainingStep
from .train.data.parts import check_unmasked

require("sklearn", "fastae.sklearn")

from scipy import sparse  # noqa: E402
from sklearn.base import (  # noqa: E402
    BaseEstimator,
    ClassifierMixin,
    ClassNamePrefixFeaturesOutMixin,
    OutlierMixin,
    TransformerMixin,
)
from sklearn.preprocessing import LabelEncoder, MaxAbsScaler, MinMaxScaler, StandardScaler  # noqa: E402
from sklearn.utils import check_random_state  # noqa: E402
from sklearn.utils.multiclass import check_classification_targets  # noqa: E402
from sklearn.utils.validation import check_is_fitted, validate_data  # noqa: E402

__all__ = ["AutoencoderClassifier", "AutoencoderDetector", "AutoencoderTransformer"]

_SCALERS = {"standard": StandardScaler, "minmax": MinMaxScaler, "maxabs": MaxAbsScaler}
_CHUNK = 4096


@dataclass(repr=False, eq=False)
class _Autoencoder(BaseEstimator):
    """Parameters, scaling, training and the passage from arrays to tensors."""

    hidden: int | tuple[int, ...] = 32
    _: KW_ONLY
    activation: str = "relu"
    loss: str = "mse"
    output_activation: str = "linear"
    missing: bool = False
    tied: bool = True
    corruption: str | None = None
    contractive: float = 0.0
    l1: float = 0.0
    dropout: float = 0.0
    scaling: str = "auto"
    epochs: int = 50
    finetune_epochs: int = 50
    batch_size: int = 128
    optimizer: str = "Adam"
    lr: float = 1e-2
    device: str = "auto"
    random_state: Any = None

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.input_tags.allow_nan = self.missing
        return tags

    # --- input --------------------------------------------------------------------------------------------

    def _validated(self, X: Any, **options: Any) -> Any:
        check_unmasked("X", X)
        return validate_data(
            self,
            X,
            accept_sparse="csr",
            dtype=(np.float64, np.float32),
            ensure_all_finite="allow-nan" if self.missing else True,
            **options,
        )

    def _make_scaler(self, X: Any) -> Any:
        if self.scaling == "none":
            return None
        name = self.scaling
        if name == "auto":
            loss = get_loss(self.loss)
            if loss.of_counts:
                return None
            name = "maxabs" if sparse.issparse(X) else ("minmax" if loss.bounds[0] == 0.0 else "standard")
        if name not in _SCALERS:
            raise ValueError(f"scaling: {self.scaling!r} is not one of auto, none, {', '.join(_SCALERS)}")
        if sparse.issparse(X) and name != "maxabs":
            raise ValueError(f"scaling: {name!r} would fill a sparse matrix; use 'maxabs', 'auto' or 'none'")
        return _SCALERS[name]()

    def _rows(self, X: Any, dtype: torch.dtype = torch.float32) -> Tensor:
        """Dense, scaled rows of a validated X."""
        X = X if self.scaler_ is None else self.scaler_.transform(X)
        dense = X.toarray() if sparse.issparse(X) else X
        device = next(self._stack.parameters()).device
        return torch.from_numpy(np.ascontiguousarray(dense)).to(device, dtype)

    def _apply(self, X: Any, module: nn.Module, function: Callable[[Any, Tensor], Tensor]) -> np.ndarray:
        """``function(module, rows)`` of the rows of a validated X, in X's dtype."""
        dtype = torch.float64 if X.dtype == np.float64 else torch.float32
        module = copy.deepcopy(module).to(dtype).eval()
        starts = range(0, X.shape[0], _CHUNK)
        with torch.no_grad():
            parts = [function(module, self._rows(X[start : start + _CHUNK], dtype)) for start in starts]
        return torch.cat(parts).cpu().numpy()

    def _check_range(self, X: Any) -> None:
        """Refuse rows that the loss is not defined for, as scaled."""
        loss = get_loss(self.loss)
        if not loss.is_bounded or not X.shape[0]:
            return
        scaled = X if self.scaler_ is None else self.scaler_.transform(X)
        if sparse.issparse(scaled):
            low, high = float(scaled.nanmin()), float(scaled.nanmax())
        else:
            low, high = float(np.nanmin(scaled)), float(np.nanmax(scaled))
        if not loss.takes(low + 1e-6, high - 1e-6):  # but for rounding
            raise ValueError(
                f"loss: {self.loss!r} needs values in [{loss.bounds[0]:g}, {loss.bounds[1]:g}], and X with "
                f"scaling={self.scaling!r} has {low:g} to {high:g}; use scaling='minmax' or loss='mse'"
            )

    # --- training -----------------------------------------------------------------------------------------

    def _start(self, X: Any) -> None:
        """Scaling fitted on X and an untrained stack."""
        hidden = tuple(np.atleast_1d(self.hidden).tolist())
        device = resolve_device(self.device)
        self.scaler_ = self._make_scaler(X)
        if self.scaler_ is not None:
            self.scaler_.fit(X)
        self._check_range(X)
        options = Options(
            activation=self.activation,
            loss=self.loss,
            output_activation=self.output_activation,
            missing=self.missing,
            tied=self.tied,
            corruption=self.corruption,  # pyright: ignore[reportArgumentType]
            contractive=self.contractive,
            l1=self.l1,
            dropout=self.dropout,
        )
        inner = Options.make(options, {"loss": "mse", "output_activation": "linear"})
        layers = [options] + [inner] * (len(hidden) - 1)
        self._stack = StackedAutoencoder([X.shape[1], *hidden], layers).to(device)

    def _train(
        self,
        module: nn.Module,
        loss: Callable[..., Any],
        X: Any,
        epochs: int,
        random: np.random.RandomState,
        y: Tensor | None = None,
        depth: int = 0,
    ) -> None:
        """Minimise ``loss`` of the rows of X, as the first ``depth`` layers encode them."""
        if epochs < 1 or X.shape[0] == 0:
            return
        optimizer = getattr(torch.optim, self.optimizer, None)
        if optimizer is None:
            raise ValueError(f"optimizer: torch.optim has no {self.optimizer!r}")
        bounds = get_loss(self.loss).bounds
        step = TrainingStep(loss, optimizer(module.parameters(), lr=self.lr))
        module.train()
        for _ in range(epochs):
            order = random.permutation(X.shape[0])
            for start in range(0, len(order), self.batch_size):
                rows = order[start : start + self.batch_size]
                # rounding, and rows after those that the scaling was fitted to, may lie beyond its range
                batch = self._rows(X[rows]).clamp_(*bounds)
                if depth:
                    with torch.no_grad():
                        batch = self._stack.encode(batch, depth)
                step(batch, *(() if y is None else (y[rows],)))

    def _pretrain(self, X: Any, epochs: int, random: np.random.RandomState) -> None:
        for depth, layer in enumerate(self._stack.autoencoders):
            self._train(layer, layer, X, epochs, random, depth=depth)

    @contextmanager
    def _seeded(self) -> Iterator[np.random.RandomState]:
        """``random_state``, and torch's generators seeded by it; the caller's are left alone."""
        random = check_random_state(self.random_state)
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(random.randint(2**31 - 1))
            yield random

    def _fit_stack(self, X: Any) -> None:
        with self._seeded() as random:
            self._start(X)
            self._pretrain(X, self.epochs, random)
            if len(self._stack.layers) > 1:
                self._train(self._stack, self._stack, X, self.finetune_epochs, random)

    def _errors(self, X: Any) -> np.ndarray:
        """Squared error per row in scaled units, summed over features; the loss itself where it is cosine."""
        if get_loss(self.loss).of_rows:
            return self._apply(X, self._stack, lambda stack, x: reconstruction_errors(stack, x)[0])
        return self._apply(X, self._stack, lambda stack, x: (stack.reconstruct(x) - x).square().nansum(1))


class AutoencoderTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, _Autoencoder):
    """Codes of an autoencoder, or of a stack that is pretrained layer by layer and then fine-tuned.

    Parameters
    ----------
    hidden : int or tuple of int, default=32
        Width of the code, or of each layer's code from the input on.
    activation, loss, output_activation, missing, tied, corruption, contractive, l1, dropout
        Options of every layer, see :class:`fastae.nn.Options`; ``loss`` and ``output_activation`` are those
        of the reconstruction, codes are always reconstructed with the squared error.
    scaling : {"auto", "standard", "minmax", "maxabs", "none"}, default="auto"
        Scaling of the features, fitted with the model. ``"auto"`` is ``"standard"``, ``"minmax"`` for
        ``loss="bce"``, ``"none"`` for losses of counts, and ``"maxabs"`` for sparse input.
    epochs, finetune_epochs : int, default=50
        Passes over the rows for each layer, and for a stack as a whole.
    batch_size : int, default=128
        Rows per step.
    optimizer : str, default="Adam"
        A name in ``torch.optim``.
    lr : float, default=1e-2
        Learning rate.
    device : str, default="auto"
        ``"auto"`` takes an accelerator where there is one.
    random_state : int, RandomState instance or None, default=None
        Seed of the parameters, the order of rows and the noise.

    Attributes
    ----------
    scaler_ : estimator or None
        The fitted scaling.
    stack_ : fastae.nn.StackedAutoencoder
        The trained module.
    n_features_in_, feature_names_in_
        As in scikit-learn.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from fastae.sklearn import AutoencoderTransformer
    >>> X, _ = load_digits(return_X_y=True)
    >>> AutoencoderTransformer(16, epochs=2, random_state=0).fit_transform(X).shape
    (1797, 16)
    """

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    @property
    def stack_(self) -> StackedAutoencoder:
        check_is_fitted(self, "n_features_in_")
        return self._stack

    @property
    def _n_features_out(self) -> int:
        return self._stack.sizes[-1]

    def fit(self, X: Any, y: Any = None) -> AutoencoderTransformer:
        """Fit scaling and autoencoder to the rows of X, (n_samples, n_features)."""
        self._fit_stack(self._validated(X, reset=True))
        return self

    def partial_fit(self, X: Any, y: Any = None) -> AutoencoderTransformer:
        """Take one pass over the rows of X; the first call also fits the scaling to them.

        Layers learn one after the other within each call.
        """
        first = not hasattr(self, "n_features_in_")
        X = self._validated(X, reset=first)
        with self._seeded() as random:
            if first:
                self._start(X)
            self._pretrain(X, 1, random)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Codes of the rows of X, (n_samples, n_codes)."""
        check_is_fitted(self, "n_features_in_")
        return self._apply(self._validated(X, reset=False), self._stack, lambda stack, x: stack.encode(x))

    def inverse_transform(self, X: Any) -> np.ndarray:
        """Reconstructions of codes (n_samples, n_codes), in the units of the data."""
        check_is_fitted(self, "n_features_in_")
        check_unmasked("X", X)
        codes = np.asarray(X)
        if codes.ndim != 2 or codes.shape[1] != self._n_features_out:
            raise ValueError(f"X: expected codes (n, {self._n_features_out}), got shape {codes.shape}")
        stack = copy.deepcopy(self._stack).double().cpu().eval()
        with torch.no_grad():
            rows = stack.decode(torch.from_numpy(codes.astype(np.float64))).numpy()
        rows = rows if self.scaler_ is None else self.scaler_.inverse_transform(rows)
        return rows.astype(codes.dtype if codes.dtype == np.float32 else np.float64, copy=False)

    def score_samples(self, X: Any) -> np.ndarray:
        """The negative reconstruction error per row, in scaled units: higher is more usual."""
        check_is_fitted(self, "n_features_in_")
        return -self._errors(self._validated(X, reset=False))

    def score(self, X: Any, y: Any = None) -> float:
        """The mean of :meth:`score_samples`."""
        return float(self.score_samples(X).mean())


@dataclass(repr=False, eq=False)
class AutoencoderDetector(OutlierMixin, _Autoencoder):
    """Outliers as the rows that an autoencoder reconstructs worst.

    Parameters are those of :class:`AutoencoderTransformer`, and:

    Parameters
    ----------
    contamination : float, default=0.1
        Share of outliers in the training data, in (0, 0.5]; sets the threshold of :meth:`predict`.

    Attributes
    ----------
    offset_ : float
        ``decision_function`` is ``score_samples`` less this.
    scaler_, n_features_in_, feature_names_in_
        As in :class:`AutoencoderTransformer`.
    """

    hidden: int | tuple[int, ...] = 8
    contamination: float = 0.1

    def fit(self, X: Any, y: Any = None) -> AutoencoderDetector:
        """Fit scaling, autoencoder and threshold to the rows of X, (n_samples, n_features)."""
        if not 0.0 < self.contamination <= 0.5:
            raise ValueError(f"contamination: must be in (0, 0.5], got {self.contamination!r}")
        X = self._validated(X, reset=True)
        self._fit_stack(X)
        self.offset_ = float(np.percentile(-self._errors(X), 100.0 * self.contamination))
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        """The negative reconstruction error per row, in scaled units: lower is more abnormal."""
        check_is_fitted(self, "n_features_in_")
        return -self._errors(self._validated(X, reset=False))

    def decision_function(self, X: Any) -> np.ndarray:
        """``score_samples`` less the threshold: negative for outliers."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> np.ndarray:
        """-1 for outliers and 1 for all others."""
        return np.where(self.decision_function(X) < 0.0, -1, 1)


class AutoencoderClassifier(ClassifierMixin, _Autoencoder):
    """A classifier whose layers are pretrained as autoencoders and then fine-tuned with the labels.

    Parameters are those of :class:`AutoencoderTransformer`; ``finetune_epochs`` counts the supervised passes.

    Attributes
    ----------
    classes_ : ndarray
        The labels.
    classifier_ : torch.nn.Sequential
        The trained module; its logits are in the order of ``classes_``.
    """

    def fit(self, X: Any, y: Any) -> AutoencoderClassifier:
        """Fit to the rows of X, (n_samples, n_features), and their labels y, (n_samples,)."""
        check_unmasked("y", y)
        X, y = self._validated(X, y=y, ensure_min_samples=2)
        check_classification_targets(y)
        encoder = LabelEncoder().fit(y)
        self.classes_ = np.asarray(encoder.classes_)
        if len(self.classes_) < 2:
            raise ValueError("y: the labels have one class, and a classifier needs at least two")

        with self._seeded() as random:
            self._start(X)
            self._pretrain(X, self.epochs, random)
            self.classifier_ = classifier = self._stack.classifier(len(self.classes_))
            labels = torch.from_numpy(np.asarray(encoder.transform(y))).to(
                next(classifier.parameters()).device
            )
            self._train(
                classifier,
                lambda x, target: F.cross_entropy(classifier(x), target),
                X,
                self.finetune_epochs,
                random,
                labels,
            )
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities of the classes per row, (n_samples, n_classes)."""
        check_is_fitted(self, "classes_")
        X = self._validated(X, reset=False)
        return self._apply(X, self.classifier_, lambda classifier, x: classifier(x).softmax(1))

    def predict(self, X: Any) -> np.ndarray:
        """The most probable label per row."""
        check_is_fitted(self, "classes_")
        return self.classes_[self.predict_proba(X).argmax(1)]
