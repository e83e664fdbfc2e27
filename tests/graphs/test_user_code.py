"""Code that blocks for ever keeps nobody else waiting, and no program from its end."""

import asyncio
import threading

import pytest

from reflux.graphs.external.graph_host import OwnThreads


def test_a_job_that_never_ends_does_not_keep_the_loop_open() -> None:
    never = threading.Event()

    async def main() -> str:
        asyncio.get_running_loop().set_default_executor(OwnThreads())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.to_thread(never.wait), 0.05)
        return await asyncio.to_thread(str.upper, "done")

    assert asyncio.run(main()) == "DONE"  # Closing the loop waits for what its executor waits for.
    never.set()


async def test_what_a_job_raises_is_told_to_whoever_waits() -> None:
    with OwnThreads() as threads:
        job = threads.submit(int, "no number")
        with pytest.raises(ValueError, match="no number"):
            await asyncio.wrap_future(job)
