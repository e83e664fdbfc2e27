"""`reflux plan`: how many votes a reliability takes, and what they cost."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from reflux.agents.errors import RefluxError, UsageError
from reflux.cli.ask import batch_config, task_of
from reflux.cli.contract import OUT, Json, Model, emit, open_existing, run_async
from reflux.cli.progress import ProgressView
from reflux.finetune.config import RoundsConfig
from reflux.finetune.run_folder import RunFolder
from reflux.graphs.amplify.context import AmplifyContext, Limits
from reflux.graphs.ask import Direct, Origin, answer_every, task_context
from reflux.graphs.evals.metrics import wilson
from reflux.graphs.evals.task import Task, score_held_out
from reflux.graphs.evals.vote_log import (
    Measured,
    VotedQuestion,
    Votes,
    by_acceptance,
    by_task,
    correlation,
    flag_effects,
    measure,
    voted_questions,
)
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.voting.planner import MOST_LEAD, Plan, plan, walk
from reflux.graphs.voting.stopping import AheadBy
from reflux.graphs.voting.voting import VotePolicy
from reflux.models import open_run
from reflux.report.terminal import counted
from reflux.tasks import task_named

PROBE_VOTES = 4


def plan_votes(
    run: Annotated[
        Path | None, typer.Option("--run", help="Measure in this run folder.", metavar="DIR")
    ] = None,
    target: Annotated[float, typer.Option(help="Probability that the root is right.")] = 0.99,
    steps: Annotated[
        int | None, typer.Option(help="Answers of copies below one root; measured with --run.")
    ] = None,
    accuracy: Annotated[
        float | None, typer.Option(help="Of one vote; measured with --run.")
    ] = None,
    shared: Annotated[
        float | None, typer.Option("--correlation", help="Of two votes; measured with --run.")
    ] = None,
    system: Annotated[str, typer.Option(help="Of the run: whose votes count.")] = "amplified",
    probe: Annotated[
        int,
        typer.Option(
            help="Ask so many held-out questions anew, with 4 votes each.", min=0, max=100_000
        ),
    ] = 0,
    level: Annotated[
        int | None,
        typer.Option(help="Level of the probe's questions; the run's last by default.", min=1),
    ] = None,
    task: Annotated[str | None, typer.Option("--task", help="Default: that of the run.")] = None,
    model: Model = None,
    price: Annotated[float, typer.Option(help="Of a million tokens.", min=0)] = 0.0,
    as_json: Json = False,
) -> None:
    """How many votes a target reliability takes: predicted error, votes and price, and
    beside them
    what was observed."""
    if not price < math.inf:
        raise UsageError(f"--price {price} is none; name what a million tokens cost")
    found: dict[str, Any] = {}
    if run is None and (probe or level):
        raise UsageError("--probe and --level need a --run, whose agent is asked; name one")
    if run is not None:
        found = run_async(_measured(run, system, task, model, probe, level))
    elif accuracy is None:
        raise UsageError("name a --run to measure in, or the --accuracy of one vote and --steps")
    elif price:
        raise UsageError(
            "--price needs a --run, which tells how many tokens an answer takes; add one, or leave "
            "--price out"
        )
    p = accuracy if accuracy is not None else found["accuracy"]
    if accuracy == 1.0:
        raise UsageError(
            "--accuracy 1 says that one vote is always right: no vote is needed; give less than 1, "
            "or a --run to measure in"
        )
    rho = shared if shared is not None else max(0.0, found.get("correlation") or 0.0)
    many = steps if steps is not None else max(1, round(found.get("steps", 1)))
    try:
        made = plan(target, many, p, rho)
    except UsageError as error:
        if not found:
            raise
        # What was measured is worth its price whatever follows from it.
        if as_json:
            emit({"plan": None, "measured": found, "verdict": str(error)})
        else:
            _show([], found)
        raise RefluxError(str(error)) from error
    voteless = made.accuracy**made.steps  # Each is asked once, and nothing is checked.
    body = {
        "plan": {**asdict(made), "votes": made.votes, "success_without_votes": voteless},
        "measured": found or None,
    }
    tokens = found.get("tokens")
    if tokens is not None:
        body["plan"] |= {"tokens": made.votes * tokens, "cost": made.votes * tokens * price / 1e6}
    if as_json:
        emit(body)
        return
    _show(_planned(made, body["plan"], price), found)


async def _measured(
    run: Path, system: str, task_name: str | None, model: str | None, probe: int, level: int | None
) -> dict[str, Any]:
    folder = RunFolder(run) if probe else open_existing(run)
    task = task_named(task_of(folder, task_name))
    config = folder.rounds_config()
    if probe:
        level = level or (config.rounds[-1].level if config else 1)
        voted = await _probed(folder, task, model, probe, level, config)
    else:
        store = TraceStore(folder.traces_path)
        voted = list(voted_questions(store, system))
        store.close()
    if not voted:
        raise UsageError(
            f"{run} holds no answers of copies in the system {system!r}; name another --system "
            "(`reflux traces list` shows them), or have it measured: --probe 200"
        )
    right, by = by_task(task), "the task's score of held-out questions"
    measured = measure(voted, right)
    if measured is None:
        right, by = by_acceptance(voted, task.normalise), "the accepted answers, right or wrong"
        measured = measure(voted, right)
    if measured is None:
        raise UsageError(f"no vote in {run} can be marked; have some asked anew: --probe 200")
    votes = _correlation(measured)
    effects = flag_effects(voted, config.flags, right) if config else ()
    observed = {} if probe else _observed(folder, task, system)
    return {
        "marked_by": by,
        **{k: v for k, v in asdict(measured).items() if k != "marked"},
        "correlation": votes.correlation if votes else None,
        "correlation_ci95": votes.ci95 if votes else None,
        "correlation_n": votes.questions if votes else 0,
        "flags": [asdict(effect) for effect in effects],
        **observed,
    }


def _correlation(measured: Measured) -> Votes | None:
    """None where only doubtful questions have a second vote: they are no fair sample."""
    try:
        votes = correlation(measured.marked)
    except UsageError:
        return None
    return None if votes.left_out else votes


async def _probed(
    folder: RunFolder,
    task: Task,
    model: str | None,
    probe: int,
    level: int,
    config: RoundsConfig | None,
) -> list[VotedQuestion]:
    """Ask held-out questions with as many votes each, whatever the first ones say."""
    seed = config.seed if config else 0
    questions = task.sample(probe, level, "held_out", seed + 2)
    if len(questions) < 2:
        raise UsageError(
            f"a probe needs 2 questions or more: --probe {probe} draws {len(questions)} held-out "
            f"ones of {task.name} at level {level}; ask more, or name another level"
        )
    opened, x = open_run(folder, model, batch_config(folder))
    # With the lead as large as the limit, all votes are asked in one wave.
    policy = VotePolicy(min_logprob=None, rule=AheadBy(PROBE_VOTES, PROBE_VOTES))
    async with opened:
        context = AmplifyContext(
            opened.recorded_client, x, (), votes=policy, limits=Limits(attempts=1), seed=seed
        )
        asked = Origin(folder.name, -1, f"probe-{x}-{level}", task.name, "held_out")
        with ProgressView() as view:
            await answer_every(
                Direct(task_context(context, task), votes=policy),
                asked,
                questions,
                on_done=lambda done: view(f"probe {x}", done, len(questions), ""),
            )
        return list(voted_questions(opened.store, asked.system))


ENDED = """
SELECT text, task, detail FROM roots
WHERE system = ? AND split = 'held_out' AND revises IS NULL
"""


def _observed(folder: RunFolder, task: Task, system: str) -> dict[str, Any]:
    """How often held-out roots ended wrong, after all checks and retries."""
    store = TraceStore(folder.traces_path)
    marks = [
        score_held_out(task, row["text"], json.loads(row["detail"])["answer"])
        for row in store.select(ENDED, (system,))
        if row["task"] == task.name
    ]
    store.close()
    if not marks:
        return {"observed": None}
    wrong = marks.count(False)
    return {"observed": wrong / len(marks), "observed_ci95": wilson(wrong, len(marks)),
            "observed_n": len(marks)}  # fmt: skip


def _show(planned: Sequence[tuple[str, str]], found: dict[str, Any]) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    measured = _found(found)
    for line in [*measured, *([("", "")] if measured and planned else []), *planned]:
        table.add_row(*line)
    OUT.print(table)
    for effect in found.get("flags", ()):
        share = effect["accuracy_flagged"]
        said = "none" if share is None else f"{share:.3f} of them right"
        kept = effect["accuracy_kept"]
        OUT.print(
            f"red flag {effect['rule']}: {effect['flagged']} of {effect['n']} votes, {said}; "
            f"of the others {'none' if kept is None else f'{kept:.3f}'}"
        )


def _found(found: dict[str, Any]) -> Sequence[tuple[str, str]]:
    if not found:
        return ()
    low, high = found["ci95"]
    lines = [
        ("marked by", found["marked_by"]),
        ("one vote is right", f"{found['accuracy']:.4f} [{low:.4f}, {high:.4f}] "
         f"n={found['questions']}"),
    ]  # fmt: skip
    if found["correlation"] is None:
        lines.append(
            ("errors are shared", "unknown: only doubtful questions have two votes; --probe 200")
        )
    else:
        low, high = found["correlation_ci95"]
        lines.append(
            ("errors are shared", f"{found['correlation']:.3f} [{low:.3f}, {high:.3f}] "
             f"n={found['correlation_n']}")
        )  # fmt: skip
    lines.append(("a voted answer is wrong", f"{found['wrong_answers']:.4f}"))
    lines.append(("answers below a root", f"{found['steps']:.2f}"))
    if found.get("observed") is not None:
        predicted = 1 - (1 - found["wrong_answers"]) ** found["steps"]
        low, high = found["observed_ci95"]
        lines.append(
            ("the root is wrong", f"{found['observed']:.4f} [{low:.4f}, {high:.4f}] "
             f"n={found['observed_n']}; {predicted:.4f} predicted without check and retry")
        )  # fmt: skip
    return lines


def _planned(made: Plan, price_of: dict[str, Any], price: float) -> Sequence[tuple[str, str]]:
    lines = [
        ("target", f"{made.target:g} over {counted(made.steps, 'answer')}"),
        ("without votes", f"{price_of['success_without_votes']:.3f} are all right"),
        ("votes", f"first to be ahead by {made.margin}"),
        ("error of one answer", f"{made.step_error:.3g}"),
        ("all are right", f"{made.success:.6f}"),
        ("votes of one answer", f"{made.votes_per_step:.2f}"),
        ("votes in all", f"{made.votes:,.0f}"),
    ]
    # The first vote decides where a lead of one is enough; a very long walk is not walked.
    if 1 < made.margin <= MOST_LEAD:
        max_votes = 4 * made.margin + 3
        capped = walk(made.margin, max_votes, made.accuracy)
        lines.append(
            (
                "with a limit",
                f"votes.max_votes: {max_votes} leaves {capped.undecided:.2g} undecided",
            )
        )
    if "tokens" in price_of:
        lines.append(("tokens in all", f"{price_of['tokens']:,.0f}"))
    if price and "cost" in price_of:
        lines.append(("price", f"{price_of['cost']:.4g}"))
    return lines
