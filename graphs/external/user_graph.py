"""A user's graph: made in a separate thread, and asked within a time limit.

Every question gets its own checkpoint thread, and the store of memories as it was at first.
"""

# pyright: reportMissingTypeStubs=false

import asyncio
import copy
import hashlib
import json
import os
import threading
import time
import uuid
from collections import defaultdict
from contextlib import AsyncExitStack
from dataclasses import asdict
from typing import Any, cast

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.runnables import Runnable
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.pregel import Pregel
from langgraph.store.memory import InMemoryStore

from reflux.agents.clients.langchain import SECRET_NAME, finish_of, read_message
from reflux.agents.errors import RefluxError, UsageError
from reflux.graphs.external.graph_host import BEAT_SECONDS, GraphThread, ThreadLost, open_graph
from reflux.graphs.external.graph_values import (
    GraphInput,
    GraphOptions,
    read_output,
    values_of,
    waits_for_human,
)
from reflux.graphs.external.recorder import Recorder
from reflux.graphs.external.user_code import Project, one_line, user_traceback
from reflux.graphs.external.user_sources import reference

ENDING = 40
"""Characters at the end of a reply by which an answer that holds more is known to end in it."""


class TooLong(Exception):
    """A question took longer than its time limit."""


class Meter(BaseCallbackHandler):
    """Counts the model calls within a graph, and their tokens where the model reports them; knows
    the replies that a token limit cut."""

    run_inline = True

    def __init__(self) -> None:
        self.calls = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self._cut: list[str] = []
        self._lock = threading.Lock()

    def on_llm_end(self, response: LLMResult, **_: Any) -> None:
        """Count one call, streamed or not."""
        with self._lock:
            self.calls += 1
            for generation in (one for several in response.generations for one in several):
                message = generation.message if isinstance(generation, ChatGeneration) else None
                if isinstance(message, AIMessage):
                    self._read(message, count=True)
                elif finish_of(generation.generation_info or {}) == "length":
                    self._cut.append(generation.text.strip())

    def read(self, output: Any) -> None:
        """Read the messages of the output, and count their usage where no callback reported a
        call."""
        counts = not self.calls
        messages: list[Any] = [output, *((values_of(output) or {}).get("messages") or ())]
        for message in messages:
            if isinstance(message, AIMessage):
                self.calls += bool(counts and message.usage_metadata)
                self._read(message, count=counts)

    def was_cut(self, answer: str) -> bool:
        """True where an answer is a reply that the token limit cut, or ends as a long one does."""
        answer = answer.strip()
        return any(
            answer == cut or (len(cut) >= ENDING and answer.endswith(cut[-ENDING:]))
            for cut in self._cut
        )

    def columns(self, start: float) -> dict[str, Any]:
        """The columns of the call that began at `start`, by `time.perf_counter`."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "seconds": time.perf_counter() - start,
            "cached": 0,
        }

    def _read(self, message: AIMessage, *, count: bool) -> None:
        reply = read_message(message)
        if count:
            self.prompt_tokens += reply.prompt_tokens
            self.completion_tokens += reply.completion_tokens
        if reply.finish_reason == "length":
            self._cut.append(reply.text.strip())


class UserGraph:
    """A user's graph, its name, and the thread that it runs in."""

    def __init__(
        self,
        name: str,
        value: Any,
        digest: str,
        options: GraphOptions | None = None,
        project: Project | None = None,
    ) -> None:
        """
        Args:
            value: a graph, or what creates one; see `reflux.graphs.external.graph_host`.
            digest: of its sources; another one asks every question again.
        """
        self.name = name
        self.digest = digest
        self.options = options or GraphOptions()
        self.notes: list[str] = []
        self._value = value
        self._project = project
        self._thread = GraphThread()
        self._runnable: Runnable[Any, Any] | None = None
        self._opening = asyncio.Lock()
        self._input: GraphInput | None = None
        self._sync = False

    async def open(self) -> None:
        """Make the graph, unless it is made.

        Raises:
            UsageError: it is no graph, or it is not known which of its keys gets the question.
            RefluxError: what creates it fails.
        """
        async with self._opening:
            if self._runnable is None or self._thread.lost:
                self._thread = GraphThread()
                self._runnable = await self._start(self._thread)

    async def _start(self, thread: GraphThread) -> Runnable[Any, Any]:
        self._activate()

        async def make(stack: AsyncExitStack) -> Runnable[Any, Any]:
            runnable = await open_graph(self.name, self._value, self.options, stack)
            self._input = GraphInput(self.name, runnable, self.options)
            if isinstance(saver := getattr(runnable, "checkpointer", None), BaseCheckpointSaver):
                self._sync = await _is_sync(cast(Any, saver))
            return runnable

        try:
            runnable = await thread.start(make)
        except (RefluxError, asyncio.CancelledError):
            raise
        except Exception as error:
            failure = RefluxError(
                f"{self.name} fails when its graph is created: {one_line(error)}; correct it"
            )
            failure.add_note(user_traceback(error))
            raise failure from error
        if self.options.context and not isinstance(runnable, Pregel):
            raise UsageError(
                f"{self.name} is no LangGraph graph and takes no --context: leave it out"
            )
        store = getattr(runnable, "store", None)
        if store is not None and not isinstance(store, InMemoryStore) and not self.notes:
            self.notes.append(f"{self.name}: all questions share its {type(store).__name__}")
        return runnable

    async def ask(
        self, question: str, seconds: float, meter: Meter, recorder: Recorder | None = None
    ) -> tuple[str, float | None]:
        """(answer, confidence) of the graph; the `recorder` hears of its calls.

        Raises:
            TooLong: no answer in time.
            RefluxError: it blocks or ends its event loop.
            Exception: the graph's own, or the output holds no answer.
        """
        await self.open()
        self._activate()
        heard = (meter,) if recorder is None else (meter, recorder)
        try:
            return await self._ask(self._thread, self._runnable, question, seconds, heard)
        except ThreadLost:
            pass  # Perhaps by another question: this one gets a thread for itself.
        alone = GraphThread()
        runnable = await self._start(alone)
        try:
            return await self._ask(alone, runnable, question, seconds, heard)
        except ThreadLost as lost:
            raise RefluxError(str(lost)) from lost
        finally:
            alone.close()

    async def _ask(
        self,
        thread: GraphThread,
        runnable: Any,
        question: str,
        seconds: float,
        heard: tuple[Meter, *tuple[Recorder, ...]],
    ) -> tuple[str, float | None]:
        begun: list[float] = []

        async def work() -> tuple[str, float | None]:
            begun.append(time.monotonic())
            limit = asyncio.timeout(seconds)
            try:
                async with limit:
                    return await self._invoke(runnable, question, heard)
            except TimeoutError as error:
                if limit.expired():
                    raise TooLong(f"no answer in {seconds:g} s") from error
                raise

        answer = asyncio.wrap_future(thread.submit(work))
        try:
            while not (await asyncio.wait({answer}, timeout=seconds + BEAT_SECONDS))[0]:
                if await thread.is_blocked():
                    thread.lose(
                        f"no answer in {seconds:g} s: it blocks its event loop; await what takes "
                        "long, or make the node a plain function"
                    )
                elif begun and time.monotonic() > begun[0] + seconds + BEAT_SECONDS:
                    raise TooLong(f"no answer in {seconds:g} s, and it does not stop when told to")
            return answer.result()
        finally:
            answer.cancel()

    async def _invoke(
        self, runnable: Any, question: str, heard: tuple[Meter, *tuple[Recorder, ...]]
    ) -> tuple[str, float | None]:
        thread_id = uuid.uuid4().hex
        # Chains with a history of messages call their thread a session.
        configurable = {"session_id": thread_id, **self.options.configurable}
        config = {"callbacks": [*heard], "configurable": {**configurable, "thread_id": thread_id}}
        more = {"context": dict(self.options.context)} if self.options.context else {}
        if isinstance(store := getattr(runnable, "store", None), InMemoryStore):
            runnable = runnable.copy({"store": _copied(store)})
        given = self._input.of(question) if self._input else question
        if self._sync:
            output = await asyncio.to_thread(runnable.invoke, given, config, **more)
        else:
            output = await runnable.ainvoke(given, config, **more)
        if saver := getattr(runnable, "checkpointer", None):
            await self._check_finished(runnable, config)
        if isinstance(saver, InMemorySaver):
            saver.delete_thread(thread_id)
        answer = read_output(output, self.options.output_key, given)
        heard[0].read(output)
        return answer

    async def _check_finished(self, graph: Any, config: Any) -> None:
        """
        Raises:
            ValueError: the graph was compiled to wait before or after a node, and does.
        """
        if graph.interrupt_before_nodes or graph.interrupt_after_nodes:
            sync = self._sync
            state = await (
                asyncio.to_thread(graph.get_state, config) if sync else graph.aget_state(config)
            )
            if state.next:
                raise waits_for_human(f"it stops before {', '.join(state.next)}")

    def hint(self, error: BaseException) -> str:
        """What may be missing in the call of a graph that raised this error."""
        given = values_of(self._input.of("")) if self._input else None
        if given and isinstance(error, KeyError) and error.args[:1] not in [(k,) for k in given]:
            return f"; it was given {', '.join(given)}: --input-key names another key"
        wants_keys = "must be a dict" in str(error) or "indices must be integers" in str(error)
        if wants_keys and given is None:
            return "; it was given a text: --input-key names the key that gets the question"
        schema = getattr(self._runnable, "context_schema", None)
        lacks = isinstance(error, AttributeError | TypeError | KeyError)
        if lacks and schema is not None and not self.options.context:
            keys = ", ".join(getattr(schema, "__annotations__", ()))
            return f"; its context is not set: --context sets {keys}"
        return ""

    def _activate(self) -> None:
        if self._project is not None:
            self._project.activate()

    async def close(self) -> None:
        """End the graph's thread, and close there what was opened."""
        self._thread.close()
        await asyncio.to_thread(self._thread.join)


def load_graph(name: str, options: GraphOptions | None = None) -> UserGraph:
    """The graph of `module:graph`, `path/file.py:graph` or `langgraph.json:graph`, not made yet.

    Raises:
        UsageError: there is no such module or object.
        MissingError, RefluxError: see `reflux.graphs.external.user_code.Project.load`.
    """
    options = options or GraphOptions()
    project = Project(reference(name))
    value, module = project.load()
    parts: list[Any] = [name, project.digest(module), asdict(options)]
    if env := {k: os.environ[k] for k in project.ref.env if not SECRET_NAME.search(k)}:
        parts.append(env)
    digest = hashlib.sha256(json.dumps(parts, default=str, sort_keys=True).encode()).hexdigest()
    return UserGraph(name, value, f"graph:{digest[:16]}", options, project)


async def _is_sync(saver: BaseCheckpointSaver[Any]) -> bool:
    """True for a checkpointer that works in synchronous runs alone."""
    try:
        await saver.aget_tuple({"configurable": {"thread_id": uuid.uuid4().hex}})
    except NotImplementedError:
        return True
    except Exception:  # noqa: BLE001 - the first question tells what is wrong
        return False
    return False


def _copied(store: InMemoryStore) -> InMemoryStore:
    """The store with what it held when the graph was made; what a question adds is its own."""
    fresh, held = copy.copy(store), cast(Any, store)
    cast(Any, fresh)._data = defaultdict(dict, {name: dict(d) for name, d in held._data.items()})
    vectors: Any = defaultdict(lambda: defaultdict(dict))
    for name, keys in held._vectors.items():
        vectors[name].update({key: dict(paths) for key, paths in keys.items()})
    cast(Any, fresh)._vectors = vectors
    return fresh
