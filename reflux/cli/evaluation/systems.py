"""The systems of `reflux eval` by name.

direct              one call to the base, or to the endpoint's model
amplified           the overseer with copies of the agent
student-rN          one call to a student, or to any model of the endpoint, such as llama3.2:1b
best-of-n           the majority of n answers of the agent, at the tokens of amplified
best-of-8           the majority of 8
cascade-0.8         the agent alone where it is sure to 0.8 or more, else amplified
endpoint:NAME       one call to an endpoint of --config
endpoint:MODEL      one call to a model at OPENAI_BASE_URL, or at endpoint:MODEL@URL
path/file.py:graph  a LangGraph graph or another Runnable, also module:graph and
                    langgraph.json:graph
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

from reflux.agents.budget import Price
from reflux.agents.errors import UsageError
from reflux.agents.overseers.step_forms import is_learned
from reflux.ask_context import TOOLS
from reflux.finetune.configs.run import read_yaml
from reflux.finetune.run_folder import OpenRun, RunFolder
from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.ask import Amplified, Direct, System
from reflux.graphs.evals.best_of import MAX_VOTES, BestOf
from reflux.graphs.evals.results import Results
from reflux.graphs.evals.runner import SystemSpec
from reflux.graphs.external.external_graph import CONCURRENCY, SECONDS, ExternalGraph
from reflux.graphs.external.graph_values import GraphOptions
from reflux.graphs.external.user_code import code_digest
from reflux.graphs.external.user_graph import UserGraph, load_graph
from reflux.graphs.external.user_sources import is_reference
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.voting.confidence import Cascade
from reflux.models import (
    BASE,
    ENDPOINT,
    check_student,
    endpoint,
    endpoint_hint,
    endpoint_model,
)
from reflux.report.terminal import ERR, counted
from reflux.routing import recorded_cascade

CASCADE = "cascade-"
Contexts = Callable[[str, int], AmplifyContext]
"""(model, seed) → the context of a system."""


def uses_agent(keys: Sequence[str]) -> bool:
    """True where one of the systems runs the agent."""
    own = ("direct", "amplified", "best-of-", CASCADE)
    return any(key in own[:2] or key.startswith(own[2:]) for key in keys)


def is_graph(key: str) -> bool:
    """True for the name of a user's graph."""
    if key.startswith(ENDPOINT):
        return False
    return re.search(r"\.(py|json)(:|$)", key) is not None or is_reference(key)


def load_graphs(keys: Iterable[str], options: GraphOptions) -> Mapping[str, UserGraph]:
    """The users' graphs among the systems.

    Raises:
        UsageError: there is no such module or object.
        MissingError, RefluxError: a module cannot be imported.
    """
    graphs: dict[str, UserGraph] = {}
    for key in filter(is_graph, keys):
        try:
            graphs[key] = load_graph(key, options)
        except UsageError as error:
            if "/" in key or ".py" in key:
                raise
            raise UsageError(f"{error}; a model of an endpoint is {ENDPOINT}{key}") from error
    return graphs


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
    graphs: Mapping[str, UserGraph] = field(default_factory=dict[str, UserGraph])
    """Graphs that are loaded already."""

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
        if key.startswith(CASCADE):
            return await self._cascade(key)
        if key.startswith(ENDPOINT):
            if (model := key.removeprefix(ENDPOINT)) in self.endpoints:
                return await self._model(key, model, Direct)
            model, recorded_client, client = endpoint_model(key, self.opened)
            if client is not None:
                self.stack.push_async_callback(client.close)
            return await self._model(key, model, Direct, recorded_client)
        if is_graph(key):
            graph = self.graphs.get(key) or load_graph(key)
            self.stack.push_async_callback(graph.close)
            await graph.open()

            def make(seed: int) -> System:
                return ExternalGraph(self.contexts(key, seed), graph)

            return SystemSpec(key, key, graph.digest, make)
        if endpoint() is not None:
            self._check_meant(key)
        elif key != BASE:
            if ":" in key:
                raise UsageError(
                    f"{key!r} is not a system: a graph is path/file.py:graph, and "
                    f"{endpoint_hint(key)}"
                )
            check_student(self.opened.folder, key)
        return await self._model(key, key, Direct)

    def _check_meant(self, key: str) -> None:
        """Check that a name can be that of a model at OPENAI_BASE_URL.

        Raises:
            UsageError: it is nearly that of a system.
        """
        if close := get_close_matches(key, ("amplified", "direct", "best-of-n"), 1, 0.75):
            raise UsageError(
                f"there is no system {key!r}; did you mean {close[0]}? A model of that name is "
                f"{ENDPOINT}{key}"
            )

    async def judge_spec(self, name: str) -> SystemSpec:
        """The model that grades answers.

        Raises:
            UsageError: there is no such model.
            MissingError: it needs an endpoint that is not set.
        """
        key = name if name.startswith(ENDPOINT) else f"{ENDPOINT}{name}"
        if name.startswith(ENDPOINT) or name in self.endpoints or endpoint() is not None:
            return await self.system_spec(key)
        self.opened.folder.models(name)  # Raises where there is no such student.
        return await self._model(name, name, Direct)

    async def _cascade(self, key: str) -> SystemSpec:
        """The system of a threshold.

        Raises:
            UsageError: there is none from 0 to 1 in the name.
        """
        number = key.removeprefix(CASCADE)
        if not re.fullmatch(r"[01]|[01]?\.[0-9]{1,6}", number) or float(number) > 1:
            raise UsageError(f"{key!r}: write {CASCADE}0.8, or another threshold from 0 to 1")
        recorded = recorded_cascade(self.opened.folder.registry, self.agent, float(number))
        cascade = Cascade.of(recorded)
        spec = await self._model(
            key, self.agent, lambda context: Amplified(replace(context, cascade=cascade))
        )
        # Another scaling asks every question again.
        return replace(spec, digest=json.dumps([spec.digest, recorded]))

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


def graph_options_of(
    input_key: str,
    output_key: str,
    configurable: Sequence[str] | None,
    context: Sequence[str] | None,
) -> GraphOptions:
    """The options of users' graphs.

    Raises:
        UsageError: a value is invalid.
    """
    return GraphOptions(
        input_key,
        output_key,
        values_of_option("--configurable", configurable or ()),
        values_of_option("--context", context or ()),
    )


def say_limits(graphs: Iterable[str], seconds: float | None, concurrency: int | None) -> None:
    """Print the limits of users' graphs, which nobody may have asked for."""
    for key in graphs:
        ERR.print(
            f"{key}: at most {SECONDS if seconds is None else seconds:g} s a question "
            f"(--time-limit), {concurrency or CONCURRENCY} at a time (--concurrency)",
            style="dim", highlight=False, markup=False, soft_wrap=True,
        )  # fmt: skip


def values_of_option(option: str, texts: Sequence[str]) -> Mapping[str, Any]:
    """The mapping that an option's texts make up: KEY=VALUE, or the path of a YAML file.

    Raises:
        UsageError: one is neither.
    """
    values: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        try:
            found: Any = {key: json.loads(value)} if equals else read_yaml(Path(text))
        except ValueError:
            found = {key: value}
        if not isinstance(found, dict) or (equals and not key):
            raise UsageError(f"{option} {text}: write KEY=VALUE, or name a YAML file of keys")
        values |= cast(dict[str, Any], found)
    return values


def record_lines(record: Mapping[str, Mapping[str, int]]) -> list[str]:
    """What came from the record, and what was tried again."""
    lines: list[str] = []
    for key, counts in record.items():
        if counts["recorded"]:
            lines.append(
                f"{key}: {counts['recorded']} of {counts['answers']} answers came from the record; "
                "--again asks anew"
            )
        if counts["retries"]:
            lines.append(f"{key}: {counted(counts['retries'], 'failed call')} tried again")
    return lines


def prices_of(folder: RunFolder, texts: list[str]) -> Mapping[str, Price]:
    """Prices by model: those of the run's config and of --price.

    Raises:
        UsageError: one is invalid.
    """
    prices = dict(folder.prices())
    for text in texts:
        name, _, costs = text.rpartition("=")
        try:
            prompt, completion = map(float, costs.split(","))
        except ValueError:
            prompt = completion = math.nan
        if not name or not (0 <= prompt < math.inf and 0 <= completion < math.inf):
            raise UsageError(
                f"--price {text!r} is invalid; write MODEL=PROMPT,COMPLETION, for example "
                "llama3.2=0.15,0.6 for a million tokens"
            )
        prices[name] = Price(prompt, completion)
    return prices


def price_hints(texts: Iterable[str], results: Results) -> list[str]:
    """What to say of a --price whose model no answer called."""
    ledgers = [answers.ledger for answers in results.answers.values()]
    models = set[str]().union(*(ledger.models for ledger in ledgers))
    return [
        f"--price {name}: no answer called a model of that name, but {', '.join(sorted(models))}"
        for name in (text.rpartition("=")[0] for text in texts)
        if name not in models
    ]


def code_of(*names: str | None) -> Mapping[str, Any]:
    """The user's own code and the tools among the names of options, as settings that decide the
    answers; empty without any."""
    known = {form.partition(":")[0] for form in TOOLS}
    tools = [name for name in names[2:] if name]
    own = [name for name in names if name and is_reference(name) and not is_learned(name)]
    digests = {name: code_digest(name) for name in own if name.partition(":")[0] not in known}
    return {**({"tools": tools} if tools else {}), **digests}
