"""One greedy call against an overseer with copies and tools, on tasks whose questions others wrote.

The agent is the untrained default model. It receives each question in the source's words, with room
to explain. One tolerant parser reads both systems' answers, and the source's scorer scores them.
Each row names what answers the overseer's sub-questions: if tools answer all of them, the row
measures decomposition and tools, not the model.
"""

import argparse
import asyncio
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.default_model import ENGINES, SCRIPTED, open_default_model
from benchmarks.report import Claim, Report
from reflux.agents.clients.endpoints import CachedClient
from reflux.agents.tools.protocol import Tool, ToolReply
from reflux.agents.types import ToolSpec
from reflux.graphs.amplify.context import AmplifyContext, Limits
from reflux.graphs.ask import Amplified, Direct, Origin, System, answer_all
from reflux.graphs.evals.metrics import mcnemar, wilson
from reflux.graphs.evals.task import score_held_out, task_context
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.voting.voting import VotePolicy
from reflux.tasks import task_named
from reflux.tasks.gym import GymTask

LEVELS: Mapping[str, int] = {
    "chain_sum": 1,
    "products": 1,
    "number_sorting": 1,
    "number_filtering": 1,
    "word_sorting": 1,
    "spell_backward": 1,
    "letter_counting": 1,
    "time_intervals": 1,
    "needle_haystack": 1,
    "family_relationships": 2,
    "multihop": 2,
}
"""Level of each task: the easiest, unless a direct guess would often be right there."""


@dataclass(frozen=True)
class Config:
    """One run."""

    tasks: Sequence[str] = tuple(LEVELS)
    questions: int = 200
    """Held-out questions of each task."""
    attempts: int = 2
    max_concurrency: int = 64
    engine: str = "batched"
    seed: int = 0
    quick: bool = False


class Counted:
    """A tool that counts the overseer's requests."""

    def __init__(self, tool: Tool) -> None:
        self._tool = tool
        self.asked = 0

    @property
    def spec(self) -> ToolSpec:
        """As the tool itself."""
        return self._tool.spec

    async def call(self, arguments: Mapping[str, Any]) -> ToolReply:
        """As the tool itself."""
        return await self._tool.call(arguments)

    async def answer(self, question: str) -> ToolReply:
        """As the tool itself, counted."""
        self.asked += 1
        return await self._tool.answer(question)


@dataclass
class Answered:
    """One system's result on the questions of one task."""

    right: list[bool]
    calls: int
    """Calls of the agent, including cached ones."""
    cached: int
    tokens: int
    statuses: dict[str, int] = field(default_factory=dict[str, int])

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return sum(self.right) / len(self.right)

    @property
    def ci95(self) -> tuple[float, float]:
        """Wilson score interval."""
        return wilson(sum(self.right), len(self.right))


async def answered(
    system: System, task: GymTask, name: str, questions: Sequence[str], config: Config
) -> Answered:
    """Ask one system all questions."""
    asked = Origin("benchmark", 0, name, task.name, "held_out")
    outcomes = await answer_all(system, asked, questions, max_concurrency=config.max_concurrency)
    done = Answered(
        [score_held_out(task, q, o["answer"]) for q, o in zip(questions, outcomes, strict=True)],
        calls=sum(o["spent"]["calls"] for o in outcomes),
        cached=sum(o["spent"]["cached"] for o in outcomes),
        tokens=sum(o["spent"]["tokens"] for o in outcomes),
    )
    for outcome in outcomes:
        done.statuses[outcome["status"]] = done.statuses.get(outcome["status"], 0) + 1
    return done


async def compare_systems(
    recorded_client: RecordedClient, task: GymTask, level: int, config: Config, report: Report
) -> None:
    """Run the task with both systems; add one row and one claim."""
    tools = {name: Counted(tool) for name, tool in task.tools().items()}
    limits = Limits(attempts=config.attempts)
    context = task_context(
        AmplifyContext(
            recorded_client,
            "base",
            (),
            limits=limits,
            votes=VotePolicy(max_votes=1),
            tools=tools,
            top_logprobs=0,
        ),
        task,
    )
    questions = task.sample(config.questions, level, "held_out", config.seed)
    direct = await answered(Direct(context), task, "direct", questions, config)
    amplified = await answered(Amplified(context), task, "amplified", questions, config)
    n = len(questions)
    pairs = list(zip(direct.right, amplified.right, strict=True))
    report.rows.append(
        {
            "task": task.name,
            "level": level,
            "leaves": " + ".join(by for by in ("model", "tool") if f"{by}:" in task.answered_by),
            "n": n,
            "direct": direct.accuracy,
            "direct 95%": list(direct.ci95),
            "amplified": amplified.accuracy,
            "amplified 95%": list(amplified.ci95),
            "McNemar p": mcnemar(pairs.count((True, False)), pairs.count((False, True))),
            "calls/q": amplified.calls / n,
            "cached/q": amplified.cached / n,
            "tools/q": sum(tool.asked for tool in tools.values()) / n,
            "tokens/q": amplified.tokens / n,
            "direct tokens/q": direct.tokens / n,
            "no answer": n - sum(amplified.statuses.get(s, 0) for s in ("ok", "unchecked")),
        }
    )
    report.claims.append(
        Claim(
            f"{task.name}: amplified's interval lies above direct's",
            amplified.ci95[0],
            ">=",
            direct.ci95[1],
            n,
            amplified.ci95,
        )
    )


async def run(config: Config, report: Report) -> None:
    """Run all tasks, one after another, on one engine."""
    engine = open_default_model(config.engine, context=1024)
    with tempfile.TemporaryDirectory() as scratch:
        store = TraceStore(Path(scratch) / "traces.db")
        try:
            recorded_client = RecordedClient(CachedClient(engine), store)
            for name in config.tasks:
                task = task_named(name)
                if not isinstance(task, GymTask):
                    raise TypeError(f"{name!r} does not say what answers its sub-questions")
                await compare_systems(recorded_client, task, LEVELS[name], config, report)
        finally:
            store.close()
            await engine.close()


def main(config: Config) -> None:
    """Run and report."""
    report = Report("tasks", seed=config.seed, quick=config.quick)
    asyncio.run(run(config, report))
    report.finish()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke run of a few seconds")
    parser.add_argument("--engine", choices=ENGINES, default="batched")
    given = parser.parse_args()
    smoke = Config(("products", "family_relationships"), 4, engine=SCRIPTED, quick=True)
    main(smoke if given.quick else Config(engine=given.engine))
