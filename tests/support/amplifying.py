"""Small amplified systems that several test files build."""

from collections.abc import Callable, Sequence
from typing import Any

from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.overseers.protocol import PASS
from reflux.agents.overseers.scripted import ScriptedOverseer
from reflux.agents.types import Answer, Ask, ChatClient, ChatRequest, Exchange, Step
from reflux.agents.verifiers import RuleChecker
from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.amplify.state import Outcome
from reflux.graphs.ask import Amplified
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.voting.voting import VotePolicy

Transcript = Sequence[Exchange]
Way = Callable[[str, Transcript, bool], Step]
ONE_VOTE = VotePolicy(max_votes=1)


def amplified(store: TraceStore, client: ChatClient, *ways: Way, **other: Any) -> Amplified:
    """Amplify^H(X), where each way is one of H's decompositions."""
    overseers = [ScriptedOverseer(f"way-{i}", way) for i, way in enumerate(ways)]
    return Amplified(AmplifyContext(RecordedClient(client, store), "base", overseers, **other))


def asking(*texts: str) -> Way:
    """An H that asks one batch of the question "root", joins it, and knows nothing else."""

    def act(question: str, transcript: Transcript, may_ask: bool) -> Step:
        if question != "root":
            return PASS
        return Answer("+".join(str(e.answer) for e in transcript)) if transcript else Ask.of(*texts)

    return act


def echo(request: ChatRequest) -> str:
    return request.messages[-1][1].upper()


def asked_of(client: ScriptedClient) -> list[str]:
    return [request.messages[-1][1] for request in client.requests]


def rejecting(*refused: str) -> RuleChecker:
    return RuleChecker({"known_wrong": lambda _, answer: answer not in refused})


async def answers_of(system: Amplified, question: str) -> Outcome:
    store = system.context.recorded_client.store
    await store.add_question({"id": f"{question}-id", "text": question})
    return await system.answer(question, f"{question}-id")
