"""The systems of `reflux eval` by name.

direct              one call to the base, or to the endpoint's model
amplified           the overseer with copies of the agent
student-rN          one call to a student, or to any model of the endpoint, such as llama3.2:1b
best-of-n           the majority of n answers of the agent, at the tokens of amplified
best-of-8           the majority of 8
endpoint:NAME       one call to an endpoint of --config
endpoint:MODEL      one call to a model at OPENAI_BASE_URL, or at endpoint:MODEL@URL
module:graph        a LangGraph graph or another Runnable, also path/file.py:graph
"""

import re
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from reflux.agents.errors import UsageError
from reflux.cli.human_input import interruptible
from reflux.finetune.run_folder import OpenRun
from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.ask import Amplified, Direct, System
from reflux.graphs.evals.best_of import MAX_VOTES, BestOf
from reflux.graphs.evals.external_graph import ExternalGraph, load_graph
from reflux.graphs.evals.runner import SystemSpec
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.models import (
    BASE,
    ENDPOINT,
    check_student,
    endpoint,
    endpoint_hint,
    endpoint_model,
)

Contexts = Callable[[str, int], AmplifyContext]
"""(model, seed) → the context of a system."""


def uses_agent(keys: Sequence[str]) -> bool:
    """True where one of the systems runs the agent."""
    return any(key in ("direct", "amplified") or key.startswith("best-of-") for key in keys)


def names_code(key: str) -> bool:
    """True for `module:graph` or `file.py:graph`, and False for a model such as `llama3.2:1b`."""
    module = key.rpartition(":")[0]
    top = module.split(".")[0]
    if module.endswith(".py") or Path(top).is_dir() or Path(f"{top}.py").is_file():
        return True
    return top.isidentifier() and find_spec(top) is not None


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
            model = self.agent if endpoint() or self.agent in self.endpoints else BASE
            return await self._model(key, model, Direct)
        if key.startswith("best-of-"):
            number = key.removeprefix("best-of-")
            if not re.fullmatch(r"[0-9]{1,6}", number) or not 1 <= int(number) <= MAX_VOTES:
                raise UsageError(
                    f"{key!r}: write best-of-n, or a number of votes from 1 to {MAX_VOTES}"
                )
            return await self.best_of(int(number))
        if key.startswith(ENDPOINT):
            if (model := key.removeprefix(ENDPOINT)) in self.endpoints:
                return await self._model(key, model, Direct)
            model, recorded_client, client = endpoint_model(key, self.opened)
            if client is not None:
                self.stack.push_async_callback(client.close)
            return await self._model(key, model, Direct, recorded_client)
        is_code = names_code(key)
        if ":" in key and (is_code or endpoint() is None):
            if not is_code:
                raise UsageError(f"there is no module for {key!r}; {endpoint_hint(key)}")
            with interruptible():
                loaded = load_graph(key)

            def make(seed: int) -> System:
                return ExternalGraph(self.contexts(key, seed), loaded)

            return SystemSpec(key, key, loaded.digest, make)
        if endpoint() is None and key != BASE:
            check_student(self.opened.folder, key)
        return await self._model(key, key, Direct)

    async def best_of(self, votes: int) -> SystemSpec:
        def make(context: AmplifyContext) -> System:
            return BestOf(context, votes, self.same_answer)

        return await self._model(f"best-of-{votes}", self.agent, make)

    async def _model(
        self,
        key: str,
        model: str,
        make: Callable[[AmplifyContext], System],
        recorded_client: RecordedClient | None = None,
    ) -> SystemSpec:
        client = recorded_client or self.opened.recorded_client
        digest = await client.client.model_digest(model)

        def make_system(seed: int) -> System:
            return make(replace(self.contexts(model, seed), recorded_client=client))

        return SystemSpec(key, model, digest, make_system)
