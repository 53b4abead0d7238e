"""What `nst stylize` reports: a line per image, and a summary at the end."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import TracebackType

from nst_client.stylize.jobs import Outcome
from nst_client.stylize.processing import StylizeOptions
from nst_client.stylize.stdio import write_to_stdout
from nst_core.console import fail, say
from nst_core.errors import InputError, NstError
from nst_core.images import unreadable_summary


class Report:
    """Reports outcomes as they arrive and, as a context manager, what failed and why."""

    def __init__(self, options: StylizeOptions, total: int, unreadable: list[Path], as_json: bool) -> None:
        self._options, self._total, self._unreadable, self._as_json = options, total, unreadable, as_json
        self._outcomes: list[Outcome] = []
        self._started = time.perf_counter()

    def add(self, outcome: Outcome) -> None:
        """Report an outcome."""
        self._outcomes.append(outcome)
        source, target = outcome.job.source, outcome.job.target
        if self._as_json:
            _write_json(
                input=str(source),
                output=str(target),
                width=outcome.width or None,
                height=outcome.height or None,
                style_weights=dict(self._options.style_weights),
                milliseconds=round(outcome.milliseconds, 1) or None,
                skipped=outcome.skipped,
                error=_message(outcome),
            )
        elif not outcome.error and not outcome.skipped:
            say(f"{source} -> {target}  {outcome.width}x{outcome.height}  {outcome.milliseconds:.0f} ms")

    def __enter__(self) -> Report:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Raise the error of a single image, or list the errors of several and raise one with their number."""
        failed = [outcome for outcome in self._outcomes if outcome.error]
        skipped = sum(outcome.skipped for outcome in self._outcomes)
        stylized = len(self._outcomes) - len(failed) - skipped
        if self._as_json and not isinstance(error, NstError | BrokenPipeError):
            _write_json(
                stylized=stylized,
                skipped=skipped,
                failed=len(failed),
                unreadable=len(self._unreadable),
                seconds=round(time.perf_counter() - self._started, 3),
            )
        if skipped:
            say(f"skipped {skipped} of {self._total} images, which are stylized already")
        if self._unreadable:
            say(unreadable_summary(self._unreadable))
        if isinstance(error, KeyboardInterrupt) and self._total > 1:
            say(f"{stylized + skipped} of {self._total} images are done; run the same command to continue")
        if not error and failed:
            self._raise(failed)

    def _raise(self, failed: list[Outcome]) -> None:
        if self._total == 1 and failed[0].error:
            raise failed[0].error
        for outcome in failed:
            if outcome.tried:
                fail(InputError(_message(outcome)))
        untried = sum(not outcome.tried for outcome in failed)
        rest = f", {untried} of them not tried" if untried else ""
        raise InputError(f"{len(failed)} of {self._total} images failed{rest}; run the same command to retry them")


def _message(outcome: Outcome) -> str | None:
    """Return the error's message, with the image's name in it."""
    if outcome.error is None:
        return None
    message = str(outcome.error)
    if not outcome.tried:
        message = f"not tried: {message}"
    return message if str(outcome.job.source) in message else f"{outcome.job.source}: {message}"


def _write_json(**values: object) -> None:
    write_to_stdout(f"{json.dumps(values)}\n".encode())
