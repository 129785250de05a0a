"""Output in any encoding, at any width, with names as they are."""

import io
import re
import sys
from typing import Any

import pytest
import rich.console

from fastae.cli import main
from fastae.console import Console, print_table, tolerate_encodings, visible
from fastae.train.reporting import LineProgress, RichProgress
from tests.cli.support import QUICK

NUMBERS = [["layer 1", "12345.678901 bce", "41059955.25"], ["layer 2", "-0.000012345", "nan"]]


def shown(width: int | None, monkeypatch, capsys, rows=NUMBERS, header=("", "loss", "norm")) -> str:
    if width is None:
        monkeypatch.delenv("COLUMNS", raising=False)
    else:
        monkeypatch.setenv("COLUMNS", str(width))
    print_table(Console(), rows, header, title="a title")
    return capsys.readouterr().out


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200, None])
@pytest.mark.parametrize("header", [("", "loss", "norm"), ()])
def test_no_cell_of_a_table_is_cut(width, header, monkeypatch, capsys):
    out = shown(width, monkeypatch, capsys, header=header)
    assert all(cell in out for row in NUMBERS for cell in row) and "…" not in out


@pytest.mark.parametrize("width", [40, 60, 80])
def test_a_table_is_no_wider_than_the_console(width, monkeypatch, capsys):
    out = shown(width, monkeypatch, capsys)
    assert max(map(len, out.splitlines())) <= width


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8"])
def test_what_an_encoding_lacks_is_spelled(encoding, monkeypatch):
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding=encoding) for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    tolerate_encodings()
    Console().print("1.50 ±0.08 → 日本 \udcff")
    print_table(Console(), [["‖∂h/∂x‖²", "1.0"]], ("name", "value"))
    streams["stdout"].flush()
    written = streams["stdout"].buffer.getvalue().decode(encoding)  # pyright: ignore[reportAttributeAccessIssue]
    if encoding == "utf-8":
        assert "1.50 ±0.08 → 日本 \\udcff" in written and "‖∂h/∂x‖²" in written
    if encoding == "ascii":
        assert "1.50 +-0.08 -> \\u65e5\\u672c \\udcff" in written and "|dh/dx|^2" in written


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_run_is_trained_and_measured_in_any_encoding(encoding, here, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    assert main([*f"train {QUICK} --out".split(), "日本"]) == 0
    assert main(["evaluate", "日本"]) == 0
    stream.flush()
    assert b"\\u65e5\\u672c" in stream.buffer.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("name", ["r[red]y", "r[/x]", ":smile:", "1.5e3 [bold]"])
def test_names_are_printed_as_they_are(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    Console().print(f"Run: {name}")
    print_table(Console(), [[name, "1"]], (name, name))
    out = capsys.readouterr().out
    assert out.count(name) == 4


def test_a_path_in_markup_is_trained_into_and_named(fastae_, here):
    code, out, err = fastae_(f"train {QUICK} --out r[/x]")
    assert (code, err) == (0, "") and "Run: r[/x] " in out
    assert fastae_("encode r[/x] --out c[red].npy").out.startswith("c[red].npy: ")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("\x9b2J\x07\r", "\\x9b2J\\x07\\r"),
        ("\u202eevil", "\\u202eevil"),
        ("two\nlines\tand 日本", "two\nlines\tand 日本"),
    ],
)
def test_control_characters_are_made_visible(text, shown, capsys):
    assert visible(text) == shown
    Console().print(text)
    assert capsys.readouterr().out == f"{shown}\n".expandtabs()


def row(epoch: int, **changes: Any) -> dict[str, Any]:
    values = {
        "stage": "layer 1",
        "epoch": epoch,
        "step": 4 * epoch,
        "seconds": 0.5 * epoch,
        "rows_per_second": 1234.0,
        "train_total": 20.5,
        "validation_total": 21.25,
    }
    return {**values, **changes}


def train_ten_epochs(progress: Any, clock: list[float], seconds: float) -> None:
    with progress:
        progress.start("layer 1", 40, 0, 10)
        for epoch in range(1, 11):
            for step in range(4):
                clock[0] += seconds / 4
                progress.update(4 * epoch - 3 + step, {"total": 20.5, "error": 0.125}, 1234.0)
            progress.end_epoch(row(epoch, train_error=0.125))
        progress.finish()


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr("fastae.train.reporting.time.monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("seconds", "epochs"), [(3.0, [*range(1, 11)]), (0.5, [1, 5, 9, 10]), (0.01, [1, 10])]
)
def test_lines_come_every_epoch_or_every_two_seconds(clock, seconds, epochs):
    file = io.StringIO()
    train_ten_epochs(LineProgress(file), clock, seconds)
    lines = file.getvalue().splitlines()
    assert [int(re.findall(r"epoch +(\d+)/10", line)[0]) for line in lines] == epochs
    assert lines[-1] == (
        "layer 1      epoch 10/10  loss 20.5  error 12.50 %  validation loss 21.25  1,234 rows/s  5.0 s"
    )


@pytest.mark.parametrize("least, told", [(20.0, " (least 20)"), (0.1, ""), (None, "")])
def test_a_loss_stands_beside_its_least_value_where_that_is_large(least, told):
    file = io.StringIO()
    progress = LineProgress(file)
    progress.start("layer 2", 4, 0, 1)
    progress.end_epoch(row(1, validation_least=least))
    assert f"validation loss 21.25{told}  1,234 rows/s" in file.getvalue()


def test_long_epochs_have_a_line_per_minute(clock):
    file = io.StringIO()
    progress = LineProgress(file)
    progress.start("layer 1", 40, 0, 2)
    for step in range(1, 6):
        clock[0] += 30.0
        progress.update(step, {"total": 1.0}, 9.0)
    lines = file.getvalue().splitlines()
    assert len(lines) == 2 and lines[0] == "layer 1      epoch 1/2  loss 1  19:00 left  9 rows/s"


def test_early_stopping_and_stages_without_epochs_have_their_line():
    file = io.StringIO()
    progress = LineProgress(file)
    progress.start("layer 1", 40, 0, 10)
    for epoch in (1, 2):
        progress.end_epoch(row(epoch))
    progress.finish()
    progress.start("classifier", 0, 0, 0)
    progress.finish()
    lines = file.getvalue().splitlines()
    assert len(lines) == 3 and "epoch  2/10" in lines[1] and lines[2] == "classifier   nothing to do"


class Terminal:
    """A console of a terminal, and what was written to it, without the control sequences."""

    def __init__(self, width: int, encoding: str = "utf-8") -> None:
        self._bytes = io.BytesIO()
        file = io.TextIOWrapper(self._bytes, encoding=encoding, write_through=True)
        self.console = rich.console.Console(file=file, width=width, force_terminal=True, color_system=None)
        self._encoding = encoding

    def written(self) -> str:
        """Since the last call."""
        text = self._bytes.getvalue().decode(self._encoding)
        self._bytes.seek(0)
        self._bytes.truncate()
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).strip("\r\n")


@pytest.mark.parametrize("width", [30, 40, 60, 80, 120, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_row_on_a_terminal_leaves_room_for_an_echo(width, encoding, clock):
    terminal = Terminal(width, encoding)
    with RichProgress(terminal.console) as progress:
        progress.start("layer 1", 40, 0, 10)
        for done in range(1, 41):
            terminal.written()
            clock[0] += 3.0
            progress.update(done, {"total": 20.5, "error": 0.125}, 1234.0)
            row = terminal.written()
            assert row.startswith("layer 1") and "\n" not in row and len(row) <= width - 8
            assert (("━" if encoding == "utf-8" else "----") in row) == (width >= 120)


@pytest.mark.parametrize("width", [30, 40, 60, 80, 120, 200])
def test_what_stays_of_a_stage_on_a_terminal_has_every_figure(width, clock):
    terminal = Terminal(width)
    with RichProgress(terminal.console) as progress:
        progress.start("layer 1", 40, 0, 10)
        progress.update(40, {"total": 20.5, "error": 0.125}, 1234.0)
        progress.end_epoch(row(10, train_error=0.125))
        terminal.written()
        progress.finish()
        lines = [line for line in re.split("[\r\n]+", terminal.written()) if line.strip()]
    assert max(map(len, lines)) <= width
    assert " ".join(" ".join(lines).split()) == (
        "layer 1 epoch 10/10 loss 20.5 error 12.50 % validation loss 21.25 1,234 rows/s 5.0 s"
    )


def test_a_stage_that_is_stopped_leaves_its_row(clock):
    terminal = Terminal(100)
    with pytest.raises(KeyboardInterrupt), RichProgress(terminal.console) as progress:
        progress.start("layer 1", 40, 0, 10)
        progress.update(13, {"total": 20.5}, 1234.0)
        terminal.written()
        raise KeyboardInterrupt
    assert terminal.written().splitlines()[-1].startswith("layer 1      epoch  4/10  loss 20.5")
