"""Bad input: exit code 2 and one clear message, with no traceback."""

import gzip
import re
import shlex
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.support import QUICK, Outcome, assert_refused, environment, flat, python


def make_files() -> None:
    """Files to train on that are wrong in one way each, in the current folder."""
    rng = np.random.default_rng(0)
    good = rng.random((60, 64)).astype(np.float32)
    np.save("good.npy", good)
    np.savez("good.npz", x=good)
    np.save("wide.npy", 4 * good - 2)
    np.save("other.npy", good[:, :7])
    np.save("two.npy", good[:2])
    bad = good.copy()
    bad[17, 3] = np.nan
    np.save("nan.npy", bad)
    for name in ("npy", "npz"):
        data = Path(f"good.{name}").read_bytes()
        Path(f"cut.{name}").write_bytes(data[: len(data) // 2])
    Path("empty.npy").write_bytes(b"")
    Path("empty.csv").write_bytes(b"")
    Path("cell.csv").write_text("1,2,3\n4,five,6\n7,8,9\n")
    Path("ragged.csv").write_text("1,2,3\n4,5\n")
    Path("text.txt").write_text("1 2 3")
    Path("sheet.xlsx").write_bytes(b"PK")
    np.savez("labels.npz", x=good, y=np.arange(59))
    np.savez("one.npz", x=good, y=np.zeros(60, int))
    Path("idx").mkdir()
    for name, array in (
        ("train-images-idx3", good[:, :9].reshape(60, 3, 3)),
        ("train-labels-idx1", np.arange(60) % 3),
    ):
        array = (array * 10).astype(np.uint8)
        content = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
        for part in ("train", "t10k"):
            Path(f"idx/{name.replace('train', part)}-ubyte.gz").write_bytes(gzip.compress(content))
    images = Path("idx/train-images-idx3-ubyte.gz")
    images.write_bytes(images.read_bytes()[:-20])
    Path("bare").mkdir()


BAD_TRAINING = {  # arguments of train: what the message has to name
    "unknown flag": ("--zzz 3", "--zzz --help-all"),
    "both forms of widths": ("--hidden 8 --sizes 64 8", "hidden [8] sizes [64, 8]"),
    "hidden layer of nothing": ("--hidden 8 0", "hidden [8, 0]"),
    "two data sets": ("digits --data digits", "--data twice"),
    "a word too many": ("digits digits", "'digits'"),
    "bad number": ("--pretrain.lr fast", "--pretrain.lr 'fast'"),
    "bad whole number": ("--pretrain.epochs 1.5", "--pretrain.epochs '1.5'"),
    "missing value": ("--pretrain.epochs", "--pretrain.epochs"),
    "bad choice": ("--loss mae", "--loss 'mae' bce mse"),
    "bad activation": ("--activation swsh", "--activation 'swsh' sigmoid silu?"),
    "bad precision": ("--precision fp16", "--precision 'fp16' bfloat16?"),
    "bad scaling": ("--scaling log", "--scaling 'log' minmax"),
    "bad boolean": ("--tied maybe", "--tied 'maybe'"),
    "unknown corruption": ("--corruption salt:0.1", "corruption 'salt:0.1' masking"),
    "corruption without a number": ("--corruption masking", "corruption 'masking'"),
    "corruption with text": ("--corruption masking:much", "corruption 'masking:much'"),
    "probability out of range": ("--corruption masking:1.5", "Masking 1.5"),
    "negative noise": ("--corruption gaussian:-1", "Gaussian -1.0"),
    "one size": ("--sizes 64", "sizes [64]"),
    "negative size": ("--sizes 64 -8", "sizes -8"),
    "sizes of other data": ("--sizes 63 8", "sizes 63 digits 64"),
    "too many values": ("--sizes 64 8 4 --activation sigmoid sigmoid sigmoid", "activation 3 2 layers"),
    "bce over relu": ("--sizes 64 8 4 --activation relu", "loss relu bce mse"),
    "kl over relu": ("--sizes 64 8 --activation relu --kl 0.1", "kl relu"),
    "negative penalty": ("--sizes 64 8 --contractive -1", "contractive -1.0"),
    "dropout of everything": ("--sizes 64 8 --dropout 1", "dropout 1.0"),
    "emphasis of one": ("--emphasis 1", "--emphasis"),
    "no probes": ("--probes 0", "probes 0"),
    "no validation left": ("--validation 1", "validation 1.0"),
    "patience without validation": ("--validation 0 --pretrain.patience 2", "pretrain.patience validation"),
    "negative epochs": ("--pretrain.epochs -1", "pretrain epochs -1"),
    "rate that is no number": ("--finetune.lr nan", "finetune lr nan"),
    "unknown optimizer": ("--pretrain.optimizer adamm", "optimizer 'adamm' Adam SGD"),
    "unknown optimizer option": ("--pretrain.optimizer-options momentum=0.9", "optimizer_options momentum"),
    "short optimizer option": ("--pretrain.optimizer-options betas=[0.9]", "optimizer_options"),
    "optimizer option without value": ("--pretrain.optimizer-options beta", "optimizer_options 'beta'"),
    "unknown schedule": ("--supervised.schedule cosine", "schedule 'cosine' CosineAnnealingLR"),
    "schedule without its option": ("--supervised.schedule StepLR", "schedule_options step_size"),
    "schedule that divides by zero": (
        "--pretrain.schedule StepLR --pretrain.schedule-options step_size=0",
        "schedule_options",
    ),
    "infinite memory": ("--memory-gib inf", "memory_gib inf"),
    "negative memory": ("--memory-gib -1", "memory_gib -1.0"),
    "huge seed": (f"--seed {2**64}", f"seed {2**64}"),
    "unknown device": ("--device gpu", "device 'gpu'"),
    "device that is not there": ("--device cuda:77", "device 'cuda:77'"),
    "device without memory": ("--device meta", "device 'meta'"),
    "misspelt data": ("--data digist", "digist 'digits'"),
    "capital data": ("--data MNIST", "MNIST 'mnist'"),
    "missing file": ("--data missing.npy", "missing.npy"),
    "missing test file": ("--data good.npy --test missing.npy", "missing.npy"),
    "unknown file": ("--data sheet.xlsx", "sheet.xlsx '.xlsx' .npy"),
    "truncated npy": ("--data cut.npy", "cut.npy"),
    "truncated npz": ("--data cut.npz", "cut.npz"),
    "truncated gz": ("--data idx", "train-images-idx3-ubyte.gz"),
    "folder without data": ("--data bare", "bare train-images-idx3-ubyte"),
    "NaN": ("--data nan.npy", "nan.npy NaN row 17 column 3"),
    "empty npy": ("--data empty.npy", "empty.npy empty"),
    "empty csv": ("--data empty.csv", "empty.csv empty"),
    "cell that is no number": ("--data cell.csv", "cell.csv line 2 column 2 'five'"),
    "ragged csv": ("--data ragged.csv", "ragged.csv line 2"),
    "labels of another length": ("--data labels.npz", "labels.npz 60 (59,)"),
    "classifier without labels": ("--data good.npy --classifier", "classifier good.npy"),
    "classifier of one class": ("--data one.npz --classifier", "class"),
    "two rows": ("--data two.npy", "validation 2 rows"),
    "bce of what is not in [0, 1]": ("--data wide.npy --scaling none", "loss bce wide.npy mse"),
    "test of digits": ("--test good.npy", "digits good.npy"),
    "test of another width": ("--data good.npy --test other.npy", "other.npy 7 64"),
    "out that is a file": ("--out text.txt", "out text.txt"),
    "out below a file": ("--out text.txt/run", "out text.txt/run"),
    "resume without out": ("--resume", "resume out"),
    "resume of nothing": ("--resume --out nowhere", "nowhere"),
    "resume of an empty folder": ("--resume --out bare", "bare checkpoint"),
}


@pytest.mark.parametrize("case", BAD_TRAINING)
def test_bad_input_to_train_is_one_message_and_exit_code_2(fastae_, here, case):
    make_files()
    arguments, names = BAD_TRAINING[case]
    before = sorted(here.rglob("*"))
    outcome = fastae_(f"train --pretrain.epochs 1 --no-tensorboard {arguments}")
    assert_refused(outcome, names)
    assert sorted(here.rglob("*")) == before  # nothing was begun


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("", "train encode evaluate info"),
        ("fly", "fly train encode"),
        ("encode", "RUN"),
        ("evaluate", "RUN"),
        ("info --nonsense", "--nonsense"),
        ("encode {run}", "--out"),
        ("encode {run} --out codes.txt", "out 'codes.txt' .npy .safetensors"),
        ("encode {run} --out codes", "out 'codes' .npy"),
        ("encode {run} --out codes.npy --depth 3", "depth 1..2 3"),
        ("encode {run} --out codes.npy --depth 0", "depth 0"),
        ("encode {run} --out codes.npy --depth -1", "depth -1"),
        ("encode {run} --out codes.npy --data other.npy", "data other.npy 7 64"),
        ("encode {run} --out codes.npy --data good.npy --test", "part good.npy test"),
        ("evaluate {run} --data good.npy --part validation", "part good.npy validation"),
        ("evaluate {run} --part best", "--part 'best' train validation test"),
        ("encode {run} --outt codes.npy", "--outt --out?"),
        ("score --out scores.npy", "RUN"),
        ("sae trian", "trian train?"),
        ("sae encode {run}", "--out"),
        ("encode {run} --out codes.npy --data missing.npy", "missing.npy"),
        ("encode {run} --out text.txt/codes.npy", "text.txt"),
        ("encode {run} --out /proc/self/codes.npy", "codes.npy"),
        ("encode {run} --out /proc/self/codes.safetensors", "codes.safetensors"),
        ("encode nowhere --out codes.npy", "nowhere"),
        ("evaluate nowhere", "nowhere"),
        ("evaluate text.txt", "text.txt"),
        ("evaluate bare", "bare checkpoint"),
        ("evaluate {run} --data other.npy", "data other.npy 7 64"),
        ("evaluate {run} --data nan.npy", "nan.npy NaN"),
        ("evaluate {run} --data digist", "digist digits"),
        ("evaluate {run} --probe 3", "3"),
        ("train --out {run}", "out {run} --resume"),
    ],
)
def test_bad_input_to_other_commands_is_one_message_and_exit_code_2(fastae_, run, here, line, names):
    make_files()
    if "/proc" in line and not Path("/proc/self").exists():
        pytest.skip("needs /proc")
    before = sorted(here.rglob("*"))
    assert_refused(fastae_(line.format(run=run)), names.format(run=run))
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize(
    "command", ["evaluate {run}", "encode {run} --out codes.npy", "train --resume --out {run}"]
)
@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.safetensors", b""),
        ("model.safetensors", b"\x80\x04]\x94."),
        ("config.json", b"{"),
        ("config.json", b"[]"),
        ("config.json", b'{"format": 99}'),
    ],
)
def test_a_corrupt_checkpoint_is_one_message_and_exit_code_2(fastae_, run, here, command, file, content):
    import shutil

    shutil.copytree(run, "copy")
    (here / "copy" / "checkpoint-000001" / file).write_bytes(content)
    assert_refused(fastae_(command.format(run="copy")), f"copy/checkpoint-000001/{file}")


@pytest.mark.parametrize("command", ["info", "info --json"])
def test_a_wrong_backend_is_refused_by_info(fastae_, monkeypatch, command):
    monkeypatch.setenv("FASTAE_BACKEND", "nonsense")
    assert_refused(fastae_(command), "FASTAE_BACKEND 'nonsense'")


def test_kernels_without_a_gpu_or_the_interpreter_are_refused_where_they_are_used(here):
    environment_ = environment(FASTAE_BACKEND="triton", TRITON_INTERPRET="0")
    command = [sys.executable, "-m", "fastae"]
    info = subprocess.run([*command, "info"], capture_output=True, text=True, env=environment_, timeout=120)
    assert info.returncode == 0 and "none" in info.stdout and "TRITON_INTERPRET=1" in info.stdout
    train = subprocess.run(
        [*command, *shlex.split(f"train {QUICK} --out run")],
        capture_output=True,
        text=True,
        env=environment_,
        timeout=120,
    )
    outcome = Outcome(train.returncode, train.stdout, train.stderr)
    assert_refused(outcome, "FASTAE_BACKEND 'triton' TRITON_INTERPRET=1")


@pytest.mark.parametrize(
    "start", ["-m fastae", "-c 'from fastae.__main__ import main; raise SystemExit(main())'"]
)
def test_a_wrong_backend_is_refused_at_the_start(here, start):
    """By python -m fastae and by the installed command."""
    command = [sys.executable, *shlex.split(start), "info"]
    env = environment(FASTAE_BACKEND="nonsense")
    result = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    assert_refused(Outcome(result.returncode, result.stdout, result.stderr), "FASTAE_BACKEND 'nonsense'")


def test_a_wrong_backend_does_not_pass_for_the_one_asked_for():
    code = "import torch, fastae; fastae.functional.encode(torch.rand(2, 3), torch.rand(4, 3))"
    result = python(code, FASTAE_BACKEND="nonsense")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(
        "ValueError: FASTAE_BACKEND: 'nonsense' is not one of auto"
    )


@pytest.mark.parametrize("stage", ["pretrain", "finetune", "supervised"])
def test_a_message_about_a_stage_names_it_as_the_option_does(fastae_, stage):
    err = flat(fastae_(f"train --{stage}.optimizer adamm").err)
    assert re.search(rf"(^|[ -]){stage}\W", err) and "dummy" not in err


def test_a_loss_that_is_not_finite_is_exit_code_1(fastae_, here):
    code, _, err = fastae_(f"train {QUICK} --pretrain.lr 1e30 --loss mse --activation linear --out run")
    assert code == 1 and err.startswith("fastae: layer 1: the loss is") and "pretrain.lr" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("no kernel for this")])
def test_what_goes_wrong_inside_is_exit_code_1_without_a_traceback(fastae_, run, monkeypatch, error):
    from fastae.train import evaluation

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(evaluation, "evaluate", fail)
    code, _, err = fastae_(f"evaluate {run}")
    assert code == 1 and err.startswith("fastae: ") and "Traceback" not in err
    assert (str(error) or "out of memory") in err
