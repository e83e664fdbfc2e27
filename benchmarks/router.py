"""The router against its two arms, on questions where decomposition helps and where it hurts.

The arms are the agent alone, always the overseer, and the overseer only where the router predicts a
gain. `multihop` and `needle_haystack` are the tasks of that name, which the agent alone mostly
fails. `continent` and `capital` are facts that the agent alone mostly knows; decomposing them
through another fact only adds chances of error. The router is fitted on questions of all kinds and
judged on others; it does not see the kind of a question.
"""

import argparse
import asyncio
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.default_model import ENGINES, SCRIPTED, open_default_model
from benchmarks.report import Claim, Report
from reflux.agents.clients.endpoints import CachedClient
from reflux.agents.overseers.protocol import PASS
from reflux.agents.overseers.router import Past, Routed, Router
from reflux.agents.overseers.scripted import ScriptedOverseer
from reflux.agents.types import Answer, Ask, Exchange, Step, SubQuestion
from reflux.graphs.amplify.context import AmplifyContext, Limits
from reflux.graphs.amplify.direct_answer import first_request
from reflux.graphs.ask import Amplified, Direct, Origin, System, answer_all
from reflux.graphs.evals.metrics import wilson
from reflux.graphs.evals.task import task_context
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.voting.voting import VotePolicy
from reflux.tasks import task_named
from reflux.tasks.gym import first_name, offline_package
from reflux.tasks.multihop import WORDS

Fresh = Callable[[], RecordedClient]
"""Makes a client with a separate cache."""


@dataclass(frozen=True)
class Config:
    """One run."""

    fitted: int = 80
    """Questions of each kind for fitting; of facts one in three."""
    judged: int = 200
    """Other questions of each kind for judging; of facts all that remain."""
    attempts: int = 2
    engine: str = "batched"
    seed: int = 0
    quick: bool = False


@dataclass(frozen=True)
class Kind:
    """Questions of one kind, their overseer, and their scorer."""

    name: str
    fit: Sequence[str]
    judge: Sequence[str]
    right: Callable[[str, str | None], bool]
    context: AmplifyContext


def task_kind(name: str, level: int, base: AmplifyContext, config: Config) -> Kind:
    """Held-out questions of a task."""
    task = task_named(name)
    found = list(task.sample(config.fitted + config.judged, level, "held_out", config.seed))
    context = replace(task_context(base, task), tools=task.tools())
    return Kind(
        name,
        found[: config.fitted],
        found[config.fitted :],
        lambda question, answer: answer is not None and task.score(question, answer),
        context,
    )


def facts(base: AmplifyContext, config: Config) -> list[Kind]:
    """Facts about countries, which the overseer asks for indirectly."""
    known: dict[str, tuple[str, str]] = {}
    for country in offline_package("countryinfo").all_countries():
        name, capital, there = country.name(), country.capital(), WORDS.get(str(country.region()))
        if capital and there:
            known[str(name).title()] = (str(capital), there)
    names = sorted(known)
    random.Random(config.seed).shuffle(names)
    cut = min(config.fitted, len(names) // 3)
    names = names[: cut + config.judged]
    continent = {f"On which continent is {name}?": known[name][1] for name in names}
    capital = {f"What is the capital of {name}?": known[name][0] for name in names}

    def lies(question: str, answer: str | None) -> bool:
        try:
            return WORDS[first_name(tuple(WORDS), answer or "")] == continent[question]
        except ValueError:
            return False

    def named(question: str, answer: str | None) -> bool:
        return capital[question].lower() in (answer or "").lower()

    def kind(name: str, truth: Mapping[str, str], right: Callable[[str, str | None], bool],
             h: Callable[[str, Sequence[Exchange], bool], Step]) -> Kind:  # fmt: skip
        questions = list(truth)
        context = replace(base, overseers=(ScriptedOverseer(name, h),), max_tokens=24)
        return Kind(name, questions[:cut], questions[cut:], right, context)

    return [
        kind("continent", continent, lies, by_capital),
        kind("capital", capital, named, by_continent),
    ]


def by_capital(question: str, transcript: Sequence[Exchange], may_ask: bool) -> Step:
    """Ask for a country's continent through its capital."""
    country = question.removeprefix("On which continent is ").removesuffix("?")
    return detour(
        f"What is the capital of {country}?", "On which continent is the city in this sentence: "
        "{0}", transcript, may_ask,
    )  # fmt: skip


def by_continent(question: str, transcript: Sequence[Exchange], may_ask: bool) -> Step:
    """Ask for a country's capital through its continent."""
    country = question.removeprefix("What is the capital of ").removesuffix("?")
    return detour(
        f"On which continent is {country}?", "{0} Of the cities there, which is the capital of "
        f"{country}?", transcript, may_ask,
    )  # fmt: skip


def detour(first: str, second: str, transcript: Sequence[Exchange], may_ask: bool) -> Step:
    """Ask one question that needs the answer to another."""
    if not may_ask:
        return PASS
    if not transcript:
        return Ask((SubQuestion(first), SubQuestion(second, (0,))))
    return Answer(transcript[1].answer or "")


@dataclass(frozen=True)
class Went:
    """One arm's result."""

    right: tuple[bool, ...]
    calls: int
    """Model calls made, without cached ones."""
    tokens: int


async def went(kind: Kind, system: System, arm: str, questions: Sequence[str]) -> Went:
    """Ask one arm all questions with a separate cache, so that no arm profits from another."""
    outcomes = await answer_all(system, Origin("router", 0, arm, kind.name, "asked"), questions)
    return Went(
        tuple(kind.right(q, o["answer"]) for q, o in zip(questions, outcomes, strict=True)),
        sum(o["spent"]["calls"] - o["spent"]["cached"] for o in outcomes),
        sum(o["spent"]["tokens"] for o in outcomes),
    )


async def learned(kind: Kind, past: list[Past]) -> None:
    """Answer the fitting questions both ways, and read the agent's confidence from the log."""
    direct = await went(kind, Direct(kind.context), "fit-direct", kind.fit)
    tree = await went(kind, Amplified(kind.context), "fit-amplified", kind.fit)
    client = kind.context.recorded_client.client
    for question, one, other in zip(kind.fit, direct.right, tree.right, strict=True):
        reply = await client.complete(first_request(kind.context, question))
        past.append(Past(question, reply.min_logprob, one, other))


async def judged(kind: Kind, router: Router, report: Report, fresh: Fresh) -> None:
    """One row: both arms and the router on the same questions."""
    n, arms = len(kind.judge), dict[str, Went]()
    for arm in ("direct", "amplified", "routed"):
        context = replace(kind.context, recorded_client=fresh())
        if arm == "routed":
            (h, *_), probe = context.overseers, context
            routed = Routed(h, router, lambda q, probe=probe: first_request(probe, q))
            context = replace(context, overseers=(routed,))
        system = Direct(context) if arm == "direct" else Amplified(context)
        arms[arm] = await went(kind, system, f"judge-{arm}", kind.judge)
    row: dict[str, object] = {"kind": kind.name, "n": n}
    for arm, done in arms.items():
        right = sum(done.right)
        row |= {arm: right / n, f"{arm} 95%": list(wilson(right, n))}
        row |= {f"{arm} calls/q": done.calls / n}
    report.rows.append(row)
    better = max(sum(arms["direct"].right), sum(arms["amplified"].right))
    gap = (better - sum(arms["routed"].right)) / n
    report.claims.append(
        Claim(f"{kind.name}: points that the router loses to the better arm", 100 * gap, "<=", 1, n)
    )


async def run(config: Config, report: Report) -> None:
    """Fit on all kinds, then judge each kind."""
    engine = open_default_model(config.engine, context=1024)
    with tempfile.TemporaryDirectory() as scratch:
        store = TraceStore(Path(scratch) / "traces.db")

        def fresh() -> RecordedClient:
            return RecordedClient(CachedClient(engine), store)

        base = AmplifyContext(
            fresh(),
            "base",
            (),
            limits=Limits(attempts=config.attempts),
            votes=VotePolicy(max_votes=1),
        )
        try:
            kinds = [task_kind("multihop", 2, base, config), *facts(base, config)]
            if not config.quick:  # Its prompts are long: they are most of the time.
                kinds.insert(1, task_kind("needle_haystack", 1, base, config))
            past: list[Past] = []
            for kind in kinds:
                await learned(kind, past)
            router = Router.fit(past)
            for kind in kinds:
                await judged(kind, router, report, fresh)
        finally:
            store.close()
            await engine.close()
    rows, n = report.rows, sum(row["n"] for row in report.rows)

    def calls(arm: str) -> float:
        return sum(row[f"{arm} calls/q"] * row["n"] for row in rows) / n

    share = calls("routed") / calls("amplified")
    report.claims.append(
        Claim("calls of the router, as a share of always decomposing", share, "<=", 1.0, n)
    )


def main(config: Config) -> None:
    """Run and report."""
    report = Report("router", seed=config.seed, quick=config.quick)
    asyncio.run(run(config, report))
    report.finish()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--engine", choices=ENGINES, default="batched")
    given = parser.parse_args()
    smoke = Config(fitted=8, judged=2, attempts=1, engine=SCRIPTED, quick=True)
    main(smoke if given.quick else Config(engine=given.engine))
