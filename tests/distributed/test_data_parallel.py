"""Several processes train as one does on the same batches: losses and parameters, for every option."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fastae.train import Stage, load_checkpoint
from tests.distributed.runs import (
    STAGE,
    WIDTH,
    assert_same,
    config,
    of_one_process,
    train_on_a_full_disk,
    trained,
)
from tests.processes import Failed

TOLERANCE = 1e-11  # float64, in which only the order of sums differs

DEEP: dict[str, Any] = {"sizes": (WIDTH, 5, 4), "pretrain": Stage(epochs=1, batch_size=10), "finetune": STAGE}

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "masking": {"corruption": ("masking:0.3",)},
    "gaussian": {"corruption": ("gaussian:0.1",)},
    "salt and pepper": {"corruption": ("salt_and_pepper:0.2",)},
    "swap": {"corruption": ("swap:0.4",)},
    "emphasis": {"corruption": ("masking:0.3",), "emphasis": (1.0, 0.5)},
    "dropout": {"dropout": (0.3,)},
    "gaussian code": {"code_noise": ("gaussian",)},
    "bernoulli code": {"code_noise": ("bernoulli",)},
    "contractive": {"contractive": (0.1,), "activation": ("tanh",), "loss": ("mse",)},
    "higher order": {"contractive": (0.1,), "higher_order": (0.1,), "higher_order_samples": (2,)},
    "kl": {"kl": (0.5,), "kl_target": (0.2,)},
    "l1": {"l1": (0.1,)},
    "untied": {"tied": (False,), "kl": (0.5,)},
    "clipping": {"pretrain": replace(STAGE, clip_norm=0.05)},
    "schedule": {"pretrain": replace(STAGE, schedule="CosineAnnealingLR")},
    "sgd": {"pretrain": replace(STAGE, optimizer="SGD", optimizer_options=("momentum=0.9",))},
    "a process without rows": {
        "pretrain": replace(STAGE, batch_size=5),
        "kl": (0.5,),
        "corruption": ("swap:0.4",),
    },
    "batches of one row": {"pretrain": Stage(epochs=1, batch_size=1), "dropout": (0.2,)},
    "streamed": {"memory_gib": 0.0, "corruption": ("swap:0.3",)},
    "early stopping": {"pretrain": Stage(epochs=40, batch_size=10, lr=0.2, patience=2)},
    "stack": {**DEEP, "corruption": ("masking:0.2",), "dropout": (0.1,)},
    "deep penalties": {**DEEP, "contractive": (0.1,), "l1": (0.01,), "kl": (0.1,), "loss": ("mse",)},
    "deep swap, streamed": {**DEEP, "corruption": ("swap:0.3", "none"), "memory_gib": 0.0},
    "classifier": {
        **DEEP,
        "finetune": Stage(epochs=0),
        "classifier": True,
        "supervised": STAGE,
        "supervised_input_dropout": 0.2,
    },
}


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one(two, tmp_path, case):
    settings = config(tmp_path / "run", **CASES[case])
    first, second = two.run(trained, settings)
    assert_same(first, second, 0.0)
    assert_same(first, of_one_process(settings), TOLERANCE)


WRITER = "torch.distributed.checkpoint.hf_storage:HuggingFaceStorageWriter.write_data"
FAILURES: dict[str, tuple[int, str, int, dict[str, Any]]] = {
    "a checkpoint": (0, "fastae.train.checkpoint:write_tensors", 3, {}),
    "whole layers": (0, "fastae.train.checkpoint:write_text", 3, {"shard": "units", "sizes": (WIDTH, 20)}),
    "a part": (1, WRITER, 3, {"shard": "weights"}),
    "the log": (0, "fastae.train.reporting:Log.write", 2, {}),
}


@pytest.mark.parametrize("case", FAILURES)
def test_all_processes_end_where_one_cannot_write(two, tmp_path, case):
    rank, *fault, changes = FAILURES[case]
    with pytest.raises(Failed) as failed:
        two.run(train_on_a_full_disk, config(tmp_path / "run", **changes), rank, *fault)
    kinds, messages, elsewhere, _ = zip(*failed.value.args[0], strict=True)
    assert kinds == ("CheckpointError", "CheckpointError") and messages[0] == messages[1]
    assert "No space left on device" in messages[0] and "intact" in messages[0]
    assert elsewhere == (False, True)  # one message, of the first process
    assert load_checkpoint(tmp_path / "run", with_state=True).state.values["step"]
    assert not list((tmp_path / "run").glob(".tmp-*"))
