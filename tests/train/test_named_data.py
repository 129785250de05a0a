"""Data sets by name: embedded, downloaded, cached."""

import hashlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from fastae.train.data import load_dataset, named
from fastae.train.data.sources.idx import IDX_FILES
from tests.train.files import MNIST, needs_mnist, refuses, write_idx, write_idx_folder


def test_digits():
    pytest.importorskip("sklearn")
    data = load_dataset("digits")
    assert data.test is not None and data.train.labels is not None and data.test.labels is not None
    assert (data.name, data.width, data.feature_shape, data.num_classes) == ("digits", 64, (8, 8), 10)
    assert (len(data.train), len(data.test)) == (1500, 297)
    assert set(np.unique(data.train.read() * 16)) == set(range(17))

    from sklearn.datasets import load_digits

    x, labels = load_digits(return_X_y=True)
    ours = np.concatenate([data.train.read(), data.test.read()]) * 16
    both = np.concatenate([data.train.labels, data.test.labels])
    assert sorted(map(tuple, np.c_[ours, both])) == sorted(map(tuple, np.c_[x, labels]))
    share = np.bincount(data.test.labels) / np.bincount(labels)
    np.testing.assert_allclose(share, 297 / 1797, atol=0.005)  # stratified
    np.testing.assert_array_equal(load_dataset("digits").test.labels, data.test.labels)  # type: ignore[union-attr]


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A small data set on a local server, registered as mnist; yields its arrays and the paths asked for."""
    pytest.importorskip("pooch")
    arrays = write_idx_folder(tmp_path / "mirror")
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_request(self, code="-", size="-"):
            asked.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path / "mirror")))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    sha256 = tuple(
        hashlib.sha256((tmp_path / "mirror" / f"{file}.gz").read_bytes()).hexdigest() for file in IDX_FILES
    )
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    download = named.Download(f"http://127.0.0.1:{server.server_port}/", sha256)
    monkeypatch.setitem(named.DOWNLOADS, "mnist", download)
    yield arrays, asked
    server.shutdown()
    server.server_close()


def test_download_is_verified_and_kept(tmp_path, mirror):
    arrays, asked = mirror
    for _ in range(2):
        data = load_dataset("mnist", cache_dir=tmp_path / "cache")
        assert (data.name, data.feature_shape, data.num_classes) == ("mnist", (4, 3), 4)
        np.testing.assert_allclose(
            data.train.read(), arrays["train-images-idx3-ubyte"].reshape(6, 12) / 255, rtol=1e-6
        )
    assert sorted(asked) == sorted(f"/{name}.gz" for name in arrays)  # once each
    (tmp_path / "cache" / "mnist" / "t10k-labels-idx1-ubyte.gz").write_bytes(b"damaged")
    np.testing.assert_array_equal(load_dataset("mnist", cache_dir=tmp_path / "cache").test.labels, [3, 0])  # type: ignore[union-attr]
    assert len(asked) == 5


def test_wrong_checksum_is_refused(tmp_path, mirror):
    write_idx(tmp_path / "mirror" / "train-images-idx3-ubyte.gz", np.zeros((6, 4, 3), np.uint8))
    with refuses("mnist: download failed", "hash"):
        load_dataset("mnist", cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_offline(tmp_path, monkeypatch, name):
    pytest.importorskip("pooch")
    requests = pytest.importorskip("requests")

    def offline(*_, **__):
        raise requests.ConnectionError("no route\nto host")

    monkeypatch.setattr(requests, "get", offline)
    monkeypatch.setitem(named.DOWNLOADS, name, named.DOWNLOADS[name]._replace(installed=None))
    with refuses(
        f"{name}: download failed", "folder", "train-images-idx3-ubyte.gz", "'digits'", "no route to host"
    ):
        load_dataset(name, cache_dir=tmp_path)


def test_installed_copy_is_used(tmp_path, monkeypatch):
    write_idx_folder(tmp_path / "installed")
    download = named.DOWNLOADS["fashion-mnist"]._replace(installed=tmp_path / "installed")
    monkeypatch.setitem(named.DOWNLOADS, "fashion-mnist", download)
    data = load_dataset("fashion-mnist", cache_dir=tmp_path / "unused")
    assert (data.name, len(data.train)) == ("fashion-mnist", 6) and not (tmp_path / "unused").exists()


@needs_mnist
def test_real_mnist():
    data = load_dataset(str(MNIST))
    train = data.train.read()
    assert data.test is not None and data.train.labels is not None and data.test.labels is not None
    assert (train.shape, len(data.test), data.feature_shape) == ((60000, 784), 10000, (28, 28))
    assert data.num_classes == 10 and (train.min(), train.max()) == (0, 1)
    assert train.mean(dtype=np.float64) == pytest.approx(0.13066, abs=1e-5)
    assert train.std(dtype=np.float64) == pytest.approx(0.30811, abs=1e-5)
    assert data.test.read().mean(dtype=np.float64) == pytest.approx(0.13251, abs=1e-5)
    assert data.train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert np.bincount(data.train.labels)[[0, 9]].tolist() == [5923, 5949]
    assert data.test.labels[:5].tolist() == [7, 2, 1, 0, 4]
