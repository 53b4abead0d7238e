"""The gate: an exported model answers as PyTorch does, on real photographs, or is not published."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from nst_core.engines.plans import Shape
from nst_core.errors import NstError
from nst_core.images import Pixels, fit, open_image, sample_photographs
from nst_core.packages.onnx_runtime import import_onnxruntime
from nst_export.conversion import output, tensors
from nst_export.errors import ExportError
from nst_export.modules import INPUT, STATISTICS, STYLE_WEIGHTS, Exportable, TensorSpec

SHAPES = ((1, 256, 256), (1, 333, 501), (1, 480, 270), (3, 128, 100), (2, 181, 255))
"""(batch, height, width): square, odd, portrait, batches of three and two, odd batch; small ones come to them."""

SMALL = ((1, 1, 1), (1, 3, 3), (1, 1, 7), (1, 4, 4), (1, 3, 64), (1, 15, 15), (1, 16, 16))
"""Thumbnails, icons and tracking pixels: the graph itself enlarges what its network is too large for."""

AGAIN = (1, 64, 80)
"""Between two small images: an engine that one of them has harmed fails on the next."""

FEW = 96 * 96
"""Pixels below which half precision is not judged, if there are larger images: statistics of few values amplify what
it rounds."""

PROVIDERS = {"ONNX Runtime": "CPUExecutionProvider", "OpenVINO": "OpenVINOExecutionProvider"}
"""What may serve an ONNX file here; those that are installed are checked."""

Feeds = dict[str, Any]
"""Inputs by name, arrays."""


@dataclass(frozen=True)
class Limits:
    """What may differ: `levels` of 255 in any value, and at least `psnr` dB where that is given."""

    levels: int
    psnr: float | None = None


ANY = Limits(255)
"""For what is run and not judged."""

LIMITS = {"fp32": Limits(1), "fp16": Limits(4, 45.0)}
"""By precision; one level is rounding."""


@dataclass(frozen=True)
class Engine:
    """Something that runs an exported model.

    `run` gives the picture, and whether all values before they became levels were finite, where it can see that.
    """

    name: str
    run: Callable[[Feeds], tuple[Pixels, bool | None]]


@dataclass(frozen=True)
class Agreement:
    """One shape on one engine against PyTorch.

    Differences in levels of 255, `quantile` the 99.9 % one; `psnr` in dB, None where nothing differs; `finite` as
    `Engine.run` has it; `judged` is False where any difference is allowed.
    """

    engine: str
    shape: Shape
    maximum: int
    mean: float
    quantile: float
    psnr: float | None
    finite: bool | None
    passed: bool
    judged: bool = True

    def summary(self) -> dict[str, Any]:
        """Plain data for `verification.json`."""
        return asdict(self) | {"shape": list(self.shape)}


def verify(model: Exportable, engines: Iterable[Engine], limits: Limits) -> list[Agreement]:
    """Compare engines with `model` in PyTorch, on photographs of every one of `shapes`.

    All checks run; then an `ExportError` names all that failed, with their figures. It is raised before
    for a checkpoint whose own values are not finite.
    """
    feeds = examples(model.inputs, shapes(model))
    return agreements(feeds, lambda feed: by_pytorch(model, feed), engines, limits)


def agreements(
    feeds: Sequence[Feeds],
    reference: Callable[[Feeds], Pixels],
    engines: Iterable[Engine],
    limits: Limits,
    *,
    against: str = "PyTorch",
) -> list[Agreement]:
    """How each engine agrees with `reference`, called `against`, on each of `feeds`; raises as `verify` does.

    An image that has little to normalise (`_allowed`) is run, and its differences are noted and allowed.
    """
    answers = [(feed, reference(feed)) for feed in feeds]
    few = min(FEW, max(wanted[0, :, :, 0].size for _, wanted in answers))
    expected = [(feed, wanted, _allowed(limits, feed, wanted, few)) for feed, wanted in answers]
    found = [
        compare(engine.name, *_answer(engine, feed, wanted.shape), wanted, allowed)
        for engine in engines
        for feed, wanted, allowed in expected
    ]
    refuse_failures(found, limits, against)
    return found


def _answer(engine: Engine, feed: Feeds, shape: tuple[int, ...]) -> tuple[Pixels, bool | None]:
    """What the engine makes of `feed`; `ExportError` if it fails."""
    try:
        return engine.run(feed)
    except NstError:
        raise
    except Exception as error:  # ONNX Runtime's exceptions have no common root
        reason = " ".join(str(error).split())
        raise ExportError(f"{engine.name} fails at {shape[:3]}: {reason[:200]}. Not published") from error


def _allowed(limits: Limits, feed: Feeds, wanted: Pixels, few: int) -> Limits:
    """`limits`, or any difference for images whose normalisations enlarge rounding a hundredfold.

    Those are images of one colour, which have no variance, and in half precision those of less than `few` pixels.
    """
    flat = INPUT in feed and bool((feed[INPUT] == feed[INPUT][:, :1, :1]).all())
    small = limits.psnr is not None and wanted[0, :, :, 0].size < few
    return ANY if flat or small else limits


def refuse_failures(agreements: Sequence[Agreement], limits: Limits, against: str = "PyTorch") -> None:
    """Raise `ExportError` that names every check that failed; nothing if none did."""
    if failed := [one for one in agreements if not one.passed]:
        allowed = f"{limits.levels} level{'s' if limits.levels != 1 else ''} of 255"
        allowed += f" or has less than {limits.psnr:g} dB" if limits.psnr else ""
        figures = "; ".join(f"{one.engine} at {one.shape}: {_figures(one)}" for one in failed)
        raise ExportError(f"the exported model differs from {against} by more than {allowed}: {figures}. Not published")


def _figures(one: Agreement) -> str:
    if one.finite is False:
        return "values that are not finite"
    return f"{one.maximum} levels" + (f", {one.psnr:.1f} dB" if one.psnr is not None else "")


def check_contract(proto: onnx.ModelProto, model: Exportable) -> None:
    """Raise `ExportError` if names, types or axes of the file's tensors are not those of the contract."""
    pairs = zip((*tensors(proto), output(proto)), (*model.inputs, model.output), strict=True)
    if wrong := [f"{found.shown()} where the contract has {want.shown()}" for found, want in pairs if found != want]:
        raise ExportError(f"the exported file has {'; '.join(wrong)}. Not published")


def shapes(model: Exportable) -> list[Shape]:
    """What is compared: `SHAPES`, then `SMALL` images and those about the network's own smallest, others in between.

    A batch comes to them if every style and a mix of them would not have their row else. Of a texture the next
    multiples of its grid, but for a single place on the coarsest, which PyTorch does not normalise.
    """
    side, multiple = model.network.min_side, model.network.multiple
    chosen = [*SHAPES]
    missing = model.network.styles + 2 - sum(n for n, _, _ in chosen)
    if missing > 0:
        chosen.append((missing, 128, 96))
    around = ((1, side - 1, side - 1), (1, side, side), (1, side + 1, side + 3))
    for shape in dict.fromkeys((*SMALL, *around)):
        chosen += [shape, AGAIN]
    if model.purpose != "texture":
        return chosen
    placed = [on_grid(shape, multiple) for shape in chosen]
    return [shape for shape in placed if shape[1:] != (multiple, multiple)]


def on_grid(shape: Shape, multiple: int) -> Shape:
    """`shape` with its sides rounded up to multiples of `multiple`."""
    n, height, width = shape
    return n, -(-height // multiple) * multiple, -(-width // multiple) * multiple


def examples(inputs: Sequence[TensorSpec], shapes: Sequence[Shape]) -> list[Feeds]:
    """Inputs for every shape: photographs or noise, and for several styles mixes, each style alone among them."""
    random = np.random.default_rng(0)
    pictures = photographs(shapes)
    styles = next((int(spec.axes[1]) for spec in inputs if spec.name == STYLE_WEIGHTS), 1)
    rows = sum(n for n, _, _ in shapes)
    mixes = iter(np.concatenate([np.eye(styles), random.random((max(rows, styles) - styles, styles))]))
    feeds: list[Feeds] = []
    for (n, height, width), picture in zip(shapes, pictures, strict=True):
        feed: Feeds = {}
        for spec in inputs:
            if spec.name == INPUT:
                feed[spec.name] = picture
            elif spec.name == STYLE_WEIGHTS:
                # At least as many rows as styles: the first rows are one style alone, the others mixes.
                feed[spec.name] = np.stack([next(mixes) for _ in range(n)]).astype(np.float32)
            else:
                reduced = int(spec.name.removeprefix("noise_"))
                sides = (n, height // reduced, width // reduced, int(spec.axes[-1]))
                feed[spec.name] = (random.random(sides) - 0.5).astype(np.float32)
        feeds.append(feed)
    return feeds


def photographs(shapes: Iterable[Shape]) -> list[Pixels]:
    """Real photographs cut to the shapes, `uint8 [N, H, W, 3]` each; no two in a batch alike."""
    pictures = [open_image(path) for path in sample_photographs()]
    batches = []
    for position, (n, height, width) in enumerate(shapes):
        chosen = [pictures[(position + index) % len(pictures)] for index in range(n)]
        batches.append(np.stack([fit(picture, width, height).pixels for picture in chosen]))
    return batches


def onnx_engines(path: Path, *, serving: bool = True) -> list[Engine]:
    """The file on every CPU engine that is installed here; ONNX Runtime's own also sees whether values are finite.

    With `serving` False, for a file that OpenVINO will not serve, only on ONNX Runtime's own.
    """
    proto = onnx.load(path)
    clips = [node.input[0] for node in proto.graph.node if node.op_type == "Clip"]
    beyond = clips[-1] if clips else proto.graph.output[0].name
    if clips:
        proto.graph.output.append(onnx.helper.make_empty_tensor_value_info(beyond))
    name = proto.graph.output[0].name
    watched = session(proto.SerializeToString(), "CPUExecutionProvider")

    def watching(feeds: Feeds) -> tuple[Pixels, bool | None]:
        picture, values = watched.run([name, beyond], feeds)
        return picture, bool(np.isfinite(values).all())

    def engine(called: str, provider: str) -> Engine:
        plain = session(path, provider)
        return Engine(called, lambda feeds: (plain.run([name], feeds)[0], None))

    others = {name: provider for name, provider in _running(serving).items() if name != "ONNX Runtime"}
    return [Engine("ONNX Runtime", watching), *(engine(name, provider) for name, provider in others.items())]


def paired_engines(statistics: Path, tiled: Path, *, serving: bool = True) -> list[Engine]:
    """Both parts of a tiled model in turn, as one engine: with a picture's own statistics it is the whole one.

    `serving` as in `onnx_engines`.
    """

    def engine(name: str, provider: str) -> Engine:
        first, second = session(statistics, provider), session(tiled, provider)

        def run(feeds: Feeds) -> tuple[Pixels, bool | None]:
            found = first.run([STATISTICS], feeds)[0]
            return second.run(None, feeds | {STATISTICS: found})[0], bool(np.isfinite(found).all())

        return Engine(f"{name}, in two parts", run)

    return [engine(name, provider) for name, provider in _running(serving).items()]


def _running(serving: bool) -> Mapping[str, str]:
    return {name: provider for name, provider in installed().items() if serving or name == "ONNX Runtime"}


def installed() -> Mapping[str, str]:
    """`PROVIDERS` that this machine's ONNX Runtime has."""
    available = import_onnxruntime().get_available_providers()
    return {name: provider for name, provider in PROVIDERS.items() if provider in available}


def session(model: Path | bytes, provider: str) -> Any:
    """An ONNX Runtime session on `provider`, quiet."""
    onnxruntime = import_onnxruntime()
    onnxruntime.set_default_logger_severity(3)  # OpenVINO's provider does not heed the session's
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # shape arithmetic stays on the CPU provider, which is no news
    return onnxruntime.InferenceSession(
        model if isinstance(model, bytes) else str(model), options, providers=[provider]
    )


def by_pytorch(model: Exportable, feeds: Feeds) -> Pixels:
    """The answer of the module itself; `ExportError` if its values are not finite."""

    def watch(module: nn.Module, inputs: Any, values: torch.Tensor) -> None:
        if not values.isfinite().all():
            raise ExportError("the checkpoint's own picture has values that are not finite: train it again")

    with torch.no_grad():
        hook = model.network.register_forward_hook(watch)
        try:
            answer: Pixels = model(*(torch.from_numpy(feeds[spec.name]) for spec in model.inputs)).numpy()
        finally:
            hook.remove()
    return answer


def compare(engine: str, answer: Pixels, finite: bool | None, wanted: Pixels, limits: Limits) -> Agreement:
    """How `answer` agrees with `wanted`, both `uint8 [N, H, W, 3]`; `ExportError` for another shape or type."""
    n, height, width, _ = wanted.shape
    if answer.shape != wanted.shape or answer.dtype != np.uint8:
        raise ExportError(
            f"{engine} answers {answer.dtype} {answer.shape} where PyTorch has uint8 {wanted.shape}. Not published"
        )
    difference = np.abs(answer.astype(np.int16) - wanted.astype(np.int16))
    squares = float(np.mean(np.square(difference, dtype=np.float64)))
    psnr = 10 * float(np.log10(255**2 / squares)) if squares else None
    maximum = int(difference.max())
    passed = maximum <= limits.levels and finite is not False
    passed = passed and (psnr is None or limits.psnr is None or psnr >= limits.psnr)
    return Agreement(
        engine,
        (n, height, width),
        maximum,
        float(difference.mean()),
        float(np.quantile(difference, 0.999)),
        psnr,
        finite,
        passed,
        judged=limits != ANY,
    )
