"""A prompted model as overseer of itself: what each part of "do no harm" is worth, at what price.

On natural questions (`benchmarks.natural_tasks`) one model is agent and overseer:

    direct       the agent alone, greedy
    best-of-n    the majority of n answers of the agent, at the tokens of `weighed`
    bare         the overseer's answer stands, whatever it asked
    held         its decompositions are checked before they are asked
    weighed      and the direct answer is outvoted only by decompositions that agree
    demos        and its examples are the nearest of 200 trees of a script on training questions
    lines        the same, in numbered lines
    plan         the same, with all steps in one reply
    other-demos  as `lines`, with the scripts of all other tasks
    learned      an adapter of the model that imitates the 200 trees divides the questions
    learned-alone   the same, and its answer stands: the direct one is no candidate
    other-learned   the same, of the scripts of all other tasks
    scripted     the task's own script as overseer, where it has one

From `demos` on, sub-questions may go to the tools of the scripts, a calculator and Python.

Claims: all that weigh the direct answer, too, are nowhere below `direct` by more than the 95%
interval of the paired difference; a learned overseer reaches 0.9 of what its script does.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.default_model import (
    SCRIPTED,
    model_name,
    open_default_model,
    parser_of,
    scratch_run,
)
from benchmarks.natural_tasks import Natural, natural_tasks
from benchmarks.overseer_arms import (
    ALONE,
    ARMS,
    CAREFUL,
    DEMONSTRATIONS,
    LEARNED,
    Scripts,
    scratch_context,
    system_of,
)
from benchmarks.report import Claim, Report
from reflux.agents.types import ChatClient
from reflux.graphs.ask import Origin, System, answer_all
from reflux.graphs.evals.metrics import Difference, difference, wilson
from reflux.graphs.traces.tree import load_tree

MAX_VOTES = 16
CONTEXT = 2048


@dataclass(frozen=True)
class Config:
    """One run."""

    n: int = 200
    """Questions of each task."""
    tasks: Sequence[str] = tuple(natural_tasks())
    arms: Sequence[str] = ARMS
    model: str = "default"
    """`default`, `scripted`, or a GGUF."""
    seed: int = 0
    quick: bool = False
    demonstrations: int = DEMONSTRATIONS
    more: bool = False
    """Keeps the last run's figures of other models and tasks."""


@dataclass(frozen=True)
class Done:
    """One arm's result."""

    right: Mapping[str, bool]
    """By question."""
    calls: float
    """Calls a question, those from the cache included."""
    tokens: float
    """Tokens a question."""
    undivided: float
    """Share of the questions that the overseer left to the agent."""
    seconds: float


async def done(arm: str, natural: Natural, system: System, questions: Sequence[str]) -> Done:
    """One arm's answers to all questions."""
    begun = time.perf_counter()
    origin = Origin("model_overseer", 0, arm, natural.task.name, "asked")
    outcomes = await answer_all(system, origin, questions)
    store, n = system.context.recorded_client.store, len(questions)
    undivided = sum(
        not any(node.children for node in load_tree(store, origin.question_id(q)).walk())
        for q in questions
    )
    return Done(
        {
            q: o["answer"] is not None and natural.task.score(q, o["answer"])
            for q, o in zip(questions, outcomes, strict=True)
        },
        sum(o["spent"]["calls"] for o in outcomes) / n,
        sum(o["spent"]["tokens"] for o in outcomes) / n,
        undivided / n,
        time.perf_counter() - begun,
    )


async def measure(config: Config, client: ChatClient, scripts: Scripts, report: Report) -> None:
    """Every arm on every task; no arm sees what another one has cached."""
    tasks, model = natural_tasks(), model_name(scripts.folder.base)
    report.rows[:] = [
        row for row in report.rows if row["model"] != model or row["task"] not in config.tasks
    ]
    again = tuple(f"{model}, {name}: " for name in config.tasks)
    report.claims[:] = [claim for claim in report.claims if not claim.name.startswith(again)]
    for name in config.tasks:
        natural, votes, arms = tasks[name], 1, dict[str, Done]()
        questions = natural.task.sample(config.n, natural.level, "held_out", config.seed)
        for arm in config.arms:
            with scratch_context(client, config.seed) as base:
                system = await system_of(arm, name, base, votes, scripts)
                if system is None:
                    continue
                arms[arm] = result = await done(arm, natural, system, questions)
            if arm == "weighed" and "direct" in arms:
                votes = max(1, min(MAX_VOTES, round(result.tokens / arms["direct"].tokens)))
            report.rows.append(row_of(model, name, arm, arms, votes, config.seed))
            print(report.rows[-1], flush=True)
        for arm in CAREFUL:
            if arm in arms and "direct" in arms:
                gap = gap_of(arms[arm], arms["direct"], config.seed)
                low, high = gap.ci95
                report.claims.append(
                    Claim(f"{model}, {name}: {arm} against direct, upper end of the difference",
                          high, ">=", 0.0, gap.n, (low, high))
                )  # fmt: skip
        report.claims += learned_claim(model, name, arms)
        if not config.quick:
            report.write()


def learned_claim(model: str, name: str, arms: Mapping[str, Done]) -> list[Claim]:
    """What the learned overseer has to reach of the script's accuracy."""
    claims: list[Claim] = []
    for arm in ("learned", ALONE):
        if {arm, "scripted"} <= arms.keys():
            learned, scripted = (sum(arms[each].right.values()) for each in (arm, "scripted"))
            n = len(arms[arm].right)
            low, high = (round(end * n / max(scripted, 1), 3) for end in wilson(learned, n))
            ratio = learned / max(scripted, 1)
            claims.append(
                Claim(f"{model}, {name}: {arm} over scripted", ratio, ">=", 0.9, n, (low, high))
            )
    return claims


def gap_of(one: Done, other: Done, seed: int) -> Difference:
    """The paired difference of two arms on the same questions."""
    return difference("", "", {q: [(one.right[q], other.right[q])] for q in one.right}, seed)


def row_of(
    model: str, task: str, arm: str, arms: Mapping[str, Done], votes: int, seed: int
) -> dict[str, Any]:
    """One row of the table."""
    result, n = arms[arm], len(arms[arm].right)
    right = sum(result.right.values())
    row: dict[str, Any] = {
        "model": model,
        "task": task,
        "arm": f"best-of-{votes}" if arm == "best-of-n" else arm,
        "n": n,
        "accuracy": round(right / n, 3),
        "95%": [round(end, 3) for end in wilson(right, n)],
    }
    if arm != "direct" and "direct" in arms:
        gap = gap_of(result, arms["direct"], seed)
        row |= {"minus direct": round(gap.value, 3), "its 95%": [round(x, 3) for x in gap.ci95]}
    return row | {
        "calls": round(result.calls, 2),
        "tokens": round(result.tokens),
        "undivided": round(result.undivided, 2),
        "seconds": round(result.seconds, 1),
    }


def main(config: Config) -> None:
    """Run and report."""
    report = Report("model_overseer", seed=config.seed, quick=config.quick, more=config.more)

    async def run() -> None:
        async with scratch_run(config.model, CONTEXT) as (folder, batched):
            is_script = config.model == SCRIPTED
            client = open_default_model(SCRIPTED, CONTEXT) if is_script else batched
            scripts = Scripts(client, config.seed, folder, config.demonstrations)
            await measure(config, client, scripts, report)

    asyncio.run(run())
    report.finish()


if __name__ == "__main__":
    parser = parser_of(__doc__)
    parser.add_argument("--tasks", nargs="+", choices=list(natural_tasks()))
    parser.add_argument("--arms", nargs="+", choices=ARMS)
    parser.add_argument("-n", type=int, default=200)
    parser.add_argument(
        "--more", action="store_true", help="keep figures of other models and tasks"
    )
    given = parser.parse_args()
    chosen = Config(
        given.n, given.tasks or Config.tasks, given.arms or ARMS, given.model, more=given.more
    )
    untrained = [arm for arm in ARMS if arm not in LEARNED]
    quick = Config(n=2, arms=untrained, model=SCRIPTED, quick=True, demonstrations=4)
    main(quick if given.quick else chosen)
