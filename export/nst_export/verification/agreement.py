"""Compare the output of engines with that of a reference, within a tolerance."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nst_core.contract import IMAGE
from nst_core.engines.plans import Shape
from nst_core.errors import NstError
from nst_core.images import Pixels
from nst_export.errors import ExportError

log = logging.getLogger(__name__)

MINIMUM_JUDGED_PIXELS = 96 * 96
"""Smaller images are not judged in half precision, if there are larger ones: statistics of few values amplify
rounding."""

Feeds = dict[str, Any]
"""Input arrays by name."""


@dataclass(frozen=True)
class Tolerance:
    """The allowed difference: at most `max_difference` of 255 per value, and at least `psnr` dB per image if given."""

    max_difference: int
    psnr: float | None = None


UNLIMITED = Tolerance(255)
"""Tolerance of images that are run but not judged."""

TOLERANCES = {"fp32": Tolerance(1), "fp16": Tolerance(4, 45.0)}
"""Tolerances on the CPU by precision; a difference of 1 is rounding."""


@dataclass(frozen=True)
class Engine:
    """Something that runs an exported model.

    `run` returns the stylized images, and whether all values were finite before they became integers (None if the
    engine cannot tell).
    """

    name: str
    run: Callable[[Feeds], tuple[Pixels, bool | None]]


@dataclass(frozen=True)
class Agreement:
    """The agreement of an engine with the reference at one shape.

    Differences are absolute, of 255: the maximum, the mean, and the 99.9 % quantile. `psnr` is in dB, None for
    identical images; `finite` is as in `Engine.run`; `judged` is False where any difference is allowed.
    """

    engine: str
    shape: Shape
    max_difference: int
    mean_difference: float
    quantile_difference: float
    psnr: float | None
    finite: bool | None
    passed: bool
    judged: bool = True

    def summary(self) -> dict[str, Any]:
        """Return plain data for `verification.json`."""
        return asdict(self) | {"shape": list(self.shape)}


def require_agreement(
    feeds: Sequence[Feeds],
    reference: Callable[[Feeds], Pixels],
    engines: Iterable[Engine],
    tolerance: Tolerance,
    *,
    against: str = "PyTorch",
) -> list[Agreement]:
    """Compare each engine with `reference`, named `against` in messages, on all `feeds`.

    All comparisons run; then an `ExportError` names every failure with its differences. Images whose normalization
    amplifies rounding (`_tolerance_for`) are run, but any difference is allowed.
    """
    answers = [(feed, reference(feed)) for feed in feeds]
    few = min(MINIMUM_JUDGED_PIXELS, max(wanted[0, :, :, 0].size for _, wanted in answers))
    expected = [(feed, wanted, _tolerance_for(tolerance, feed, wanted, few)) for feed, wanted in answers]
    agreements = [
        compare(engine.name, *_run(engine, feed, wanted.shape), wanted, allowed)
        for engine in engines
        for feed, wanted, allowed in expected
    ]
    for agreement in agreements:
        log.debug("%s at %s: %s", agreement.engine, agreement.shape, _figures(agreement))
    refuse_failures(agreements, tolerance, against)
    return agreements


def _run(engine: Engine, feed: Feeds, shape: tuple[int, ...]) -> tuple[Pixels, bool | None]:
    """Run the engine; raises `ExportError` if it fails."""
    try:
        return engine.run(feed)
    except NstError:
        raise
    except Exception as error:  # ONNX Runtime's exceptions have no common root
        reason = " ".join(str(error).split())
        raise ExportError(f"not published: {engine.name} fails at {_shown(shape)}: {reason[:200]}") from error


def _tolerance_for(tolerance: Tolerance, feed: Feeds, wanted: Pixels, few: int) -> Tolerance:
    """Return `tolerance`, or `UNLIMITED` for images whose normalization amplifies rounding a hundredfold.

    Those are images of one color, which have no variance, and in half precision images of fewer than `few` pixels.
    """
    flat = IMAGE in feed and bool((feed[IMAGE] == feed[IMAGE][:, :1, :1]).all())
    small = tolerance.psnr is not None and wanted[0, :, :, 0].size < few
    return UNLIMITED if flat or small else tolerance


def compare(engine: str, answer: Pixels, finite: bool | None, wanted: Pixels, tolerance: Tolerance) -> Agreement:
    """Compare `answer` with `wanted`, both `uint8 [N, H, W, 3]`; raises `ExportError` for another shape or type."""
    n, height, width, _ = wanted.shape
    if answer.shape != wanted.shape or answer.dtype != np.uint8:
        raise ExportError(
            f"not published: {engine} returns {answer.dtype} {answer.shape}, PyTorch uint8 {wanted.shape}"
        )
    difference = np.abs(answer.astype(np.int16) - wanted.astype(np.int16))
    mean_square = float(np.mean(np.square(difference, dtype=np.float64)))
    psnr = 10 * float(np.log10(255**2 / mean_square)) if mean_square else None
    maximum = int(difference.max())
    passed = maximum <= tolerance.max_difference and finite is not False
    passed = passed and (psnr is None or tolerance.psnr is None or psnr >= tolerance.psnr)
    return Agreement(
        engine,
        (n, height, width),
        maximum,
        float(difference.mean()),
        float(np.quantile(difference, 0.999)),
        psnr,
        finite,
        passed,
        judged=tolerance != UNLIMITED,
    )


def refuse_failures(agreements: Sequence[Agreement], tolerance: Tolerance, against: str = "PyTorch") -> None:
    """Raise an `ExportError` that names every failed comparison, if there are any."""
    failed = [agreement for agreement in agreements if not agreement.passed]
    if not failed:
        return
    allowed = f"at most {tolerance.max_difference} of 255"
    allowed += f" and a PSNR of at least {tolerance.psnr:g} dB" if tolerance.psnr else ""
    figures = "; ".join(
        f"{agreement.engine} at {_shown(agreement.shape)}: {_figures(agreement)}" for agreement in failed
    )
    raise ExportError(f"not published: the exported model differs from {against}: {figures} (allowed: {allowed})")


def _figures(agreement: Agreement) -> str:
    if agreement.finite is False:
        return "values that are not finite"
    return f"{agreement.max_difference} of 255" + (f", {agreement.psnr:.1f} dB" if agreement.psnr is not None else "")


def _shown(shape: Sequence[int]) -> str:
    """Return batch, height and width as text, such as `1x333x501`."""
    return "x".join(map(str, shape[:3]))
