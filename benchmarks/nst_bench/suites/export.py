"""What each rewrite of the exported graph saves, on each engine that is installed here.

The same network (random weights: no engine looks at them) exported plainly, with each rewrite for the
CPU alone and with all of them; every form first passes the exporter's gate against PyTorch.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import onnx as onnx_package
import torch

from nst_bench.machine import header
from nst_bench.measure import interleaved, summarize
from nst_export import onnx, verify
from nst_export.inspection import arithmetic
from nst_export.rewrite import FOR, rewrite
from nst_export.served import INPUT, ServedModel
from nst_trainer.checkpoint import frozen
from nst_trainer.networks import Johnson

SCHEMA = "nst-bench-export/1"
WIDTHS = (1.0, 0.5, 0.25)
SIZES = (256, 512)

PLAIN, ALL = "plain", "all for the CPU"


def measure(
    *,
    widths: tuple[float, ...] = WIDTHS,
    sizes: tuple[int, ...] = SIZES,
    rounds: int = 9,
    tick: Callable[[str], None] = lambda note: None,
) -> dict[str, Any]:
    """Every form of Johnson's network at `widths` on pictures of `sizes`^2 pixels, `rounds` warm runs each in turn."""
    names = [name for name in FOR["cpu"] if name != "wrap"]  # no circular padding in this network
    forms = {PLAIN: (), **{name: (name,) for name in names}, ALL: tuple(names)}
    rows = []
    for width in widths:
        torch.manual_seed(0)
        model = ServedModel(frozen(Johnson(width=width))).eval()
        with tempfile.TemporaryDirectory() as folder:
            files = {form: Path(folder) / f"{number}.onnx" for number, form in enumerate(forms)}
            onnx.export(model, files[PLAIN], {"multiple": "4"})
            flop = {}
            for form, chosen in forms.items():
                proto = onnx_package.load(files[PLAIN])
                rewrite(proto, chosen)
                onnx.write(proto, files[form], {})
                verify.verify(model, verify.onnx_engines(files[form]), verify.LIMITS["fp32"])
                flop[form] = {size: arithmetic(proto, size) for size in sizes}
            for engine, provider in verify.installed().items():
                sessions = {form: verify.session(file, provider) for form, file in files.items()}
                for size in sizes:
                    figures = _race(sessions, size, rounds)
                    for form, one in figures.items():
                        about = {"engine": engine, "width": width, "size": size, "form": form}
                        rows.append(about | {"gflop": flop[form][size] / 1e9} | one)
                    ratio = figures[ALL]["ratio"]
                    tick(f"width {width:g}, {size} x {size}, {engine}: {ratio:.2f} of the plain export's time")
    return {**header(SCHEMA), "rows": rows}


def _race(sessions: dict[str, Any], size: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Warm runs of every form in turn, on one photograph: a summary and the share of the plain form's time."""
    feed = {INPUT: verify.photographs([(1, size, size)])[0]}
    works: dict[str, Callable[[], object]] = {form: partial(one.run, None, feed) for form, one in sessions.items()}
    for work in works.values():
        work()  # the first picture of a shape is another figure
    figures = {form: summarize(seconds) for form, seconds in interleaved(works, rounds).items()}
    return {form: asdict(one) | {"ratio": one.median / figures[PLAIN].median} for form, one in figures.items()}
