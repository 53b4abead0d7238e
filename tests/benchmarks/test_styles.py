"""`nst bench styles`: a network of ten styles beside the same network of one, with a real Triton."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nst_bench import report, results
from nst_bench.drawing.words import shown
from nst_bench.suite import Context, Document
from nst_bench.suites import styles
from nst_core.devices import Device
from nst_export.modules import TiledModel
from nst_trainer.checkpoint import Checkpoint, frozen, save
from nst_trainer.networks import Fast

ROOT = Path(__file__).parents[2]


def test_every_form_is_measured_in_one_style_and_interpolated(
    tmp_path: Path, cpu: Device, monkeypatch: pytest.MonkeyPatch, measured: Callable[..., Document]
) -> None:
    monkeypatch.setattr(styles, "FORMS", {"alone, a tile": (TiledModel, True)})  # each is two exports
    torch.manual_seed(0)
    tiny = Checkpoint(frozen(Fast(width=0.125)), ("tiny",))
    parts: list[int] = []
    context = Context(cpu, styles.StylesEffort((64, 96), 0.05), keep=lambda part: parts.append(len(part["rows"])))
    save(tiny, tmp_path / "tiny.pth")
    document = measured(styles.SUITE, context, checkpoint=tmp_path / "tiny.pth", triton=ROOT / ".triton")
    results.write(document, tmp_path / "a.json")
    document = results.read(tmp_path / "a.json")
    assert (document["network"], document["width"]) == ("fast", 0.125)
    forms = (*styles.FORMS, "served, gRPC", "served, shared memory")
    keys = [(row["form"], row["size"], row["styles"]) for row in document["rows"]]
    whats = (styles.ONE, styles.OF_TEN, styles.INTERPOLATED)
    assert keys == [(form, size, what) for form in forms for size in (64, 96) for what in whats]
    assert parts == list(range(3, len(keys) + 1, 3))
    for row in document["rows"]:
        same = [other for other in document["rows"] if (other["form"], other["size"]) == (row["form"], row["size"])]
        own = {other["styles"]: other for other in same}
        assert row["n"] >= styles.FEWEST_ROUNDS and row["ratio"] == pytest.approx(
            row["median"] / own[styles.ONE]["median"]
        )
    text = report.markdown(document)
    assert (
        "| 96² | served, gRPC |" in text
        and shown(styles.INTERPOLATED) in text
        and re.search(r"\(\S+\)(?: \*unstable\*)?, \*\*\d\.\d\d\*\*", text)
    )


def test_the_words_for_a_page_are_of_the_largest_and_the_smallest_ratio_at_512() -> None:
    ratios = [
        (512, styles.ONE, 1.0),
        (512, styles.INTERPOLATED, 1.051),
        (512, styles.OF_TEN, 1.0),
        (256, styles.INTERPOLATED, 1.4),
    ]
    rows = [{"size": size, "styles": what, "ratio": ratio} for size, what, ratio in ratios]
    assert styles.in_words({"rows": rows}) == "1.00 to 1.05 times as long as a network of one style"
