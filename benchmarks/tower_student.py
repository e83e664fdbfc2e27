"""A real student solves the tower: the default model, distilled on the overseer's single moves.

Round 0 of the Hanoi task trains it. No training question shows a position of a shortest solution
(`reflux.tasks.hanoi`), and a hash holds out a fifth of the others. Some of those measure each
copy's accuracy and the correlation of errors. Then the planner computes the votes that the tower
takes, and the student solves it: each move is a link of one chain.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.report import Claim, Report
from reflux.agents.types import ChatClient
from reflux.finetune.configs.run import BatchedConfig, RoundsConfig, RoundSpec
from reflux.finetune.run_folder import OpenRun, RunFolder
from reflux.finetune.stages import Stages
from reflux.graphs.amplify.context import AmplifyContext, Limits
from reflux.graphs.ask import Amplified, Direct, Origin, answer_all
from reflux.graphs.evals.metrics import wilson
from reflux.graphs.evals.task import is_held_out, task_context
from reflux.graphs.evals.vote_log import Votes, by_task, correlation, measure, voted_questions
from reflux.graphs.traces.store import links
from reflux.graphs.voting.planner import expected_votes, step_error, votes_needed
from reflux.graphs.voting.stopping import AheadBy
from reflux.graphs.voting.voting import VotePolicy
from reflux.tasks.hanoi import Hanoi, single_move
from reflux.tasks.tower import best, cleared, first_move, on_the_way, read

TARGET = 0.99
MOST = 60
"""Maximum votes on a step."""


@dataclass(frozen=True)
class StudentConfig:
    """One student and its tower."""

    disks: int = 10
    probes: int = 400
    """Held-out single moves that measure the votes."""
    votes: int = 3
    """Votes on each probe."""
    repeats: int = 2
    """Repeats of each primitive in training."""
    anchor: int = 64
    learning_rate: float = 2e-3
    seed: int = 0

    @property
    def steps(self) -> int:
        """Moves of the shortest solution."""
        return 2**self.disks - 1


async def climb_with_student(config: StudentConfig, folder: Path, report: Report) -> None:
    """Distill the student and solve its tower."""
    rounds = RoundsConfig(
        task="hanoi",
        seed=config.seed,
        rounds=(RoundSpec(level=config.disks, primitive_repeats=config.repeats),),
        anchor=config.anchor,
        anchor_tokens=24,
        sft={"learning_rate": config.learning_rate},
    )
    async with OpenRun(RunFolder(folder), BatchedConfig(context=256)) as run:
        stages = Stages(rounds, Hanoi(), run, lambda *_: None)
        await stages.amplify(0, "base")
        trained = await stages.distill(0)
        what = f"{trained['trained_rows']} rows, {trained['rows']} different"
        row = {"student": what, "training s": round(trained["seconds"])}
        report.rows.append(row)
        await climb(config, run, "student-r0", report)


async def climb_with(
    client: ChatClient, config: StudentConfig, folder: Path, report: Report
) -> None:
    """Solve the tower with a model that needs no training."""
    async with OpenRun(RunFolder(folder), client=client) as run:
        await climb(config, run, "other", report)


async def climb(config: StudentConfig, run: OpenRun, model: str, report: Report) -> None:
    """Measure the votes, plan, and solve the tower."""
    task = Hanoi()
    limits = Limits(calls=10 * MOST * config.steps, tokens=10**12, attempts=1)
    given = AmplifyContext(
        run.recorded_client, model, (), limits=limits, seed=config.seed, top_logprobs=0
    )
    context = task_context(given, task)
    probed = await probed_votes(config, context)
    report.rows.append(figures(f"single moves of {config.disks} disks, off the ways", probed))
    low = wilson(round(probed.accuracy * probed.questions), probed.questions)[0]
    if low <= 0.5:
        report.claims.append(Claim("student: steps of the tower", 0, ">=", config.steps, 1))
        return
    margin = votes_needed(TARGET, config.steps, low)
    due = expected_votes(margin, probed.accuracy) * config.steps
    report.rows[-1] |= {
        "k": margin,
        "predicted votes": round(due),
        "predicted errors": round(step_error(margin, low) * config.steps, 5),
    }
    asked = Origin("student", 0, "amplified", task.name, "asked")
    question = on_the_way(config.disks, "X", "Z", 0).text
    voting = replace(context, votes=VotePolicy(min_logprob=None, rule=AheadBy(margin, MOST)))
    (outcome,) = await answer_all(Amplified(voting), asked, [question])
    marks, errors = marked(run, asked.question_id(question), config)
    votes = sum(map(len, marks))
    found = correlation(marks) if margin > 1 else None
    report.rows.append(
        figures(f"tower of {config.disks}", found)
        | {"steps": len(marks), "errors": errors, "votes": votes}
        | {"votes / predicted": round(votes / due, 4), "status": outcome["status"]}
    )
    report.claims += [
        Claim(f"student: errors on {config.steps} steps", errors, "==", 0, len(marks)),
        Claim(
            "student: votes off their prediction, share",
            abs(votes / due - 1), "<=", 0.05, votes,
        ),
    ]  # fmt: skip


async def probed_votes(config: StudentConfig, context: AmplifyContext) -> Votes:
    """Accuracy and correlation of the votes on held-out single moves.

    Raises:
        RuntimeError: No probe was answered.
    """
    task, generator = Hanoi(), random.Random(f"probes:{config.seed}")
    found: dict[str, None] = {}
    while len(found) < config.probes:
        question = single_move(config.disks, generator)
        if question and is_held_out(task, question):
            found[question] = None
    asked = Origin("student", 0, "probe", task.name, "held_out")
    policy = VotePolicy(min_logprob=None, rule=AheadBy(config.votes, config.votes))
    await answer_all(Direct(context, policy), asked, list(found))
    voted = list(voted_questions(context.recorded_client.store, asked.system))
    measured = measure(voted, by_task(task))
    if measured is None:
        raise RuntimeError("no probe was answered")
    return correlation(measured.marked)


def marked(
    run: OpenRun, question_id: str, config: StudentConfig
) -> tuple[list[Sequence[bool]], int]:
    """Return (for each step, whether each vote is right; wrong or missing steps)."""
    due = first_move(on_the_way(config.disks, "X", "Z", 0))
    marks: list[Sequence[bool]] = []
    for link in links(run.store, question_id):
        if read(link.question).pegs != due.pegs:
            break
        right = best(due)
        marks.append([text == right for text, _ in link.votes])
        if link.answer != right:
            break
        due = due.after(right)
    arrived = cleared(due.pegs) and len(marks) == config.steps
    return marks, 0 if arrived else config.steps - len(marks) + 1


def figures(name: str, votes: Votes | None) -> dict[str, Any]:
    """A row with the measured votes."""
    if votes is None:
        return {"votes on": name}
    return {
        "votes on": name,
        "n": votes.questions,
        "accuracy": round(votes.accuracy, 4),
        "correlation": round(votes.correlation, 3),
        "95%": [round(end, 3) for end in votes.ci95],
    }
