"""Runs a system over held-out questions and scores it, with an interval and its price.

One system sits an exam: every question of every seed, recorded, and none asked twice.
"""

import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from reflux.agents.errors import RefluxError, UsageError
from reflux.graphs.amplify.state import Outcome
from reflux.graphs.ask import Origin, System, answer_every
from reflux.graphs.evals.best_of import EqualTokens, equal_votes
from reflux.graphs.evals.eval_task import EvalTask
from reflux.graphs.evals.external_graph import ExternalGraph
from reflux.graphs.evals.metrics import wilson
from reflux.graphs.evals.task import Task, check_held_out, score_held_out


@dataclass(frozen=True)
class Score:
    """How one system did on n held-out questions."""

    accuracy: float
    n: int
    ci95: tuple[float, float]
    """Wilson score interval."""
    calls: int
    """Model calls the system made, those answered from the cache among them."""
    cached: int
    tokens: int
    statuses: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; ci95 as a list."""
        return {**asdict(self), "ci95": list(self.ci95)}


async def evaluate(
    system: System,
    task: Task,
    asked: Origin,
    questions: Sequence[str],
    *,
    max_concurrency: int = 32,
    on_done: Callable[[int], None] | None = None,
) -> Score:
    """Answer every question and score the answers.

    Raises:
        UsageError: a training question is among them, or there are none.
        EndpointError: the endpoint is down; what it did answer is recorded.
        RefluxError: the run's purse is empty.
    """
    for question in questions:
        check_held_out(task, question)
    outcomes = await answer_every(
        system, asked, questions, max_concurrency=max_concurrency, on_done=on_done
    )
    right = sum(
        score_held_out(task, question, outcome["answer"])
        for question, outcome in zip(questions, outcomes, strict=True)
    )
    statuses: dict[str, int] = {}
    for outcome in outcomes:
        statuses[outcome["status"]] = statuses.get(outcome["status"], 0) + 1
    return Score(
        accuracy=right / max(1, len(questions)),
        n=len(questions),
        ci95=wilson(right, len(questions)),
        calls=sum(o["spent"]["calls"] for o in outcomes),
        cached=sum(o["spent"]["cached"] for o in outcomes),
        tokens=sum(o["spent"]["tokens"] for o in outcomes),
        statuses=statuses,
    )


Listener = Callable[[str, int, int], None]
"""Hears (system, questions answered, of how many)."""


@dataclass(frozen=True)
class SystemSpec:
    """A system by name, and how it is made for each seed."""

    key: str
    """As the user named it."""
    model: str
    """What answers."""
    digest: str
    """Of the model or graph: with another one every question is asked anew."""
    make: Callable[[int], System]
    """The system that draws its samples from a seed."""


@dataclass(frozen=True)
class SeedResult:
    """What a system answered to the questions of one seed."""

    seed: int
    asked: Origin
    questions: Sequence[str]
    outcomes: Sequence[Outcome]


@dataclass(frozen=True)
class EvalRun:
    """All that one system answered."""

    system_spec: SystemSpec
    seed_results: Sequence[SeedResult]

    @property
    def tokens(self) -> int:
        """Of all its answers."""
        return sum(
            o["spent"]["tokens"] for seed_result in self.seed_results for o in seed_result.outcomes
        )


@dataclass(frozen=True)
class EvalRunner:
    """Where systems sit an exam."""

    eval_task: EvalTask
    seeds: Sequence[int]
    run: str
    """Recorded with each question."""
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What else decides the answers: with other settings every question is asked anew."""
    max_concurrency: int = 32
    heard: Listener = lambda key, done, total: None

    async def run_system(self, system_spec: SystemSpec) -> EvalRun:
        """Have a system answer everything; what is recorded is replayed.

        Raises:
            UsageError: there are no questions.
            EndpointError: the endpoint is down; what it did answer is recorded.
            RefluxError: the run's purse is empty, or a foreign graph fails on every question.
        """
        drawn = {seed: self.eval_task.questions(seed) for seed in self.seeds}
        total = sum(map(len, drawn.values()))
        seed_results: list[SeedResult] = []
        before = 0
        self.heard(system_spec.key, 0, total)
        for seed, questions in drawn.items():
            system, asked = system_spec.make(seed), self._asked(system_spec, seed)
            outcomes = await answer_every(
                system,
                asked,
                questions,
                max_concurrency=self.max_concurrency,
                on_done=lambda done, before=before: self.heard(
                    system_spec.key, before + done, total
                ),
            )
            if isinstance(system, ExternalGraph):
                _check_answered(system_spec.key, outcomes)
            seed_results.append(SeedResult(seed, asked, questions, outcomes))
            before += len(questions)
        return EvalRun(system_spec, seed_results)

    def _asked(self, system_spec: SystemSpec, seed: int) -> Origin:
        decides = json.dumps([system_spec.digest, self.settings], sort_keys=True)
        mark = hashlib.sha256(decides.encode()).hexdigest()[:12]
        system = f"eval-{system_spec.key}-{system_spec.model}-{mark}-{seed}"
        return Origin(self.run, -1, system, self.eval_task.name, self.eval_task.split)

    async def run_at_equal_tokens(
        self, system_spec: Callable[[int], Awaitable[SystemSpec]], amplified: EvalRun
    ) -> tuple[EvalRun, EqualTokens]:
        """Have best-of-n answer with as many votes as the amplified system's tokens pay;
        `system_spec(n)` is best-of-n for one n.

        Raises:
            RefluxError: as for `run_system`, or nobody knows the tokens.
        """
        eval_runs: dict[int, EvalRun] = {}

        async def tokens_of(votes: int) -> int:
            if votes not in eval_runs:
                eval_runs[votes] = await self.run_system(await system_spec(votes))
            return eval_runs[votes].tokens

        equal = await equal_votes(tokens_of, amplified.tokens)
        return eval_runs[equal.votes], equal


def _check_answered(key: str, outcomes: Sequence[Outcome]) -> None:
    """A graph that never answers is broken, not wrong."""
    if all(outcome["status"] == "failed" for outcome in outcomes):
        raise RefluxError(
            f"{key} failed on {_every(len(outcomes))} with {outcomes[0]['error']}; correct it and "
            "give the same command again"
        )


def _every(n: int) -> str:
    return "its only question," if n == 1 else f"all {n} questions, on the first"


EQUAL_TOKENS = "best-of-n"
"""The system that takes as many votes as the amplified system's tokens pay for."""


def system_names(systems: str) -> list[str]:
    """The names of a comma-separated list.

    Raises:
        UsageError: the list is empty, repeats a name, or has best-of-n without amplified.
    """
    names = [name.strip() for name in systems.split(",") if name.strip()]
    if not names:
        raise UsageError("--systems names none; for example: direct,amplified")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"--systems names {twice!r} twice; name each system once")
    if EQUAL_TOKENS in names and "amplified" not in names:
        raise UsageError(
            f"{EQUAL_TOKENS} takes as many votes as the amplified system takes tokens: add "
            "amplified to --systems, or name the number, for example best-of-8"
        )
    return names
