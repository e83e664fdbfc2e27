"""Small amplified systems that several test files build."""

from collections.abc import Callable, Sequence
from typing import Any

from agents.checker import RuleChecker
from agents.overseer import PASS, ScriptedOverseer
from agents.scripted import ScriptedClient
from agents.types import Answer, Ask, ChatClient, ChatRequest, Exchange, Step
from graphs.calls import Caller
from graphs.state import AmplifyContext
from graphs.systems import Amplified
from graphs.traces import TraceStore
from graphs.voting import VotePolicy

Transcript = Sequence[Exchange]
Way = Callable[[str, Transcript, bool], Step]
ONE_VOTE = VotePolicy(most=1)


def amplified(store: TraceStore, client: ChatClient, *ways: Way, **other: Any) -> Amplified:
    """Amplify^H(X), where each way is one of H's decompositions."""
    overseers = [ScriptedOverseer(f"way-{i}", way) for i, way in enumerate(ways)]
    return Amplified(AmplifyContext(Caller(client, store), "base", overseers, **other))


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
