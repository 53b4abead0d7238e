"""Retries: after which errors, how often, and after which pauses a request is sent again."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from nst_client.errors import Unavailable, Unreachable
from nst_client.transports.coroutines import sleep
from nst_core.errors import InputError

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 8.0
"""The first pause and the longest. Each is twice the previous one, times a random factor from 0.5 to 1."""

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class RetryPolicy:
    """Retries calls after `Unreachable` and `Unavailable`, which are temporary.

    A call and its `retries` together have `timeout` seconds. With `aio` the pauses do not block the event loop. Raises
    `InputError` for an invalid value.
    """

    timeout: float
    retries: int
    aio: bool

    def __post_init__(self) -> None:
        if not self.timeout > 0 or self.retries < 0:
            raise InputError(
                f"timeout is {self.timeout} and retries {self.retries}; give a timeout above 0 and at least 0 retries"
            )

    async def call(self, function: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """Return the result of `function(*arguments, seconds)`, or raise its last error.

        `seconds` is the time left. No request changes anything on the server, so sending it twice is safe.
        """
        deadline = time.monotonic() + self.timeout
        attempt = 0
        while True:
            try:
                return await function(*arguments, deadline - time.monotonic())
            except (Unreachable, Unavailable) as error:
                pause = pause_seconds(attempt)
                if attempt >= self.retries or time.monotonic() + pause >= deadline:
                    raise
                log.info("retry %d of %d in %.1f s after: %s", attempt + 1, self.retries, pause, error)
            await sleep(pause, aio=self.aio)
            attempt += 1


def pause_seconds(attempt: int) -> float:
    """Return the pause after a failed attempt, in seconds; the first attempt is number 0."""
    longest: float = min(FIRST_PAUSE_SECONDS * 2**attempt, LONGEST_PAUSE_SECONDS)
    return longest * random.uniform(0.5, 1.0)
