"""Shards: every format gives the same rows; the writer leaves whole shards; a bad folder is one message."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from fastae.errors import DataError
from fastae.train import Shards, ShardWriter, load_dataset
from fastae.train.data.rows import split
from tests.train.files import refuses

ROWS, WIDTH, PER_SHARD = 50, 6, 16


@pytest.fixture(scope="module")
def table() -> np.ndarray:
    """Values that bfloat16 holds exactly."""
    return np.random.default_rng(0).integers(-64, 64, (ROWS, WIDTH)).astype(np.float32)


def parts(table: np.ndarray) -> list[tuple[str, np.ndarray]]:
    return [(f"part-{i}", table[low : low + PER_SHARD]) for i, low in enumerate(range(0, ROWS, PER_SHARD))]


def written(folder: Path, table: np.ndarray, dtype: torch.dtype = torch.float32) -> Path:
    with ShardWriter(folder, rows_per_shard=PER_SHARD, dtype=dtype, metadata={"layer": 3}) as writer:
        for low in range(0, ROWS, 7):
            writer.write(torch.from_numpy(table[low : low + 7]))
    return folder


def npy(folder: Path, table: np.ndarray) -> Path:
    folder.mkdir()
    for name, rows in parts(table):
        np.save(folder / f"{name}.npy", rows.astype(np.float16).reshape(-1, 2, 3))
    return folder


def safetensors(folder: Path, table: np.ndarray) -> Path:
    folder.mkdir()
    for name, rows in parts(table):
        save_file({"activations": rows, "other": rows[:, :2].copy()}, folder / f"{name}.safetensors")
    return folder


def arrow_table(rows: np.ndarray, columns: bool = False):
    arrow = pytest.importorskip("pyarrow")
    if columns:
        return arrow.table({f"c{i}": rows[:, i] for i in range(WIDTH)})
    flat = arrow.array(rows.ravel())
    return arrow.table({"x": arrow.FixedSizeListArray.from_arrays(flat, WIDTH)})


def parquet(folder: Path, table: np.ndarray) -> Path:
    folder.mkdir()
    for name, rows in parts(table):
        written = pytest.importorskip("pyarrow.parquet")
        written.write_table(arrow_table(rows, columns=True), folder / f"{name}.parquet", row_group_size=5)
    return folder


def arrow(folder: Path, table: np.ndarray) -> Path:
    folder.mkdir()
    for name, rows in parts(table):
        made = arrow_table(rows)
        ipc = pytest.importorskip("pyarrow").ipc
        with ipc.new_file(folder / f"{name}.arrow", made.schema) as file:
            file.write_table(made, max_chunksize=5)
    return folder


def saved_dataset(folder: Path, table: np.ndarray) -> Path:
    """As Hugging Face's datasets writes one: Arrow streams of variable lists."""
    folder.mkdir()
    arrow = pytest.importorskip("pyarrow")
    names = []
    for number, (_, rows) in enumerate(parts(table)):
        made = arrow.table({"x": rows.tolist()}, arrow.schema([("x", arrow.list_(arrow.float32()))]))
        names.append({"filename": f"data-{number:05d}-of-00004.arrow"})
        with arrow.ipc.new_stream(str(folder / names[-1]["filename"]), made.schema) as file:
            file.write_table(made)
    (folder / "state.json").write_text(json.dumps({"_data_files": names, "_indices_data_files": None}))
    return folder


FORMATS = [written, npy, safetensors, parquet, arrow, saved_dataset]


@pytest.mark.parametrize("make", FORMATS)
def test_every_format_gives_the_same_rows(make: Callable[..., Path], tmp_path, table):
    shards = Shards(make(tmp_path / "rows", table))
    assert shards.shape == table.shape and len(shards.files) == 4
    np.testing.assert_array_equal(shards[:], table)
    index = np.random.default_rng(1).integers(-ROWS, ROWS, 40)
    np.testing.assert_array_equal(shards[index], table[index])
    edges = shards.edges(4)
    assert edges[0] == 0 and edges[-1] == ROWS and (np.diff(edges) > 0).all()
    assert set(range(0, ROWS, PER_SHARD)) <= set(edges.tolist())  # no block lies in two shards


@pytest.mark.parametrize("make", FORMATS)
def test_a_folder_of_shards_is_a_data_set(make: Callable[..., Path], tmp_path, table):
    data = load_dataset(str(make(tmp_path / "rows", table)), scaling="minmax", test_fraction=0.2)
    whole = load_dataset(str(tmp_path / "rows"), scaling="minmax")
    assert data.train.is_mapped and data.test is not None and (len(data.train), len(data.test)) == (40, 10)
    low, high = table.min(0), table.max(0)
    np.testing.assert_allclose(whole.train.read(), (table - low) / (high - low), atol=1e-6)
    assert "4 shards" in data.describe()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_a_dtype_is_stored_as_such(dtype, tmp_path, table):
    shards = Shards(written(tmp_path / "rows", table, dtype))
    assert shards.kind == str(dtype).removeprefix("torch.") and shards.metadata == {"layer": 3}
    assert sum(f.stat().st_size for f in shards.files) < table.size * dtype.itemsize + 4 * 200
    np.testing.assert_array_equal(shards[:], table)
    rows = load_dataset(str(tmp_path / "rows"), scaling="none").train
    raw = rows.raw(ROWS)
    rows.read_raw(np.arange(ROWS), raw)
    np.testing.assert_array_equal(rows.scale(raw), table)
    if dtype.itemsize == 2:
        plain = rows.plain(raw)
        assert plain is not None and plain.dtype == dtype
        np.testing.assert_array_equal(plain.float().numpy(), table)


def test_labels_are_read_with_the_rows(tmp_path, table):
    with ShardWriter(tmp_path / "rows", rows_per_shard=PER_SHARD) as writer:
        writer.write(table, np.arange(ROWS) % 3)
    data = load_dataset(str(tmp_path / "rows"))
    assert data.num_classes == 3 and data.train.targets is not None
    np.testing.assert_array_equal(data.train.targets, np.arange(ROWS) % 3)
    assert load_dataset(str(tmp_path / "rows"), label="none").train.labels is None


def test_a_table_of_shards_gives_labels_by_column(tmp_path, table):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for number in range(2):
        columns = {"a": table[:, 0], "b": table[:, 1], "kind": ["x", "y"] * (ROWS // 2)}
        parquet.write_table(pyarrow.table(columns), tmp_path / f"{number}.parquet")
    data = load_dataset(str(tmp_path), label="kind")
    assert data.feature_names == ("a", "b") and data.train.labels is not None
    assert data.train.labels.tolist() == ["x", "y"] * ROWS


def test_saved_parts_are_train_and_test(tmp_path, table):
    saved_dataset(tmp_path / "train", table)
    saved_dataset(tmp_path / "test", table)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    data = load_dataset(str(tmp_path), scaling="none")
    assert data.test is not None
    np.testing.assert_array_equal(data.test.read(), table)


# The writer -------------------------------------------------------------------------------------------------


def test_an_error_leaves_the_whole_shards(tmp_path, table):
    with pytest.raises(RuntimeError), ShardWriter(tmp_path, rows_per_shard=PER_SHARD) as writer:
        writer.write(table[:40])
        raise RuntimeError
    np.testing.assert_array_equal(Shards(tmp_path)[:], table[:32])
    (tmp_path / "shard-00002.safetensors").write_bytes(b"not listed, as after a kill")
    with ShardWriter(tmp_path, rows_per_shard=PER_SHARD, append=True) as writer:
        assert writer.rows == 32
        writer.write(table[32:])
    np.testing.assert_array_equal(Shards(tmp_path)[:], table)
    ranges = Shards(tmp_path).ranges
    assert ranges is not None
    np.testing.assert_array_equal(ranges, [table.min(0), table.max(0)])


def test_written_rows_do_not_follow_their_tensor(tmp_path, table):
    rows = torch.from_numpy(table.copy())
    with ShardWriter(tmp_path) as writer:
        writer.write(rows)
        rows.zero_()
    np.testing.assert_array_equal(Shards(tmp_path)[:], table)


@pytest.mark.parametrize(
    "rows, words",
    [
        (torch.zeros(3), ["rows", "[3]"]),
        (torch.zeros(3, WIDTH + 1), ["rows", f"{WIDTH}", f"{WIDTH + 1}"]),
        (torch.full((3, WIDTH), torch.nan), ["rows", "NaN"]),
        (torch.full((3, WIDTH), 1e30), ["rows", "float16"]),
    ],
)
def test_the_writer_refuses_rows(rows, words, tmp_path):
    writer = ShardWriter(tmp_path, dtype=torch.float16)
    writer.write(torch.zeros(2, WIDTH))
    with pytest.raises(ValueError) as caught:
        writer.write(rows)
    assert all(word in str(caught.value) for word in words)


def test_the_writer_refuses_a_folder_with_shards(tmp_path, table):
    written(tmp_path, table)
    with pytest.raises(DataError, match="has shards already"):
        ShardWriter(tmp_path)
    with pytest.raises(DataError, match=r"float32.*float16"):
        ShardWriter(tmp_path, append=True, dtype=torch.float16)


# Bad folders ------------------------------------------------------------------------------------------------


def wide(folder: Path) -> None:
    np.save(folder / "part-2.npy", np.zeros((3, WIDTH + 1), np.float16))


def other_dtype(folder: Path) -> None:
    np.save(folder / "part-2.npy", np.zeros((3, 2, 3), np.float32))


def other_format(folder: Path) -> None:
    save_file({"rows": np.zeros((3, WIDTH), np.float16)}, folder / "part-9.safetensors")


def cut(folder: Path) -> None:
    file = folder / "part-1.npy"
    file.write_bytes(file.read_bytes()[:-9])


def not_a_number(folder: Path) -> None:
    np.save(folder / "part-2.npy", np.full((3, 2, 3), np.nan, np.float16))


@pytest.mark.parametrize(
    "spoil, words",
    [
        (wide, ["part-2.npy", "width 7", "2 x 3"]),
        (other_dtype, ["part-2.npy", "dtype float32", "float16"]),
        (other_format, ["two formats", "part-9.safetensors"]),
        (cut, ["part-1.npy"]),
        (not_a_number, ["NaN", "row 32"]),
    ],
)
def test_shards_that_are_not_alike_are_refused(spoil, words, tmp_path, table):
    spoil(npy(tmp_path / "rows", table))
    with refuses("rows", *words):
        load_dataset(str(tmp_path / "rows"))


def removed(folder: Path) -> None:
    (folder / "shard-00001.safetensors").unlink()


def grown(folder: Path) -> None:
    save_file({"rows": np.zeros((99, WIDTH), np.float32)}, folder / "shard-00001.safetensors")


@pytest.mark.parametrize("spoil, words", [(removed, ["missing"]), (grown, ["bytes", "changed"])])
def test_shards_that_are_not_as_listed_are_refused(spoil, words, tmp_path, table):
    spoil(written(tmp_path / "rows", table))
    with refuses("rows", "shard-00001.safetensors", *words):
        load_dataset(str(tmp_path / "rows"))


def test_a_missing_part_is_told_by_the_names(tmp_path, table):
    (saved_dataset(tmp_path / "rows", table) / "state.json").unlink()
    (tmp_path / "rows" / "data-00002-of-00004.arrow").unlink()
    with refuses("rows", "data-00002-of-00004.arrow", "missing"):
        load_dataset(str(tmp_path / "rows"))


def test_an_empty_folder_is_refused(tmp_path):
    (tmp_path / "rows").mkdir()
    with refuses("rows", "empty folder"):
        load_dataset(str(tmp_path / "rows"))
    with refuses("rows", "no shards"):
        Shards(tmp_path / "rows")


@pytest.mark.parametrize("make", [written, npy])
def test_a_changed_shard_is_named(make, tmp_path, table):
    rows = load_dataset(str(make(tmp_path / "rows", table)), scaling="none").train
    kept = rows.fingerprint()
    assert rows.matches(kept) and rows.difference(kept) == ""
    file = sorted((tmp_path / "rows").glob("*-*"))[1]
    content = bytearray(file.read_bytes())
    content[-4] ^= 1
    file.write_bytes(content)
    changed = load_dataset(str(tmp_path / "rows"), scaling="none").train
    assert not changed.matches(kept) and changed.difference(kept) == f"{file.name} has changed"


def test_large_shards_are_told_apart_by_samples(tmp_path, table, monkeypatch):
    monkeypatch.setattr("fastae.train.data.sources.shards.folder._WHOLE_BYTES", 10)
    rows = load_dataset(str(written(tmp_path / "rows", table)), scaling="none").train
    kept = rows.fingerprint()
    assert rows.matches(kept)
    (tmp_path / "rows" / "shard-00002.safetensors").touch()
    assert rows.difference(kept) == "shard-00002.safetensors has changed"


def test_images_beside_an_array_are_images(tmp_path, table):
    image = pytest.importorskip("PIL.Image")
    np.save(tmp_path / "labels.npy", table)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        image.fromarray(np.eye(5, dtype=np.uint8)).save(tmp_path / name / "0.png")
    assert load_dataset(str(tmp_path)).width == 25


def test_a_split_of_many_rows_keeps_spans(tmp_path, table, monkeypatch):
    monkeypatch.setattr("fastae.train.data.rows._MOST_SPANS", 4)
    rows = load_dataset(str(written(tmp_path / "rows", table)), scaling="none").train
    train, held_out = split(rows, 0.2, 0)
    assert len(held_out) == 9 and len(train) + len(held_out) == ROWS  # 3 spans of 3 rows, for 10
    both = np.concatenate([train.read(), held_out.read()])
    assert {tuple(row) for row in both.tolist()} == {tuple(row) for row in table.tolist()}
    edges = train.edges(64)
    assert edges[0] == 0 and edges[-1] == len(train)
