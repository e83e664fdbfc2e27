"""The systems of `reflux eval` by name.

direct              one call to the base, or to the endpoint's model
amplified           the overseer with copies of the agent
student-rN          one call to a student, or to any model of the endpoint
best-of-n           the majority of n answers of the agent, at the tokens of amplified
best-of-8           the majority of 8
endpoint:NAME       one call to an endpoint of --config
endpoint:MODEL      one call to a model at OPENAI_BASE_URL, or at endpoint:MODEL@URL
module:graph        a LangGraph graph or another Runnable, also path/file.py:graph
"""

import os
import re
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

from reflux.agents.clients.cached import CachedClient
from reflux.agents.clients.endpoints import endpoint_from_env
from reflux.agents.errors import MissingError, UsageError
from reflux.cli.contract import endpoint
from reflux.cli.terminal_input import interruptible
from reflux.finetune.run_folder import OpenRun
from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.ask import Amplified, Direct, System
from reflux.graphs.evals.external_graph import ExternalGraph, load_graph
from reflux.graphs.evals.runner import MAX_VOTES, BestOf, SystemSpec
from reflux.graphs.traces.recorded_client import RecordedClient

EQUAL = "best-of-n"
Contexts = Callable[[str, int], AmplifyContext]
"""(model, seed) → the context of a system."""


def parse_systems(systems: str) -> list[str]:
    """The names of a comma-separated list.

    Raises:
        UsageError: there are none, one is repeated, or best-of-n lacks amplified.
    """
    keys = [key.strip() for key in systems.split(",") if key.strip()]
    if not keys:
        raise UsageError("--systems names none; for example: direct,amplified")
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise UsageError(f"--systems names {twice!r} twice; name each system once")
    if EQUAL in keys and "amplified" not in keys:
        raise UsageError(
            f"{EQUAL} takes as many votes as the amplified system takes tokens: add amplified to "
            "--systems, or name the number, for example best-of-8"
        )
    return keys


def uses_agent(keys: Sequence[str]) -> bool:
    """True where one of the systems runs the agent."""
    return any(key in ("direct", "amplified") or key.startswith("best-of-") for key in keys)


@dataclass(frozen=True)
class SystemSpecs:
    """Makes systems from their names."""

    opened: OpenRun
    agent: str
    contexts: Contexts
    same_answer: Callable[[str], str]
    """Maps equivalent answers to equal text; votes are counted by it."""
    stack: AsyncExitStack
    """Closes the clients that are opened here."""
    endpoints: frozenset[str] = frozenset()
    """Names of the models of --config."""

    async def system_spec(self, key: str) -> SystemSpec:
        """The system of a name.

        Raises:
            UsageError: there is no such system.
            MissingError: it needs an endpoint that is not set, or a package.
        """
        if key == "amplified":
            return await self._model(key, self.agent, Amplified)
        if key == "direct":
            model = self.agent if endpoint() or self.agent in self.endpoints else "base"
            return await self._model(key, model, Direct)
        if key.startswith("best-of-"):
            return await self.best_of(_votes(key))
        if key.startswith("endpoint:"):
            return await self._endpoint(key)
        if ":" in key:
            with interruptible():
                loaded = load_graph(key)
            return SystemSpec(
                key,
                key,
                loaded.digest,
                lambda seed: ExternalGraph(self.contexts(key, seed), loaded),
            )
        if endpoint() is None:
            self.opened.folder.models(key)  # Raises where there is no such student.
        return await self._model(key, key, Direct)

    async def best_of(self, votes: int) -> SystemSpec:
        """Best of a number of votes."""
        return await self._model(
            f"best-of-{votes}", self.agent, lambda context: BestOf(context, votes, self.same_answer)
        )

    async def _model(
        self,
        key: str,
        model: str,
        make: Callable[[AmplifyContext], System],
        recorded_client: RecordedClient | None = None,
    ) -> SystemSpec:
        client = recorded_client or self.opened.recorded_client
        digest = await client.client.model_digest(model)
        return SystemSpec(
            key,
            model,
            digest,
            lambda seed: make(replace(self.contexts(model, seed), recorded_client=client)),
        )

    async def _endpoint(self, key: str) -> SystemSpec:
        model, url = key.removeprefix("endpoint:"), None
        if (match := re.fullmatch(r"(.*?)@(https?://.*)", model, re.DOTALL)) is not None:
            model, url = match[1], match[2]
        if model in self.endpoints:
            return await self._model(key, model, Direct)
        if not model:
            raise UsageError(f"{key!r} names no model; write endpoint:MODEL or endpoint:MODEL@URL")
        if url is None:
            if endpoint() is None:
                raise MissingError(
                    f"{key} is asked at OPENAI_BASE_URL, which is not set: set it, or write "
                    f"{key}@URL"
                )
            return await self._model(key, model, Direct)
        client = endpoint_from_env({**os.environ, "OPENAI_BASE_URL": url})
        if client is None:
            raise UsageError(f"{key!r} names no endpoint")
        self.stack.push_async_callback(client.close)
        return await self._model(
            key, model, Direct, RecordedClient(CachedClient(client), self.opened.store)
        )


def _votes(key: str) -> int:
    number = key.removeprefix("best-of-")
    if not re.fullmatch(r"[0-9]{1,6}", number) or not 1 <= int(number) <= MAX_VOTES:
        raise UsageError(f"{key!r}: write best-of-n, or a number of votes from 1 to {MAX_VOTES}")
    return int(number)
