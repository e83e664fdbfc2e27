"""Runs systems over evaluation questions; what they answer is on record, and scored from there."""

import hashlib
import json
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from reflux.agents.errors import RefluxError, UsageError
from reflux.agents.prompts import GRADER, grade_prompt, read_grade
from reflux.agents.redaction import redact
from reflux.agents.verifiers import RuleChecker
from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.ask import Answered, Direct, Origin, System, answer_each
from reflux.graphs.evals.answers import Mark, SeedResult
from reflux.graphs.evals.best_of import EqualTokens, equal_votes
from reflux.graphs.evals.eval_task import EvalTask, run_scorer
from reflux.graphs.evals.scores import Score, Tally
from reflux.graphs.evals.task import Task, check_held_out, score_held_out
from reflux.graphs.external.external_graph import CONCURRENCY, ExternalGraph
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.voting.voting import VotePolicy

JUDGE_TOKENS = 512
"""Maximum tokens of a judge's reply."""


async def evaluate(
    system: System,
    task: Task,
    origin: Origin,
    questions: Sequence[str],
    *,
    max_concurrency: int = 32,
    on_done: Callable[[int], None] | None = None,
) -> Score:
    """Answer held-out questions of a task and score the answers whose truth is known.

    Raises:
        UsageError: a training question is among them, or there are none.
        EndpointError: the endpoint is down; answers so far are recorded.
        RefluxError: the run's spend limit is reached, or the scorer failed on an answer; the
            others are scored before.
    """
    for question in questions:
        check_held_out(task, question)
    tally, failures = Tally(), list[RefluxError]()

    def add(question: str, answered: Answered) -> None:
        if (outcome := answered.outcome) is None:
            return
        answer, right = outcome["answer"], None
        try:
            if task.has_truth(question):
                right = run_scorer(
                    task.name, question, lambda: score_held_out(task, question, answer)
                )
        except RefluxError as error:
            failures.append(error)
        tally.add(
            right, outcome["status"], outcome["spent"],
            error=outcome["error"], confidence=outcome.get("confidence"),
        )  # fmt: skip
        if on_done is not None:
            on_done(len(tally.ids))

    await answer_each(
        system, origin, dict.fromkeys(questions), add,
        max_concurrency=max_concurrency, complete=True,
    )  # fmt: skip
    if failures:
        raise failures[0]
    return tally.score(system.context.model)


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
class EvalRun:
    """Where the answers of one system are recorded, and what they took."""

    system_spec: SystemSpec
    seed_results: Sequence[SeedResult]
    tokens: int
    recorded: int
    """Answers that were on record before."""

    def record(self, store: TraceStore) -> dict[str, int]:
        """How many answers there are, how many were on the record before, and how many tries of
        calls failed first."""
        sql = (
            "SELECT coalesce(sum(json_array_length(retries)), 0) FROM calls WHERE retries NOT NULL"
            " AND question IN (SELECT id FROM questions WHERE system=?)"
        )
        return {
            "answers": sum(len(result.questions) for result in self.seed_results),
            "recorded": self.recorded,
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
    """Questions at a time; by default fewer of a user's graph than of Reflux's systems."""
    listener: Listener = lambda key, done, total: None
    again: bool = False
    """Ask anew what is on record, as another generation of answers."""
    shuffled: bool = False
    """Ask in a random order, the same for all systems and seeds: the first questions then stand
    for all, however the file is sorted."""
    _generations: dict[str, int] = field(default_factory=dict[str, int])

    async def run_system(
        self, system_spec: SystemSpec, begin: int = 0, end: int | None = None
    ) -> EvalRun:
        """Run a system on the questions of every seed, or on some of them.

        Raises:
            UsageError: there are no questions.
            EndpointError: the endpoint is down; answers so far are recorded.
            RefluxError: the run's spend limit is reached, or an external graph fails on every
                question.
        """
        questions = {seed: self.questions(seed)[begin:end] for seed in self.seeds}
        total = sum(map(len, questions.values()))
        results: list[SeedResult] = []
        done = tokens = recorded = 0
        self.listener(system_spec.key, 0, total)
        for seed, batch in questions.items():
            system = system_spec.make(seed)
            store = system.context.recorded_client.store
            origin = self._origin(system_spec, seed, store)
            errors: list[str] = []
            before = done

            def add(question: str, answered: Answered, errors: list[str] = errors) -> None:
                nonlocal done, tokens
                done += 1
                if (outcome := answered.outcome) is not None:
                    tokens += outcome["spent"]["tokens"]
                    if outcome["status"] == "failed":
                        errors.append(str(outcome["error"]) if not errors else "")
                self.listener(system_spec.key, done, total)

            is_graph, answered = isinstance(system, ExternalGraph), _answered(store, origin)
            recorded += sum(origin.question_id(question) in answered for question in batch)
            limit = self.max_concurrency or (CONCURRENCY if is_graph else 32)
            await answer_each(system, origin, batch, add, max_concurrency=limit, complete=True)
            if is_graph and len(errors) == done - before > 0:
                # A graph that never answers is broken, not wrong.
                n = len(batch)
                which = "its only question," if n == 1 else f"all {n} questions, on the first"
                raise RefluxError(
                    f"{system_spec.key} failed on {which} with {errors[0]}; correct it and repeat "
                    "the command"
                )
            results.append(SeedResult(seed, origin, batch))
        return EvalRun(system_spec, results, tokens, recorded)

    def questions(self, seed: int) -> Sequence[str]:
        """The questions of one seed in the order in which they are asked."""
        questions = self.eval_task.questions(seed)
        return random.Random(0).sample(questions, len(questions)) if self.shuffled else questions

    def _origin(self, system_spec: SystemSpec, seed: int, store: TraceStore) -> Origin:
        settings = json.dumps([system_spec.digest, self.settings], sort_keys=True)
        digest = hashlib.sha256(settings.encode()).hexdigest()[:12]
        system = f"eval-{system_spec.key}-{system_spec.model}-{digest}-{seed}"
        task, split = self.eval_task.name, self.eval_task.split
        if system not in self._generations:
            newest = _newest_generation(store, system, task)
            self._generations[system] = max(0, newest + self.again)
        if number := self._generations[system]:
            system += f"+{number}"
        return Origin(self.run, -1, system, task, split)

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


def _newest_generation(store: TraceStore, system: str, task: str) -> int:
    """The number of the newest generation of a system's answers; -1 where there are none."""
    rows = store.select(
        "SELECT DISTINCT substr(system, length(:s) + 2) AS number FROM questions WHERE task=:t AND"
        " (system=:s OR substr(system, 1, length(:s) + 1) = :s || '+')",
        {"s": system, "t": task},
    )
    return max((int(row["number"] or 0) for row in rows), default=-1)


@dataclass(frozen=True)
class JudgeRun:
    """A model grades answers; equal answers to a question are graded once, and on record."""

    eval_task: EvalTask
    run: str
    context: AmplifyContext
    """Of the model that judges."""
    digest: str
    max_concurrency: int
    listener: Listener = lambda key, done, total: None

    @property
    def _origin(self) -> Origin:
        system = f"judge-{self.context.model}-{self.digest[:12]}"
        return Origin(self.run, -1, system, self.eval_task.name, "judge")

    def _prompt(self, question: str, answer: str) -> str:
        truths = self.eval_task.true_answers(question)
        return redact(grade_prompt(question, answer, truths))

    async def grade(self, key: str, results: Sequence[SeedResult]) -> None:
        """Grade the answers of one system.

        Raises:
            EndpointError: the judge's endpoint is down; grades so far are recorded.
        """
        context = replace(
            self.context, system_prompt=GRADER, max_tokens=JUDGE_TOKENS, grants={}, seed=0,
            checker=RuleChecker({}), normalise=str.strip, votes=VotePolicy(max_votes=1),
        )  # fmt: skip
        store, total = context.recorded_client.store, sum(len(each.questions) for each in results)
        done = 0

        seen: set[str] = set()

        def prompts() -> Iterable[str]:
            for result in results:
                for question in result.questions:
                    ended = store.how_ended(result.origin.question_id(question)) or {}
                    if (answer := ended.get("answer")) is None:
                        continue
                    prompt = self._prompt(question, answer)
                    if (id := self._origin.question_id(prompt)) not in seen:
                        seen.add(id)
                        yield prompt

        def add(question: str, answered: Answered) -> None:
            nonlocal done
            done += 1
            self.listener(f"judge {key}", done, total)

        await answer_each(
            Direct(context), self._origin, prompts(), add,
            max_concurrency=self.max_concurrency, complete=True,
        )  # fmt: skip

    def mark(self, question: str, answer: str | None) -> bool | None:
        """The grade of an answer; None where the judge gave none that can be read."""
        if answer is None:
            return False
        store = self.context.recorded_client.store
        graded = store.how_ended(self._origin.question_id(self._prompt(question, answer)))
        return read_grade((graded or {}).get("answer") or "")


def marks_of(eval_task: EvalTask, judge: JudgeRun | None) -> Mark:
    """The scorer of an eval task."""
    if judge is not None:
        return judge.mark
    return lambda question, answer: answer is not None and eval_task.right(question, answer)


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
