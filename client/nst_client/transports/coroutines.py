"""Coroutines that may run without a loop: what a client does is written once, for callers with asyncio and without.

Where everything that is awaited blocks, a coroutine never suspends, and its first step is its last.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run_blocking(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never suspends."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    coroutine.close()
    raise RuntimeError("a transport that should block has suspended")


async def maybe_await(answer: Any) -> Any:
    """The answer of a call that may be a coroutine's or not."""
    return await answer if inspect.isawaitable(answer) else answer


async def pause(seconds: float, *, aio: bool) -> None:
    """Let time pass."""
    if aio:
        await asyncio.sleep(seconds)
    else:
        time.sleep(seconds)


async def in_thread(work: Callable[..., T], *arguments: Any, aio: bool) -> T:
    """What `work` returns; it takes long, so with `aio` it runs in a thread and the loop goes on."""
    return await asyncio.to_thread(work, *arguments) if aio else work(*arguments)
