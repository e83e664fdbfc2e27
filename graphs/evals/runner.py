"""Runs systems over evaluation questions and scores their answers."""

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from reflux.agents.budget import Budget
from reflux.agents.errors import EndpointError, RefluxError, UsageError
from reflux.graphs.amplify.context import AmplifyContext, Reply
from reflux.graphs.amplify.direct_answer import NodeRef, record_answer, sample_answer
from reflux.graphs.amplify.interrupts import with_spend_limit
from reflux.graphs.amplify.state import Outcome, Spent, Status, accepted_status, plus
from reflux.graphs.ask import Origin, System, answer_all
from reflux.graphs.evals.eval_task import EvalTask
from reflux.graphs.evals.external_graph import ExternalGraph
from reflux.graphs.evals.metrics import wilson
from reflux.graphs.evals.task import Task, check_held_out, score_held_out

MAX_VOTES = 10_000
"""Maximum votes of best-of-n on one question."""


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
    options: dict[str, Any] = {"max_concurrency": max_concurrency, "on_done": on_done}
    outcomes = await answer_all(system, origin, questions, complete=True, **options)
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


@dataclass(frozen=True)
class EvalRun:
    """All answers of one system."""

    system_spec: SystemSpec
    seed_results: Sequence[SeedResult]

    @property
    def tokens(self) -> int:
        """Of all answers."""
        return sum(o["spent"]["tokens"] for result in self.seed_results for o in result.outcomes)


@dataclass(frozen=True)
class EqualTokens:
    """The number of votes of best-of-n that costs the amplified system's tokens."""

    votes: int
    tokens: int
    amplified_tokens: int

    @property
    def dearer(self) -> bool:
        """True where even one vote takes more than the amplified system."""
        return self.tokens > self.amplified_tokens


@dataclass(frozen=True)
class EvalRunner:
    """Runs systems on one eval task; recorded answers are replayed."""

    eval_task: EvalTask
    seeds: Sequence[int]
    run: str
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What else decides the answers: other settings ask every question again."""
    max_concurrency: int = 32
    listener: Listener = lambda key, done, total: None

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
            system, origin = system_spec.make(seed), self._origin(system_spec, seed)
            outcomes = await answer_all(
                system,
                origin,
                batch,
                max_concurrency=self.max_concurrency,
                on_done=lambda done, before=before: self.listener(
                    system_spec.key, before + done, total
                ),
                complete=True,
            )
            is_graph = isinstance(system, ExternalGraph)
            if is_graph and all(outcome["status"] == "failed" for outcome in outcomes):
                # A graph that never answers is broken, not wrong.
                n = len(batch)
                which = "its only question," if n == 1 else f"all {n} questions, on the first"
                raise RefluxError(
                    f"{system_spec.key} failed on {which} with {outcomes[0]['error']}; correct it "
                    "and repeat the command"
                )
            results.append(SeedResult(seed, origin, batch, outcomes))
            before += len(batch)
        return EvalRun(system_spec, results)

    def _origin(self, system_spec: SystemSpec, seed: int) -> Origin:
        settings = json.dumps([system_spec.digest, self.settings], sort_keys=True)
        digest = hashlib.sha256(settings.encode()).hexdigest()[:12]
        system = f"eval-{system_spec.key}-{system_spec.model}-{digest}-{seed}"
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


async def equal_votes(
    tokens_of: Callable[[int], Awaitable[int]], amplified_tokens: int
) -> EqualTokens:
    """Find the largest n whose tokens, prompts included, don't exceed amplified's; at least 1.

    `tokens_of(n)` runs best-of-n on every question and returns its tokens.

    Raises:
        RefluxError: the endpoint reports no tokens.
    """
    first = await tokens_of(1)
    if first == 0:
        raise RefluxError(
            "best-of-n takes as many votes as the amplified system takes tokens, and the endpoint "
            "reports none: name the number of votes, for example best-of-8"
        )
    votes = max(1, min(MAX_VOTES, amplified_tokens // first))
    while (tokens := await tokens_of(votes)) > amplified_tokens and votes > 1:
        votes -= 1  # Later votes are longer than the first.
    # One vote more is tried only where it fits at the mean price of those so far.
    while votes < MAX_VOTES and tokens * (votes + 1) <= amplified_tokens * votes:
        if (more := await tokens_of(votes + 1)) > amplified_tokens:
            break
        votes, tokens = votes + 1, more
    return EqualTokens(votes, tokens, amplified_tokens)


@dataclass
class BestOf:
    """Best of n: the majority of n answers of the agent to the whole question, without an overseer.

    At equal tokens it tests whether decomposition spends tokens better than more votes do (Wang et
    al. 2022, self-consistency). The first vote is greedy, the others are sampled. The most frequent
    answer of those that pass the check wins, or of all where none passes; the earliest of equals.
    """

    context: AmplifyContext
    votes: int
    same_answer: Callable[[str], str] = str.strip

    async def answer(self, question: str, question_id: str) -> Outcome:
        """Ask all votes concurrently."""
        context = with_spend_limit(self.context)
        node = NodeRef(question, question_id, "")
        budgets = Budget(context.limits.calls, context.limits.tokens).split(self.votes)
        results = await asyncio.gather(
            *(_vote(context, node, index, budget) for index, budget in enumerate(budgets))
        )
        replies = [result for result in results if isinstance(result, Reply)]
        errors = [result for result in results if isinstance(result, str)]
        texts = [context.normalise(reply.completion.text) for reply in replies]
        passed = [text for text in texts if context.checker.check(question, text).ok]
        wording: dict[str, str] = {}
        for text in passed or texts:
            wording.setdefault(self.same_answer(text), text)
        # A Counter keeps the order of appearance, which decides among equals.
        counts = Counter(wording[self.same_answer(text)] for text in passed or texts)
        answer = max(counts, key=lambda text: counts[text]) if counts else None
        status: Status = "rejected"
        if passed and answer is not None:
            complete = {
                self.same_answer(text)
                for reply, text in zip(replies, texts, strict=True)
                if not reply.completion.truncated
            }
            is_cut = self.same_answer(answer) not in complete
            status = accepted_status(has_check=context.has_rules, truncated=is_cut)
        outcome: Outcome = {
            "answer": answer,
            # With a missing vote it is another system, so the question counts as not answered.
            "status": "failed" if errors else status,
            "error": errors[0] if errors else None,
            "spent": plus(*(reply.spent for reply in replies)),
        }
        detail = {
            "votes": len(replies),
            "refused": len(texts) - len(passed),
            "tally": counts.most_common(),
        }
        await record_answer(context, node, outcome, detail)
        return outcome


async def _vote(context: AmplifyContext, node: NodeRef, index: int, budget: Budget) -> Reply | str:
    """One vote, or why there is none."""
    if budget.empty:
        return "no calls or tokens left: raise limits.calls or limits.tokens"
    if (resource := context.spend_limit.lacks) is not None:
        return f"no {resource} left"
    try:
        return await sample_answer(context, node, index, budget)
    except EndpointError as error:
        return str(error)
