"""Checkpoints: what is loaded is what was saved, a write that fails changes nothing, and damage is named."""

import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fastae.errors import CheckpointError
from fastae.nn import StackedAutoencoder
from fastae.train import checkpoint as checkpoint_module
from fastae.train import checkpoint_files as files_module
from fastae.train import dataset_from_arrays, train
from fastae.train.checkpoint import TrainState, clean_run, find_checkpoint, load_checkpoint, save_checkpoint
from fastae.train.writing import BackgroundWriter

FILES = ("config.json", "model.safetensors", "state.json", "state.safetensors")
MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "per layer": {
        "activation": ["sigmoid", "tanh"],
        "loss": ["bce", "mse"],
        "tied": [True, False],
        "contractive": [0.1, 0.25],
        "output_activation": ["linear", "softsign"],
    },
    "noisy": {
        "corruption": ["salt_and_pepper:0.1:-1:2", "swap:0.3"],
        "dropout": 0.3,
        "code_noise": "bernoulli",
        "kl": 0.1,
        "kl_target": 0.2,
        "l1": 0.3,
        "higher_order": 0.5,
        "higher_order_std": 0.3,
        "higher_order_samples": 2,
    },
    "without biases": {"bias": False, "tied": False},
    "float64": {"dtype": torch.float64, "probes": 3},
}


@pytest.fixture(scope="module")
def images():
    """8 images of 2x3, scaled column by column."""
    x = np.random.default_rng(0).normal(size=(8, 2, 3))
    return dataset_from_arrays("images", x, np.arange(8) % 4, scaling="standard")


def make_stack(**options: Any) -> StackedAutoencoder:
    torch.manual_seed(0)
    stack = StackedAutoencoder([6, 5, 4], **options)
    for parameter in stack.parameters():  # biases start at 0: a lost one would not show
        parameter.data.normal_()
    return stack


def save(
    run: Path, dataset: Any, stack=None, classifier=None, values=None, tensors=None, config=None
) -> Path:
    tensors = tensors or {"optimizer.0.step": torch.tensor(3.0)}
    stack, config = make_stack() if stack is None else stack, config or {"data": "images"}
    with BackgroundWriter() as writer:
        save_checkpoint(
            writer, run, stack, classifier, dataset, config, values or {"epoch": 1}, tensors.items()
        )
    return find_checkpoint(run)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_equal(a: torch.nn.Module, b: torch.nn.Module) -> None:
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]), name


# Saving and loading -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS.keys())
def test_what_is_loaded_is_what_was_saved(tmp_path, images, options):
    stack = make_stack(**options)
    classifier = make_stack(**options).classifier(7, dropout=0.5)
    torch.nn.init.normal_(classifier[-1].weight)
    folder = save(tmp_path / "run", images, stack, classifier, config={"data": "images", "seed": 3})
    loaded = load_checkpoint(tmp_path / "run")
    assert loaded.path == folder == tmp_path / "run" / "checkpoint-000001"
    assert_equal(loaded.stack, stack)
    assert loaded.stack.sizes == [6, 5, 4] and loaded.stack.probes == stack.probes
    assert [a.options for a in loaded.stack.autoencoders] == [a.options for a in stack.autoencoders]
    assert loaded.classifier is not None
    assert_equal(loaded.classifier, classifier)
    assert loaded.feature_shape == (2, 3) and loaded.config == {"data": "images", "seed": 3}
    assert loaded.scaling.name == "standard"
    assert np.array_equal(loaded.scaling.offset, images.scaling.offset)
    assert np.array_equal(loaded.scaling.scale, images.scaling.scale)
    x = torch.from_numpy(images.train.read()).to(next(stack.parameters()))
    assert torch.equal(loaded.stack.eval().encode(x), stack.eval().encode(x))
    assert torch.equal(loaded.stack.reconstruct(x), stack.reconstruct(x))
    assert torch.equal(loaded.classifier.eval()(x), classifier.eval()(x))


def test_the_state_is_loaded_only_if_asked_for(tmp_path, images):
    values = {"epoch": 3, "sums": {"total": 0.1 + 0.2}, "best": None, "history": [{"stage": "layer 1"}]}
    tensors = {"best.weight": torch.randn(2, 3), "optimizer.0.step": torch.tensor(5.0)}
    save(tmp_path, images, values=values, tensors=tensors)
    assert load_checkpoint(tmp_path).state == TrainState({}, {})
    state = load_checkpoint(tmp_path, with_state=True).state
    assert state.values == values and state.tensors.keys() == tensors.keys()
    assert all(torch.equal(state.tensors[name], tensors[name]) for name in tensors)


def test_a_run_without_a_classifier_loads_without_one(tmp_path, images):
    save(tmp_path, images)
    assert load_checkpoint(tmp_path).classifier is None


def test_the_parameters_have_the_names_and_shapes_of_nn_linear(tmp_path, images):
    """Files as other tools read them."""
    tensors = load_file(save(tmp_path, images, make_stack(tied=[True, False])) / "model.safetensors")
    assert {name: list(tensor.shape) for name, tensor in tensors.items()} == {
        "layers.0.encoder.weight": [5, 6],
        "layers.0.encoder.bias": [5],
        "layers.0.decoder.bias": [6],
        "layers.1.encoder.weight": [4, 5],
        "layers.1.encoder.bias": [4],
        "layers.1.decoder.weight": [5, 4],
        "layers.1.decoder.bias": [5],
    }


def test_the_loaded_classifier_is_not_the_stack(tmp_path, images):
    stack = make_stack()
    save(tmp_path, images, stack, make_stack().classifier(3))
    loaded = load_checkpoint(tmp_path)
    assert loaded.classifier is not None
    loaded.classifier.encoder1.weight.data.zero_()
    assert_equal(loaded.stack, stack)


def test_only_the_two_newest_are_kept_and_the_newest_is_loaded(tmp_path, images):
    stacks = [make_stack() for _ in range(4)]
    for number, stack in enumerate(stacks):
        stack.autoencoders[0].encoder.bias.data.fill_(number)
        save(tmp_path, images, stack)
        found = sorted(path.name for path in tmp_path.iterdir())
        assert found == [f"checkpoint-{n:06d}" for n in range(max(1, number), number + 2)]
    assert_equal(load_checkpoint(tmp_path).stack, stacks[3])
    assert_equal(load_checkpoint(tmp_path / "checkpoint-000003").stack, stacks[2])


def test_numbers_are_compared_as_numbers(tmp_path, images):
    old = save(tmp_path, images)
    old.rename(tmp_path / "checkpoint-999999")
    new = save(tmp_path, images)
    assert new.name == "checkpoint-1000000" and find_checkpoint(tmp_path) == new
    assert save(tmp_path, images).name == "checkpoint-1000001"


def test_a_checkpoint_never_appears_in_parts(tmp_path, images, monkeypatch):
    """At every flush the run has no checkpoint yet, or all files of it."""
    seen = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        fsync(descriptor)
        seen.append([sorted(p.name for p in folder.iterdir()) for folder in tmp_path.glob("checkpoint-*")])

    monkeypatch.setattr(os, "fsync", watched)
    save(tmp_path, images)
    assert [] in seen and all(found in ([], [sorted(FILES)]) for found in seen)


def test_every_file_and_its_folder_are_flushed_before_the_checkpoint_appears(tmp_path, images, monkeypatch):
    """Or a power cut could leave a folder of empty files."""
    flushed: list[str] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        flushed.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    monkeypatch.setattr(os, "fsync", watched)
    rename = Path.rename
    before: list[str] = []
    monkeypatch.setattr(Path, "rename", lambda self, to: (before.extend(flushed), rename(self, to))[1])
    save(tmp_path / "run", images)
    assert set(FILES) < set(before) and any(name.startswith(".tmp-") for name in before)
    assert flushed[-1] == "run"


def test_half_written_folders_are_ignored_and_cleaned(tmp_path, images):
    good = save(tmp_path, images)
    for name in (".tmp-123", ".tmp-checkpoint-000009", f".tmp-{os.getpid()}"):
        shutil.copytree(good, tmp_path / name)
        (tmp_path / name / "model.safetensors").write_bytes(b"half")
    assert find_checkpoint(tmp_path) == good
    assert save(tmp_path, images).name == "checkpoint-000002"
    clean_run(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-000001", "checkpoint-000002"]


def test_training_cleans_what_a_killed_run_left(tiny, make_config, interrupt):
    config = make_config()
    interrupt(config, 6)
    run = Path(config.out)
    shutil.copytree(run / "checkpoint-000001", run / ".tmp-999")
    (run / ".tmp-0123456789abcdef").touch()
    train(replace(config, resume=True), dataset=tiny)
    assert not list(run.glob(".tmp*"))


# Writes that fail -------------------------------------------------------------------------------------------


def failing_at(call: int, function: Callable[..., Any], error: Exception) -> Callable[..., Any]:
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise error
        return function(*args, **kwargs)

    return wrapped


def broken_disk(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    full = OSError(28, "No space left on device")
    name, _, call = where.partition(" ")
    if name == "fsync":
        monkeypatch.setattr(os, "fsync", failing_at(int(call), os.fsync, full))
    elif name == "save_file":
        monkeypatch.setattr(files_module, "save_file", failing_at(int(call), save_file, full))
    elif name == "half":

        def half(tensors: Any, path: Path) -> None:
            save_file(tensors, path)
            path.write_bytes(path.read_bytes()[:50])
            raise full

        monkeypatch.setattr(files_module, "save_file", half)
    else:
        monkeypatch.setattr(Path, name, failing_at(1, getattr(Path, name), full))


BREAKS = [
    "fsync 1",
    "fsync 2",
    "fsync 3",
    "fsync 4",
    "fsync 5",
    "save_file 1",
    "save_file 2",
    "half",
    "rename",
    "mkdir",
]


def test_a_first_write_that_fails_does_not_speak_of_earlier_checkpoints(tmp_path, images, monkeypatch):
    broken_disk(monkeypatch, "fsync 1")
    with pytest.raises(CheckpointError, match=r"No space left on device\); there is no earlier one$"):
        save(tmp_path / "run", images)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_all_files_have_the_mode_that_the_umask_leaves(tmp_path, images, umask):
    before = os.umask(umask)
    try:
        folder = save(tmp_path / "run", images)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o666 & ~umask}


def test_a_checkpoint_that_is_removed_while_it_is_read_gives_way_to_the_next(tmp_path, images, monkeypatch):
    """As a training that goes on does."""
    old = save(tmp_path, images)
    read = checkpoint_module.read_into

    def overtaken(path: Path, tensors: Any) -> None:
        if path.parent == old:
            save(tmp_path, images, make_stack(activation="tanh", loss="mse"))
            shutil.rmtree(old)
        read(path, tensors)

    monkeypatch.setattr(checkpoint_module, "read_into", overtaken)
    loaded = load_checkpoint(tmp_path)
    assert (loaded.path.name, loaded.stack.autoencoders[0].options.activation) == (
        "checkpoint-000002",
        "tanh",
    )


@pytest.mark.parametrize("where", BREAKS)
def test_a_write_that_fails_leaves_the_earlier_checkpoints(tmp_path, images, where, monkeypatch):
    save(tmp_path, images)
    save(tmp_path, images)
    before = content(tmp_path)
    with monkeypatch.context() as patch:
        broken_disk(patch, where)
        with pytest.raises(CheckpointError, match=rf"{re.escape(str(tmp_path))}.*No space left.*intact"):
            save(tmp_path, images, make_stack(activation="tanh", loss="mse"))
    assert content(tmp_path) == before
    assert load_checkpoint(tmp_path).stack.autoencoders[0].options.activation == "sigmoid"
    assert save(tmp_path, images).name == "checkpoint-000003"


def test_a_flush_that_fails_after_the_rename_leaves_something_to_load(tmp_path, images, monkeypatch):
    save(tmp_path, images)
    before = content(tmp_path / "checkpoint-000001")
    with monkeypatch.context() as patch:
        broken_disk(patch, "fsync 6")
        with pytest.raises(CheckpointError, match="No space left"):
            save(tmp_path, images)
    assert content(tmp_path / "checkpoint-000001") == before
    assert load_checkpoint(tmp_path).stack.sizes == [6, 5, 4]


def test_a_full_disk_stops_training_and_the_run_goes_on_where_it_was_saved(
    tiny, make_config, interrupt, resume, assert_same_run, monkeypatch
):
    whole = train(make_config("whole"), dataset=tiny)
    config = make_config("parts")
    interrupt(config, 6)
    with monkeypatch.context() as patch:
        broken_disk(patch, "save_file 3")
        with pytest.raises(CheckpointError, match="No space left"):
            resume(config, checkpoint_seconds=0.0)
    assert_same_run(whole, resume(config))


# Refusals ---------------------------------------------------------------------------------------------------

Damage = Callable[[Path], Any]


def edit(name: str, change: Callable[[dict[str, Any]], Any]) -> Damage:
    def damage(folder: Path) -> None:
        value = json.loads((folder / name).read_text())
        change(value)
        (folder / name).write_text(json.dumps(value))

    return damage


def write(name: str, data: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(data)


def truncate(name: str, keep: float) -> Damage:
    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(keep * len(data))])

    return damage


def tensors(name: str, change: Callable[[dict[str, torch.Tensor]], Any]) -> Damage:
    def damage(folder: Path) -> None:
        values = load_file(folder / name)
        change(values)
        save_file(values, folder / name)

    return damage


def layer(**changes: Any) -> Damage:
    return edit("config.json", lambda c: c["model"]["layers"][1].update(changes))


def model(**changes: Any) -> Damage:
    return edit("config.json", lambda c: c["model"].update(changes))


def data(**changes: Any) -> Damage:
    return edit("config.json", lambda c: c["data"].update(changes))


WEIGHT, HEAD = "layers.1.encoder.weight", "classifier.head.weight"
DAMAGES: dict[str, tuple[str, str, Damage]] = {
    "truncated model": ("model.safetensors", "safetensors", truncate("model.safetensors", 0.9)),
    "header cut": ("model.safetensors", "safetensors", truncate("model.safetensors", 0.02)),
    "empty model": ("model.safetensors", "safetensors", write("model.safetensors", b"")),
    "pickled model": ("model.safetensors", "safetensors", write("model.safetensors", pickle.dumps({"a": 1}))),
    "truncated state": ("state.safetensors", "safetensors", truncate("state.safetensors", 0.9)),
    "config cut": ("config.json", "JSON", truncate("config.json", 0.5)),
    "config empty": ("config.json", "JSON", write("config.json", b"")),
    "config not text": ("config.json", "JSON", write("config.json", b"\xff\xfe\x00")),
    "config a list": ("config.json", "list", write("config.json", b"[1, 2]")),
    "config a number": ("config.json", "int", write("config.json", b"3")),
    "config null": ("config.json", "NoneType", write("config.json", b"null")),
    "state cut": ("state.json", "JSON", truncate("state.json", 0.5)),
    "state a list": ("state.json", "list", write("state.json", b"[]")),
    "no model file": ("model.safetensors", "missing", lambda f: (f / "model.safetensors").unlink()),
    "no state file": ("state.json", "missing", lambda f: (f / "state.json").unlink()),
    "no state tensors": ("state.safetensors", "missing", lambda f: (f / "state.safetensors").unlink()),
    "model a folder": (
        "model.safetensors",
        "",
        lambda f: ((f / "model.safetensors").unlink(), (f / "model.safetensors").mkdir()),
    ),
    **{
        f"no {key}": ("config.json", key, edit("config.json", lambda c, key=key: c.pop(key)))
        for key in ("format", "model", "data", "train")
    },
    **{
        f"no {key} of the model": (
            "config.json",
            key,
            edit("config.json", lambda c, key=key: c["model"].pop(key)),
        )
        for key in ("sizes", "layers", "dtype", "probes", "classes")
    },
    "no scaling": ("config.json", "scaling", edit("config.json", lambda c: c["data"].pop("scaling"))),
    "newer format": ("config.json", "format 2", edit("config.json", lambda c: c.update(format=2))),
    "format text": ("config.json", "format '1'", edit("config.json", lambda c: c.update(format="1"))),
    "model a list": ("config.json", "", edit("config.json", lambda c: c.update(model=[]))),
    "train a number": ("config.json", "", edit("config.json", lambda c: c.update(train=3))),
    "unknown option": ("config.json", "nonsense", layer(nonsense=1)),
    "unknown activation": ("config.json", "swish", layer(activation="swish")),
    "activation a number": ("config.json", "", layer(activation=5)),
    "activation a list": ("config.json", "", layer(activation=["tanh"])),
    "weight a text": ("config.json", "", layer(contractive="0.1")),
    "negative weight": ("config.json", "contractive", layer(contractive=-1)),
    "wrong corruption": ("config.json", "salt", layer(corruption="salt:1")),
    "wrong emphasis": ("config.json", "", layer(emphasis={"loud": 2})),
    "bce over tanh": (
        "config.json",
        "tanh",
        edit("config.json", lambda c: c["model"]["layers"][0].update(activation="tanh", loss="mse")),
    ),
    "too few layers": ("config.json", "options", edit("config.json", lambda c: c["model"]["layers"].pop())),
    "one size": ("config.json", "sizes", model(sizes=[6])),
    "size zero": ("config.json", "0", model(sizes=[6, 0, 4])),
    "size a text": ("config.json", "five", model(sizes=[6, "five", 4])),
    "sizes null": ("config.json", "", model(sizes=None)),
    "a size beyond memory": ("model.safetensors", "encoder.weight", model(sizes=[6, 10**10, 4])),
    "a size beyond 64 bits": ("config.json", "", model(sizes=[6, 10**18, 4])),
    "more layers than stored": ("config.json", "sizes: 3 layers", model(sizes=[6, 5, 4, 3])),
    "classes beyond memory": ("model.safetensors", HEAD, model(classes=10**10)),
    "nested too deep": ("config.json", "JSON", write("config.json", b"[" * 100_000)),
    "other dtype than stored": ("model.safetensors", "expected F64", model(dtype="float64")),
    "a tensor of another dtype": (
        "model.safetensors",
        "got I64",
        tensors("model.safetensors", lambda t: t.update({WEIGHT: torch.ones(4, 5, dtype=torch.int64)})),
    ),
    "wrong probes": ("config.json", "probes", model(probes=0)),
    "unknown dtype": ("config.json", "float16", model(dtype="float16")),
    "one class": ("config.json", "classes", model(classes=1)),
    "wrong shape of rows": ("config.json", "(2, 4)", data(feature_shape=[2, 4])),
    "shape of text": ("config.json", "", data(feature_shape=["a"])),
    "scaling of another width": (
        "config.json",
        "scal",
        data(scaling={"name": "standard", "offset": [0.0] * 4, "scale": [1.0] * 4}),
    ),
    "negative scale": ("config.json", "scale", data(scaling={"name": "unit", "offset": 0.0, "scale": -1.0})),
    "scaling null": ("config.json", "", data(scaling=None)),
    "other size than stored": ("model.safetensors", "expected F32 [3, 5], got", model(sizes=[6, 5, 3])),
    "more classes than stored": ("model.safetensors", f"{HEAD}: expected F32 [5, 4]", model(classes=5)),
    "wrong shape": (
        "model.safetensors",
        WEIGHT,
        tensors("model.safetensors", lambda t: t.update({WEIGHT: torch.ones(3, 5)})),
    ),
    "missing tensor": ("model.safetensors", WEIGHT, tensors("model.safetensors", lambda t: t.pop(WEIGHT))),
    "missing head": ("model.safetensors", "head.weight", tensors("model.safetensors", lambda t: t.pop(HEAD))),
    "unexpected tensor": (
        "model.safetensors",
        "layers.2.weight",
        tensors("model.safetensors", lambda t: t.update({"layers.2.weight": torch.ones(1)})),
    ),
    "unexpected part of the classifier": (
        "model.safetensors",
        "tail",
        tensors("model.safetensors", lambda t: t.update({"classifier.tail": torch.ones(1)})),
    ),
    "a classifier that is not described": ("model.safetensors", "classifier", model(classes=None)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_a_checkpoint_error_that_names_the_file(tmp_path, images, damage):
    file, word, apply = DAMAGES[damage]
    folder = save(tmp_path, images, classifier=make_stack().classifier(4))
    load_checkpoint(tmp_path, with_state=True)
    apply(folder)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(tmp_path, with_state=True)
    message = str(error.value)
    assert message.startswith(f"{folder / file}: ")
    assert word in message.removeprefix(f"{folder / file}: ")
    assert "\n" not in message


def test_loading_leaves_random_state_alone(tmp_path, images):
    save(tmp_path, images, classifier=make_stack().classifier(4))
    before = torch.get_rng_state()
    load_checkpoint(tmp_path, with_state=True)
    assert torch.equal(before, torch.get_rng_state())


def test_the_state_of_a_run_is_not_needed_to_use_it(tmp_path, images):
    folder = save(tmp_path, images)
    for name in ("state.json", "state.safetensors"):
        (folder / name).unlink()
    assert load_checkpoint(tmp_path).stack.sizes == [6, 5, 4]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such folder"),
        (lambda path: path.write_text("x"), "no such folder"),
        (lambda path: path.mkdir(), "holds no checkpoint"),
        (lambda path: (path / ".tmp-12").mkdir(parents=True), "holds no checkpoint"),
        (lambda path: (path / "checkpoint-final").mkdir(parents=True), "holds no checkpoint"),
        (lambda path: (path / "checkpoint-000001").mkdir(parents=True), "config.json: is missing"),
    ],
    ids=["nothing", "a file", "an empty folder", "a temporary", "another name", "an empty checkpoint"],
)
def test_a_path_without_a_checkpoint_is_refused_by_name(tmp_path, make, message):
    path = tmp_path / "there"
    make(path)
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(path))}.*{message}"):
        load_checkpoint(path)


def test_nothing_is_unpickled(tiny, make_config, interrupt, resume, assert_same_run, monkeypatch):
    """Loading a checkpoint from a stranger, and resuming one, executes nothing of theirs."""
    whole = train(make_config("whole"), dataset=tiny)
    config = make_config("parts")
    interrupt(config, 14)

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("unpickled")

    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, refuse)
    load_checkpoint(config.out, with_state=True)
    assert_same_run(whole, resume(config))
    monkeypatch.undo()
    suffixes = {path.suffix for path in Path(config.out).rglob("*") if path.is_file()}
    assert suffixes == {".json", ".safetensors", ".csv"}
