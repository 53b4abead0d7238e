"""Columns of rows, as every table of the benchmarks has them."""

from nst_bench.drawing.tables import SUMMARY, columns, list_of_rows, pivot, table, with_ratio

ABOUT = columns("size    | way   | times", "{size}² | {way} | **{ratio:.2f}**")
FAST = {"size": 256, "way": "gRPC", "median": 4.5, "p95": 12.34, "n": 9, "unstable": True, "ratio": 1.0}


def test_a_cell_stands_below_its_title() -> None:
    lines = table([FAST, FAST | {"way": "a | b\nc", "ratio": 1250.5, "unstable": False}], ABOUT | SUMMARY, left=2)
    assert lines == [
        "| size | way | times | p50 | p95 | n |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
        "| 256² | gRPC | **1.00** | 4.50 *unstable* | 12.3 | 9 |",
        "| 256² | a / b c | **1250.50** | 4.50 | 12.3 | 9 |",
    ], "no column for a p99 and a spread that no row has"


def test_what_is_missing_has_its_reason_and_what_a_row_lacks_is_empty() -> None:
    rows = [FAST, {"size": 512, "missing": "no memory"}, {"size": 1024, "way": None, "n": 3}]
    assert table(rows, ABOUT | SUMMARY, left=2)[2:] == [
        "| 256² | gRPC | **1.00** | 4.50 *unstable* | 12.3 | 9 |",
        "| 512² |  | *no memory* |  |  |  |",
        "| 1024² |  |  |  |  | 3 |",
    ]
    assert table([], ABOUT) == ["| size | way | times |", "| --- | ---: | ---: |"]


def test_rows_stand_across() -> None:
    rows = [FAST, FAST | {"way": "HTTP", "ratio": 1.5}, FAST | {"size": 512, "way": "HTTP"}]
    assert pivot(rows, columns("size", "{size}²"), across="way", cell=with_ratio) == [
        "| size | gRPC | HTTP |",
        "| --- | ---: | ---: |",
        "| 256² | 4.50 (12.3) *unstable* | 4.50 (12.3) *unstable*, **1.50** |",
        "| 512² |  | 4.50 (12.3) *unstable* |",
    ]


def test_a_list_of_rows_is_shown_whatever_the_suite() -> None:
    """Words, a summary and further figures; a reason where nothing was measured; phases never in one table."""
    summary = {"n": 9, "median": 20.0, "p95": 21.0, "p99": 22.0, "spread": 0.04, "unstable": True}
    steady = {"engine": "ONNX Runtime", "device": "CPU", "size": 256, "phase": "steady", **summary}
    rows = [
        {"engine": "ONNX Runtime", "device": "CPU", "size": None, "phase": "cold", **summary, "median": 300.0},
        {**steady, "gflop": 5.54, "share_of_matrix_rate": 0.713},
        *(
            {"engine": "TensorRT | RTX", "device": "GPU", "size": size, "phase": "steady", "missing": "no GPU"}
            for size in (256, 512)
        ),
    ]
    lines = list_of_rows({"rows": rows})
    assert "| ONNX Runtime | CPU | 256² | 20.0 *unstable* | 21.0 | 22.0 | 4% | 9 | 5.54 | 71% |" in lines
    assert "| TensorRT / RTX | GPU | 256², 512² | *no GPU* |  |  |  |  |  |  |" in lines
    assert "| ONNX Runtime | CPU | 300 *unstable* | 21.0 | 22.0 | 4% | 9 |" in lines
    assert lines.index("Warm runs, milliseconds:") < lines.index("Cold starts, milliseconds:")
