"""Folders of shards that cannot be used, on the command line: exit code 2 and one message."""

from pathlib import Path

import numpy as np
import pytest

from fastae.train import ShardWriter
from tests.cli.support import assert_refused

TRAIN = "train --data rows --sizes 6 4 --pretrain.epochs 1 --no-tensorboard --device cpu"


def change(folder: Path) -> None:
    file = folder / "shard-00002.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def remove(folder: Path) -> None:
    (folder / "shard-00002.safetensors").unlink()


@pytest.mark.parametrize("spoil, words", [(change, "has changed"), (remove, "is missing")])
def test_shards_changed_since_are_refused_by_name(fastae_, here, spoil, words):
    with ShardWriter(here / "rows", rows_per_shard=20) as writer:
        writer.write(np.random.default_rng(0).random((60, 6)).astype(np.float16))
    assert fastae_(f"{TRAIN} --out run")[0] == 0
    spoil(here / "rows")
    outcome = fastae_("train --resume --out run --pretrain.epochs 2")
    assert_refused(outcome, f"shard-00002.safetensors {words}")


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda f: np.save(f / "b.npy", np.zeros((4, 7), np.float16)), "b.npy width 7 6"),
        (lambda f: np.save(f / "b.npy", np.zeros((4, 6), np.float32)), "b.npy dtype float32 float16"),
        (lambda f: (f / "a.npy").unlink(), "empty folder"),
    ],
)
def test_a_bad_folder_is_one_message_and_exit_code_2(fastae_, here, spoil, words):
    (here / "rows").mkdir()
    np.save(here / "rows" / "a.npy", np.random.default_rng(0).random((40, 6)).astype(np.float16))
    spoil(here / "rows")
    assert_refused(fastae_(f"{TRAIN} --out run"), words)
