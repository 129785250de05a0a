"""Batches: resident or read ahead from a file, they are the same rows in the same order."""

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fastae.train import batches
from fastae.train.batches import Resident, Streamed, free_memory, open_rows
from fastae.train.data import Rows, dataset_from_arrays, load_dataset, split

sparse = pytest.importorskip("scipy.sparse")

CPU = torch.device("cpu")
ROWS, WIDTH = 53, 7


@pytest.fixture(scope="module")
def table() -> np.ndarray:
    rng = np.random.default_rng(3)
    table = rng.normal(size=(ROWS, WIDTH)).astype(np.float32)
    table[rng.random(table.shape) < 0.6] = 0  # most of a sparse matrix
    return table


def in_memory(folder: Path, table: np.ndarray) -> Rows:
    return dataset_from_arrays("rows", table, np.arange(ROWS) % 4, scaling="standard").train


def mapped(folder: Path, table: np.ndarray) -> Rows:
    np.save(folder / "rows.npy", table)
    rows = load_dataset(str(folder / "rows.npy"), scaling="minmax").train
    assert rows.is_mapped
    return rows


def compressed(folder: Path, table: np.ndarray) -> Rows:
    sparse.save_npz(folder / "rows.npz", sparse.csr_array(table))
    rows = load_dataset(str(folder / "rows.npz"), scaling="none").train
    assert not isinstance(rows.array, np.ndarray)
    return rows


def a_part(folder: Path, table: np.ndarray) -> Rows:
    return split(in_memory(folder, table), 0.3, 0)[0]


@pytest.fixture(params=[in_memory, mapped, compressed, a_part])
def rows(request: pytest.FixtureRequest, tmp_path: Path, table: np.ndarray) -> Rows:
    return request.param(tmp_path, table)


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("fastae-reader")]


def shuffled(rows: Rows, seed: int = 0) -> torch.Tensor:
    return torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))


def cube(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x, x**3], 1)


# The same batches -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transform", [None, cube], ids=["as it is", "transformed"])
@pytest.mark.parametrize("size", [1, 5, 16, 1000])
def test_streamed_batches_are_the_resident_ones(rows, size, transform):
    order = shuffled(rows)
    streamed = Streamed(rows, CPU, torch.float32, transform)
    resident = open_rows(rows, CPU, torch.float32, 1 << 30, transform, 2 * WIDTH if transform else None)
    assert isinstance(resident, Resident)
    assert len(streamed) == len(resident) == len(rows)
    expected = torch.from_numpy(rows.read())
    expected = expected if transform is None else transform(expected)
    pairs = list(zip(streamed.batches(order, size), resident.batches(order, size), strict=True))
    for number, ((x, labels), (x_resident, labels_resident)) in enumerate(pairs):
        index = order[number * size : (number + 1) * size]
        assert torch.equal(x, expected[index]) and torch.equal(x_resident, expected[index])
        if rows.labels is None:
            assert labels is None and labels_resident is None
        else:
            wanted = torch.from_numpy(rows.labels)[index]
            assert labels is not None and labels_resident is not None
            assert torch.equal(labels, wanted) and torch.equal(labels_resident, wanted)
    assert len(pairs) == -(-len(rows) // size)


@pytest.mark.parametrize("source", [Resident, Streamed])
def test_the_last_batch_holds_the_rest(table, tmp_path, source):
    rows = in_memory(tmp_path, table)
    made = open_rows(rows, CPU, torch.float32, 1 << 30 if source is Resident else 0)
    assert isinstance(made, source)
    assert [len(x) for x, _ in made.batches(torch.arange(ROWS), 20)] == [20, 20, 13]


@pytest.mark.parametrize("source", [Resident, Streamed])
def test_an_order_may_leave_out_and_repeat_rows(table, tmp_path, source):
    rows = in_memory(tmp_path, table)
    made = open_rows(rows, CPU, torch.float32, 1 << 30 if source is Resident else 0)
    order = torch.tensor([3, 3, 0, 52, 3])
    x = torch.cat([x for x, _ in made.batches(order, 2)])
    assert torch.equal(x, torch.from_numpy(rows.read())[order])


@pytest.mark.parametrize("source", [Resident, Streamed])
def test_no_rows_are_no_batches(table, tmp_path, source):
    """A run resumed at the end of an epoch has none left; an empty batch would have a loss of NaN."""
    made = open_rows(in_memory(tmp_path, table), CPU, torch.float32, 1 << 30 if source is Resident else 0)
    assert [len(x) for x, _ in made.batches(torch.arange(0), 20)] == []


@pytest.mark.parametrize("source", [Resident, Streamed])
def test_batches_have_the_dtype_asked_for(table, tmp_path, source):
    made = open_rows(in_memory(tmp_path, table), CPU, torch.float64, 1 << 30 if source is Resident else 0)
    x, labels = next(made.batches(torch.arange(ROWS), 20))
    assert x.dtype == torch.float64 and labels is not None and labels.dtype == torch.int64


# The reader's thread ----------------------------------------------------------------------------------------


@pytest.fixture
def failing(table, tmp_path) -> Rows:
    """Rows whose file breaks at the third read."""
    reads = []

    class Failing(Rows):
        def read(self, index=None):
            reads.append(index)
            if len(reads) == 3:
                raise OSError(5, "the disk is gone")
            return super().read(index)

    rows = in_memory(tmp_path, table)
    return Failing(rows.array, rows.labels, rows.scaling)


def test_an_error_of_the_reader_is_raised_where_the_batches_are_taken(failing):
    taken = []
    with pytest.raises(OSError, match="the disk is gone"):
        for x, _ in Streamed(failing, CPU, torch.float32).batches(torch.arange(ROWS), 5):
            taken.append(len(x))
    assert taken == [5, 5]
    assert not readers()


def test_an_error_of_the_transform_leaves_no_thread():
    def transform(x: torch.Tensor) -> torch.Tensor:
        raise ValueError("no such code")

    rows = dataset_from_arrays("rows", np.ones((20, 3))).train
    with pytest.raises(ValueError, match="no such code"):
        next(Streamed(rows, CPU, torch.float32, transform).batches(torch.arange(20), 5))
    assert not readers()


@pytest.mark.parametrize("taken", [0, 1, 4, 11])
def test_closing_early_leaves_no_thread(rows, taken):
    iterator = Streamed(rows, CPU, torch.float32).batches(torch.arange(len(rows)), 3)
    for _ in range(taken):
        next(iterator)
    assert bool(readers()) == bool(taken)  # or nothing would be read ahead
    iterator.close()
    assert not readers()


def test_the_end_of_the_rows_leaves_no_thread(rows):
    assert list(Streamed(rows, CPU, torch.float32).batches(torch.arange(len(rows)), 10))
    assert not readers()


def test_reading_goes_on_while_a_batch_is_used(table, tmp_path):
    """The second batch is read although nobody has asked for it."""
    second = threading.Event()

    class Watched(Rows):
        def read(self, index=None):
            if isinstance(index, np.ndarray) and index[0] == 5:
                second.set()
            return super().read(index)

    rows = in_memory(tmp_path, table)
    iterator = Streamed(Watched(rows.array, None, rows.scaling), CPU, torch.float32).batches(
        torch.arange(ROWS), 5
    )
    next(iterator)
    assert second.wait(10)
    iterator.close()


def test_no_more_than_a_few_batches_are_read_ahead(table, tmp_path):
    """Memory stays bounded however many batches there are."""

    class Counting(Rows):
        reads = 0

        def read(self, index=None):
            Counting.reads += 1
            return super().read(index)

    rows = in_memory(tmp_path, table)
    iterator = Streamed(Counting(rows.array, None, rows.scaling), CPU, torch.float32).batches(
        torch.arange(ROWS), 2
    )
    for taken in range(1, 6):
        next(iterator)
        assert Counting.reads <= taken + batches._READ_AHEAD
    iterator.close()


# Where rows go ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [None, 2, 2 * WIDTH])
def test_rows_stay_on_the_device_as_far_as_the_budget_goes(rows, dtype, width):
    """The limit applies to what would be kept: the codes, in the dtype of the computation."""
    encode = None if width is None else lambda x: cube(x)[:, :width]
    size = len(rows) * (width or WIDTH) * dtype.itemsize
    assert isinstance(open_rows(rows, CPU, dtype, size, encode, width), Resident)
    assert isinstance(open_rows(rows, CPU, dtype, size - 1, encode, width), Streamed)


def test_codes_computed_in_chunks_are_those_computed_at_once(rows, monkeypatch):
    weight = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(0))
    sizes = []

    def encode(x: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        return torch.sigmoid(x @ weight.t())

    at_once = encode(torch.from_numpy(rows.read()))
    sizes.clear()
    monkeypatch.setattr(batches, "_CHUNK", 10)
    source = open_rows(rows, CPU, torch.float32, 1 << 30, encode, 3)
    assert isinstance(source, Resident)
    assert sizes == [10] * (len(rows) // 10) + ([len(rows) % 10] if len(rows) % 10 else [])
    torch.testing.assert_close(source.x, at_once)


def test_resident_rows_are_read_once(rows, monkeypatch):
    source = open_rows(rows, CPU, torch.float32, 1 << 30)
    monkeypatch.setattr(Rows, "read", lambda *_: pytest.fail("read again"))
    for _ in range(2):
        assert sum(len(x) for x, _ in source.batches(shuffled(rows), 10)) == len(rows)


def test_resident_rows_are_not_the_callers_array(table, tmp_path):
    rows = replace(
        in_memory(tmp_path, table), scaling=dataset_from_arrays("x", table, scaling="none").scaling
    )
    source = open_rows(rows, CPU, torch.float32, 1 << 30)
    assert isinstance(source, Resident)
    before = np.array(rows.array)
    source.x.zero_()
    assert np.array_equal(rows.array, before)


def test_free_memory_is_a_number_of_bytes():
    assert 1 << 20 < free_memory(CPU) < 1 << 50
