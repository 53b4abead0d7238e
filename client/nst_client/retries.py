"""Requests that are sent again: after which errors, how often, and how long after."""

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
"""Before the first retry, and at most: each pause is twice the one before it, times a random factor of 0.5 to 1."""

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class RetryPolicy:
    """Calls that are made again after `Unreachable` and `Unavailable`, which pass by themselves.

    A call and its `retries` together have `timeout` seconds. With `aio` the pauses do not block the event loop. Raises
    `InputError` for a value that is none.
    """

    timeout: float
    retries: int
    aio: bool

    def __post_init__(self) -> None:
        if not self.timeout > 0 or self.retries < 0:
            raise InputError(
                f"timeout is {self.timeout} and retries {self.retries}: they must be above 0 and not below 0"
            )

    async def call(self, function: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """The result of `function(*arguments, seconds)`, which gets the seconds that are left; its last error else.

        No request changes anything at the server, so sending it twice is safe.
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
                log.info("retry %d of %d in %.1f s: %s", attempt + 1, self.retries, pause, error)
            await sleep(pause, aio=self.aio)
            attempt += 1


def pause_seconds(attempt: int) -> float:
    """How long to wait after an attempt that failed; the first is number 0."""
    longest: float = min(FIRST_PAUSE_SECONDS * 2**attempt, LONGEST_PAUSE_SECONDS)
    return longest * random.uniform(0.5, 1.0)
