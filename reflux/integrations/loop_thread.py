"""Sync calls run on one event loop, in a thread that all of them share."""

import asyncio
import threading
from collections.abc import Coroutine
from functools import cache
from typing import Any, TypeVar

from reflux.agents.errors import UsageError

T = TypeVar("T")


class LoopThread:
    """An event loop in a separate thread, which ends with the program.

    `asyncio.run` fails if a loop is running, as in a notebook, and closes what a call has opened.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="reflux-sync", daemon=True
        )
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine and wait for it; interrupting the wait cancels it.

        Raises:
            UsageError: called from the loop itself, which would wait forever.
        """
        if threading.current_thread() is self._thread:
            work.close()
            raise UsageError("a sync call from within a sync call would wait forever: await it")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


@cache
def loop_thread() -> LoopThread:
    """The shared thread."""
    return LoopThread()
