import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from nst_bench import plots, report, results, tables
from nst_bench.cli import app
from nst_core.errors import InputError

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "benchmark"
NAMES = sorted(path.name for path in FOLDER.glob("*.json"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def _run_document() -> dict[str, Any]:
    """The committed run, as if one suite had failed."""
    document = results.read(FOLDER / "results.json")
    document["suites"]["cold"] = {"missing": "its process ended with status -9"}
    return document


def _suite(name: str) -> dict[str, Any]:
    """A suite of the committed run."""
    return results.suites(results.read(FOLDER / "results.json"))[name]


class _Page(HTMLParser):
    """What an HTML page has: its tags with their attributes, and whether they are closed as they were opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "hr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _blocks(page: Path) -> list[tuple[str, str]]:
    """The markers of suites on a page, and what stands between them."""
    return re.findall(
        r"<!-- (nst-bench-\w[\w-]*/\d[^:]*): begin -->\n(.*?)<!-- \1: end -->", page.read_text(), re.DOTALL
    )


def _drawn(document: dict[str, Any]) -> set[str]:
    """The tables of a document's suites, as they are drawn now."""
    return {report.markdown(one) for one in results.suites(document).values() if "missing" not in one}


def test_the_pages_tables_are_those_of_the_committed_results() -> None:
    """All that the pages show is of a committed document, and every document is shown."""
    shown = {block: name for page in PAGES for name, block in _blocks(page)}
    drawn = {name: _drawn(results.read(FOLDER / name)) for name in NAMES}
    for block, name in shown.items():
        assert any(block in blocks for blocks in drawn.values()), f"{name}: make readme"
    for name, blocks in drawn.items():
        assert blocks & set(shown), f"{name} is drawn nowhere: make readme"
    assert len(shown) >= 12


def test_another_figure_is_seen() -> None:
    document = results.read(FOLDER / "serving-wide.json")
    shown = {block for _, block in _blocks(ROOT / "docs" / "benchmark.md")}
    assert _drawn(document) <= shown
    document["latency"][0]["p95"] += 0.1
    assert not _drawn(document) & shown


@pytest.mark.parametrize("name", NAMES)
def test_every_line_of_a_table_has_as_many_cells_as_its_head(name: str) -> None:
    widths: list[int] = []
    for line in [*report.markdown(results.read(FOLDER / name)).splitlines(), ""]:
        if line.startswith("|"):
            widths.append(line.count("|"))
        elif widths:
            assert len(widths) > 2 and len(set(widths)) == 1, line
            widths = []


def test_ratios_are_those_of_the_figures() -> None:
    document = _suite("speedup")
    median = {(one["engine"], one["size"]): one["median"] for one in document["rows"] if one["phase"] == "steady"}
    assert len(document["speedup"]) == 9
    for one in document["speedup"]:
        gatys = median["Gatys, one iteration", one["size"]] * one["iterations"]
        assert one["ratio"] == pytest.approx(gatys / median["Triton, gRPC", one["size"]])


def test_a_run_is_one_page_that_needs_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    results.write(_run_document(), file)
    result = CliRunner().invoke(app, ["report", str(file), "-o", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    text = (tmp_path / "out" / "report.html").read_text()
    page = _Page(text)
    assert page.open == []
    assert not re.search(r"(src|href)=\"(?!data:)", text)
    assert "<script" not in text and "url(" not in text and "@import" not in text
    plots = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(plots) == 6
    for plot in plots:
        assert len(plot["alt"] or "") > 40
        assert (plot["src"] or "").startswith("data:image/png;base64,iVBORw0KGgo")
    for title in ("Serving", "The optimisation", "Memory of serving", "Cold starts"):
        assert f"<h2>{title}</h2>" in text
    assert "Not measured: its process ended with status -9." in text
    tags = [tag for tag, _ in page.tags]
    for number, tag in enumerate(tags):
        if tag == "table":
            assert page.tags[number - 1] == ("div", page.tags[number - 1][1] | {"class": "table"})
    pictures = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert pictures == [
        f"{name}.png" for name in ("latency-by-size", "latency", "loss", "memory", "quality", "throughput")
    ]
    assert all(f"]({name})" in (tmp_path / "out" / "report.md").read_text() for name in pictures)


def test_the_table_that_matters_has_the_equal_loss_first() -> None:
    document = _suite("speedup")
    reached = {"size": 256, "photo": "a.jpg", "loss": 2.5, "iteration": 24, "gatys_seconds": 8.4, "ratio": 221.7}
    document["equal_loss"] = [{**reached, "served_ms": 37.9}, {"size": 512, "missing": "no painting was given"}]
    lines = report.one_table(document).splitlines()
    shown = {one["size"]: f"{one['served_ms']:.1f}" for one in document["speedup"]}
    hundred = next(one for one in document["speedup"] if (one["size"], one["iterations"]) == (512, 100))
    seconds, ratio = hundred["gatys_seconds"], hundred["ratio"]
    assert lines[2].startswith(f"| 256² | same loss: 24 iterations | 8 s | {shown[256]} | **222** |")
    assert lines[6].startswith(f"| 512² | 100 iterations | {seconds:.0f} s | {shown[512]} | **{ratio:,.0f}** |")
    assert lines[-1] == "Not compared at equal loss, 512²: no painting was given."
    assert "| 256² | a.jpg | 2.500 | 24 | 8.4 s | 37.9 ms | **222** |" in report.markdown(document)


def test_machines_stand_side_by_side(tmp_path: Path) -> None:
    files = [tmp_path / "fast.json", FOLDER / "serving-wide.json"]
    results.write(_suite("serving"), files[0])
    result = CliRunner().invoke(app, ["report", *map(str, files), "-o", str(tmp_path)])
    assert result.exit_code == 0, result.output
    text = (tmp_path / "report.md").read_text()
    fast, wide = (
        next(row for row in json.loads(file.read_text())["latency"] if (row["size"], row["way"]) == (512, "gRPC"))
        for file in files
    )
    cells = f"{fast['median']:.1f} ({fast['p95']:.1f}) | {wide['median']:.0f} ({wide['p95']:.0f})"
    assert f"| latency / 512² / gRPC | {cells} |" in text
    assert sorted(path.stem for path in tmp_path.glob("*.png")) == [
        *("latency-by-size-1", "latency-by-size-2", "throughput-1", "throughput-2")
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
    document = {**_run_document(), "schema": "nst-bench-latency/1", "rows": rows}
    lines = tables.tables(document, machine=False).splitlines()
    assert "| ONNX Runtime | CPU | 256² | 20.0 *unstable* | 21.0 | 22.0 | 4% | 9 | 5.54 | 71% |" in lines
    assert "| TensorRT / RTX | GPU | 256², 512² | *no GPU* |  |  |  |  |  |  |" in lines
    assert "| ONNX Runtime | CPU | 300 *unstable* | 21.0 | 22.0 | 4% | 9 |" in lines
    assert lines.index("Warm runs, milliseconds:") < lines.index("Cold starts, milliseconds:")


def test_a_document_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Lists of numbers take one line each, and a text that looks like one stays as it is."""
    document = {**_run_document(), "note": "[ 1,  2 ]", "numbers": [1.5, -2e-7, 3], "none": [], "texts": ["1", "2"]}
    results.write(document, tmp_path / "a.json")
    assert results.read(tmp_path / "a.json") == document
    assert '"numbers": [1.5, -2e-07, 3]' in (tmp_path / "a.json").read_text()


def test_other_files_are_no_results(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"schema": "nst-bench/99"}')
    (tmp_path / "b.json").write_text("nothing")
    for name in ("a.json", "b.json", "none.json"):
        with pytest.raises(InputError, match="no results of nst-bench"):
            results.read(tmp_path / name)
    result = CliRunner().invoke(app, ["report", str(tmp_path / "a.json"), "-o", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert not (tmp_path / "out").exists()


def test_a_page_gets_the_tables_that_it_has_markers_for(tmp_path: Path) -> None:
    page, file = tmp_path / "README.md", tmp_path / "run.json"
    results.write(_run_document(), file)
    page.write_text("# nothing to fill in\n")
    with pytest.raises(InputError, match="lacks the lines <!-- nst-bench-speedup/1: begin -->"):
        report.inject(results.read(file), page)
    assert page.read_text() == "# nothing to fill in\n"
    page.write_text("above\n<!-- nst-bench-gatys/1: begin -->\nold\n<!-- nst-bench-gatys/1: end -->\nbelow\n")
    result = CliRunner().invoke(app, ["report", str(file), "--readme", str(page)])
    assert result.exit_code == 0, result.output
    text = page.read_text()
    assert text.startswith("above\n") and text.endswith("below\n") and "old" not in text and "| 1024² |" in text
    assert len(list(tmp_path.iterdir())) == 2
    two = CliRunner().invoke(app, ["report", str(file), str(file), "--readme", str(page)])
    assert two.exit_code == 1
    assert "--readme takes one result, not 2" in two.stderr


def test_the_loss_is_drawn_by_time() -> None:
    """The optimisation's curve ends where its time says, at the loss of the network's picture."""
    document = _suite("speedup")
    row = {"size": 256, "photo": "a.jpg", "iteration": 3, "curve": [50.0, 9.0, 2.4], "loss": 2.5}
    document["equal_loss"] = [{**row, "gatys_seconds": 1.2, "served_ms": 38.0, "ratio": 31.6}]
    (plot,) = (one for one in plots.plots(document) if one.name == "loss")
    assert plot.png.startswith(b"\x89PNG")
    assert "at 256² the served picture has a loss of 2.50 after 38 ms, the optimisation after 1 s (a.jpg)" in plot.alt
