"""One call that amplifies one question: the shortest way into Reflux from Python."""

import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from langchain_core.language_models import BaseChatModel

from reflux.agents.clients.endpoints import CachedClient
from reflux.agents.clients.langchain import LangChainClient
from reflux.agents.clients.llama_cpp import LlamaCppClient, ModelFiles, default_gguf
from reflux.agents.errors import UsageError, check_has
from reflux.agents.overseers.protocol import Overseer
from reflux.agents.types import ChatClient
from reflux.agents.verifiers import Checker, RuleChecker
from reflux.ask_context import name_of, overseers_of
from reflux.graphs.amplify.context import AmplifyContext, Limits
from reflux.graphs.amplify.state import Outcome
from reflux.graphs.ask import Origin, ask
from reflux.graphs.ask_options import AskOptions
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.tree import Node, load_tree
from reflux.graphs.voting.voting import VotePolicy

AS_CLIENT = "pass reflux.OpenAIClient(base_url, api_key) or a chat model of LangChain"


@dataclass(frozen=True)
class Amplification:
    """The result of one amplified question."""

    answer: str | None
    outcome: Outcome
    tree: Node


async def amplify(
    question: str,
    overseer: Overseer | str | Sequence[Overseer],
    *,
    client: ChatClient | BaseChatModel | None = None,
    model: str = "base",
    checker: Checker | None = None,
    limits: Limits | None = None,
    votes: VotePolicy | None = None,
    traces: Path | None = None,
    **context: Any,
) -> Amplification:
    """Answer one question with an overseer and many copies of the agent.

    Args:
        overseer: one, or several: a retry takes the next one's decomposition. A name is one that
            the commands know, `model` or `plain`.
        client: where the agent runs; a chat model of LangChain is one, too. None: the embedded
            default model.
        model: name of the agent there.
        traces: file of trajectories to add to; None for a temporary one.
        context: further fields of `AmplifyContext`, for example `max_tokens`.

    Raises:
        MissingError: the model or its endpoint is missing.
        UsageError: no overseer has that name, an argument has the wrong type, or the question
            cannot be asked.
    """
    overseers = overseers_of(overseer)
    if not isinstance(question, str):
        raise UsageError(f"the question is {question!r:.80}, not a text; pass a str")
    if isinstance(client, BaseChatModel):
        client = LangChainClient(client)
    elif client is not None:
        check_has("a client", ("complete", "model_digest"), AS_CLIENT, client)
    engine = None
    if client is None:
        engine = client = LlamaCppClient(lambda _: ModelFiles(default_gguf()))
    with tempfile.TemporaryDirectory() as scratch:
        store = TraceStore(traces or Path(scratch) / "traces.db")
        try:
            amplified = AmplifyContext(
                RecordedClient(CachedClient(client), store),
                model,
                overseers,
                checker=checker or RuleChecker({}),
                limits=limits or Limits(),
                votes=votes or VotePolicy(max_votes=1),
                **context,
            )
            options = AskOptions.of(amplified, name_of(overseers[0]))
            answered = await ask(amplified, question, Origin.new("python", "ask"), options=options)
            tree = load_tree(store, answered.trajectory)
        finally:
            store.close()
            if engine is not None:
                await engine.close()
    outcome = cast(Outcome, answered.outcome)
    return Amplification(outcome["answer"], outcome, tree)


def amplify_sync(
    question: str, overseer: Overseer | str | Sequence[Overseer], **options: Any
) -> Amplification:
    """`amplify` for programs without an event loop.

    Raises:
        UsageError: a loop is running, as in a notebook.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        raise UsageError(
            "amplify_sync cannot wait within a running event loop, such as a notebook's: write "
            "`await reflux.amplify(...)` there"
        )
    return asyncio.run(amplify(question, overseer, **options))
