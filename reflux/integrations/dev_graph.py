"""The amplified system as a graph that LangGraph's dev server and its clients run unchanged.

    START → read → amplify → reply → END

`read` makes a question of the messages (or of a plain `question`), `amplify` runs the
amplification graph nested in this one, so that a person's interrupts and the events of the growing
tree come through it, and `reply` adds the answer as a message. `langgraph.json` names `graph`.

All that it needs comes from the environment (OPENAI_BASE_URL and OPENAI_API_KEY, REFLUX_MODEL,
REFLUX_OVERSEER, REFLUX_RUN) and from the context that a client may pass: `Settings`. A person's
interrupt is `{path, form}`; it is resumed by its id with a step, `{"kind": "answer", "text": ...}`.
`langgraph dev` wants `--allow-blocking`: the call log is read from SQLite in place.

A picture of the graph shows the states of one level. It cannot show the recursion: a sub-question
that is decomposed runs the same graph again, from within `subtask`. The tree of one answer is
`reflux traces show ID`.
"""

import contextvars
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.runtime import Runtime
from typing_extensions import TypedDict

from reflux.agents.overseers.protocol import AnyOverseer
from reflux.agents.redaction import redact
from reflux.conversation import question_of
from reflux.graphs.amplify.context import AmplifyContext, Limits
from reflux.graphs.amplify.graph import begin, build_graph
from reflux.graphs.amplify.state import Outcome, Status, exchange_error
from reflux.graphs.ask import Asked, recursion_limit
from reflux.graphs.voting.voting import VotePolicy
from reflux.integrations.agent import Agent
from reflux.overseers import DEFAULT_OVERSEER, OVERSEERS, overseer_named


@dataclass(frozen=True)
class Settings:
    """What a client may choose for one run; Studio shows it as a form."""

    overseer: str = os.environ.get("REFLUX_OVERSEER") or DEFAULT_OVERSEER
    """H, by name; see `reflux/overseers.py`."""
    model: str = os.environ.get("REFLUX_MODEL", "")
    """The name of X; where empty, the run's promoted student, or `base`."""
    depth: int = 1
    """Levels of sub-questions."""
    attempts: int = 3
    """Tries at one question."""
    calls: int = 1_000
    """Model calls at the most."""
    max_tokens: int = 256
    """Tokens of one copy's answer."""


class Put(TypedDict, total=False):
    """What goes in: messages that end with the user's, a plain question, or both."""

    messages: list[AnyMessage]
    question: str


class Got(TypedDict):
    """What comes out; `answer` is None where there was none."""

    messages: list[AnyMessage]
    answer: str | None
    status: Status
    error: str | None
    trajectory: str
    """Id of the tree, for `reflux traces show`."""


class ChatState(MessagesState):
    """A thread between two questions, and the one that is being answered."""

    question: str
    asked: str
    """The question as H sees it, with the conversation before it."""
    trajectory: str
    outcome: Outcome
    answer: str | None
    status: Status
    error: str | None


def chat_graph(
    agent: Agent | None = None, overseers: Mapping[str, AnyOverseer] = OVERSEERS, **context: Any
) -> StateGraph[ChatState, Settings, Put, Got]:
    """The graph, uncompiled.

    Args:
        agent: where X runs and what records its calls; that of the environment where None.
        overseers: H by name, from which `Settings.overseer` chooses.
        context: further fields of `AmplifyContext`, for example `checker`.
    """
    run = Path(os.environ.get("REFLUX_RUN") or "runs/chat")
    x = agent or Agent(run=run)
    inner: Any = build_graph().compile()
    context.setdefault("votes", VotePolicy(max_votes=1))

    async def read(state: ChatState, runtime: Runtime[Settings]) -> dict[str, Any]:
        """Make one question of the messages, under an id that stays when the run is resumed."""
        plain = state.get("question")
        said = [HumanMessage(plain)] if plain else []
        question = redact(question_of([*state.get("messages", []), *said]))
        opened = x.open()
        asked = Asked(opened.folder.name, -1, f"chat-{uuid.uuid4().hex[:12]}", "", "asked")
        trajectory = asked.question_id(question)
        row = {"id": trajectory, "text": question, **vars(asked)}
        await opened.store.add_question(row)
        return {"messages": said, "question": "", "asked": question, "trajectory": trajectory}

    async def amplify(state: ChatState, runtime: Runtime[Settings]) -> dict[str, Any]:
        """Run the amplification graph as part of this run: its interrupts are this run's."""
        settings = runtime.context or Settings()
        # LangGraph files an event under the graph whose context it is written in, and shows those
        # of nested graphs only to clients that ask for subgraphs.
        here = contextvars.copy_context()
        amplified = AmplifyContext(
            x.open().recorded_client,
            x.name(settings.model),
            (overseer_named(settings.overseer, overseers),),
            limits=Limits(depth=settings.depth, attempts=settings.attempts, calls=settings.calls),
            max_tokens=settings.max_tokens,
            emit=lambda event: here.run(runtime.stream_writer, event),
            **context,
        )
        asked = {"run": x.open().folder.name, "round": -1}
        with amplified.recorded_client.spans.run(state["trajectory"], asked) as span:
            done = await inner.ainvoke(
                begin(state["asked"], state["trajectory"], amplified),
                {"recursion_limit": recursion_limit(amplified)},
                context=amplified,
            )
            outcome = done["outcome"]
            span.ended(outcome["status"] if outcome else "waiting")
        return {"outcome": outcome}

    def reply(state: ChatState) -> dict[str, Any]:
        """Say the answer, or why there is none that was accepted."""
        outcome, trajectory = state["outcome"], state["trajectory"]
        told = {"trajectory": trajectory, "status": outcome["status"]}
        message = AIMessage(
            _said(outcome),
            id=f"reflux-{trajectory}",
            response_metadata=told | {"spent": dict(outcome["spent"])},
        )
        kept = {key: outcome[key] for key in ("answer", "status", "error")}
        return {"messages": [message], **kept}

    graph = StateGraph(ChatState, Settings, input_schema=Put, output_schema=Got)
    for node in (read, amplify, reply):
        graph.add_node(node.__name__, node)
    graph.add_edge(START, "read")
    graph.add_edge("read", "amplify")
    graph.add_edge("amplify", "reply")
    graph.add_edge("reply", END)
    return graph


def _said(outcome: Outcome) -> str:
    answer, status = outcome["answer"], outcome["status"]
    if answer is not None and exchange_error(outcome) is None:
        return answer
    best = "" if answer is None else f" The best so far: {answer}"
    return f"No answer was accepted ({status}: {outcome['error']}).{best}"


graph = chat_graph().compile(name="reflux")
