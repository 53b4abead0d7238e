from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from nst_bench import capacity, results
from nst_bench.cli import app
from nst_core.errors import InputError

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "benchmark"
CARDS = [path for path in sorted(FOLDER.glob("*.json")) if results.read(path)["machine"]["gpu"]]
FILES = [FOLDER / "results.json", FOLDER / "serving-wide.json", *CARDS]
PAGE = ROOT / "docs" / "benchmark" / "capacity.md"
BEGIN, END = (f"<!-- {capacity.BLOCK}: {edge} -->" for edge in ("begin", "end"))


def _documents() -> list[dict[str, Any]]:
    """Serving a fast network, as a run has it, and one of the paper's width; learning a style; runs on GPUs."""
    run = results.suites(results.read(FILES[0]))
    return [run["serving"], results.read(FILES[1]), run["training"], *map(results.read, CARDS)]


def _table(text: str, title: str) -> list[dict[str, str]]:
    """The rows of the first table below a heading, by the names in its head."""
    below = text.split(f"## {title}\n", 1)[1].splitlines()
    first = next(number for number, line in enumerate(below) if line.startswith("|"))
    rows = []
    for line in below[first:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]


def _known() -> dict[str, Any]:
    """A committed document with round figures: 20 and 5 pictures a second on 2 cores, 4 arrivals a second in time."""
    document = _documents()[0]
    document["machine"]["cores"] = 2
    alone, load, arrivals = document["latency"][0], document["throughput"]["rows"][0], document["arrivals"]
    document["latency"] = [
        alone | {"size": size, "way": way, "median": median}
        for size, way, median in ((256, "gRPC", 50.0), (512, "gRPC", 250.0), (512, "HTTP", 300.0))
    ]
    document["throughput"]["rows"] = [
        load | {"callers": callers, "rate": float(callers), "rate_unstable": callers == 8} for callers in (2, 4, 8)
    ]
    arrivals["rows"] = [arrivals["rows"][0] | {"rate": rate, "within": rate < 5} for rate in (3.0, 4.0, 5.0)]
    arrivals["rate"] = 4.0
    return document


def test_the_page_is_what_the_committed_results_give() -> None:
    shown = PAGE.read_text().split(BEGIN + "\n")[1].split(END)[0]
    assert shown == capacity.text(_documents()), "make readme"


@pytest.mark.parametrize("field", ["latency", "throughput", "arrivals"])
def test_another_figure_gives_another_page(field: str) -> None:
    documents = _documents()
    before = capacity.text(documents)
    own = documents[1][field]
    if field == "latency":
        next(row for row in own if row["way"] == "gRPC")["median"] *= 1.1
    elif field == "throughput":
        max(own["rows"], key=lambda row: (not row["rate_unstable"], row["rate"]))["rate"] *= 1.1
    else:
        low = own["rate"] or 1.0
        own.update(rate=low * 2, rows=[*own["rows"], own["rows"][0] | {"rate": low * 2, "within": True}])
    assert capacity.text(documents) != before


def test_the_arithmetic() -> None:
    text = capacity.text([_known()], core_hour=0.5)
    rates = _table(text, "Throughput")
    assert [row["images/s"] for row in rates] == ["20.00", "4.00", "4.00"]
    assert [row["per core"] for row in rates] == ["10.00", "2.00", "2.00"]
    assert rates[2]["load"] == "4 concurrent clients", "the most that was stable"
    limited, unlimited = _table(text, "Machines for a load")
    # 4 a second, of which 30 % stay free: 2.8; without a limit 4.
    assert [limited[f"{load}/s"] for load in ("1", "10", "100", "1,000")] == [
        *("1 (2)", "4 (8)", "36 (72)", "358 (716)")
    ]
    assert unlimited["1,000/s"] == "250 (500)"
    assert "4.00/s kept the limit" in text
    assert "5.00/s did not" in text
    billion = _table(text, "A billion images")
    assert billion[0]["core-hours"] == "27,778"  # 1e9 / 20 / 3600 * 2
    assert billion[0]["days on 100 machines"] == "5.8"
    assert billion[0]["price"] == "13,889"


def test_what_was_not_measured_says_why() -> None:
    document = _known()
    document["machine"]["gpu"], document["machine"]["cuda"] = None, {"missing": "the driver is asleep"}
    document["arrivals"]["rate"] = None
    text = capacity.text([document])
    assert {row["per GPU"] for row in _table(text, "Throughput")} == {"*the driver is asleep*"}
    assert "not kept at any measured rate" in _table(text, "Machines for a load")[0]["latency limit"]
    assert "price" not in _table(text, "A billion images")[0]
    document["machine"]["gpu"], document["model"]["provider"] = "A GPU", "CUDAExecutionProvider"
    assert [row["per GPU"] for row in _table(capacity.text([document]), "Throughput")] == ["20.00", "4.00", "4.00"]


def test_the_command_draws_the_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    files = [str(path) for path in FILES]
    result = CliRunner().invoke(app, ["capacity", *files, "--readme", str(page)])
    assert result.exit_code == 0, result.output
    text = capacity.text(_documents())
    assert page.read_text() == f"before\n{BEGIN}\n{text}{END}\nafter\n"
    assert CliRunner().invoke(app, ["capacity", *files]).stdout == text


def test_unusable_input_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no results of serving"):
        capacity.text([_documents()[2]])
    page = tmp_path / "page.md"
    page.write_text("no markers")
    result = CliRunner().invoke(app, ["capacity", str(FILES[0]), "--readme", str(page)])
    assert result.exit_code == 1
    assert "add the lines" in result.stderr
    assert page.read_text() == "no markers"
