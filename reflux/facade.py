"""One call that amplifies one question: the shortest way into Reflux from Python."""

import asyncio
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langchain_core.language_models import BaseChatModel

from reflux.agents.clients.cached import CachedClient
from reflux.agents.clients.langchain import LangChainClient
from reflux.agents.clients.llama_cpp import LlamaCppClient, ModelFiles, default_gguf
from reflux.agents.errors import UsageError
from reflux.agents.overseers.protocol import Overseer
from reflux.agents.types import ChatClient
from reflux.agents.verifiers.rules import Checker, RuleChecker
from reflux.graphs.amplify.context import AmplifyContext, Limits
from reflux.graphs.amplify.state import Outcome
from reflux.graphs.ask import Amplified, Asked, answer_all
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.tree import Node, load_tree
from reflux.graphs.voting.voting import VotePolicy
from reflux.overseers import overseer_named


@dataclass(frozen=True)
class Amplification:
    """What one amplified question came to."""

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
    """Answer one question by H and many copies of X.

    Args:
        overseer: H, or several: a retry takes the next one's decomposition. By name, `model` or
            `plain`, as the commands know them.
        client: where X runs, a chat model of LangChain among others; the embedded default model
            where None.
        model: name of X there.
        traces: file of trajectories to add to; a temporary one where None.
        context: further fields of `AmplifyContext`, for example `max_tokens`.

    Raises:
        MissingError: the model or its endpoint is not there.
        UsageError: no overseer has that name, or something else cannot be what it is said to be.
    """
    if isinstance(overseer, str):
        overseers: Sequence[Overseer] = (overseer_named(overseer),)
    else:
        overseers = tuple(overseer) if isinstance(overseer, Sequence) else (overseer,)
    _check_overseers(overseers, context.get("tools", {}))
    if isinstance(client, BaseChatModel):
        client = LangChainClient(client)
    engine = None
    if client is None:
        engine = client = LlamaCppClient(lambda _: ModelFiles(default_gguf()))
    with tempfile.TemporaryDirectory() as scratch:
        store = TraceStore(traces or Path(scratch) / "traces.db")
        try:
            amplified = Amplified(
                AmplifyContext(
                    RecordedClient(CachedClient(client), store),
                    model,
                    overseers,
                    checker=checker or RuleChecker({}),
                    limits=limits or Limits(),
                    votes=votes or VotePolicy(max_votes=1),
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


def _check_overseers(overseers: Sequence[Any], tools: Mapping[str, Any]) -> None:
    for one in overseers:
        if not hasattr(one, "act"):
            raise UsageError(
                f"{one!r:.80} is no overseer: it has no `act(context)`; wrap "
                "a function as reflux.ScriptedOverseer(name, function)"
            )
    for name, tool in tools.items():
        if not hasattr(tool, "answer"):
            raise UsageError(
                f"the tool {name!r} is a {type(tool).__name__}, without `answer(question)`; wrap a "
                "tool of LangChain as reflux.LangChainTool(tool)"
            )
