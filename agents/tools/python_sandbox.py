"""The Python sandbox: short programs in an interpreter without access to this machine.

pydantic-monty is a Python interpreter written in Rust. It has no sockets and no processes, gets no
files and no environment, and runs each call in a new process (about 3 ms). It supports a subset of
Python: plain classes, and of the standard library among others json, math, re, datetime, decimal,
random, itertools, collections and functools.

A program's reply is the same in every run: `random` is seeded, and there is no clock.
"""

import asyncio
import re
import sysconfig
from dataclasses import dataclass
from typing import Any, cast

from pydantic_monty import (
    CollectString,
    Monty,
    MontyCrashedError,
    MontyError,
    MontyRuntimeError,
    MontySyntaxError,
    OSPolicy,
    ResourceLimits,
)

from reflux.agents.tools.protocol import TextTool, ToolReply, cut, text_parameter
from reflux.agents.types import ToolSpec

PRINTED_BYTES = 64_000
"""Maximum output; a program that prints more is stopped."""
SHOWN_CHARS = 3_900
"""Maximum characters of the output, the last value and the error in a reply, each."""
GRACE_SECONDS = 2.0
"""Time after the limit until a process that still runs is killed."""
POLICY = OSPolicy(datetime="call_host", sleep="zero", random_start={"seed": 0})
"""No clock: the host does not answer that call. Sleeping takes no time."""
FENCED = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)
NOTHING = "(nothing was printed, and the last line has no value)"


@dataclass(frozen=True)
class SandboxLimits:
    """Limits of one program."""

    seconds: float = 5.0
    memory: int = 32 * 2**20
    """Bytes."""
    depth: int = 200


class Sandbox(TextTool):
    """Runs a Python program and replies with its output and the value of its last line.

    A failure is a reply with `ok=False`: a traceback, or the limit that stopped the program.
    """

    argument = "code"
    spec = ToolSpec(
        "python",
        "Run a short Python program. Print what you want to know, or make it the last line. It "
        "has no files, no network and no clock; of the standard library json, math, re, decimal, "
        "datetime, random, itertools, collections and functools.",
        text_parameter(argument, "The program"),
    )

    def __init__(self, limits: SandboxLimits | None = None) -> None:
        self._limits = limits or SandboxLimits()
        # Programs start in threads, and Python 3.11 fills this table on first use, unsafely.
        sysconfig.get_config_vars()

    async def answer(self, question: str) -> ToolReply:
        """Run the text, or the code block that it holds."""
        block = FENCED.search(question)
        return await super().answer(block[1] if block else question)

    async def reply(self, text: str) -> ToolReply:
        # In a thread: the package's asyncio pool aborted one in four exits of this process.
        return await asyncio.to_thread(self._run, text)

    def _run(self, code: str) -> ToolReply:
        printed = CollectString(PRINTED_BYTES)
        limits = ResourceLimits(
            max_feed_duration_secs=self._limits.seconds,
            max_memory=self._limits.memory,
            max_recursion_depth=self._limits.depth,
        )
        timeout = self._limits.seconds + GRACE_SECONDS
        try:
            with (
                Monty(min_processes=1, max_processes=1, request_timeout=timeout) as pool,
                pool.checkout(limits=limits, os_policy=POLICY) as session,
            ):
                value = session.feed_run(code, print_callback=printed)
        except MontyError as error:
            reason = self._explain(error)
            # Output before a time-out is left out, because its length would depend on timing.
            late = f"stopped: it ran for more than {self._limits.seconds:g} seconds"
            return ToolReply(_joined(printed.output, reason) if reason else late, ok=False)
        last = value if isinstance(value, str) or value is None else _written(value)
        return ToolReply(_joined(printed.output, last) or NOTHING)

    def _explain(self, error: MontyError) -> str | None:
        """Why a program failed, without measured figures; None for the time limit."""
        cause = error.exception()
        if isinstance(error, MontyCrashedError):
            return None if error.timed_out else f"stopped: its process died; {self._memory()}"
        if isinstance(cause, TimeoutError) and "limit exceeded" in str(cause):
            return None
        if isinstance(cause, MemoryError):
            return f"stopped: {self._memory()}"
        if isinstance(error, MontyRuntimeError | MontySyntaxError):
            return error.display()
        return str(error)

    def _memory(self) -> str:
        return (
            f"it may use {self._limits.memory // 2**20} MiB of memory and print "
            f"{PRINTED_BYTES // 1000} kB"
        )


def _joined(printed: str, last: str | None) -> str:
    parts = [cut(part.rstrip("\n"), SHOWN_CHARS) for part in (printed, last or "")]
    return "\n".join(part for part in parts if part)


def _written(value: Any) -> str:
    """`repr`, but with sets sorted, because their order changes between processes."""
    if type(value) in (set, frozenset):
        items = ", ".join(sorted(map(_written, cast(set[Any], value))))
        return f"{{{items}}}" if items else repr(value)
    if type(value) is dict:
        pairs = cast(dict[Any, Any], value).items()
        return f"{{{', '.join(f'{_written(k)}: {_written(v)}' for k, v in pairs)}}}"
    if type(value) is list:
        return f"[{', '.join(map(_written, cast(list[Any], value)))}]"
    if type(value) is tuple:
        items = ", ".join(map(_written, cast(tuple[Any, ...], value)))
        return f"({items},)" if len(cast(tuple[Any, ...], value)) == 1 else f"({items})"
    return repr(value)
