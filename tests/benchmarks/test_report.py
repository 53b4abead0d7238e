import json
import re
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from nst_bench import capacity, report, results, suite
from nst_bench.cli import app
from nst_bench.drawing import tables
from nst_bench.drawing.speedup import GATYS
from nst_bench.drawing.words import shown
from nst_bench.measure import summarize
from nst_bench.served import callers
from nst_bench.served.callers import Call
from nst_bench.suites import energy, serving, speedup
from nst_client import Statistics
from nst_core.errors import InputError

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "benchmark"
NAMES = sorted(path.name for path in FOLDER.glob("*.json"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def _run_document() -> dict[str, Any]:
    """The committed run, as if one suite had failed."""
    document = results.read(FOLDER / "results.json")
    document["suites"]["cold"] = {"missing": "its process exited with status -9"}
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
        r"<!-- (nst-bench-(?!capacity)[^:]*): begin -->\n(.*?)<!-- \1: end -->", page.read_text(), re.DOTALL
    )


def _drawn(document: dict[str, Any]) -> set[str]:
    """The tables of a document's suites, as they are drawn now."""
    own = list(results.measured(document).values())
    phrases = [(suite.load(results.suite_of(part)).in_words, part) for part in own]
    return {*map(report.markdown, own), *(in_words(part) for in_words, part in phrases if in_words)}


def test_the_pages_tables_are_those_of_the_committed_results() -> None:
    """All that the pages show is of a committed document, and every document is shown, those of GPUs below others."""
    shown = {block: name for page in PAGES for name, block in _blocks(page) if block}  # a GPU's alone may be empty
    documents = {name: results.read(FOLDER / name) for name in NAMES}
    drawn = {name: _drawn(document) for name, document in documents.items()}
    cards = [document for name, document in documents.items() if name != "results.json"]
    headline = report.headline_table([documents["results.json"], *cards])
    for block, name in shown.items():
        left = block.replace(headline, "")
        for table in (table for own in drawn.values() for table in own):
            left = left.replace(table, "")
        assert not left.strip(), f"{name}: make readme"
    for name, own in drawn.items():
        assert any(table in block for table in own for block in shown), f"{name}: make readme"
    assert len(shown) >= 12


def test_another_figure_is_seen() -> None:
    document = results.read(FOLDER / "serving-wide.json")
    shown = {block for _, block in _blocks(ROOT / "docs" / "benchmark" / "serving.md")}
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
    median = {(row["engine"], row["size"]): row["median"] for row in document["rows"] if row["phase"] == "steady"}
    assert len(document["speedup"]) == 9
    for row in document["speedup"]:
        gatys = median["Gatys, one iteration", row["size"]] * row["iterations"]
        assert row["ratio"] == pytest.approx(gatys / median["Triton, gRPC", row["size"]])


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
    for title in ("Serving", "Gatys' optimisation", "Memory under load", "Cold starts"):
        assert f"<h2>{title}</h2>" in text
    assert "Not measured: its process exited with status -9." in text
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
    document["equal_loss"] = [{**reached, "served_ms": 37.9}, {"size": 512, "missing": "no style image was given"}]
    lines = report.one_table(document).splitlines()
    shown = {row["size"]: f"{row['served_ms']:.1f}" for row in document["speedup"]}
    hundred = next(row for row in document["speedup"] if (row["size"], row["iterations"]) == (512, 100))
    seconds, ratio = tables.short(hundred["gatys_seconds"]), hundred["ratio"]
    assert lines[2].startswith(f"| 256² | equal loss: 24 iterations | 8.4 s | {shown[256]} | **222** |")
    assert lines[6].startswith(f"| 512² | 100 iterations | {seconds} s | {shown[512]} | **{ratio:,.0f}** |")
    assert lines[9].startswith("| 512² | equal loss | *no style image was given* |")
    assert "| 256² | a.jpg | 2.500 | 24 | 8.4 s | 37.9 ms | **222** |" in report.markdown(document)


CARD = "NVIDIA H100 80GB HBM3"


def _card_run() -> dict[str, Any]:
    """A run on a GPU as the suites write it, with figures of this test's own: no machine has measured them."""
    machine = {**_run_document()["machine"], "gpu": CARD, "cores": 16}
    machine["cuda"] = {"driver": "580.159.04", "sm_clock_mhz": 1980, "precision": {"matrix_products": "highest"}}
    about = {"date": "2026-11-26 20:00 UTC", "machine": machine}
    model = {"name": "s", "network": "fast", "width": 1.0, "parameters": 206540}
    milli = {way: [0.001 * (2 + number)] * 5 for number, way in enumerate((*speedup.SERVED, "in the process"))}
    figures = [speedup.row_of(way, 512, "steady", seconds) for way, seconds in milli.items()]
    figures += [speedup.row_of(GATYS, 512, "steady", [0.008] * 5)]
    figures += [speedup.row_of("Triton, from start to ready", None, "cold", [6.0])]
    equal = {"size": 512, "photo": "a.jpg", "loss": 2.5, "iteration": 31, "gatys_seconds": 0.248, "curve": [9.0, 2.4]}
    served = {row["engine"]: row["median"] for row in figures}
    ratios = {"served_ms": served[speedup.SERVED[0]], "shared_memory_ms": served[speedup.SERVED[2]]}
    ratios |= {"ratio": 248.0 / ratios["served_ms"], "shared_memory_ratio": 248.0 / ratios["shared_memory_ms"]}
    first = {"schema": suite.schema("speedup"), **about, "model": model, "device": "GPU", "rows": figures}
    first |= {"speedup": speedup.speedups(figures, (512,))}
    first |= {"equal_loss": [equal | ratios]}
    row = {"engine": "TensorRT, FP16", "device": "GPU", "size": 512, "phase": "steady"}
    by_engine = [
        {**row, **asdict(summarize([0.0005] * 5)), "max_difference": 4},
        {**row, "engine": "T", "missing": "not here"},
    ]
    calls = [Call(0.001 * number, 0.001 * number + 0.004) for number in range(20)]
    turn = callers.Turn(calls, Statistics(20, 0, 20, 10, {2: 10}, 0.001, 0.002))
    own = callers.rate_of([turn.rate]) | callers.summary([turn])
    load = {"size": 512, "requests": 20, "bare": callers.rate_of([1000.0])}
    load |= {"rows": [{"callers": count, **own, "ratio": 0.5, "against_one": 1.0} for count in (1, 32)]}
    mixed = [{"mixture": serving.CHANGING, "callers": 32, **own, "one_caller": 2000.0, "against_one": 0.7}]
    loaded: dict[str, Any] = {
        "schema": suite.schema("serving"),
        **about,
        "latency": [{"size": 512, "way": "gRPC", **own, "ratio": 1.0}],
    }
    loaded |= {"model": {"name": "s", "width": 1.0, "provider": "TensorRT", "instances": 2, "threads": None}}
    loaded["model"]["precision"] = "fp16"
    loaded |= {"throughput": load, "throughput_by_size": [load | {"size": 256}]}
    loaded |= {"mixed": {"sides": [128, 640], "rows": mixed}, "stopped": "no time left"}
    loaded["slowest_against_one"] = serving.slowest([load], mixed)
    rows = [energy.row_of(energy.NETWORK, 512, 1.0, {"pieces": 1000, "seconds": 1.0, "watts": 300.0}) | {"ratio": 1.0}]
    used = {"schema": suite.schema("energy"), **about, "model": {"name": "s"}, "iterations": 500, "rows": rows}
    used |= {"idle_watts": 70.0, "idle_subtracted": False}
    by_size = {"schema": suite.schema("latency"), **about, "model": model, "rows": by_engine}
    suites = {"speedup": first, "latency": by_size, "serving": loaded, "energy": used, "serving, gallery": loaded}
    return {"schema": suite.schema("run"), **about, "device": f"gpu: {CARD}", "suites": suites}


def test_a_run_on_a_gpu_is_drawn(tmp_path: Path) -> None:
    results.write(_card_run(), tmp_path / "h100.json")
    written = report.write([results.read(tmp_path / "h100.json")], tmp_path)
    text = written.read_text()
    assert f"GPU: {CARD}, driver 580.159.04, sm clock mhz 1980, precision matrix_products highest." in text
    assert "Gatys, 500 iterations | 4.00 | **2,000** | **1,000** |" in text, "over gRPC, and by shared memory"
    assert "| 512² | a.jpg | 2.500 | 31 | 0.25 s | 2.00 ms | **124** | 4.00 ms | **62** |" in text
    assert "| 512² | 500 iterations | 4.00 s |  | **2,000** | 4.00 ms | **1,000** |" in text, "the table that matters"
    assert "| TensorRT, FP16 | GPU | 512² | 0.50 |" in text and "| T | GPU | 512² | *not here* |" in text
    assert "`s` (width 1, 2 in parallel, TensorRT, FP16)." in text
    assert f"| {shown(serving.CHANGING)} | 32 |" in text
    assert "At least one mixture of sizes and clients is slower than one client; the slowest, 32 clients, " in text
    assert "Incomplete: no time left." in text
    assert "| 512² | in-process | 0.3 | **1** | 300 | 1,000 | 1.0 |" in text
    assert "## Serving, gallery" in text and "## Energy" in text
    assert {path.stem for path in tmp_path.glob("*.png")} >= {"latency", "latency-by-size", "throughput", "loss"}
    assert "takes 2 ms and 500 iterations of Gatys' optimisation take 4 s: 2,000 times" in report.headline(_card_run())


def test_a_gpus_figures_stand_below_the_runs(tmp_path: Path) -> None:
    page, card = tmp_path / "page.md", tmp_path / "h100.json"
    results.write(_card_run(), card)
    names = ("nst-bench-speedup", "nst-bench-latency", "nst-bench-energy", "nst-bench-gatys")
    page.write_text("".join(f"<!-- {name}: begin -->\n<!-- {name}: end -->\n" for name in names))
    command = ["report", str(FOLDER / "results.json"), str(card), "--readme", str(page)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    blocks = dict(_blocks(page))
    gatys = next(row for row in _suite("speedup")["rows"] if (row["engine"], row["size"]) == (GATYS, 512))
    lines = blocks[names[0]].splitlines()
    of_card = next(number for number, line in enumerate(lines) if CARD in line)
    ours, theirs = (number for number, line in enumerate(lines) if line.startswith("| 512² | Gatys, one iteration |"))
    assert ours < of_card < theirs
    assert lines[ours].startswith(f"| 512² | Gatys, one iteration | {tables.short(gatys['median'])} |")
    assert lines[theirs].startswith("| 512² | Gatys, one iteration | 8.0 |")
    assert "| 512² | Triton, shared memory | 4.00 |" in blocks[names[0]], "a row that only one has"
    assert "`starry-night-fast`" in blocks[names[1]] and "| TensorRT, FP16 | GPU | 512² |" in blocks[names[1]]
    assert "| in-process |" in blocks[names[2]], "a suite that only the GPU's run has"
    assert CARD not in blocks[names[3]], "a suite that only the whole run has"


def test_capacity_counts_a_gpus_machines(tmp_path: Path) -> None:
    document = _card_run()["suites"]["serving"]
    del document["stopped"]
    text = capacity.text([document])
    assert "(2 in parallel, TensorRT, FP16)" in text and "| *served on the GPU* |" in text


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
        with pytest.raises(InputError, match="results file of nst bench"):
            results.read(tmp_path / name)
    result = CliRunner().invoke(app, ["report", str(tmp_path / "a.json"), "-o", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert not (tmp_path / "out").exists()


def test_a_page_gets_the_tables_that_it_has_markers_for(tmp_path: Path) -> None:
    page, file = tmp_path / "README.md", tmp_path / "run.json"
    results.write(_run_document(), file)
    page.write_text("# nothing to fill in\n")
    with pytest.raises(InputError, match="add the lines <!-- nst-bench-speedup: begin -->"):
        report.inject([results.read(file)], page)
    assert page.read_text() == "# nothing to fill in\n"
    page.write_text("above\n<!-- nst-bench-gatys: begin -->\nold\n<!-- nst-bench-gatys: end -->\nbelow\n")
    result = CliRunner().invoke(app, ["report", str(file), "--readme", str(page)])
    assert result.exit_code == 0, result.output
    text = page.read_text()
    assert text.startswith("above\n") and text.endswith("below\n") and "old" not in text and "| 1024² |" in text
    assert len(list(tmp_path.iterdir())) == 2
    two = CliRunner().invoke(app, ["report", str(file), str(file), "--readme", str(page)])
    assert two.exit_code == 0, two.output
    once, twice = text.split("-->")[1], page.read_text().split("-->")[1]
    assert twice.count("| 1024² |") == 2 * once.count("| 1024² |") > 0, "below each other"


HEADLINE = "<!-- nst-bench-headline: begin -->\n<!-- nst-bench-headline: end -->\n"


def test_the_headline_has_a_line_for_each_device_and_size(tmp_path: Path) -> None:
    page, files = tmp_path / "page.md", [FOLDER / "results.json", tmp_path / "h100.json"]
    results.write(_card_run(), files[1])
    page.write_text(HEADLINE)
    report.inject([results.read(file) for file in files], page)
    text = page.read_text()
    assert "| device | size | served (ms) | Gatys at equal loss (s) | speed-up |" in text
    at_512 = [row for row in _suite("speedup")["equal_loss"] if row["size"] == 512]
    middle = sorted(at_512, key=lambda row: float(row["ratio"]))[len(at_512) // 2]
    seconds, ratio = tables.short(middle["gatys_seconds"]), f"{middle['ratio']:,.0f}"
    assert f"| CPU: AMD EPYC, 2 cores | 512² | {tables.short(middle['served_ms'])} | {seconds} | **{ratio}** |" in text
    assert re.search(r"\| CPU: AMD EPYC, 2 cores \| 1024² \| \d+ \|  \| \*not measured\* \|", text)
    assert f"| GPU: {CARD} | 512² | 2.00 | 0.25 | **124** |" in text
    assert "No GPU has been measured" not in text
    page.write_text(HEADLINE)
    report.inject([results.read(files[0])], page)
    assert "GPU:" not in page.read_text() and "No GPU has been measured." in page.read_text()


def test_the_loss_is_drawn_by_time() -> None:
    """The optimisation's curve ends where its time says, at the loss of the network's image."""
    document = _suite("speedup")
    row = {"size": 256, "photo": "a.jpg", "iteration": 3, "curve": [50.0, 9.0, 2.4], "loss": 2.5}
    document["equal_loss"] = [{**row, "gatys_seconds": 1.2, "served_ms": 38.0, "ratio": 31.6}]
    (plot,) = (plot for plot in report.plots(document) if plot.name == "loss")
    assert plot.png.startswith(b"\x89PNG")
    assert "at 256² the served network reaches a loss of 2.50 in 38 ms, the optimisation in 1 s (a.jpg)" in plot.alt


BEFORE = {
    "schema": "nst-bench-run/1",
    "date": "2026-11-01 10:00 UTC",
    "machine": {"processor": "P", "cores": 2, "memory_gib": 4.0, "gpu": None, "system": "S", "versions": {}}
    | {"matrix_product_gflops": 100.0},
}
"""A run of version 1, of which a test fills in the suites."""


def _summary(*samples: float) -> dict[str, Any]:
    """As version 1 wrote it: with all samples, and without how well their median is known."""
    found = asdict(summarize([sample / 1000 for sample in samples]))
    del found["median_precision"]
    return found


def test_results_of_version_1_are_read(tmp_path: Path) -> None:
    """Its words, its samples, and all of a soak's memory."""
    own = {"date": BEFORE["date"], "machine": BEFORE["machine"], "model": {"name": "s"}}
    steady = {"engine": "PyTorch eager", "device": "CPU", "size": 256, "phase": "steady", "levels": 1}
    latency = {**own, "schema": "nst-bench-latency/1", "rows": [steady | _summary(5.0, 5.2, 5.1, 5.3, 5.0)]}
    memory = [{"seconds": float(at), "Triton": 80.0 + at, "stubs": 90.0, "callers": 70.0} for at in range(5)]
    trend = {"level": 83.0, "growth": 1.0, "error": 0.5, "grew": False}
    soak = {**own, "schema": "nst-bench-soak/1", "minutes": 10, "callers": 4, "requests": 9, "shapes": 3, "errors": {}}
    soak |= {"memory": memory, "trends": {"Triton": trend}, "latency_drift": 1.0, "latency_unstable": False}
    row = {"form": "served, gRPC", "size": 512, "styles": "a mix of ten styles", "ratio": 1.1} | _summary(7.0)
    styles = {**own, "schema": "nst-bench-styles/1", "network": "fast", "rows": [row]}
    frontier = {"name": "a", "network": "fast", "arguments": {"width": 1.0}, "parameters": 9, "worth": 25.5}
    frontier |= {"loss": 2.5, "content": 1.0, "style": 1.5, "size": 512, "phase": "steady", "best_for_its_time": True}
    document = {**own, "schema": "nst-bench-frontier/1", "style": "s.jpg", "photos": ["p"], "quality_size": 256}
    document["rows"] = [frontier | _summary(9.0)]
    suites = {"latency": latency, "soak": soak, "styles": styles, "frontier": document}
    (tmp_path / "old.json").write_text(json.dumps({**BEFORE, "suites": suites}))
    read = results.read(tmp_path / "old.json")
    assert read["schema"] == suite.schema("run")
    assert {name: own["schema"] for name, own in read["suites"].items()} == {
        name: suite.schema(name) for name in suites
    }
    (latency_row,) = read["suites"]["latency"]["rows"]
    assert latency_row["max_difference"] == 1 and latency_row["median_precision"]["error"] > 0
    assert read["suites"]["soak"]["trends"]["Triton"] == {
        **{"start": 80.0, "half_time": 82.0, "end": 84.0, "peak": 84.0},
        **trend,
    }
    text = report.markdown(read)
    assert "| Triton | 80 | 82 | 84 | +1.0 ± 1.0 | stable |" in text
    assert "ten-style model, two styles interpolated" in text
    assert "| **a** | fast, width 1 | 9 | 25.5 |" in text and "equivalent iterations" in text


def test_results_of_before_the_suites_had_names_are_read(tmp_path: Path) -> None:
    figure = {"engine": "Triton, gRPC", "size": 256, "phase": "steady", "unit": "ms", **_summary(5.0)}
    ratio = {"size": 256, "iterations": 100, "gatys_seconds": 30.0, "served": "Triton, gRPC", "served_ms": 5.0}
    document = {**BEFORE, "schema": "nst-bench/1", "model": {"name": "s"}, "figures": [figure]}
    document["speedup"] = [ratio | {"ratio": 6000.0}]
    (tmp_path / "oldest.json").write_text(json.dumps(document))
    read = results.read(tmp_path / "oldest.json")
    assert (read["schema"], read["equal_loss"]) == (suite.schema("speedup"), [])
    assert "| Gatys, 100 iterations | 30.0 | **6,000** |" in report.markdown(read)


def test_a_summary_draws_what_its_samples_drew() -> None:
    """Nothing that is shown or compared needs the samples."""
    document = _card_run()
    summary = results.summary(document)
    assert "samples" in json.dumps(document) and "samples" not in json.dumps(summary)
    assert report.markdown(summary) == report.markdown(document)
    assert results.rows(summary).keys() == results.rows(document).keys()
