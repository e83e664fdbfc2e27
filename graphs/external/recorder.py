"""Records the calls of any LangChain runnable or LangGraph graph, as a callback handler of it.

    graph.invoke(inputs, {"callbacks": [Recorder("runs/app")]})

One invocation is one trajectory; its `thread_id`, metadata and tags stand beside it. Each model
call, tool call and retrieval is a call under the name of its node, and is stored as it ends. Nested
graphs and parallel branches are told apart by LangGraph's checkpoint namespace.
"""

import functools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ParamSpec, cast
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.messages import BaseMessage, message_to_dict
from langchain_core.outputs import LLMResult
from langgraph.errors import GraphBubbleUp, GraphInterrupt

from reflux.agents.types import Completion
from reflux.graphs.external.invocations import SOURCE, Beginning, Invocations
from reflux.graphs.external.runnable_values import answer_of, reply_of, shown, waits_for
from reflux.graphs.external.user_code import one_line
from reflux.graphs.traces.protocols.messages import chat_messages
from reflux.graphs.traces.protocols.replies import NOT_SAMPLING, chat_tools
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.trajectories import (
    RecordedCall,
    RecordedOutcome,
    Trajectory,
    last_user_text,
)

P = ParamSpec("P")


def guarded(method: Callable[P, None]) -> Callable[P, None]:
    """A method that never raises: the user's graph goes on, and hears once what is not recorded."""

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            method(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - no error of ours may stop the user's graph
            cast(Recorder, args[0]).lose(error)

    return call


class Recorder(BaseCallbackHandler):
    """A callback handler that records trajectories in a run folder.

    It may be shared by threads, event loops and concurrent invocations. It raises nothing into the
    graph: what it cannot record it says once, on stderr, and counts in `lost`.
    """

    run_inline = True
    """In the thread of the caller, so that calls are numbered in the order in which they began."""

    def __init__(
        self,
        run: str | Path = "runs/default",
        *,
        name: str = "",
        metadata: Mapping[str, Any] | None = None,
        tags: Sequence[str] = (),
    ) -> None:
        """
        Args:
            run: the run folder; it is made with the first trajectory.
            name: of the trajectories; by default that of the graph.
            metadata, tags: of all trajectories, beside those of each invocation's config.
        """
        self.run = Path(run)
        self.lost = 0
        """How many calls or ends could not be recorded."""
        template = Trajectory(
            "", SOURCE, name=name, metadata=dict(metadata or {}), tags=tuple(tags),
            told_by="invocation",
        )  # fmt: skip
        self._invocations = Invocations(self.run / "traces.db", self.lose, template)

    @classmethod
    def into(cls, store: TraceStore, key: str, metadata: Mapping[str, Any]) -> "Recorder":
        """A recorder of the trajectory with this key, into a store that its caller closes."""
        recorder = cls(store.path.parent, metadata=metadata)
        invocations = recorder._invocations
        invocations.template = replace(invocations.template, key=key)
        invocations.write_to(store)
        return recorder

    @property
    def trajectories(self) -> list[str]:
        """Ids of the newest trajectories that have ended, the last one at the end."""
        return list(self._invocations.ended)

    def close(self) -> None:
        """Write what is queued. Later invocations open the record again."""
        self._invocations.close()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __deepcopy__(self, _: Any) -> "Recorder":
        return self  # A config that is copied records into the same folder.

    def lose(self, error: BaseException) -> None:
        """Count what is not recorded, and say so the first time."""
        self.lost += 1
        if self.lost == 1:
            sys.stderr.write(
                f"reflux: {self.run} does not record all of this run: {one_line(error)}; the "
                "graph goes on\n"
            )

    # Chains, graphs and their nodes.

    @guarded
    def on_chain_start(
        self, serialized: Any, inputs: Any, *, run_id: UUID, parent_run_id: UUID | None = None,
        tags: list[str] | None = None, metadata: dict[str, Any] | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        """Begin a trajectory, or a part of it."""
        name = str(kwargs.get("name") or (serialized or {}).get("name") or "")
        beginning = Beginning(run_id, parent_run_id, name, tags or (), metadata or {})
        self._invocations.begin(beginning, inputs)

    @guarded
    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """End a trajectory, if it is the outermost."""
        self._invocations.end(run_id, RecordedOutcome(answer_of(outputs)))

    @guarded
    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Record what failed, or that a human is asked."""
        self._failed(run_id, error)

    # Model calls.

    @guarded
    def on_chat_model_start(
        self, serialized: Any, messages: list[list[BaseMessage]], *, run_id: UUID,
        parent_run_id: UUID | None = None, tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        """Begin a call of a chat model."""
        body = chat_messages([message_to_dict(message) for message in messages[0]])
        beginning = Beginning(run_id, parent_run_id, "", tags or (), metadata or {})
        self._ask(beginning, body, serialized, kwargs)

    @guarded
    def on_llm_start(
        self, serialized: Any, prompts: list[str], *, run_id: UUID,
        parent_run_id: UUID | None = None, tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        """Begin a call of a model that takes a text."""
        body = [{"role": "user", "content": prompts[0]}]
        beginning = Beginning(run_id, parent_run_id, "", tags or (), metadata or {})
        self._ask(beginning, body, serialized, kwargs)

    def _ask(
        self, beginning: Beginning, messages: Sequence[dict[str, Any]], serialized: Any,
        kwargs: Mapping[str, Any],
    ) -> None:  # fmt: skip
        given: dict[str, Any] = dict(kwargs.get("invocation_params") or {})
        names = (
            given.get("model"),
            given.get("model_name"),
            beginning.metadata.get("ls_model_name"),
        )
        kind: list[Any] = (serialized or {}).get("id") or [kwargs.get("name") or "model"]
        model = str(next(filter(None, names), kind[-1]))
        settings = {key: value for key, value in given.items() if value not in (None, [], {})}
        settings = {key: value for key, value in settings.items() if key not in NOT_SAMPLING}
        call = RecordedCall(
            messages=tuple(messages),
            model=model,
            tools=tuple(chat_tools(given.get("tools") or given.get("functions"))),
            sampling=json.loads(json.dumps(settings, default=str)),
        )
        self._invocations.call(replace(beginning, name=model), call, last_user_text(messages))

    @guarded
    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        """Record the reply, or each of several."""
        replies = [reply_of(each) for each in next(iter(response.generations), [])]
        self._returned(run_id, replies or [Completion("")])

    @guarded
    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Record a call that failed, with what had come of its reply."""
        partial: LLMResult | None = kwargs.get("response")
        replies = [
            reply_of(each)
            for several in (partial.generations if partial else ())
            for each in several
        ]
        self._failed(run_id, error, replies[0] if replies else Completion(""))

    # Tool calls, and retrievals, which are tool calls of the record.

    @guarded
    def on_tool_start(
        self, serialized: Any, input_str: str, *, run_id: UUID, parent_run_id: UUID | None = None,
        tags: list[str] | None = None, metadata: dict[str, Any] | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        """Begin a tool call."""
        inputs = kwargs.get("inputs")
        arguments = json.dumps(inputs, default=str) if isinstance(inputs, Mapping) else input_str
        name = str((serialized or {}).get("name") or kwargs.get("name") or "tool")
        beginning = Beginning(run_id, parent_run_id, name, tags or (), metadata or {})
        call = RecordedCall(kind="tool", model=name, arguments=arguments)
        self._invocations.call(beginning, call, input_str)

    @guarded
    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """Record a tool's result."""
        finish = "refused" if getattr(output, "status", "") == "error" else "stop"
        self._returned(run_id, [Completion(shown(output), finish_reason=finish)])

    @guarded
    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Record a tool call that failed."""
        self._failed(run_id, error, Completion("", finish_reason="error"))

    @guarded
    def on_retriever_start(
        self, serialized: Any, query: str, *, run_id: UUID, parent_run_id: UUID | None = None,
        tags: list[str] | None = None, metadata: dict[str, Any] | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        """Begin a retrieval."""
        name = str((serialized or {}).get("name") or kwargs.get("name") or "retriever")
        beginning = Beginning(run_id, parent_run_id, name, tags or (), metadata or {})
        call = RecordedCall(kind="tool", model=name, arguments=json.dumps({"query": query}))
        self._invocations.call(beginning, call, query)

    @guarded
    def on_retriever_end(
        self, documents: Sequence[Document], *, run_id: UUID, **kwargs: Any
    ) -> None:
        """Record the documents that were found."""
        found = [{"text": each.page_content, "metadata": each.metadata} for each in documents]
        self._returned(run_id, [Completion(json.dumps(found, default=str))])

    @guarded
    def on_retriever_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Record a retrieval that failed."""
        self._failed(run_id, error, Completion("", finish_reason="error"))

    def _returned(self, run_id: UUID, replies: Sequence[Completion]) -> None:
        with self._invocations.lock:
            run = self._invocations.runs.get(run_id)
            if run is None or run.call is None:
                return
            try:
                for vote, reply in enumerate(replies):
                    call = replace(run.call, reply=run.reply(reply), vote=vote)
                    self._invocations.add(run, call)
            finally:
                self._invocations.end(run_id, RecordedOutcome(replies[0].text))

    def _failed(
        self, run_id: UUID, error: BaseException, partial: Completion | None = None
    ) -> None:
        """A run ended by an error; a call with what had come of its reply."""
        with self._invocations.lock:
            run = self._invocations.runs.get(run_id)
            if run is None:
                return
            leaves = isinstance(error, GraphBubbleUp)  # How LangGraph interrupts a node.
            if isinstance(error, GraphInterrupt):
                self._invocations.wait(run, waits_for(error))
            status = "stopped" if leaves or not isinstance(error, Exception) else "failed"
            try:
                if run.call is not None and partial is not None and not leaves:
                    call = replace(run.call, reply=run.reply(partial), error=one_line(error))
                    self._invocations.add(run, call)
            finally:
                self._invocations.end(run_id, RecordedOutcome(None, status, one_line(error)))
