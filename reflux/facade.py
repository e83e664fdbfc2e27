"""One call that amplifies one question: the shortest way into Reflux from Python."""

import asyncio
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.cache import CachedClient
from agents.checker import Checker, RuleChecker
from agents.embedded import EmbeddedClient, ModelFiles, default_gguf
from agents.overseer import AnyOverseer
from agents.types import ChatClient
from graphs.calls import Caller
from graphs.state import AmplifyContext, Limits, Outcome
from graphs.systems import Amplified, Asked, answer_all
from graphs.traces import TraceStore
from graphs.tree import Node, load_tree
from graphs.voting import VotePolicy


@dataclass(frozen=True)
class Amplification:
    """What one amplified question came to."""

    answer: str | None
    outcome: Outcome
    tree: Node


async def amplify(
    question: str,
    overseer: AnyOverseer | Sequence[AnyOverseer],
    *,
    client: ChatClient | None = None,
    model: str = "base",
    checker: Checker | None = None,
    limits: Limits | None = None,
    votes: VotePolicy | None = None,
    traces: Path | None = None,
    **context: Any,
) -> Amplification:
    """Answer one question by H and many copies of X.

    Args:
        overseer: H, or several: a retry takes the next one's decomposition.
        client: where X runs; the embedded default model where None.
        model: name of X there.
        traces: file of trajectories to add to; a temporary one where None.
        context: further fields of `AmplifyContext`, for example `max_tokens`.

    Raises:
        MissingError: the model or its endpoint is not there.
    """
    overseers = tuple(overseer) if isinstance(overseer, Sequence) else (overseer,)
    engine = None
    if client is None:
        engine = client = EmbeddedClient(lambda _: ModelFiles(default_gguf()))
    with tempfile.TemporaryDirectory() as scratch:
        store = TraceStore(traces or Path(scratch) / "traces.db")
        try:
            amplified = Amplified(
                AmplifyContext(
                    Caller(CachedClient(client), store),
                    model,
                    overseers,
                    checker=checker or RuleChecker({}),
                    limits=limits or Limits(),
                    votes=votes or VotePolicy(most=1),
                    **context,
                )
            )
            source = Asked("python", -1, f"ask-{uuid.uuid4().hex[:12]}", "", "asked")
            (outcome,) = await answer_all(amplified, source, [question])
            tree = load_tree(store, source.question_id(question))
        finally:
            store.close()
            if engine is not None:
                await engine.close()
    return Amplification(outcome["answer"], outcome, tree)


def amplify_sync(
    question: str, overseer: AnyOverseer | Sequence[AnyOverseer], **options: Any
) -> Amplification:
    """`amplify` for programs without an event loop."""
    return asyncio.run(amplify(question, overseer, **options))
