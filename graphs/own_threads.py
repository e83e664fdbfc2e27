"""A thread for each job: for code of the user's, which may block for ever."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class OwnThreads(ThreadPoolExecutor):
    """Runs each job at once, in a thread of its own that nobody waits for at the end.

    asyncio's own pool has some threads more than there are processors. Of 32 blocking graphs the
    others would wait for one while their seconds run out, and a single one that never returns would
    keep the whole program from ending.
    """

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Begin a job."""
        job: Future[Any] = Future()

        def work() -> None:
            if not job.set_running_or_notify_cancel():
                return
            try:
                job.set_result(fn(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001 - whoever waits for the job is told
                job.set_exception(error)

        threading.Thread(target=work, name="own-thread", daemon=True).start()
        return job
