"""Output and files of each command."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fastae.commands.options import parse
from fastae.train import Stage, TrainConfig, load_checkpoint
from tests.cli.support import QUICK


def test_train_writes_a_run_and_prints_its_figures(fastae_, here):
    code, out, err = fastae_(f"train {QUICK} --classifier --out mine --corruption masking:0.25 none")
    assert (code, err) == (0, "")
    for word in (
        "layer 1",
        "layer 2",
        "classifier",
        "digits, test part: 297 rows",
        "probe error",
        "Run: mine",
    ):
        assert word in out
    assert {path.name for path in Path("mine").iterdir()} == {
        "log.csv",
        "evaluation.json",
        "checkpoint-000001",
    }
    figures = json.loads(Path("mine/evaluation.json").read_text())
    assert figures["rows"] == 297 and len(figures["layers"]) == 2
    assert f"{100 * figures['classifier_error']:.2f} %" in out
    config = load_checkpoint("mine").config
    assert (config["sizes"], config["corruption"]) == ([64, 8, 4], ["masking:0.25", "none"])


def test_every_option_reaches_the_run(fastae_, here):
    """The checkpoint keeps options of every type as they were typed."""
    code, _, _ = fastae_(
        "train --no-tensorboard --data digits --scaling unit --sizes 64 6 5 "
        "--activation sigmoid tanh --loss bce mse --tied True False "
        "--corruption masking:0.1 gaussian:0.2 --contractive 0.1 --l1 0.01 0 "
        "--kl 0.1 0 --kl-target 0.2 --code-noise bernoulli none --dropout 0.1 0 --probes 2 "
        "--pretrain.epochs 1 --pretrain.optimizer SGD --pretrain.lr 0.125 "
        "--pretrain.optimizer-options momentum=0.9 nesterov=true --pretrain.schedule steplr "
        "--pretrain.schedule-options step_size=3 --pretrain.clip-norm 2 --pretrain.patience 1 "
        "--pretrain.batch-size 100 --finetune.epochs 1 --validation 0.2 --precision bfloat16 --device cpu "
        "--products high --seed 7 --out typed "
        "--checkpoint-seconds 9 --memory-gib 0.5 --supervised-dropout 0.1 "
        "--supervised-input-dropout 0.2"
    )
    assert code == 0
    typed = TrainConfig(
        data="digits",
        scaling="unit",
        sizes=(64, 6, 5),
        activation=("sigmoid", "tanh"),
        loss=("bce", "mse"),
        tied=(True, False),
        corruption=("masking:0.1", "gaussian:0.2"),
        contractive=(0.1,),
        l1=(0.01, 0.0),
        kl=(0.1, 0.0),
        kl_target=(0.2,),
        code_noise=("bernoulli", "none"),
        dropout=(0.1, 0.0),
        probes=2,
        pretrain=Stage(
            epochs=1,
            optimizer="SGD",
            lr=0.125,
            optimizer_options=("momentum=0.9", "nesterov=true"),
            schedule="steplr",
            schedule_options=("step_size=3",),
            clip_norm=2.0,
            patience=1,
            batch_size=100,
        ),
        finetune=Stage(epochs=1),
        validation=0.2,
        precision="bfloat16",
        products="high",
        device="cpu",
        seed=7,
        out="typed",
        checkpoint_seconds=9.0,
        memory_gib=0.5,
        supervised_dropout=0.1,
        supervised_input_dropout=0.2,
        tensorboard=False,
    )
    assert TrainConfig.from_dict(load_checkpoint("typed").config) == typed.with_epochs(1200, 2)


def test_a_setting_of_every_stage_gives_way_to_that_of_one_stage():
    every = "--epochs 5 --lr 0.5 --batch-size 7 --optimizer sgd --patience 3"
    config = parse(TrainConfig, f"{every} --pretrain.epochs 2 --finetune.lr 0.1 --sizes 8,6,4".split())
    assert config.sizes == (8, 6, 4)
    assert [stage.epochs for stage in config.stages.values()] == [2, 5, 5]
    assert [stage.lr for stage in config.stages.values()] == [0.5, 0.1, 0.5]
    for stage in config.stages.values():
        assert (stage.batch_size, stage.optimizer, stage.patience) == (7, "sgd", 3)
    assert parse(TrainConfig, []) == TrainConfig()


def test_train_without_out_takes_a_folder_of_its_own(fastae_, here):
    for folder in ("runs/digits", "runs/digits-2"):
        code, out, _ = fastae_(f"train {QUICK} --pretrain.epochs 0")
        assert code == 0 and f"Run: {folder} " in out and (here / folder / "checkpoint-000001").is_dir()


@pytest.mark.parametrize("suffix", ["npy", "safetensors"])
@pytest.mark.parametrize(
    ("options", "part", "shape"),
    [
        ("", "training part", (1500, 4)),
        ("--part validation", "validation rows", (150, 4)),
        ("--test", "test part", (297, 4)),
        ("--part test --depth 1", "test part", (297, 8)),
    ],
)
def test_encode_writes_the_codes(fastae_, run, here, suffix, options, part, shape):
    code, out, err = fastae_(f"encode {run} --out new/codes.{suffix} {options}")
    assert (code, err) == (0, "")
    assert f"new/codes.{suffix}: codes of digits, {part}: {shape[0]} x {shape[1]}" in out
    assert [path.name for path in (here / "new").iterdir()] == [f"codes.{suffix}"]
    if suffix == "npy":
        codes = np.load(f"new/codes.{suffix}")
    else:
        arrays = load_file(f"new/codes.{suffix}")
        codes = arrays["x"]
        assert arrays["y"].shape == shape[:1] and set(arrays["y"]) == set(range(10))
    assert codes.shape == shape and codes.dtype == np.float32 and 0 <= codes.min() < codes.max() <= 1


def test_codes_can_be_the_data_of_the_next_run(fastae_, run, here):
    assert fastae_(f"encode {run} --out codes.safetensors")[0] == 0
    code, out, _ = fastae_("train --data codes.safetensors --sizes 4 3 --pretrain.epochs 1 --no-tensorboard")
    assert code == 0 and "runs/codes" in out


def test_encode_scales_other_data_as_the_training_data_were(fastae_, run, here):
    digits = load_checkpoint(run)
    raw = (np.random.default_rng(0).random((9, 64)) * 16).astype(np.float32)
    np.save("raw.npy", raw)
    assert fastae_(f"encode {run} --data raw.npy --out codes.npy")[0] == 0
    import torch

    expected = digits.stack.eval().encode(torch.from_numpy(digits.scaling.apply(raw))).detach().numpy()
    np.testing.assert_allclose(np.load("codes.npy"), expected, atol=1e-6)


def test_evaluate_prints_what_train_printed(fastae_, run, here):
    kept = json.loads((run / "evaluation.json").read_text())
    code, out, err = fastae_(f"evaluate {run} --json")
    assert (code, err) == (0, "") and json.loads(out) == kept
    code, out, _ = fastae_(f"evaluate {run}")
    assert code == 0 and "digits, test part: 297 rows" in out and f"{kept['mse']:.6f}" in out
    assert f"{kept['reconstruction'] - kept['least_reconstruction']:.4f}" in out
    code, out, _ = fastae_(f"evaluate {run} --no-probe --json")
    assert code == 0 and "probe_error" not in json.loads(out)


def test_evaluate_takes_a_single_checkpoint(fastae_, run):
    assert fastae_(f"evaluate {run}/checkpoint-000001 --json").out == fastae_(f"evaluate {run} --json").out


def test_evaluate_takes_other_data(fastae_, run, here):
    np.save("raw.npy", np.full((5, 64), 8.0, np.float32))
    code, out, _ = fastae_(f"evaluate {run} --data raw.npy --json")
    assert code == 0 and json.loads(out)["rows"] == 5


def test_train_and_evaluate_give_the_same_figures_without_a_test_part(fastae_, here):
    """A probe that is measured on the rows that it was fitted on is no measurement."""
    rng = np.random.default_rng(0)
    np.savez("rows.npz", x=rng.random((60, 64)), y=np.arange(60) % 3)
    assert fastae_(f"train {QUICK} --data rows.npz --out run")[0] == 0
    assert json.loads(fastae_("evaluate run --json").out) == json.loads(
        Path("run/evaluation.json").read_text()
    )


def test_a_test_part_beyond_the_range_of_the_training_part_can_be_evaluated(fastae_, here):
    """Training is over by then: it must not end in an error."""
    rng = np.random.default_rng(0)
    np.savez("rows.npz", x=rng.random((60, 64)) * 10, x_test=rng.random((20, 64)) * 11)
    code, out, err = fastae_(f"train {QUICK} --data rows.npz --out run")
    assert code == 0 and "rows.npz, test part: 20 rows" in out
    assert err.startswith("fastae: loss: bce needs values in [0, 1]") and err.count("\n") == 1


def test_labels_of_one_class_do_not_spoil_a_finished_run(fastae_, here):
    np.savez("rows.npz", x=np.random.default_rng(0).random((60, 64)), y=np.zeros(60, int))
    code, _, err = fastae_(f"train {QUICK} --data rows.npz --out run")
    assert (code, err) == (0, "")


def test_resume_continues_a_run(fastae_, run, here):
    code, out, err = fastae_(f"train --resume --out {run}")
    assert (code, err) == (0, "") and f"Run: {run}" in out
    assert f"{run} is finished; with more epochs, as in --epochs 100, it is trained further" in out
    assert len(list(run.glob("checkpoint-*"))) == 1


def test_a_finished_run_is_trained_further_and_other_options_are_named(fastae_, here):
    assert fastae_("train --hidden 4 --epochs 1 --finetune.epochs 0 --no-tensorboard --out run")[0] == 0
    code, out, err = fastae_("train --resume --out run --pretrain.epochs 2 --lr 0.5 --tensorboard --seed 0")
    assert code == 0 and "run is finished and trained further: layer 1 from epoch 2" in out
    own = "tensorboard, pretrain.lr, finetune.lr, supervised.lr"  # defaults that were given, too
    assert err == f"fastae: resume: the run keeps its own {own}\n"
    assert [line.split(",")[:2] for line in Path("run/log.csv").read_text().splitlines()[1:]] == [
        ["layer 1", "1"],
        ["layer 1", "2"],
    ]


def test_info_says_what_runs_where_and_why(fastae_):
    code, out, err = fastae_("info")
    assert (code, err) == (0, "")
    for word in (
        "fastae",
        "torch",
        "triton",
        "operators on cpu",
        "decode_loss",
        "weight_grad",
        "training step",
        "cpu has no graphs",
    ):
        assert word in out
    code, out, _ = fastae_("info --json")
    info = json.loads(out)
    assert code == 0 and info["FASTAE_BACKEND"] in ("auto", "torch")
    for backend, why in info["operators"]["cpu"].values():
        assert backend == "torch" and why


def test_info_shows_the_plans_of_a_step_on_a_card_that_is_not_there(fastae_):
    code, out, err = fastae_("info --why 8192x784x1000 --device h200")
    assert (code, err) == (0, "") and "8192x784x1000 in bfloat16 on NVIDIA H200" in out
    for operator in ("encode", "decode_loss", "code_grad", "weight_grad dual"):
        assert operator in out
    code, out, _ = fastae_("info --why 8192x784x1000 --device a100 --dtype float32 --json")
    plans = json.loads(out)
    assert code == 0 and [(plan["M"], plan["N"], plan["K"]) for plan in plans] == [
        (8192, 1000, 784),
        (8192, 784, 1000),
        (8192, 1000, 784),
        (1000, 784, 8192),
    ]
    assert {plan["reason"] for plan in plans} == {"float32 in full precision runs without matrix units"}
    code, _, err = fastae_("info --why 8192x784")
    assert code == 2 and "expected rows x features x units" in err
