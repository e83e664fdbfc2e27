"""An external graph as a system: a user's LangGraph graph or any LangChain Runnable.

Its input is `{"question": …}` or `{"messages": […]}`, whichever its input schema names (for a chat
model: the question alone). Its answer is the output's `answer`, else the text of its last message,
else the output itself where that is text; a `confidence` between 0 and 1 beside it is recorded.
Every answer is one row of the call log, of kind `graph`, so that no question is asked twice.
"""

# pyright: reportMissingTypeStubs=false

import asyncio
import hashlib
import inspect
import json
import math
import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_type_hints

from langchain_core.callbacks import AsyncCallbackHandler
from langchain_core.language_models import BaseLanguageModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.runnables import Runnable, RunnableLambda
from langgraph.graph import StateGraph

from reflux.agents.clients.retries import worth_retrying
from reflux.agents.errors import EndpointError, RefluxError, UsageError
from reflux.agents.prompts import redact
from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.amplify.state import Outcome, Status, accepted_status, is_accepted
from reflux.graphs.evals.user_code import load_object
from reflux.graphs.traces.store import CallKey

BOTH = frozenset(("question", "messages"))


@dataclass(frozen=True)
class Loaded:
    """A graph and its name."""

    name: str
    runnable: Runnable[Any, Any]
    digest: str
    """Of its file, without what the file imports. Another digest asks every question again."""


def load_graph(name: str) -> Loaded:
    """The graph of `module:graph` or `path/file.py:graph`, compiled.

    Raises:
        UsageError: there is no such module or graph, or the object cannot be invoked.
        RefluxError: the module fails when it is imported.
    """
    graph, module = load_object(name)
    if isinstance(graph, StateGraph):
        try:
            graph = cast(Any, graph).compile()
        except Exception as error:
            raise UsageError(
                f"{name} cannot be compiled: {type(error).__name__}: {error}; correct the graph"
            ) from error
    elif not isinstance(graph, Runnable) and callable(graph):
        _check_takes_question(name, cast(Any, graph))
        graph = RunnableLambda(cast(Any, graph))
    if not isinstance(graph, Runnable):
        raise UsageError(
            f"{name} is of type {type(graph).__name__}; it must be a LangGraph graph, another "
            "Runnable, or a function of the question"
        )
    file = Path(module.__file__ or "")
    source = file.read_bytes() if file.is_file() else b""
    digest = hashlib.sha256(name.encode() + b"\0" + source).hexdigest()[:16]
    return Loaded(name, cast(Any, graph), f"graph:{digest}")


def _check_takes_question(name: str, function: Callable[..., Any]) -> None:
    """A function without parameters is usually a factory of a graph."""
    try:
        inspect.signature(function).bind("question")
    except TypeError as error:
        raise UsageError(
            f"{name} is a function that does not take one question ({error}); name a graph, or a "
            "function of the question: if it creates a graph, write `graph = "
            f"{name.rpartition(':')[2]}()` there, and name that"
        ) from error
    except ValueError:
        return  # Some functions written in C have no signature.


class Meter(AsyncCallbackHandler):
    """Counts the model calls within a graph, and their tokens where the model reports them."""

    def __init__(self) -> None:
        self.calls = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0

    async def on_llm_end(self, response: LLMResult, **_: Any) -> None:
        """Count one call."""
        self.calls += 1
        for generation in (one for several in response.generations for one in several):
            message = generation.message if isinstance(generation, ChatGeneration) else None
            if isinstance(message, AIMessage) and message.usage_metadata:
                self._add(message.usage_metadata)

    def read(self, output: Any) -> None:
        """Count the usage in the output's messages, where no callback reported a call."""
        if self.calls:
            return
        messages: list[Any] = [output]
        if isinstance(output, Mapping):
            messages += cast(Mapping[str, Any], output).get("messages") or ()
        for message in messages:
            if isinstance(message, AIMessage) and message.usage_metadata:
                self.calls += 1
                self._add(message.usage_metadata)

    def columns(self, start: float) -> dict[str, Any]:
        """The columns of the call that began at `start`, by `time.perf_counter`."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "seconds": time.perf_counter() - start,
            "cached": 0,
        }

    def _add(self, usage: UsageMetadata) -> None:
        self.prompt_tokens += usage["input_tokens"]
        self.completion_tokens += usage["output_tokens"]


@dataclass
class ExternalGraph:
    """Answers by an external graph."""

    context: AmplifyContext
    loaded: Loaded

    def __post_init__(self) -> None:
        self._keys = _input_keys(self.loaded.runnable)

    async def answer(self, question: str, question_id: str) -> Outcome:
        """Replay the answer from the log, or run the graph; an exception is a failed outcome.

        Raises:
            ReplayError: the log holds another graph's answer under this id.
        """
        key = CallKey(question_id, "", "graph")
        request = hashlib.sha256(json.dumps([self.loaded.digest, question]).encode())
        columns: dict[str, Any] = {
            "kind": "graph",
            "model": self.loaded.name,
            "model_digest": self.loaded.digest,
            "request_digest": request.hexdigest()[:32],
            "messages": json.dumps([{"role": "user", "content": question}]),
        }
        recorded_client = self.context.recorded_client
        if (row := recorded_client.find(key, columns)) is not None:
            return await self._replayed(question, key, row)
        meter, start = Meter(), time.perf_counter()
        try:
            async with asyncio.timeout(self.context.limits.seconds):
                output = await self.loaded.runnable.ainvoke(
                    self._input(question), {"callbacks": [meter]}
                )
            answer, confidence = read_output(output)
            meter.read(output)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | GeneratorExit) or _is_cancelled():
                raise
            # Failures of the user's code are values, even a SystemExit.
            failure = _failure(self.loaded.name, error, self.context.limits.seconds)
            # Without "error" the failure is the graph's own, and counts as its answer.
            reason = "error" if isinstance(failure, EndpointError) else "graph"
            columns |= meter.columns(start) | {"completion": "", "finish_reason": reason}
            await recorded_client.store.add_call(key, columns | {"error": str(failure)})
            done = {"answer": None, "error": str(failure), "calls": meter.calls}
            return await self._ended(question, key, done, 0)
        done = {"answer": redact(answer), "confidence": confidence, "calls": meter.calls}
        columns |= meter.columns(start) | {"completion": json.dumps(done)}
        if (row := await recorded_client.add(key, columns)) is not None:
            return await self._replayed(question, key, row)
        return await self._ended(question, key, done, meter.prompt_tokens + meter.completion_tokens)

    async def _replayed(self, question: str, key: CallKey, row: sqlite3.Row) -> Outcome:
        tokens = row["prompt_tokens"] + row["completion_tokens"]
        return await self._ended(question, key, json.loads(row["completion"]), tokens)

    def _input(self, question: str) -> Any:
        if self._keys is None:
            return question
        values = {"question": question, "messages": [HumanMessage(question)]}
        return {name: value for name, value in values.items() if name in self._keys}

    async def _ended(
        self, question: str, key: CallKey, done: Mapping[str, Any], tokens: int
    ) -> Outcome:
        answer = None if done["answer"] is None else self.context.normalise(done["answer"])
        status: Status = "failed"
        if answer is not None:
            passed = self.context.checker.check(question, answer).ok
            status = accepted_status(has_check=self.context.has_rules) if passed else "rejected"
        outcome: Outcome = {
            "answer": answer,
            "status": status,
            "error": done.get("error"),
            "spent": {"calls": done["calls"], "cached": 0, "tokens": tokens},
        }
        detail = {"question": question, "confidence": done.get("confidence"), **outcome}
        store = self.context.recorded_client.store
        await store.add_judgement(key.question, "", "outcome", is_accepted(status), detail, key="0")
        return outcome


def _is_cancelled() -> bool:
    """True where this question is cancelled, and not the graph alone."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _input_keys(runnable: Runnable[Any, Any]) -> frozenset[str] | None:
    """Which of `question` and `messages` it takes; None where it takes the text of the question."""
    if isinstance(runnable, BaseLanguageModel | RunnableLambda):
        return None
    properties = _properties(runnable)
    if properties is None:
        return None
    named = properties & BOTH
    if properties and not named:
        raise UsageError(
            f"the graph takes {', '.join(sorted(properties))}; it must take `question` or "
            "`messages`"
        )
    return named or BOTH  # It takes an object of any keys.


def _properties(runnable: Runnable[Any, Any]) -> frozenset[str] | None:
    """The keys of its input, empty where it takes any; None where its input is not an object."""
    state = getattr(getattr(runnable, "builder", None), "input_schema", None)
    try:
        if isinstance(state, type) and (hints := get_type_hints(state)):
            return frozenset(hints)
        schema: Mapping[str, Any] = runnable.get_input_jsonschema()
    except Exception:  # noqa: BLE001 - some inputs have no readable schema
        return frozenset()
    if "properties" not in schema and schema.get("type") != "object":
        return None
    return frozenset(schema.get("properties") or ())


def read_output(output: Any) -> tuple[str, float | None]:
    """(answer, confidence) of a graph's output.

    Raises:
        ValueError: there is no answer that can be compared.
    """
    if not isinstance(output, Mapping):
        return _text(output), None
    values = cast(Mapping[str, Any], output)
    if "__interrupt__" in values:
        raise ValueError("it waits for human input, for which an evaluation cannot wait")
    stated = values.get("confidence")
    valid = isinstance(stated, int | float) and not isinstance(stated, bool) and 0 <= stated <= 1
    confidence = float(cast(float, stated)) if valid else None
    if "answer" in values:
        return _text(values["answer"]), confidence
    messages = values.get("messages")
    if isinstance(messages, list) and messages:
        return _text(cast(list[Any], messages)[-1]), confidence
    keys = ", ".join(map(str, values)) or "nothing"
    raise ValueError(f"its output holds {keys}, and neither `answer` nor `messages`")


def _text(value: Any) -> str:
    if isinstance(value, BaseMessage):
        return value.text
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return json.dumps(value)
    raise ValueError(
        f"its answer is of type {type(value).__name__}, no text that could be compared"
    )


def _failure(name: str, error: BaseException, seconds: float | None) -> RefluxError:
    """A transient error is an outage, which is not scored; any other error is the graph's own."""
    text = redact(" ".join(f"{type(error).__name__}: {error}".split()))[:300]
    text = text.encode(errors="replace").decode()  # Half a surrogate pair cannot be recorded.
    if isinstance(error, TimeoutError) and not error.args and seconds is not None:
        return RefluxError(f"no answer in {seconds:g} s")
    if isinstance(error, Exception) and worth_retrying(error):
        return EndpointError(f"{name} failed: {text}; is what it asks up?")
    return RefluxError(text)
