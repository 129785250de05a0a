"""scikit-learn's own checks of estimators, and what they do not ask."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("sklearn")

from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from fastae.sklearn import AutoencoderClassifier, AutoencoderDetector, AutoencoderTransformer

QUICK = {"epochs": 2, "finetune_epochs": 30, "random_state": 0}


@parametrize_with_checks(
    [
        AutoencoderTransformer(4, **QUICK),
        AutoencoderDetector(4, **QUICK),
        AutoencoderClassifier(16, **QUICK),
    ]
)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def digits():
    return load_digits(return_X_y=True)


def test_codes_feed_a_pipeline_and_a_grid_search(digits):
    x, y = digits
    pipeline = make_pipeline(
        AutoencoderTransformer(24, epochs=20, random_state=0), LogisticRegression(max_iter=300)
    )
    search = GridSearchCV(pipeline, {"autoencodertransformer__hidden": [8, (32, 16)]}, cv=2)
    assert search.fit(x, y).best_score_ > 0.8
    names = pipeline.fit(x, y)[:1].get_feature_names_out()
    assert list(names[:2]) == ["autoencodertransformer0", "autoencodertransformer1"] and len(names) == 24


@pytest.mark.parametrize("scaling", ["auto", "standard", "minmax", "maxabs", "none"])
def test_reconstructions_come_in_the_units_of_the_data(digits, scaling):
    x = digits[0] * (0.05 if scaling == "none" else 1000.0)
    model = AutoencoderTransformer(40, scaling=scaling, random_state=0).fit(x)
    back = model.inverse_transform(model.transform(x))
    assert back.dtype == x.dtype
    assert ((back - x) ** 2).sum() < 0.35 * ((x - x.mean(0)) ** 2).sum()


def test_sparse_rows_give_the_codes_of_dense_ones_and_are_never_dense_as_a_whole(digits, monkeypatch):
    x = digits[0]
    given = sparse.csr_array(x)
    original, largest = sparse.csr_array.toarray, [0]

    def watched(self, *args, **options):
        largest[0] = max(largest[0], self.shape[0])
        return original(self, *args, **options)

    monkeypatch.setattr(sparse.csr_array, "toarray", watched)
    monkeypatch.setattr("fastae.sklearn._CHUNK", 200)
    model = AutoencoderTransformer(8, scaling="maxabs", epochs=1, random_state=0)
    codes = model.fit_transform(given)
    assert 0 < largest[0] <= 200
    np.testing.assert_allclose(codes, clone(model).fit_transform(x), rtol=1e-6)
    with pytest.raises(ValueError, match=r"^scaling: 'minmax' would fill a sparse matrix"):
        AutoencoderTransformer(scaling="minmax").fit(given)


def test_missing_values_are_left_out(digits):
    x = digits[0].copy()
    x[np.random.default_rng(0).random(x.shape) < 0.2] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        AutoencoderTransformer(16, **QUICK).fit(x)
    model = AutoencoderTransformer(16, missing=True, epochs=10, random_state=0).fit(x)
    filled = model.inverse_transform(model.transform(x))
    gone, mean = np.isnan(x), np.nanmean(x, 0)
    imputed = np.square(filled - digits[0])[gone].mean()
    assert imputed < 0.6 * np.square(mean - digits[0])[gone].mean()
    assert np.isfinite(AutoencoderDetector(8, missing=True, **QUICK).fit(x).score_samples(x)).all()
    assert AutoencoderClassifier(16, missing=True, **QUICK).fit(x, digits[1]).score(x, digits[1]) > 0.8


def test_cosine_scores_rows_by_their_direction(digits):
    x = digits[0][:200]
    model = AutoencoderTransformer(8, loss="cosine", scaling="none", **QUICK).fit(x)
    r = model.inverse_transform(model.transform(x))
    cosine = (r * x).sum(1) / np.linalg.norm(r, axis=1) / np.linalg.norm(x, axis=1)
    np.testing.assert_allclose(model.score_samples(x), cosine - 1.0, atol=1e-6)


@pytest.mark.parametrize("loss", ["poisson", "negative_binomial:5"])
def test_counts_are_trained_on_as_they_are(digits, loss):
    x = digits[0]
    model = AutoencoderTransformer(16, loss=loss, epochs=10, random_state=0).fit(x)
    assert model.scaler_ is None
    back = model.inverse_transform(model.transform(x))
    assert back.min() > 0.0 and np.square(back - x).mean() < 0.6 * x.var(0).mean()


@pytest.mark.parametrize("frame", ["pandas", "polars"])
def test_data_frames_keep_their_names_and_set_output_gives_them_back(digits, frame):
    package = pytest.importorskip(frame)
    x = package.DataFrame({f"pixel {i}": digits[0][:50, i] for i in range(64)})
    model = AutoencoderTransformer(3, **QUICK).set_output(transform=frame).fit(x)
    assert list(model.feature_names_in_) == list(x.columns)
    assert list(model.transform(x).columns) == [f"autoencodertransformer{i}" for i in range(3)]


def test_partial_fit_learns_and_equals_itself(digits):
    x = digits[0]
    models = [AutoencoderTransformer(16, random_state=0) for _ in range(2)]
    scores = []
    for _ in range(8):
        for model in models:
            model.partial_fit(x)
        scores.append(models[0].score(x))
    assert scores[-1] > 0.7 * scores[0] > scores[0]  # negative errors
    assert scores[-1] == models[1].score(x)


def test_a_fit_leaves_torchs_generator_alone_and_repeats(digits):
    torch = pytest.importorskip("torch")
    x = digits[0][:100]
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    codes = [AutoencoderTransformer(4, corruption="masking:0.2", **QUICK).fit_transform(x) for _ in "ab"]
    assert torch.equal(torch.rand(3), expected)
    assert np.array_equal(*codes)


def test_outliers_have_the_lowest_scores_and_contamination_sets_their_number():
    x, y = load_breast_cancer(return_X_y=True)
    usual, unusual = x[y == 1], x[y == 0]
    model = AutoencoderDetector(6, contamination=0.2, epochs=40, random_state=0).fit(usual)
    assert (model.predict(usual) == -1).mean() == pytest.approx(0.2, abs=0.005)
    scores = model.score_samples(np.concatenate((usual, unusual)))
    truth = np.repeat([1, 0], [len(usual), len(unusual)])
    assert roc_auc_score(truth, scores) > 0.9


def test_rows_beyond_the_range_of_cross_entropy_score_by_their_distance(digits):
    x = digits[0][:60]
    model = AutoencoderTransformer(4, loss="bce", **QUICK).fit(x)
    scores = model.score_samples(np.stack((x[0], x[0] + 16.0, x[0] + 160.0)))
    assert (np.diff(scores) < 0.0).all()


def test_the_classifier_learns_text_labels(digits):
    x, y = digits
    names = np.array(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])[y]
    train_x, test_x, train_y, test_y = train_test_split(x, names, random_state=0)
    model = AutoencoderClassifier((64, 32), epochs=5, finetune_epochs=25, dropout=0.1, random_state=0)
    assert model.fit(train_x, train_y).score(test_x, test_y) > 0.93
    assert list(model.classes_) == sorted(set(names))
    np.testing.assert_allclose(model.predict_proba(test_x).sum(1), 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scaling": "robust"}, "scaling: 'robust' is not one of auto, none, standard, minmax, maxabs"),
        ({"optimizer": "adam2"}, "optimizer: torch.optim has no 'adam2'"),
        ({"activation": "swish"}, "activation: 'swish' is not one of linear, sigmoid"),
        ({"hidden": (4, 0)}, "code_features: must be a whole number >= 1, got 0|sizes: must be whole"),
        ({"corruption": "masking:2"}, "corruption: Masking: p must be in"),
        ({"loss": "bce", "scaling": "none"}, "loss: 'bce' needs values in .0, 1., and X with scaling='none'"),
    ],
    ids=str,
)
def test_parameters_that_do_not_fit_are_named(digits, options, message):
    with pytest.raises(ValueError, match=f"^({message})"):
        AutoencoderTransformer(**options).fit(digits[0][:20])


@pytest.mark.parametrize(
    "call",
    [
        lambda x, y: AutoencoderTransformer().fit(x),
        lambda x, y: AutoencoderDetector().fit(list(x)),
        lambda x, y: AutoencoderClassifier().fit(x, y.data),
        lambda x, y: AutoencoderClassifier().fit(x.data, y),
        lambda x, y: AutoencoderTransformer(3, **QUICK).fit(x.data).transform(x),
        lambda x, y: AutoencoderTransformer(64, **QUICK).fit(x.data).inverse_transform(x),
    ],
)
def test_masked_values_are_refused(digits, call):
    x, y = (np.ma.masked_equal(values[:40], 0) for values in digits)
    with pytest.raises(ValueError, match=r"^[Xy]: \d+ values are masked"):
        call(x, y)
    AutoencoderTransformer(3, **QUICK).fit(np.ma.array(x.data))  # none is masked
