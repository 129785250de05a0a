"""An iterator of tensors as a data set: mixed in windows, resumed where it was, refused when it ends."""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from fastae.errors import DataError
from fastae.train import Stage, TrainConfig, dataset_from_iterator, train
from fastae.train.batches import Streamed, open_rows
from tests.train.files import refuses

ROWS = 300
TABLE = torch.rand(ROWS, 6, generator=torch.Generator().manual_seed(0))
SIZES = [0, 7, 40, 41, 130, 256, ROWS]  # where one tensor ends and the next begins


def parts() -> Iterator[torch.Tensor]:
    for low, high in pairwise(SIZES):
        yield TABLE[low:high].view(1, -1, 6)


def parts_from(start: int = 0) -> Iterator[torch.Tensor]:
    yield from TABLE[start:].split(11)


def config(tmp_path, name: str, **changes) -> TrainConfig:
    stage = Stage(epochs=2, batch_size=30)
    return TrainConfig(
        sizes=(6, 4, 3),
        pretrain=stage,
        finetune=stage,
        window_mib=0.002,
        memory_gib=0.0,
        out=str(tmp_path / name),
        tensorboard=False,
        device="cpu",
        **changes,
    )


@pytest.mark.parametrize("make", [parts, parts_from])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_rows_are_those_of_the_iterator(make: Callable, dtype):
    rows = dataset_from_iterator("rows", lambda: (p.to(dtype) for p in make()), ROWS).train
    table = TABLE.to(dtype).float().numpy()
    np.testing.assert_array_equal(rows.read(), table)
    np.testing.assert_array_equal(rows.read(np.array([3, 200, 4])), table[[3, 200, 4]])
    np.testing.assert_array_equal(rows.read(slice(130, 140)), table[130:140])


@pytest.mark.parametrize("make", [parts, parts_from])
@pytest.mark.parametrize("start", [0, 60, 270])
def test_batches_are_mixed_in_windows(make: Callable, start):
    rows = dataset_from_iterator("rows", make, ROWS).train
    source = open_rows(rows, torch.device("cpu"), torch.float32, 0, window_mib=0.002)  # 87 rows
    assert isinstance(source, Streamed)
    order = source.order(3)
    x = torch.cat([x for x, _ in source.batches(order, 30, start)])
    assert torch.equal(x, TABLE[order[start:]])
    assert not torch.equal(order[:87], order[:87].sort()[0]) and order[:80].max() < 87


@pytest.mark.parametrize("make", [parts, parts_from])
def test_a_run_goes_on_exactly(make: Callable, tmp_path, updates, assert_same_run):
    whole = train(config(tmp_path, "whole"), dataset=dataset_from_iterator("rows", make, ROWS))

    def act(done: int) -> None:
        if done == 13:
            os.kill(os.getpid(), signal.SIGINT)

    part = config(tmp_path, "part")
    with pytest.raises(KeyboardInterrupt):
        train(part, dataset=dataset_from_iterator("rows", make, ROWS), progress=updates(act))
    resumed = train(replace(part, resume=True), dataset=dataset_from_iterator("rows", make, ROWS))
    assert_same_run(whole, resumed)
    assert len(whole.parts.rows) == 30  # the first ones
    np.testing.assert_array_equal(whole.parts.rows.read(), TABLE[:30].numpy())


def test_one_pass_reads_an_iterator_once(tmp_path):
    calls = []

    def once() -> Iterator[torch.Tensor]:
        calls.append(0)
        yield from parts()

    run = config(tmp_path, "run", validation=0.1)
    stage = Stage(epochs=1, batch_size=30)
    run = replace(run, sizes=(6, 4), pretrain=stage, finetune=replace(stage, epochs=0))
    run = replace(run, window_mib=None, memory_gib=1e-6)  # enough for the rows held out
    train(run, dataset=dataset_from_iterator("rows", once, ROWS))
    assert len(calls) == 1


@pytest.mark.parametrize(
    "given, words",
    [
        ([], ["ended after 0 rows"]),
        ([TABLE[:40]], ["ended after 40 rows"]),
        ([TABLE[:40], TABLE[:9, :5]], ["[..., 6]", "[9, 5]", "40"]),
        ([TABLE[:40], TABLE[:9].double()], ["float32", "float64"]),
        ([TABLE[:40], TABLE[:9] / 0], ["infinite", "40"]),
        ([TABLE[:40], TABLE[:9] * torch.nan], ["NaN", "missing=True", "40"]),
        ([TABLE[0]], ["[6]"]),
    ],
)
def test_an_iterator_that_does_not_go_on_is_refused(given, words):
    with refuses("rows", *words):
        dataset_from_iterator("rows", lambda: iter(given), ROWS).train.read()


def test_an_iterator_may_have_missing_values(tmp_path):
    table = TABLE.masked_fill(TABLE < 0.2, torch.nan)
    data = dataset_from_iterator("rows", lambda: iter([table]), ROWS, missing=True)
    np.testing.assert_array_equal(data.train.read(), table.numpy())
    with pytest.raises(ValueError, match="missing: expected True, as rows has missing values, got False"):
        train(config(tmp_path, "run"), dataset=data)


def test_no_rows_are_refused():
    with pytest.raises(DataError, match="at least 1, got 0"):
        dataset_from_iterator("rows", parts, 0)
