"""Blocking work in a thread that a cancelled command waits for."""

import asyncio
import contextlib
import threading
from collections.abc import Callable

from reflux.agents.errors import RefluxError


async def cancellable(work: Callable[[threading.Event], object]) -> None:
    """Run blocking work in a thread; on cancellation, signal it to stop and wait for it."""
    stop = threading.Event()
    future = asyncio.get_running_loop().run_in_executor(None, work, stop)
    try:
        await asyncio.shield(future)
    except asyncio.CancelledError:
        stop.set()
        with contextlib.suppress(RefluxError):
            await future
        raise
