"""Measured choices: which win, which hold, and that no file of theirs can break a plan."""

from __future__ import annotations

import json
import math
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fastae_kernels import operators
from fastae_kernels.launch import target_of
from fastae_kernels.operators import run
from fastae_kernels.plan import choices, config
from fastae_kernels.plan.choices import Choice, Entry, Key
from fastae_kernels.plan.schedules import GemmConfig, PassConfig
from fastae_kernels.tools.aot import TARGETS

from tests.kernels.comparison import uniform
from tests.kernels.support import DEVICE

DEVICE_NAME = "Some GPU / 80GB"
TARGET = TARGETS["cuda:90"]._replace(device=DEVICE_NAME)
KEY = Key("encode", "bfloat16", "ieee", False, True, True, 256, 1024, 784)
GEMM = GemmConfig(64, 128, 32, 4, 3, group=4)
FUSED, SPLIT = Choice("fused", gemm=GEMM), Choice("split", elementwise=PassConfig(16, 128, 8))


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An empty cache and no shipped tables."""
    monkeypatch.setenv("FASTAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(choices, "SHIPPED", tmp_path / "shipped")
    config.forget_choices()
    yield
    config.forget_choices()


def entry(choice: Choice = SPLIT, key: Key = KEY) -> Entry:
    return Entry(key, choice, 1e-4, 2e-4)


def save(*entries: Entry) -> Path:
    path = choices.save(DEVICE_NAME, entries)
    config.forget_choices()
    return path


def ship(*entries: Entry) -> None:
    """The same file, in the place of shipped tables."""
    written = choices.save(DEVICE_NAME, entries)
    choices.SHIPPED.mkdir()
    written.rename(choices.SHIPPED / written.name)
    config.forget_choices()


def plan(key: Key = KEY, target: Any = TARGET) -> config.Plan:
    return config.plan(
        *key[-3:],
        getattr(torch, key.dtype),
        target,
        operator=key.operator,
        heavy=key.heavy,
        aligned=key.aligned,
        k_major=key.k_major,
    )


def rewrite(path: Path, change: Any) -> None:
    table = json.loads(path.read_text())
    change(table["entries"])
    path.write_text(json.dumps(table))
    config.forget_choices()


# --- which shapes and calls -------------------------------------------------------------------------------


def test_a_bucket_is_a_quarter_octave_around():
    for size in (*range(1, 3000), 2**20 - 1, 2**31, 10**12):
        bucket = KEY._replace(M=size).bucket.M
        assert abs(2 * math.log2(size) - bucket) <= 0.5
    assert KEY._replace(K=0).bucket.K not in {KEY._replace(K=k).bucket.K for k in range(1, 100)}


def test_a_choice_serves_the_shapes_of_its_bucket_alone():
    save(entry(FUSED))
    assert plan(KEY._replace(M=250, N=1000, K=800)).gemm == GEMM
    for size in ("M", "N", "K"):
        for factor in (0.5, 2):
            other = KEY._replace(**{size: int(getattr(KEY, size) * factor)})
            assert plan(other) == config.heuristic(other, torch.bfloat16, TARGET), size


@pytest.mark.parametrize(
    "other",
    [
        {"operator": "decode_loss"},
        {"dtype": "float16"},
        {"heavy": True},
        {"aligned": False},
        {"k_major": False},
    ],
    ids=str,
)
def test_a_choice_serves_its_own_calls_alone(other):
    save(entry(FUSED))
    key = KEY._replace(**other)
    assert plan(KEY).gemm == GEMM and plan(key).gemm != GEMM
    save(entry(FUSED, key))
    assert plan(key).gemm == GEMM


def test_tf32_is_a_choice_of_its_own():
    key = KEY._replace(dtype="float32", precision="tf32")
    save(entry(FUSED, key))
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        assert plan(key).gemm == GEMM
        torch.set_float32_matmul_precision("highest")
        assert plan(key).gemm != GEMM
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_choice_serves_its_own_device_alone(monkeypatch):
    save(entry(FUSED))
    assert plan(target=TARGET._replace(device="Some GPU / 40GB")).gemm != GEMM
    with monkeypatch.context() as patch:
        patch.setattr(choices, "table", lambda device: pytest.fail("there are no tables without a name"))
        assert plan(target=TARGETS["cuda:90"]).gemm != GEMM


# --- precedence -------------------------------------------------------------------------------------------


def test_override_then_cache_then_shipped_then_heuristic():
    heuristic = plan()
    assert heuristic == config.heuristic(KEY, torch.bfloat16, TARGET) and heuristic.strategy == "fused"
    ship(entry(SPLIT))
    assert plan() == replace(heuristic, strategy="split", elementwise=SPLIT.elementwise)
    save(entry(FUSED))
    assert plan() == replace(heuristic, gemm=GEMM)
    with config.using(strategy="split", elementwise=PassConfig(8, 64, 2)):
        assert plan() == replace(heuristic, strategy="split", gemm=GEMM, elementwise=PassConfig(8, 64, 2))
    assert plan().gemm == GEMM


def test_measured_and_nothing_was_faster_is_the_heuristic_again():
    ship(entry(SPLIT))
    save(entry(Choice()))
    assert plan() == config.heuristic(KEY, torch.bfloat16, TARGET)
    assert choices.lookup(DEVICE_NAME, KEY) == Choice()


def test_a_choice_reaches_the_launch(monkeypatch):
    launched = []
    launch = run.launch

    def recording(kernel: Any, programs: int, device: torch.device, *args: Any, **options: Any) -> None:
        launched.append((kernel.__name__, options))
        launch(kernel, programs, device, *args, **options)

    monkeypatch.setattr(run, "launch", recording)
    x, weight = uniform(33, 24).half(), uniform(40, 24).half()
    key = Key("encode", "float16", "ieee", False, True, True, 33, 40, 24)
    for choice, expected in ((SPLIT, ("elementwise", 8)), (Choice("fused", GEMM), ("gemm", 4))):
        choices.save(target_of(DEVICE).device, [entry(choice, key)])
        config.forget_choices()
        launched.clear()
        operators.encode(x, weight, None, "sigmoid")
        ((name, options),) = launched
        assert (name, options["num_warps"]) == expected


# --- versions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["format", "torch", "triton", "runtime"])
def test_entries_of_other_versions_are_ignored_counted_and_kept(name):
    path = save(entry(FUSED), entry(FUSED, KEY._replace(operator="decode_loss")))
    rewrite(path, lambda entries: entries[0]["versions"].update({name: "another"}))
    assert plan().gemm != GEMM and plan(KEY._replace(operator="decode_loss")).gemm == GEMM
    assert choices.counts(DEVICE_NAME)["cache"] == {"path": str(path), "hold": 1, "other_versions": 1}
    save(entry(SPLIT))
    assert plan().strategy == "split"
    kept = [raw["versions"][name] for raw in json.loads(path.read_text())["entries"]]
    assert kept.count("another") == 1 and len(kept) == 3


def test_an_entry_of_another_version_may_have_any_fields():
    path = save(entry(FUSED))
    rewrite(path, lambda entries: entries.append({"versions": {"format": 99}, "plan": "?"}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert plan().gemm == GEMM


# --- files that cannot be read ----------------------------------------------------------------------------

CORRUPT = {
    "empty": b"",
    "cut": b'{"device": "x", "entries": [{"key"',
    "a list": b"[]",
    "a number": b'{"entries": 3}',
    "no entries": b"{}",
    "numbers": b'{"entries": [1]}',
    "null": b"null",
    "binary": b"\x93NUMPY\xff\xfe",
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("content", CORRUPT.values(), ids=CORRUPT)
def test_a_corrupt_table_is_one_warning_and_no_table(content):
    ship(entry(FUSED))
    path = choices.paths(DEVICE_NAME)["cache"]
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=f"measured choices {path}") as record:
        assert plan().gemm == GEMM  # the shipped one still holds
        plan(KEY._replace(M=8))
    assert len(record) == 1
    with pytest.warns(UserWarning, match="measured choices"):
        save(entry(SPLIT))  # and it is replaced
    assert plan().strategy == "split"


def test_every_beginning_of_a_table_is_harmless():
    path = save(entry(FUSED))
    content = path.read_bytes()
    for length in range(0, len(content) - 2, 7):
        path.write_bytes(content[:length])
        config.forget_choices()
        with pytest.warns(UserWarning, match="measured choices"):
            assert plan() == config.heuristic(KEY, torch.bfloat16, TARGET)


def test_a_folder_in_place_of_a_table_is_a_warning():
    choices.paths(DEVICE_NAME)["cache"].mkdir(parents=True)
    with pytest.warns(UserWarning, match="ignored"):
        plan()


@pytest.mark.parametrize(
    ("where", "field", "value"),
    [
        ("gemm", "block_m", 17),
        ("gemm", "block_m", 0),
        ("gemm", "block_n", -64),
        ("gemm", "block_k", 8),
        ("gemm", "block_m", "64"),
        ("gemm", "block_m", 64.0),
        ("gemm", "warps", 3),
        ("gemm", "warps", 64),
        ("gemm", "stages", 0),
        ("gemm", "group", 0),
        ("gemm", "subtiles", 3),
        ("gemm", "subtiles", 16),
        ("gemm", "tma", 1),
        ("gemm", "persistent", "yes"),
        ("gemm", "unknown", 1),
        ("elementwise", "block_n", 8),
        ("elementwise", "block_m", 12),
        ("elementwise", "warps", 0),
        (None, "strategy", "magic"),
        (None, "gemm", 5),
    ],
)
def test_a_plan_that_kernels_could_not_run_is_ignored(where, field, value):
    """As a hand that edits a table may write it; the other entries hold."""
    both = Choice("fused", GEMM, PassConfig())
    other = KEY._replace(operator="decode_loss")
    path = save(entry(both), entry(both, other))

    def change(entries: list[dict[str, Any]]) -> None:
        choice = entries[0]["choice"]
        (choice if where is None else choice[where])[field] = value

    rewrite(path, change)
    with pytest.warns(UserWarning, match=f"entry 0 of {path} is ignored"):
        assert plan() == config.heuristic(KEY, torch.bfloat16, TARGET)
    assert plan(other).gemm == GEMM


@pytest.mark.parametrize("key", [{"M": "8"}, {"K": None}, {"color": 1}, {"N": True}], ids=str)
def test_a_key_that_is_none_is_ignored(key):
    rewrite(save(entry(FUSED)), lambda entries: entries[0]["key"].update(key))
    with pytest.warns(UserWarning, match="entry 0"):
        assert plan().gemm != GEMM


# --- writing ----------------------------------------------------------------------------------------------


def test_saving_merges_and_replaces_what_is_of_one_bucket():
    near, far = KEY._replace(M=250), KEY._replace(M=4096)
    save(entry(FUSED), entry(FUSED, far))
    path = save(entry(SPLIT, near))
    assert plan().strategy == "split" and plan(far).gemm == GEMM
    assert [raw["key"]["M"] for raw in json.loads(path.read_text())["entries"]] == [4096, 250]


def test_what_is_read_is_what_was_written():
    written = {key: choice for key, choice in ((KEY, FUSED), (KEY._replace(K=0), SPLIT))}
    save(*(entry(choice, key) for key, choice in written.items()))
    assert choices.table(DEVICE_NAME) == {key.bucket: choice for key, choice in written.items()}


def test_writers_at_the_same_time_lose_nothing():
    keys = [KEY._replace(M=4**number) for number in range(1, 13)]
    with ThreadPoolExecutor(len(keys)) as pool:
        list(pool.map(lambda key: choices.save(DEVICE_NAME, [entry(FUSED, key)]), keys))
    config.forget_choices()
    assert choices.table(DEVICE_NAME).keys() == {key.bucket for key in keys}


def test_a_write_that_fails_leaves_the_table_as_it_was(monkeypatch):
    path = save(entry(FUSED))
    before = path.read_bytes()

    def fail(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        choices.save(DEVICE_NAME, [entry(SPLIT)])
    assert path.read_bytes() == before
    assert {p.name for p in path.parent.iterdir()} == {path.name, path.with_suffix(".lock").name}


def test_where_tables_lie(monkeypatch):
    assert choices.paths(DEVICE_NAME)["shipped"].name == "some-gpu-80gb.json"
    monkeypatch.delenv("FASTAE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert choices.cache_folder() == Path("/caches/fastae")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert choices.cache_folder() == Path("/home/someone/.cache/fastae")
