"""Every result that is in the documentation, as a terminal of 80 columns shows it."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from nst_bench import report, results
from nst_bench.drawing import terminal

FOLDER = Path(__file__).parents[2] / "docs" / "benchmark"


def shown(markdown: str, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO(), soft_wrap=True)
    terminal.show(markdown, on=console)
    text = console.file
    assert isinstance(text, io.StringIO)
    return [line.rstrip() for line in text.getvalue().splitlines()]


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_every_table_fits_and_no_figure_is_cut(path: Path, width: int) -> None:
    for suite, document in results.suites(results.read(path)).items():
        if "missing" in document:
            continue
        lines = shown(report.markdown(document), width)
        assert max(map(len, lines)) <= width, suite
        assert not any("…" in line for line in lines), suite


TABLE = """
| engine | p50 | p95 | p99 | spread | n | times the bare session |
| --- | ---: | ---: | ---: | ---: | ---: | ---: |
| ONNX Runtime, OpenVINO | 12.5 | 13.5 | 14.5 | 5% | 200 | **1.25** |
| TensorRT | *no NVIDIA GPU, or no driver that can use it* | | | | | |
"""


def test_what_does_not_fit_is_left_out_by_its_weight_and_named() -> None:
    lines = shown(TABLE, 44)
    head = next(line for line in lines if "p50" in line)
    assert "p95" in head and "session" in head and "1.25" in " ".join(lines)
    assert "p99" not in head and "spread" not in head
    assert any(line.startswith("Not shown: p99, spread") for line in lines)


def test_everything_is_there_where_there_is_room() -> None:
    lines = shown(TABLE, 120)
    head = next(line for line in lines if "p50" in line)
    assert head.split() == ["engine", "p50", "p95", "p99", "spread", "n", "times", "the", "bare", "session"]
    assert not any("Not shown" in line for line in lines)


def test_a_reason_stands_below_the_figures() -> None:
    lines = shown(TABLE, 80)
    assert "TensorRT: no NVIDIA GPU, or no driver that can use it" in lines
    assert not any("**" in line or "*no" in line for line in lines)


def test_words_that_tell_no_rows_apart_go_before_a_word_is_cut() -> None:
    table = "| peer | version | p50 |\n| --- | --- | ---: |\n| styletransfer-lite | 0.1.0-of-a-branch | 49.5 |\n"
    lines = shown(table + "| onnxruntime | 0.1.0-of-a-branch | **15.0** |", 32)
    assert any(line.split() == ["styletransfer-lite", "49.5"] for line in lines), lines
    assert lines[-1] == "Not shown: version."


def test_a_number_and_its_unit_stay_together() -> None:
    table = "| peer | p50 | times |\n| --- | ---: | ---: |\n| one with many words in its name | 102.9 ms | **1.2** |"
    lines = shown(table, 36)
    assert "102.9 ms" in " ".join(lines) and all(len(line) <= 36 for line in lines)
