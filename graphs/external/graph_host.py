"""Makes a user's graph, and runs it in a separate thread, whose event loop it may block.

Made of: a compiled or uncompiled StateGraph, an `@entrypoint`, any Runnable, a function of the
question, a class or object with `invoke`, or what creates one of them: a function without
parameters or of a `config`, async too, also as a context manager.
"""

import asyncio
import functools
import inspect
import threading
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from typing import Any, cast, get_args

from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from langgraph.graph import StateGraph

from reflux.agents.errors import UsageError
from reflux.graphs.external.graph_values import HISTORY_KEYS, QUESTION_KEYS, GraphOptions
from reflux.graphs.external.user_code import class_of, hints_of, one_line, parameters_of

CONFIG_NAMES = ("config", "cfg", "conf", "configuration", "runnable_config", "_config", "_")
"""Parameters by which a function is known as one that creates a graph."""
ASKING_NAMES = ("question", "messages", "inputs", "state", "data", "q", "x")
"""Parameters by which a function without required ones is known as one of the question."""
METHODS = ("arun", "run", "aquery", "query", "chat", "kickoff", "predict", "forward", "generate")
"""Methods of other frameworks' agents that take the question."""
END_SECONDS = 5.0
"""Maximum time for a graph's thread to close what it opened."""
BEAT_SECONDS = 2.0
"""Maximum time for an event loop to answer, unless something blocks it."""


async def open_graph(
    name: str, value: Any, options: GraphOptions, stack: AsyncExitStack
) -> Runnable[Any, Any]:
    """The Runnable that an object is or creates; the stack keeps what has to be closed.

    Raises:
        UsageError: it is or creates none.
    """
    for _ in range(5):  # What a function creates may have to be awaited, and entered, and so on.
        if inspect.isawaitable(value):
            value = await value
        if isinstance(value, Runnable):
            return cast(Runnable[Any, Any], value)
        if isinstance(value, StateGraph):
            return _compiled(name, cast(Any, value))
        if inspect.isclass(value):
            value = _instance(name, value)
        elif hasattr(value, "__aenter__"):
            value = await stack.enter_async_context(value)
        elif hasattr(value, "__enter__") and not hasattr(value, "invoke"):
            value = stack.enter_context(value)
        elif hasattr(value, "invoke") or hasattr(value, "ainvoke"):
            return _of_methods(name, value)
        elif not callable(value):
            break
        elif (arguments := _factory_arguments(value, options)) is None:
            return _of_function(name, value)
        else:
            value = value(*arguments)
    methods = [each for each in METHODS if callable(getattr(value, each, None))]
    method = f"; name its method as {name}.{methods[0]}" if methods else ""
    raise UsageError(
        f"{name} is of type {type(value).__name__}; it must be a LangGraph graph, another "
        f"Runnable, a function of the question, or a function that creates one of them{method}"
    )


def _compiled(name: str, graph: Any) -> Runnable[Any, Any]:
    try:
        return graph.compile()
    except Exception as error:
        raise UsageError(
            f"{name} cannot be compiled: {type(error).__name__}: {error}; correct the graph"
        ) from error


def _instance(name: str, kind: Any) -> Any:
    if any(map(_is_required, parameters_of(kind) or ())):
        raise UsageError(f"{name} is a class whose objects need arguments; name an object of it")
    return kind()


def _of_methods(name: str, value: Any) -> Runnable[Any, Any]:
    invoke, ainvoke = getattr(value, "invoke", None), getattr(value, "ainvoke", None)
    if invoke is None or ainvoke is None or inspect.iscoroutinefunction(invoke):
        return _of_function(name, invoke or ainvoke)
    return _of_function(name, invoke, ainvoke)


def _of_function(name: str, function: Any, coroutine: Any = None) -> Runnable[Any, Any]:
    parameters = parameters_of(function)
    if parameters is not None:
        names = [p.name for p in parameters[1:] if _is_required(p)]
        # LangChain passes these itself.
        names = [each for each in names if each not in ("config", "run_manager")]
        if not parameters or any(each not in HISTORY_KEYS for each in names):
            raise UsageError(
                f"{name} does not take one question: its parameters are "
                f"{', '.join(p.name for p in parameters) or 'none'}; name a graph, a function of "
                "the question, or one without parameters, or with `config`, that creates a graph"
            )
        if names:
            function = functools.partial(function, **{each: [] for each in names})
    return RunnableLambda(function) if coroutine is None else RunnableLambda(function, coroutine)


def _is_required(parameter: inspect.Parameter) -> bool:
    variadic = (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    return parameter.default is parameter.empty and parameter.kind not in variadic


def _factory_arguments(function: Callable[..., Any], options: GraphOptions) -> list[Any] | None:
    """What to call a function with that creates a graph; None for a function of the question."""
    parameters, hints = parameters_of(function), hints_of(function)
    if parameters is None:
        return None
    required = [parameter for parameter in parameters if _is_required(parameter)]
    creates = _is_context_manager(function) or _creates_graph(hints.get("return"))
    if not required:
        asks = any(p.name in (*ASKING_NAMES, *QUESTION_KEYS) for p in parameters)
        variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        return None if not creates and (asks or variadic) else []
    first, hint = required[0], hints.get(required[0].name)
    named = first.name in CONFIG_NAMES or hint is RunnableConfig or creates
    if len(required) > 1 or not named or hint is str or first.kind is first.KEYWORD_ONLY:
        return None
    kind = class_of(hint)
    if kind is None or issubclass(kind, Mapping):
        return [{"configurable": dict(options.configurable)}]
    return [kind(**options.configurable)]


def _is_context_manager(function: Any) -> bool:
    """True for a function of `@contextmanager` or `@asynccontextmanager`."""
    inner = getattr(function, "__wrapped__", None)
    kinds = (inspect.isgeneratorfunction, inspect.isasyncgenfunction)
    return any(is_kind(inner) and not is_kind(function) for is_kind in kinds)


def _creates_graph(hint: Any) -> bool:
    """True for the type of a graph, or of a context or an iterator that yields one."""
    kinds = [kind for each in (hint, *get_args(hint)) if (kind := class_of(each)) is not None]
    return any(issubclass(kind, Runnable | StateGraph) for kind in kinds)


class ThreadLost(Exception):
    """What ran in a graph's thread got no result: something blocks its event loop, or ended it."""


class GraphThread:
    """A daemon thread with an event loop, in which one user's graph is made and runs.

    What blocks there, even forever, stops neither our own event loop nor a time limit.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: asyncio.Event | None = None
        self._pending: set[Future[Any]] = set()
        self._worker: threading.Thread | None = None
        self.lost: str | None = None
        """Why the thread takes no more work."""

    async def start(self, open_in: Callable[[AsyncExitStack], Awaitable[Any]]) -> Any:
        """Start the thread; what `open_in` makes there lives until `close`."""
        made: Future[Any] = Future()
        self._pending.add(made)
        self._worker = threading.Thread(target=self._work, args=(open_in, made), daemon=True)
        self._worker.start()
        return await asyncio.wrap_future(made)

    def _work(self, open_in: Callable[[AsyncExitStack], Awaitable[Any]], made: Future[Any]) -> None:
        try:
            asyncio.run(self._serve(open_in, made))
            self.lose("it was closed")
        except BaseException as error:  # noqa: BLE001 - a task that exits ends the loop
            self.lose(one_line(error))

    async def _serve(
        self, open_in: Callable[[AsyncExitStack], Awaitable[Any]], made: Future[Any]
    ) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        self._loop.set_default_executor(OwnThreads())
        async with AsyncExitStack() as stack:
            try:
                opened = await open_in(stack)
            except Exception as error:  # noqa: BLE001 - raised by `start`
                _settle(made, error=error)
                return
            _settle(made, opened)
            await self._end.wait()

    def submit(self, work: Callable[[], Awaitable[Any]]) -> Future[Any]:
        """Run a coroutine in the thread.

        Raises:
            ThreadLost: the thread takes no more work.
        """
        result: Future[Any] = Future()
        self._pending.add(result)
        tasks: list[asyncio.Task[None]] = []

        async def run() -> None:
            try:
                _settle(result, await work())
            except BaseException as error:  # noqa: BLE001 - raised to whoever waits
                task = asyncio.current_task()
                if task is None or not task.cancelling():  # Else `lose` knows the reason.
                    _settle(result, error=error)
            if result.done():
                self._pending.discard(result)

        def begin() -> None:
            task = asyncio.ensure_future(run())
            tasks.append(task)  # The loop keeps weak references only.

        def end(_: Future[Any]) -> None:
            if result.cancelled() and self._loop is not None:
                with suppress(RuntimeError):
                    self._loop.call_soon_threadsafe(lambda: [task.cancel() for task in tasks])

        result.add_done_callback(end)
        try:
            if self._loop is None or self.lost:
                raise RuntimeError(self.lost)
            self._loop.call_soon_threadsafe(begin)
        except RuntimeError as error:  # Its loop is closed.
            raise ThreadLost(self.lost or "its thread ended") from error
        return result

    async def is_blocked(self) -> bool:
        """True where the event loop does not answer."""
        beat: Future[None] = Future()
        if self._loop is None or self.lost:
            return True
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(_settle, beat, None)
        done, _ = await asyncio.wait({asyncio.wrap_future(beat)}, timeout=BEAT_SECONDS)
        return not done

    def lose(self, reason: str) -> None:
        """Give the thread up, and everything that waits for it."""
        self.lost = self.lost or reason
        for future in list(self._pending):
            _settle(future, error=ThreadLost(self.lost))

    def join(self) -> None:
        """Wait until a closed thread has ended, but not forever for one that is blocked."""
        if self._worker is not None and not self.lost:
            self._worker.join(END_SECONDS)

    def close(self) -> None:
        """End the thread."""
        if self._loop is None or self._end is None or self.lost:
            return
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._end.set)


def _settle(future: Future[Any], result: Any = None, error: BaseException | None = None) -> None:
    """Set a result, unless there is one or nobody waits for it."""
    with suppress(InvalidStateError):
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)


class OwnThreads(ThreadPoolExecutor):
    """Runs each job at once in a separate daemon thread.

    asyncio's default pool has few threads: blocking graphs would wait for each other while their
    time limits run, and one that never returns would keep the program from exiting.
    """

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Start a job."""
        job: Future[Any] = Future()

        def work() -> None:
            if not job.set_running_or_notify_cancel():
                return
            loop = asyncio.new_event_loop()  # Older code gets it by `asyncio.get_event_loop()`.
            asyncio.set_event_loop(loop)
            try:
                job.set_result(fn(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001 - the job's future raises it
                job.set_exception(error)
            finally:
                loop.close()

        threading.Thread(target=work, name="own-thread", daemon=True).start()
        return job
