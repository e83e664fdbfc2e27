"""How a question is asked that is not a run's own: kept with it, so that it can be gone on
with,
and recomputed, in the same way."""

import json
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

from reflux.agents.errors import UsageError
from reflux.agents.overseers.protocol import Overseer
from reflux.finetune.run_folder import OpenRun
from reflux.granted_tools import open_tools
from reflux.graphs.amplify.context import AmplifyContext, Limits, silent
from reflux.graphs.ask import task_context
from reflux.graphs.traces.events import Event
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.traces.revisions import first_of
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.voting.voting import Variant, VotePolicy
from reflux.overseers import OVERSEERS, overseer_named
from reflux.tasks import task_named

ALONE = "none"
"""As H: there is none, X goes on with the conversation alone."""


@dataclass(frozen=True)
class AskOptions:
    """How a free question is asked; kept with it, so that a reply goes on in the same
    way."""

    overseer: str
    """Empty where H is the task's own."""
    model: str
    tools: tuple[str, ...] = ()
    depth: int = 1
    calls: int = 1000
    tokens: int = 1_000_000
    seconds: float | None = None
    max_tokens: int = 256
    task: str = ""
    temperature: float | None = None
    """None: greedy at first, as votes are."""
    seed: int = 0

    def limits(self) -> Limits:
        """The caps of the question."""
        return Limits(depth=self.depth, calls=self.calls, tokens=self.tokens, seconds=self.seconds)

    def context(
        self, recorded_client: RecordedClient, overseer: Overseer, **more: Any
    ) -> AmplifyContext:
        """The context of the question; `more` are further fields of it."""
        return AmplifyContext(
            recorded_client,
            self.model,
            (overseer,),
            limits=self.limits(),
            max_tokens=self.max_tokens,
            votes=self._votes(),
            seed=self.seed,
            **more,
        )

    def _votes(self) -> VotePolicy:
        if (heat := self.temperature) is None:
            return VotePolicy(max_votes=1)
        return VotePolicy(max_votes=1, temperature=heat, variants=(Variant(temperature=heat),))


async def save_options(store: TraceStore, trajectory: str, options: AskOptions) -> None:
    """Keep how a question is asked with it: so it can be gone on with, and recomputed."""
    await store.add_judgement(trajectory, "", "how", None, asdict(options), key="0")


def options_of(store: TraceStore, trajectory: str) -> AskOptions | None:
    """How a question was asked, a revision as what it revises; None where that is not on
    record.

    Raises:
        UsageError: what is recorded of it is another version's.
    """
    found = store.select(
        "SELECT detail FROM judgements WHERE question=? AND kind='how' ORDER BY id LIMIT 1",
        (first_of(trajectory),),
    )
    if (row := next(found, None)) is None:
        return None
    said: dict[str, Any] = json.loads(row["detail"])
    try:
        return AskOptions(**{**said, "tools": tuple(said["tools"])})
    except (KeyError, TypeError) as error:
        raise UsageError(
            f"{trajectory} was asked by another version of Reflux ({error}); ask it anew"
        ) from error


@asynccontextmanager
async def open_context(
    opened: OpenRun,
    options: AskOptions,
    emit: Callable[[Event], None] = silent,
    overseers: Mapping[str, Overseer] = OVERSEERS,
) -> AsyncGenerator[AmplifyContext]:
    """The context of a question that is asked so; its tools are open as long as it is."""
    granted = {"answer": list(options.tools)} if options.tools else {}
    async with open_tools(granted) as grants:
        recorded_client = opened.recorded_client
        if options.task:
            context = AmplifyContext(
                recorded_client, options.model, (), limits=options.limits(), emit=emit
            )
            yield task_context(context, task_named(options.task))
        else:
            overseer = overseer_named(options.overseer, overseers)
            yield options.context(recorded_client, overseer, grants=grants, emit=emit)
