"""Runs systems over evaluation questions and scores their answers."""

import hashlib
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from reflux.agents.errors import RefluxError, UsageError
from reflux.graphs.amplify.state import Outcome, Spent, plus
from reflux.graphs.ask import Origin, System, answer_all
from reflux.graphs.evals.best_of import EqualTokens, equal_votes
from reflux.graphs.evals.eval_task import EvalTask
from reflux.graphs.evals.external_graph import CONCURRENCY, ExternalGraph
from reflux.graphs.evals.metrics import wilson
from reflux.graphs.evals.task import Task, check_held_out, score_held_out
from reflux.graphs.traces.store import TraceStore


@dataclass(frozen=True)
class Score:
    """Accuracy and cost of one system."""

    accuracy: float
    n: int
    """Answers: questions times seeds."""
    ci95: tuple[float, float]
    """Wilson's over the different questions."""
    calls: int
    """Model calls, those answered from the cache included."""
    cached: int
    tokens: int
    statuses: Mapping[str, int]

    @classmethod
    def of(
        cls,
        answers: Iterable[tuple[bool, str, Spent]],
        distinct: int | None = None,
        **more: Any,
    ) -> Self:
        """Add up (right, status, spent) of each answer of one system.

        `distinct` is the number of different questions, None where all are; `more` are the other
        fields of a subclass.

        Raises:
            UsageError: there are no answers.
        """
        rows = list(answers)
        right, n = sum(right for right, _, _ in rows), distinct or len(rows)
        spent = plus(*(spent for _, _, spent in rows))
        return cls(
            accuracy=right / max(1, len(rows)),
            n=len(rows),
            # Around the accuracy, even if some questions were asked more often than others.
            ci95=wilson(right * n / max(1, len(rows)), n),
            **spent,
            statuses=dict(sorted(Counter(status for _, status, _ in rows).items())),
            **more,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; ci95 as a list."""
        return {**asdict(self), "ci95": list(self.ci95)}


async def evaluate(
    system: System,
    task: Task,
    origin: Origin,
    questions: Sequence[str],
    *,
    max_concurrency: int = 32,
    on_done: Callable[[int], None] | None = None,
) -> Score:
    """Answer held-out questions of a task and score the answers.

    Raises:
        UsageError: a training question is among them, or there are none.
        EndpointError: the endpoint is down; answers so far are recorded.
        RefluxError: the run's spend limit is reached.
    """
    for question in questions:
        check_held_out(task, question)
    outcomes = await answer_all(
        system,
        origin,
        questions,
        max_concurrency=max_concurrency,
        on_done=on_done,
        complete=True,
    )
    return Score.of(
        (score_held_out(task, question, outcome["answer"]), outcome["status"], outcome["spent"])
        for question, outcome in zip(questions, outcomes, strict=True)
    )


Listener = Callable[[str, int, int], None]
"""Receives (system, answered questions, number of questions)."""


@dataclass(frozen=True)
class SystemSpec:
    """A named system, and how it is made for each seed."""

    key: str
    model: str
    digest: str
    """Of the model or graph: another digest asks every question again."""
    make: Callable[[int], System]
    """The system that samples with a seed."""


@dataclass(frozen=True)
class SeedResult:
    """A system's answers to the questions of one seed."""

    seed: int
    origin: Origin
    questions: Sequence[str]
    outcomes: Sequence[Outcome]
    recorded: int = 0
    """Outcomes that were on the record before."""


@dataclass(frozen=True)
class EvalRun:
    """All answers of one system."""

    system_spec: SystemSpec
    seed_results: Sequence[SeedResult]

    @property
    def tokens(self) -> int:
        """Of all answers."""
        return sum(o["spent"]["tokens"] for result in self.seed_results for o in result.outcomes)

    def record(self, store: TraceStore) -> dict[str, int]:
        """How many answers there are, how many were on the record before, and how many tries of
        calls failed first."""
        sql = (
            "SELECT coalesce(sum(json_array_length(retries)), 0) FROM calls WHERE retries NOT NULL"
            " AND question IN (SELECT id FROM questions WHERE system=?)"
        )
        return {
            "answers": sum(len(result.outcomes) for result in self.seed_results),
            "recorded": sum(result.recorded for result in self.seed_results),
            "retries": sum(
                next(store.select(sql, (result.origin.system,)))[0] for result in self.seed_results
            ),
        }


@dataclass(frozen=True)
class EvalRunner:
    """Runs systems on one eval task; recorded answers are replayed."""

    eval_task: EvalTask
    seeds: Sequence[int]
    run: str
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What else decides the answers: other settings ask every question again."""
    max_concurrency: int | None = None
    """Questions at a time; by default fewer of a user's graph than of our own systems."""
    listener: Listener = lambda key, done, total: None
    again: bool = False
    """Ask every question anew; what was recorded before stays, and counts no longer."""

    async def run_system(self, system_spec: SystemSpec) -> EvalRun:
        """Run a system on the questions of every seed.

        Raises:
            UsageError: there are no questions.
            EndpointError: the endpoint is down; answers so far are recorded.
            RefluxError: the run's spend limit is reached, or an external graph fails on every
                question.
        """
        questions = {seed: self.eval_task.questions(seed) for seed in self.seeds}
        total = sum(map(len, questions.values()))
        results: list[SeedResult] = []
        before = 0
        self.listener(system_spec.key, 0, total)
        for seed, batch in questions.items():
            system = system_spec.make(seed)
            store = system.context.recorded_client.store
            origin = self._origin(system_spec, seed, store)
            is_graph = isinstance(system, ExternalGraph)
            recorded = _answered(store, origin) & {origin.question_id(q) for q in batch}
            outcomes = await answer_all(
                system,
                origin,
                batch,
                max_concurrency=self.max_concurrency or (CONCURRENCY if is_graph else 32),
                on_done=lambda done, before=before: self.listener(
                    system_spec.key, before + done, total
                ),
                complete=True,
            )
            if is_graph and all(outcome["status"] == "failed" for outcome in outcomes):
                # A graph that never answers is broken, not wrong.
                n = len(batch)
                which = "its only question," if n == 1 else f"all {n} questions, on the first"
                raise RefluxError(
                    f"{system_spec.key} failed on {which} with {outcomes[0]['error']}; correct it "
                    "and repeat the command"
                )
            results.append(SeedResult(seed, origin, batch, outcomes, len(recorded)))
            before += len(batch)
        return EvalRun(system_spec, results)

    def _origin(self, system_spec: SystemSpec, seed: int, store: TraceStore) -> Origin:
        settings = json.dumps([system_spec.digest, self.settings], sort_keys=True)
        digest = hashlib.sha256(settings.encode()).hexdigest()[:12]
        system = f"eval-{system_spec.key}-{system_spec.model}-{digest}-{seed}"
        # The newest time that it was asked again counts.
        sql = "SELECT DISTINCT system FROM questions WHERE system >= ? AND system < ?"
        known = [row[0] for row in store.select(sql, (f"{system}+", f"{system},"))]
        times = max((int(name.rpartition("+")[2]) for name in known), default=0) + self.again
        system += f"+{times}" if times else ""
        return Origin(self.run, -1, system, self.eval_task.name, self.eval_task.split)

    async def run_at_equal_tokens(
        self, system_spec: Callable[[int], Awaitable[SystemSpec]], amplified: EvalRun
    ) -> tuple[EvalRun, EqualTokens]:
        """Run best-of-n with as many votes as the amplified system's tokens pay for;
        `system_spec(n)` is best-of-n for one n.

        Raises:
            RefluxError: as for `run_system`, or the endpoint reports no tokens.
        """
        eval_runs: dict[int, EvalRun] = {}

        async def tokens_of(votes: int) -> int:
            if votes not in eval_runs:
                eval_runs[votes] = await self.run_system(await system_spec(votes))
            return eval_runs[votes].tokens

        equal = await equal_votes(tokens_of, amplified.tokens)
        return eval_runs[equal.votes], equal


def _answered(store: TraceStore, origin: Origin) -> set[str]:
    """Ids of the questions of an origin that have an answer on the record."""
    sql = "SELECT id FROM roots WHERE system=? AND detail ->> 'status' != 'failed'"
    return {row["id"] for row in store.select(sql, (origin.system,))}


EQUAL_TOKENS = "best-of-n"
"""The system that takes as many votes as the amplified system's tokens pay for."""


def parse_systems(systems: str) -> list[str]:
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
