"""The amplified system as a graph that LangGraph's dev server and its clients run unchanged.

    START → read → amplify → reply → END

`read` makes a question of the messages, or of a plain `question`. `amplify` runs the amplification
graph nested in this one: the interrupts for humans and the events of the growing tree pass through
it. `reply` adds the answer as a message. `langgraph.json` names `graph`.

The environment sets OPENAI_BASE_URL and OPENAI_API_KEY, REFLUX_MODEL, REFLUX_OVERSEER, REFLUX_RUN;
a client may pass `Settings` as context. An interrupt is `{path, form}`; a client resumes it by its
id with a step, `{"kind": "answer", "text": ...}`. `langgraph dev` needs `--allow-blocking`: the
call log is read from SQLite in the event loop.

A picture of the graph shows the states of one level, not the recursion: a sub-question that is
decomposed runs the same graph again, within `subtask`. `reflux traces show ID` shows the tree.
"""

import contextvars
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.runtime import Runtime
from typing_extensions import TypedDict

from reflux.agents.overseers.protocol import Overseer
from reflux.agents.redaction import redact
from reflux.ask_context import context_of
from reflux.graphs.amplify.context import Limits
from reflux.graphs.amplify.graph import build_graph
from reflux.graphs.amplify.state import Outcome, Status, exchange_error
from reflux.graphs.ask import Amplified, Origin, ask
from reflux.graphs.ask_options import AskOptions
from reflux.graphs.conversation import question_of
from reflux.models import Agent
from reflux.overseers import DEFAULT_OVERSEER, OVERSEERS, candidates_of


@dataclass(frozen=True)
class Settings:
    """The settings of one run that a client may pass; Studio shows them as a form."""

    overseer: str = os.environ.get("REFLUX_OVERSEER") or DEFAULT_OVERSEER
    """By name; see `reflux.ask_context.OVERSEERS`."""
    model: str = os.environ.get("REFLUX_MODEL", "")
    """Name of the agent; empty for the run's promoted student, or `base`."""
    candidates: int | None = None
    """Decompositions to weigh against the direct answer; None for the overseer's default."""
    depth: int = 1
    attempts: int = 3
    calls: int = 1_000
    max_tokens: int = 512
    """Maximum tokens of one copy's answer."""


class Put(TypedDict, total=False):
    """The input: messages that end with the user's, a plain question, or both."""

    messages: list[AnyMessage]
    question: str


class Got(TypedDict):
    """The output."""

    messages: list[AnyMessage]
    answer: str | None
    """The best one, also if it was not accepted; None if there is none."""
    status: Status
    error: str | None
    trajectory: str
    """Id of the tree, for `reflux traces show`."""


class ChatState(MessagesState):
    """The state of a thread, and of the question that is being answered."""

    question: str
    asked: str
    """The question as the overseer sees it, with the conversation before it."""
    system: str
    """The part of the question's origin that makes it a separate trajectory."""
    trajectory: str
    outcome: Outcome
    answer: str | None
    status: Status
    error: str | None


def chat_graph(
    agent: Agent | None = None, overseers: Mapping[str, Overseer] = OVERSEERS, **context: Any
) -> StateGraph[ChatState, Settings, Put, Got]:
    """The graph, uncompiled.

    Args:
        agent: where the agent runs and its calls are recorded; None for that of the environment.
        overseers: by name, for `Settings.overseer`.
        context: further fields of `AmplifyContext`, for example `checker`.
    """
    inner: Any = build_graph().compile()  # Pictures of the graph show the states of this one, too.
    agent = agent or Agent(run=Path(os.environ.get("REFLUX_RUN") or "runs/default"))

    async def read(state: ChatState, runtime: Runtime[Settings]) -> dict[str, Any]:
        """Make one question of the messages; its origin stays the same if the run is resumed."""
        plain = state.get("question")
        messages = [HumanMessage(plain)] if plain else []
        question = redact(question_of([*state.get("messages", []), *messages]))
        origin = Origin.new(agent.folder.id, "chat")
        return {
            "messages": messages,
            "question": "",
            "asked": question,
            "system": origin.system,
            "trajectory": origin.question_id(question),
        }

    async def amplify(state: ChatState, runtime: Runtime[Settings]) -> dict[str, Any]:
        """Ask the question as part of this run: its interrupts are this run's."""
        settings = runtime.context or Settings()
        # LangGraph files an event under the graph whose context it is written in, and shows those
        # of nested graphs only to clients that ask for subgraphs.
        here = contextvars.copy_context()
        opened = agent.open()
        options = AskOptions(
            settings.overseer,
            agent.name(settings.model),
            limits=Limits(depth=settings.depth, attempts=settings.attempts, calls=settings.calls),
            max_tokens=settings.max_tokens,
            candidates=candidates_of(overseers.get(settings.overseer), settings.candidates),
        )
        amplified = context_of(opened, options, overseers, **context)
        amplified = replace(amplified, emit=lambda event: here.run(runtime.stream_writer, event))
        origin = replace(Origin.new(opened.folder.id, "chat"), system=state["system"])
        answered = await ask(
            amplified,
            state["asked"],
            origin,
            options=options,
            system=Amplified(amplified, nested=inner),
        )
        return {"outcome": answered.outcome}

    def reply(state: ChatState) -> dict[str, Any]:
        """Add the answer, or the reason why none was accepted, as a message."""
        outcome, trajectory = state["outcome"], state["trajectory"]
        metadata = {"trajectory": trajectory, "status": outcome["status"]}
        message = AIMessage(
            _content(outcome),
            id=f"reflux-{trajectory}",
            response_metadata=metadata | {"spent": dict(outcome["spent"])},
        )
        fields = {key: outcome[key] for key in ("answer", "status", "error")}
        return {"messages": [message], **fields}

    graph = StateGraph(ChatState, Settings, input_schema=Put, output_schema=Got)
    return graph.add_sequence([read, amplify, reply]).add_edge(START, "read")


def _content(outcome: Outcome) -> str:
    answer, status = outcome["answer"], outcome["status"]
    if answer is not None and exchange_error(outcome) is None:
        return answer
    best = "" if answer is None else f" The best so far: {answer}"
    return f"No answer was accepted ({status}: {outcome['error']}).{best}"


graph = chat_graph().compile(name="reflux")
