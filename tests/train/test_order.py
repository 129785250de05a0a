"""Windowed orders: permutations of all rows that storage can follow, whatever the blocks and the ranks."""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
import torch

from fastae.train.batches import Resident, Streamed, _Windows, open_rows
from fastae.train.data import Rows, dataset_from_arrays
from fastae.train.order import WindowOrder, parts_of_batches

CPU = torch.device("cpu")
EDGES = {
    "even": np.arange(0, 1001, 10),
    "ragged": np.append(np.arange(0, 1000, 7), 1000),
    "row groups": np.array([0, 3, 400, 401, 700, 1000]),
    "one block": np.array([0, 1000]),
}


@pytest.mark.parametrize("window", [1, 50, 64, 333, 5000])
@pytest.mark.parametrize("edges", EDGES.values(), ids=EDGES)
def test_an_order_is_a_permutation_in_windows(edges, window):
    order = WindowOrder(edges, window, seed=1)
    rows = order[:]
    assert len(order) == 1000 and torch.equal(rows.sort()[0], torch.arange(1000))
    largest = int(np.diff(edges).max())
    for low, high in pairwise(order.windows):
        assert high - low <= max(window, largest)
        blocks = set(np.searchsorted(edges, rows[low:high].numpy(), side="right"))
        assert high - low == sum(edges[b] - edges[b - 1] for b in blocks)  # whole blocks
    for place in (slice(0, 1), slice(41, 613), slice(990, None), slice(5, 5)):
        assert torch.equal(order[place], rows[place])


def test_an_order_is_a_function_of_its_seed():
    orders = [WindowOrder(EDGES["even"], 100, seed)[:] for seed in (1, 1, 2)]
    assert torch.equal(orders[0], orders[1]) and not torch.equal(orders[0], orders[2])
    assert (orders[0][:100].diff() != 1).sum() > 90  # mixed within the window, from all over
    assert orders[0][:100].max() - orders[0][:100].min() > 500


def test_a_sequential_order_keeps_its_blocks():
    rows = WindowOrder(EDGES["even"], 100, 1, sequential=True)[:]
    for low in range(0, 1000, 100):
        assert torch.equal(rows[low : low + 100].sort()[0], torch.arange(low, low + 100))


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_parts_of_ranks_are_the_global_batches(world):
    whole = list(parts_of_batches(103, 10, 20))
    ranks = [list(parts_of_batches(103, 10, 20, rank, world)) for rank in range(world)]
    for (low, high), *own in zip(whole, *ranks, strict=True):
        assert own[0][0] == low and own[-1][1] == high
        assert all(a[1] == b[0] for a, b in pairwise(own))


# Reading ----------------------------------------------------------------------------------------------------


@pytest.fixture
def rows() -> Rows:
    table = np.random.default_rng(0).normal(size=(1000, 4)).astype(np.float32)
    return dataset_from_arrays("rows", table, np.arange(1000) % 5, scaling="standard").train


@pytest.mark.parametrize("start", [0, 64, 960])
@pytest.mark.parametrize("window_mib", [0.001, 0.004], ids=["smaller than a batch", "larger"])
def test_windows_give_the_rows_of_the_order(rows, window_mib, start):
    streamed = open_rows(rows, CPU, torch.float32, 0, window_mib=window_mib)
    resident = open_rows(rows, CPU, torch.float32, 1 << 30, window_mib=window_mib)
    assert isinstance(streamed, Streamed) and isinstance(resident, Resident)
    order = streamed.order(5)
    assert isinstance(order, WindowOrder) and torch.equal(order[:], resident.order(5)[:])
    expected, seen = torch.from_numpy(rows.read())[order[start:]], 0
    for (x, y), (x_resident, y_resident) in zip(
        streamed.batches(order, 64 * 2, start), resident.batches(order, 64 * 2, start), strict=True
    ):
        assert y is not None and y_resident is not None
        assert torch.equal(x, expected[seen : seen + len(x)]) and torch.equal(x, x_resident)
        assert torch.equal(y, y_resident)
        seen += len(x)
    assert seen == 1000 - start


@pytest.mark.parametrize("world", [2, 3])
def test_each_rank_reads_its_own_rows(rows, world, monkeypatch):
    order = WindowOrder(rows.edges(160), 160, 3)
    read: list[np.ndarray] = []
    read_raw = Rows.read_raw
    monkeypatch.setattr(Rows, "read_raw", lambda s, index, out: (read.append(index), read_raw(s, index, out)))
    whole = order[:].numpy()
    with ThreadPoolExecutor(1) as loader:
        for rank in range(world):
            windows = _Windows(rows, order, 7, 14, loader, [], rank, world)
            for low, high in parts_of_batches(1000, 7, 14, rank, world):
                raw, index = windows.read(low, high)
                np.testing.assert_array_equal(index, whole[low:high])
                np.testing.assert_array_equal(raw, np.asarray(rows.array)[index])
    assert sorted(np.concatenate(read)) == sorted(whole[14:])  # every row once, by one rank


def test_two_windows_are_in_memory(rows, monkeypatch):
    made = []
    raw = Rows.raw
    monkeypatch.setattr(Rows, "raw", lambda s, n: (made.append(n), raw(s, n))[1])
    order = WindowOrder(rows.edges(160), 160, 3)
    source = Streamed(rows, CPU, torch.float32)
    for _ in range(3):  # epochs, which share the buffers
        assert sum(len(x) for x, _ in source.batches(order, 10)) == 1000
    assert sorted(made)[-2:] == [160, 160] and set(made[2:]) == {10}


def test_a_windowed_run_goes_on_from_the_middle_of_an_epoch(rows):
    order = WindowOrder(rows.edges(160), 160, 3)
    source = Streamed(rows, CPU, torch.float32)
    whole = torch.cat([x for x, _ in source.batches(order, 10)])
    iterator = source.batches(order, 10)
    first = torch.cat([next(iterator)[0] for _ in range(37)])
    iterator.close()
    assert torch.equal(torch.cat([first, *(x for x, _ in source.batches(order, 10, 370))]), whole)


def test_an_error_of_a_window_is_raised_where_the_batches_are_taken(rows, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError(5, "the disk is gone")

    monkeypatch.setattr(Rows, "read_raw", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        next(Streamed(rows, CPU, torch.float32).batches(WindowOrder(rows.edges(160), 160, 3), 10))
