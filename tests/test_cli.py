"""The command line: what is printed and written, exit codes, and one clear message for all bad input."""

import dataclasses
import gzip
import json
import os
import re
import shlex
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from safetensors.numpy import load_file

import fastae.__main__
from fastae.train import Stage, TrainConfig, load_checkpoint

pytest.importorskip("tyro")
pytest.importorskip("rich")
pytest.importorskip("sklearn")

from fastae.cli import main

ROOT = Path(__file__).parents[1]
QUICK = "--sizes 64 8 4 --pretrain.epochs 1 --supervised.epochs 1 --no-tensorboard --device cpu"


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


def flat(text: str) -> str:
    """Without the frames and line breaks of messages in boxes."""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())


@pytest.fixture
def fastae_(capsys, monkeypatch) -> Callable[[str], Outcome]:
    """Runs one command line in this process."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(line: str) -> Outcome:
        code = main(shlex.split(line))
        out, err = capsys.readouterr()
        return Outcome(code, out, err)

    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A trained run on digits, with a classifier; tests must not change it."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert main(shlex.split(f"train {QUICK} --classifier --out {folder}")) == 0
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def environment(**changes: str) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path.rstrip(os.pathsep), **changes}


def python(code: str, *args: str, **changes: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *args]
    return subprocess.run(command, capture_output=True, text=True, env=environment(**changes), timeout=120)


# Commands ---------------------------------------------------------------------------------------------------


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
    """What is kept in the checkpoint is what was typed, of every type of option."""
    code, _, _ = fastae_(
        "train --no-tensorboard --data digits --scaling unit --sizes 64 6 5 "
        "--activation sigmoid tanh --loss bce mse --tied True False "
        "--corruption masking:0.1 gaussian:0.2 --contractive 0.1 --l1 0.01 0 "
        "--kl 0.1 0 --kl-target 0.2 --code-noise bernoulli none --dropout 0.1 0 --probes 2 "
        "--pretrain.epochs 1 --pretrain.optimizer SGD --pretrain.lr 0.125 "
        "--pretrain.optimizer-options momentum=0.9 nesterov=true --pretrain.schedule steplr "
        "--pretrain.schedule-options step_size=3 --pretrain.clip-norm 2 --pretrain.patience 1 "
        "--pretrain.batch-size 100 --finetune.epochs 1 --validation 0.2 --precision bfloat16 --device cpu "
        "--seed 7 --out typed --checkpoint-seconds 9 --memory-gib 0.5 --supervised-dropout 0.1"
    )
    assert code == 0
    typed = TrainConfig(
        data="digits", scaling="unit", sizes=(64, 6, 5), activation=("sigmoid", "tanh"), loss=("bce", "mse"),
        tied=(True, False), corruption=("masking:0.1", "gaussian:0.2"), contractive=(0.1,), l1=(0.01, 0.0),
        kl=(0.1, 0.0), kl_target=(0.2,), code_noise=("bernoulli", "none"), dropout=(0.1, 0.0), probes=2,
        pretrain=Stage(
            epochs=1, optimizer="SGD", lr=0.125, optimizer_options=("momentum=0.9", "nesterov=true"),
            schedule="steplr", schedule_options=("step_size=3",), clip_norm=2.0, patience=1, batch_size=100,
        ),
        finetune=Stage(epochs=1), validation=0.2, precision="bfloat16", device="cpu", seed=7, out="typed",
        checkpoint_seconds=9.0, memory_gib=0.5, supervised_dropout=0.1, tensorboard=False,
    )  # fmt: skip
    assert TrainConfig.from_dict(load_checkpoint("typed").config) == typed


def test_train_without_out_takes_a_folder_of_its_own(fastae_, here):
    for folder in ("runs/digits", "runs/digits-2"):
        code, out, _ = fastae_(f"train {QUICK} --pretrain.epochs 0")
        assert code == 0 and f"Run: {folder} " in out and (here / folder / "checkpoint-000001").is_dir()


@pytest.mark.parametrize("suffix", ["npy", "safetensors"])
@pytest.mark.parametrize(
    ("options", "shape"), [("", (1500, 4)), ("--test", (297, 4)), ("--test --depth 1", (297, 8))]
)
def test_encode_writes_the_codes(fastae_, run, here, suffix, options, shape):
    code, out, err = fastae_(f"encode {run} --out new/codes.{suffix} {options}")
    assert (code, err) == (0, "")
    assert f"new/codes.{suffix}: codes {shape[0]} x {shape[1]}" in out
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
    assert code == 0 and "digits, test part: 297 rows" in out and f"{kept['reconstruction']:.4f}" in out
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
    assert (code, err) == (0, "") and "rows.npz, test part: 20 rows" in out


def test_labels_of_one_class_do_not_spoil_a_finished_run(fastae_, here):
    np.savez("rows.npz", x=np.random.default_rng(0).random((60, 64)), y=np.zeros(60, int))
    code, _, err = fastae_(f"train {QUICK} --data rows.npz --out run")
    assert (code, err) == (0, "")


def test_resume_continues_a_run(fastae_, run, here):
    code, out, err = fastae_(f"train --resume --out {run}")
    assert (code, err) == (0, "") and f"Run: {run}" in out
    assert len(list(run.glob("checkpoint-*"))) == 1


def test_info_says_what_runs_where_and_why(fastae_):
    code, out, err = fastae_("info")
    assert (code, err) == (0, "")
    for word in ("fastae", "torch", "triton", "operators on cpu", "decode_loss", "weight_grad"):
        assert word in out
    code, out, _ = fastae_("info --json")
    info = json.loads(out)
    assert code == 0 and info["FASTAE_BACKEND"] in ("auto", "torch")
    for backend, why in info["operators"]["cpu"].values():
        assert backend == "torch" and why


# Help -------------------------------------------------------------------------------------------------------


def documented(cls: type, prefix: str = "") -> dict[str, str]:
    """The options of a configuration and what its docstring says of each."""
    doc = cls.__doc__ or ""
    found = {}
    for field in dataclasses.fields(cls):
        text = re.search(
            rf"^ {{8}}{field.name}: (.+?)(?=^ {{8}}\w+: |^ {{4}}\S|\Z)", doc, re.MULTILINE | re.DOTALL
        )
        found[f"--{prefix}{field.name.replace('_', '-')}"] = " ".join(text[1].split()) if text else ""
    return found


def options_of_train() -> dict[str, str]:
    options = documented(TrainConfig)
    for stage in ("pretrain", "finetune", "supervised"):
        del options[f"--{stage}"]
        options |= documented(Stage, f"{stage}.")
    return options


@pytest.fixture(scope="module")
def train_help() -> str:
    result = python(
        "import sys; from fastae.cli import main; sys.exit(main())", "train", "--help", COLUMNS="80"
    )
    assert (result.returncode, result.stderr) == (0, "")
    return flat(result.stdout)


@pytest.mark.parametrize("option", options_of_train())
def test_the_help_of_train_explains_every_option(train_help, option):
    text = options_of_train()[option]
    assert len(text.split()) >= 2, "not in the docstring"
    entries = re.split(r" (?=--[a-z])", train_help)
    (number,) = (i for i, entry in enumerate(entries) if re.match(rf"{re.escape(option)}(,| |$)", entry))
    own = entries[number]
    if own.endswith(","):  # "--classifier, --no-classifier whether ..."
        own = entries[number + 1]
    assert text[:40] in own and "(default: " in own


@pytest.mark.parametrize("command", ["", "train", "encode", "evaluate", "info"])
def test_help_is_no_error(fastae_, command):
    code, out, err = fastae_(f"{command} --help")
    assert (code, err) == (0, "") and "usage: fastae" in out


@pytest.mark.parametrize("command", ["encode", "evaluate"])
def test_the_other_commands_explain_their_options(fastae_, command):
    text = flat(fastae_(f"{command} --help").out)
    for word in ("a run's folder, or one checkpoint's", "by default the one the run was trained on"):
        assert word in text


# Bad input --------------------------------------------------------------------------------------------------


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
    "unknown flag": ("--nonsense 3", "--nonsense"),
    "bad number": ("--pretrain.lr fast", "--pretrain.lr 'fast'"),
    "bad whole number": ("--pretrain.epochs 1.5", "--pretrain.epochs '1.5'"),
    "missing value": ("--pretrain.epochs", "--pretrain.epochs"),
    "bad choice": ("--loss mae", "--loss 'mae' bce mse"),
    "bad activation": ("--activation swish", "--activation 'swish' sigmoid"),
    "bad precision": ("--precision float16", "--precision 'float16' bfloat16"),
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
        "--pretrain.schedule StepLR --pretrain.schedule-options step_size=0", "schedule_options"
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
    "unknown file": ("--data text.txt", "text.txt '.txt' .npy"),
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
}  # fmt: skip


def assert_refused(outcome: Outcome, names: str) -> None:
    """Exit code 2, and one message that holds every word of ``names`` and does not show our insides."""
    code, out, err = outcome
    message = flat(err)
    missing = [word for word in names.split() if word.lower() not in message.lower()]
    assert (code, missing) == (2, []), message
    assert "Traceback" not in out + err and not re.search(r"\w(Error|Exception):", message)
    if err.startswith("fastae:"):
        assert err.count("\n") == 1


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
        ("encode {run} --out codes.npy --data good.npy --test", "test good.npy"),
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


# Packages that are not there --------------------------------------------------------------------------------


def test_the_library_needs_none_of_the_optional_packages():
    blocked = ["triton", "tyro", "rich", "sklearn", "matplotlib", "tensorboard", "pooch", "scipy"]
    result = python(
        f"import sys; sys.modules.update(dict.fromkeys({blocked}))\n"
        "import torch, fastae, fastae.train\n"
        "model = fastae.nn.Autoencoder(6, 4, contractive=0.1, corruption=fastae.Masking(0.2))\n"
        "model(torch.rand(5, 6)).total.backward(); print('fine')"
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "fine\n", "")


def test_training_works_without_triton_and_tensorboard(here):
    result = python(
        "import sys; sys.modules.update(triton=None, tensorboard=None)\n"
        "from fastae.cli import main; sys.exit(main())",
        *shlex.split("train --sizes 64 8 --pretrain.epochs 1 --out run"),
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert (here / "run" / "log.csv").exists() and "Run: run" in result.stdout


@pytest.mark.parametrize("package", ["tyro", "rich"])
def test_a_missing_package_is_a_hint_how_to_install_it(monkeypatch, capsys, package):
    class Missing:
        @staticmethod
        def find_spec(name: str, path: Any = None, target: Any = None) -> None:
            if name.split(".")[0] == package:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    for name in [name for name in sys.modules if name == "fastae.cli" or name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(fastae, "cli")
    monkeypatch.setattr(sys, "meta_path", [Missing, *sys.meta_path])
    monkeypatch.setattr(sys, "argv", ["fastae", "info"])
    assert fastae.__main__.main() == 1
    out, err = capsys.readouterr()
    assert (out, err) == ("", f'fastae: {package} is not installed: pip install "fastae[train]"\n')


def test_missing_scikit_learn_is_a_hint_how_to_install_it(fastae_, here, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    code, _, err = fastae_("train --pretrain.epochs 1")
    assert code in (1, 2) and 'pip install "fastae[train]"' in err and err.count("\n") == 1


# Real processes ---------------------------------------------------------------------------------------------


def fastae_process(line: str, cwd: Path, **pipes: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fastae", *shlex.split(line)]
    return subprocess.Popen(command, cwd=cwd, env=environment(), text=True, stderr=subprocess.PIPE, **pipes)


def test_python_m_fastae_returns_the_exit_code(here):
    bad = fastae_process("train --data digist", here, stdout=subprocess.PIPE)
    out, err = bad.communicate(timeout=120)
    assert_refused(Outcome(bad.returncode, out, err), "digist 'digits'")
    assert not list(here.iterdir())


@pytest.mark.parametrize("line", ["info", "info --json", "train --help"])
def test_a_reader_that_went_away_is_no_traceback(here, line):
    """As in ``fastae info | head -1``."""
    reader, writer = os.pipe()
    process = fastae_process(line, here, stdout=writer)
    os.close(writer)
    os.close(reader)
    _, err = process.communicate(timeout=120)
    assert err == "" and process.returncode in (0, 1)


def test_ctrl_c_ends_with_exit_code_1_and_the_run_resumes(fastae_, here):
    line = f"train {QUICK} --out run --pretrain.epochs"
    process = fastae_process(f"{line} 3000", here, stdout=subprocess.PIPE)
    limit = time.monotonic() + 60
    while not (here / "run" / "log.csv").exists() and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.count("\n") == 1 and err.startswith("fastae: interrupted") and "--resume" in err
    assert "Traceback" not in err
    stood = load_checkpoint("run", with_state=True).state.values
    assert not stood["finished"]
    (config,) = Path("run").glob("checkpoint-*/config.json")
    kept = json.loads(config.read_text())
    kept["train"]["pretrain"]["epochs"] = len(stood["history"]) + 2  # or it would train for minutes
    config.write_text(json.dumps(kept))
    code, out, _ = fastae_("train --resume --out run")
    assert code == 0 and "Run: run" in out
    epochs = [row["epoch"] for row in load_checkpoint("run", with_state=True).state.values["history"]]
    assert epochs == [*range(1, len(stood["history"]) + 3)] * 2
