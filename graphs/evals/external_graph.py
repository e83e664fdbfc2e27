"""A graph that is not ours as a system: a LangGraph graph or any Runnable of LangChain.

It is given `{"question": …}` or `{"messages": […]}`, whichever its input schema names (a chat
model: the question alone). Its answer is the output's `answer`, else the text of its last message,
else the output itself where that is text; a `confidence` between 0 and 1 beside it is kept. Every
answer is one row of the call log, of kind `graph`, so that no question is asked twice.
"""

# pyright: reportMissingTypeStubs=false

import asyncio
import hashlib
import inspect
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_type_hints

from langchain_core.callbacks import AsyncCallbackHandler
from langchain_core.language_models import BaseLanguageModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.runnables import Runnable, RunnableLambda
from langgraph.graph import StateGraph

from reflux.agents.clients.langchain import worth_retrying
from reflux.agents.errors import EndpointError, RefluxError, ReplayError, UsageError
from reflux.agents.redaction import redact
from reflux.agents.types import Completion
from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.amplify.state import Outcome
from reflux.graphs.evals.user_code import load_object
from reflux.graphs.traces.store import CallKey

ROLE = "graph"
BOTH = frozenset(("question", "messages"))


@dataclass(frozen=True)
class Loaded:
    """A graph that was found by name."""

    name: str
    runnable: Runnable[Any, Any]
    digest: str
    """Of its file: another graph under the same name is asked anew. What the file imports is not
    seen."""


def load_graph(name: str) -> Loaded:
    """The graph of `module:graph` or `path/file.py:graph`, compiled.

    Raises:
        UsageError: there is no such module or graph, or it is nothing that can be invoked.
        RefluxError: the module fails when it is imported.
    """
    found, module = load_object(name)
    if isinstance(found, StateGraph):
        try:
            found = cast(Any, found).compile()
        except Exception as error:
            raise UsageError(
                f"{name} cannot be compiled: {type(error).__name__}: {error}; correct the graph"
            ) from error
    elif not isinstance(found, Runnable) and callable(found):
        _check_no_factory(name, cast(Any, found))
        found = RunnableLambda(cast(Any, found))
    if not isinstance(found, Runnable):
        raise UsageError(
            f"{name} is of type {type(found).__name__}; it must be a LangGraph graph, another "
            "Runnable, or a function of the question"
        )
    file = Path(module.__file__ or "")
    source = file.read_bytes() if file.is_file() else b""
    digest = hashlib.sha256(name.encode() + b"\0" + source).hexdigest()[:16]
    return Loaded(name, cast(Any, found), f"graph:{digest}")


def _check_no_factory(name: str, found: Callable[..., Any]) -> None:
    """A function that takes nothing cannot be given a question: it makes a graph, as a rule."""
    try:
        inspect.signature(found).bind("question")
    except TypeError as error:
        raise UsageError(
            f"{name} is a function that does not take one question ({error}); name a graph, or a "
            "function of the question: where it makes a graph, write `graph = "
            f"{name.rpartition(':')[2]}()` there, and name that"
        ) from error
    except ValueError:
        return  # Of some functions written in C, nothing is known.


class Meter(AsyncCallbackHandler):
    """Counts the model calls within a graph, and their tokens where the model tells them."""

    def __init__(self) -> None:
        self.calls = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0

    async def on_llm_end(self, response: LLMResult, **_: Any) -> None:
        """Listener of one call."""
        self.calls += 1
        for generation in (one for several in response.generations for one in several):
            message = generation.message if isinstance(generation, ChatGeneration) else None
            if isinstance(message, AIMessage) and message.usage_metadata:
                self._add(message.usage_metadata)

    def read(self, output: Any) -> None:
        """Where no call was heard of, believe the usage in the messages that came out."""
        if self.calls:
            return
        said: list[Any] = [output]
        if isinstance(output, Mapping):
            said += cast(Mapping[str, Any], output).get("messages") or ()
        for message in said:
            if isinstance(message, AIMessage) and message.usage_metadata:
                self.calls += 1
                self._add(message.usage_metadata)

    def _add(self, usage: UsageMetadata) -> None:
        self.prompt_tokens += usage["input_tokens"]
        self.completion_tokens += usage["output_tokens"]


@dataclass
class ExternalGraph:
    """Answers by a graph of the user's."""

    context: AmplifyContext
    loaded: Loaded
    _keys: frozenset[str] | None = field(init=False)

    def __post_init__(self) -> None:
        self._keys = _input_keys(self.loaded.runnable)

    async def answer(self, question: str, question_id: str) -> Outcome:
        """Replay the answer from the log, or run the graph; what it raises is a failed outcome.

        Raises:
            ReplayError: the log holds another graph's answer under this id.
        """
        key = CallKey(question_id, "", ROLE)
        request = hashlib.sha256(json.dumps([self.loaded.digest, question]).encode())
        made = {
            "kind": "graph",
            "model": self.loaded.name,
            "model_digest": self.loaded.digest,
            "request_digest": request.hexdigest()[:32],
            "messages": json.dumps([{"role": "user", "content": question}]),
        }
        recorded_client = self.context.recorded_client
        if (known := self._recorded(key, made["request_digest"])) is not None:
            return await self._ended(question, key, *known)
        meter, begun = Meter(), time.perf_counter()
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
            # The user's code: its failures are values, even that it wants to end the program.
            failure = _failure(self.loaded.name, error, self.context.limits.seconds)
            seconds = time.perf_counter() - begun
            # Without "error" the failure is the graph's own, and counts as its answer.
            reason = "error" if isinstance(failure, EndpointError) else "graph"
            row_values = _row("", meter, seconds, str(failure)) | {"finish_reason": reason}
            await recorded_client.store.add_call(key, made | row_values)
            done = {"answer": None, "error": str(failure), "calls": meter.calls}
            return await self._ended(question, key, done, 0)
        done = {"answer": redact(answer), "confidence": confidence, "calls": meter.calls}
        row_values = _row(json.dumps(done), meter, time.perf_counter() - begun, None)
        try:
            await recorded_client.store.add_call(key, made | row_values)
        except ReplayError:
            # Another process on this folder was the first: its answer counts.
            if (known := self._recorded(key, made["request_digest"])) is None:
                raise
            return await self._ended(question, key, *known)
        tokens = meter.prompt_tokens + meter.completion_tokens
        return await self._ended(question, key, done, tokens)

    def _recorded(self, key: CallKey, digest: str) -> tuple[dict[str, Any], int] | None:
        """What the log holds of the answer, and its tokens."""
        if (row := self.context.recorded_client.store.find_call(key)) is None:
            return None
        if row["request_digest"] != digest:
            raise ReplayError(f"{key} was answered by another graph; use a new --run")
        return json.loads(row["completion"]), row["prompt_tokens"] + row["completion_tokens"]

    def _input(self, question: str) -> Any:
        if self._keys is None:
            return question
        message = HumanMessage(question)
        return {
            name: value
            for name, value in (("question", question), ("messages", [message]))
            if name in self._keys
        }

    async def _ended(
        self, question: str, key: CallKey, done: Mapping[str, Any], tokens: int
    ) -> Outcome:
        answer = done["answer"]
        outcome: Outcome = {
            "answer": None if answer is None else self.context.normalise(answer),
            "status": "failed" if answer is None else "ok",
            "error": done.get("error"),
            "spent": {"calls": done["calls"], "cached": 0, "tokens": tokens},
        }
        detail = {"question": question, "confidence": done.get("confidence"), **outcome}
        store = self.context.recorded_client.store
        await store.add_judgement(key.question, "", "outcome", answer is not None, detail, key="0")
        return outcome


def _is_cancelled() -> bool:
    """True where it is this question that is to stop, and no graph that raised the like."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _input_keys(runnable: Runnable[Any, Any]) -> frozenset[str] | None:
    """What of `question` and `messages` it takes; None where it takes the question as it is."""
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
    """The keys of its input, none where any will do; None where it takes no object."""
    state = getattr(getattr(runnable, "builder", None), "input_schema", None)
    try:
        if isinstance(state, type) and (hints := get_type_hints(state)):
            return frozenset(hints)
        schema: Mapping[str, Any] = runnable.get_input_jsonschema()
    except Exception:  # noqa: BLE001 - some inputs have no schema that can be read
        return frozenset()
    if "properties" not in schema and schema.get("type") != "object":
        return None
    return frozenset(schema.get("properties") or ())


def read_output(output: Any) -> tuple[str, float | None]:
    """The answer in what a graph returned, and how sure it says it is.

    Raises:
        ValueError: there is no answer that can be compared.
    """
    if isinstance(output, Mapping):
        found = cast(Mapping[str, Any], output)
        if "__interrupt__" in found:
            raise ValueError("it waits for a person, for whom an evaluation cannot wait")
        sure = found.get("confidence")
        known = isinstance(sure, int | float) and not isinstance(sure, bool) and 0 <= sure <= 1
        confidence = float(cast(float, sure)) if known else None
        if "answer" in found:
            return _text(found["answer"]), confidence
        messages = found.get("messages")
        if isinstance(messages, list) and messages:
            return _text(cast(list[Any], messages)[-1]), confidence
        keys = ", ".join(map(str, found)) or "nothing"
        raise ValueError(f"its output holds {keys}, and neither `answer` nor `messages`")
    return _text(output), None


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
    """An error that may pass is an outage, so that it is not scored; any other is the graph's."""
    text = redact(" ".join(f"{type(error).__name__}: {error}".split()))[:300]
    text = text.encode(errors="replace").decode()  # Half a surrogate pair cannot be recorded.
    if isinstance(error, TimeoutError) and not error.args and seconds is not None:
        return RefluxError(f"no answer in {seconds:g} s")
    if isinstance(error, Exception) and worth_retrying(error):
        return EndpointError(f"{name} failed: {text}; is what it asks up?")
    return RefluxError(text)


def _row(completion: str, meter: Meter, seconds: float, error: str | None) -> dict[str, Any]:
    done = Completion(completion, meter.prompt_tokens, meter.completion_tokens, seconds)
    return {
        "completion": done.text,
        "prompt_tokens": done.prompt_tokens,
        "completion_tokens": done.completion_tokens,
        "seconds": done.seconds,
        "cached": 0,
        "error": error,
    }
