"""An external graph as a system: a user's LangGraph graph or any LangChain Runnable.

Every question runs in a thread of the graph (`reflux.graphs.external.graph_host`) with its own
checkpoint thread, within a time limit. What is busy or lost for a moment, such as a rate limit, is
tried again. Every answer is one row of the call log, of kind `graph`, so that no question is asked
twice. What it calls is recorded, too: each run of it is a trajectory of source `callback`.
"""

import asyncio
import hashlib
import json
import re
import sqlite3
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

from reflux.agents.clients.reasoning import split_reasoning
from reflux.agents.clients.retries import RetryPolicy, worth_retrying
from reflux.agents.errors import EndpointError, RefluxError, UsageError
from reflux.agents.redaction import redact
from reflux.agents.verifiers import verdict_of
from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.amplify.state import Outcome, Status, accepted_status, is_accepted
from reflux.graphs.external.recorder import Recorder
from reflux.graphs.external.user_code import one_line, place_of
from reflux.graphs.external.user_graph import Meter, TooLong, UserGraph
from reflux.graphs.traces.store import CallKey

SECONDS = 300.0
"""Default time limit of a question."""
CONCURRENCY = 8
"""Default number of questions that a user's graph answers at a time."""
BUSY = re.compile(r"rate.?limit|too many requests|(status|code|http|error)\W*429", re.IGNORECASE)
"""Words of an exception without a status that is worth another try."""
MAX_CAUSES = 20
"""Exceptions that are looked at for one that may pass; their chain may be a circle."""


@dataclass
class ExternalGraph:
    """Answers by an external graph."""

    context: AmplifyContext
    graph: UserGraph
    policy: RetryPolicy = field(default_factory=RetryPolicy)
    """How what may pass is tried again."""

    async def answer(self, question: str, question_id: str) -> Outcome:
        """Replay the answer from the log, or run the graph; an exception is a failed outcome.

        Raises:
            ReplayError: the log holds another graph's answer under this id.
        """
        key = CallKey(question_id, "", "graph")
        request = hashlib.sha256(json.dumps([self.graph.digest, question]).encode())
        columns: dict[str, Any] = {
            "kind": "graph",
            "model": self.graph.name,
            "model_digest": self.graph.digest,
            "request_digest": request.hexdigest()[:32],
            "messages": json.dumps([{"role": "user", "content": question}]),
        }
        recorded_client = self.context.recorded_client
        if (row := recorded_client.find(key, columns)) is not None:
            return await self._replayed(question, key, row)
        meter, start, retries = Meter(), time.perf_counter(), list[str]()
        try:
            answer, confidence = await self._tried(question, question_id, meter, retries)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | GeneratorExit | UsageError) or _is_cancelled():
                raise
            # Failures of the user's code are values, even a SystemExit.
            failure = self._failure(error, retries)
            # Without "error" the failure is the graph's own, and counts as its answer.
            reason = "error" if isinstance(failure, EndpointError) else "graph"
            columns |= meter.columns(start) | _retried(retries)
            columns |= {"completion": "", "finish_reason": reason}
            await recorded_client.store.add_call(key, columns | {"error": str(failure)})
            done = {"answer": None, "error": str(failure), "calls": meter.calls}
            return await self._ended(question, key, done, 0)
        parts = split_reasoning(answer)
        done = {
            "answer": redact(parts.content),
            "confidence": confidence,
            "calls": meter.calls,
            "reasoning": redact(parts.reasoning),
            "cut": parts.unclosed or meter.was_cut(parts.content),
        }
        columns |= meter.columns(start) | _retried(retries) | {"completion": json.dumps(done)}
        if (row := await recorded_client.add(key, columns)) is not None:
            return await self._replayed(question, key, row)
        return await self._ended(question, key, done, meter.prompt_tokens + meter.completion_tokens)

    async def _tried(
        self, question: str, question_id: str, meter: Meter, retries: list[str]
    ) -> tuple[str, float | None]:
        """Ask the graph, again where its failure may pass, within one time limit."""
        seconds = SECONDS if self.context.limits.seconds is None else self.context.limits.seconds
        deadline = time.monotonic() + seconds

        def recorder(retry: int) -> Recorder:
            about = {"answers": question_id, "graph": self.graph.name}
            key = f"{question_id}:{retry}:{uuid.uuid4().hex[:8]}"
            return Recorder.into(self.context.recorded_client.store, key, about)

        async def attempt() -> tuple[str, float | None]:
            try:
                left = deadline - time.monotonic() if retries else seconds
                return await self.graph.ask(question, left, meter, recorder(len(retries)))
            except Exception as error:
                if (cause := transient_cause(error)) is None:
                    raise
                retries.append(one_line(cause))
                raise cause from error

        async def sleep(pause: float) -> None:
            if time.monotonic() + pause > deadline:
                raise EndpointError(
                    f"{self.graph.name} failed: {retries[-1]}; the next try would be in {pause:g} "
                    f"s, after its {seconds:g} s are over: allow a longer --time-limit, or lower "
                    "--concurrency"
                )
            await asyncio.sleep(pause)

        policy = replace(self.policy, sleep=sleep)
        return await policy.retrying(lambda error: transient_cause(error) is not None)(attempt)

    def _failure(self, error: BaseException, retries: list[str]) -> RefluxError:
        """What may pass is an outage, which is not scored; anything else is the graph's own."""
        if isinstance(error, RefluxError):
            return error
        if isinstance(error, TooLong):
            after = f" after {retries[-1]}" if retries else ""
            return RefluxError(f"{error}{after}; --time-limit sets the limit")
        if transient_cause(error) is not None:
            tries = f" after {len(retries)} tries" if len(retries) > 1 else ""
            return EndpointError(
                f"{self.graph.name} failed{tries}: {one_line(error)}; is what it asks up?"
            )
        return RefluxError(one_line(error) + place_of(error) + self.graph.hint(error))

    async def _replayed(self, question: str, key: CallKey, row: sqlite3.Row) -> Outcome:
        tokens = row["prompt_tokens"] + row["completion_tokens"]
        return await self._ended(question, key, json.loads(row["completion"]), tokens)

    async def _ended(
        self, question: str, key: CallKey, done: Mapping[str, Any], tokens: int
    ) -> Outcome:
        answer = None if done["answer"] is None else self.context.normalise(done["answer"])
        status: Status = "failed"
        if answer is not None:
            passed = verdict_of(self.context.checker, question, answer).ok
            status = accepted_status(has_check=self.context.has_rules) if passed else "rejected"
        error = done.get("error")
        if answer is not None and not answer.strip() and status != "truncated":
            status, error = "rejected", "the graph's answer is empty"
        if done.get("cut"):
            status = "truncated"
            error = None if answer else "the token limit cut the reply before its answer began"
        outcome: Outcome = {
            "answer": answer,
            "status": status,
            "error": error,
            "spent": {"calls": done["calls"], "cached": 0, "tokens": tokens},
        }
        detail = {"question": question, "confidence": done.get("confidence"), **outcome}
        store = self.context.recorded_client.store
        await store.add_judgement(key.question, "", "outcome", is_accepted(status), detail, key="0")
        return outcome


def transient_cause(error: BaseException) -> Exception | None:
    """The first exception that may pass: the error, a member of its group, or what caused it."""
    queue: list[BaseException | None] = [error]
    for each in queue:
        if isinstance(each, RefluxError | TooLong):
            continue
        if isinstance(each, BaseExceptionGroup):
            queue += cast("BaseExceptionGroup[BaseException]", each).exceptions
        elif isinstance(each, Exception) and _may_pass(each):
            return each
        if each is not None and len(queue) < MAX_CAUSES:
            queue.append(each.__cause__)
    return None


def _may_pass(error: Exception) -> bool:
    return worth_retrying(error) or BUSY.search(str(error)) is not None


def _retried(retries: list[str]) -> dict[str, Any]:
    return {"retries": json.dumps(retries) if retries else None}


def _is_cancelled() -> bool:
    """True where this question is cancelled, and not the graph alone."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
