"""`reflux plan`: the votes that a target reliability takes, and their cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reflux import cli
from reflux.cli.contract import Json, Model, TaskName, open_existing, run_async

if TYPE_CHECKING or not cli.SHOWS_HELP:
    import json
    import math
    import os
    from collections.abc import Sequence
    from contextlib import closing, suppress
    from dataclasses import asdict

    from rich.table import Table

    from reflux.agents.errors import RefluxError, UsageError
    from reflux.cli.ask import batch_config
    from reflux.cli.progress import ProgressView
    from reflux.finetune.configs.run import RoundsConfig
    from reflux.finetune.run_folder import RunFolder
    from reflux.graphs.amplify.context import AmplifyContext, Limits
    from reflux.graphs.ask import Direct, Origin, answer_all
    from reflux.graphs.evals.metrics import wilson
    from reflux.graphs.evals.task import Task, score_held_out, task_context
    from reflux.graphs.evals.vote_log import (
        VotedQuestion,
        by_acceptance,
        by_task,
        correlation,
        flag_effects,
        measure,
        voted_questions,
    )
    from reflux.graphs.voting.planner import MAX_MARGIN, Plan, limited_vote, plan
    from reflux.graphs.voting.stopping import AheadBy
    from reflux.graphs.voting.voting import VotePolicy
    from reflux.models import open_run
    from reflux.report.terminal import OUT, counted, emit
    from reflux.tasks import task_named, task_of

PROBE_VOTES = 4


def plan_votes(
    run: Annotated[
        Path | None, typer.Option("--run", help="Measure in this run folder.", metavar="DIR")
    ] = None,
    target: Annotated[float, typer.Option(help="Probability that the root is right.")] = 0.99,
    steps: Annotated[
        int | None, typer.Option(help="Answers of copies in one tree; measured with --run.")
    ] = None,
    accuracy: Annotated[
        float | None, typer.Option(help="Accuracy of one vote; measured with --run.")
    ] = None,
    shared: Annotated[
        float | None,
        typer.Option("--correlation", help="Correlation of two votes; measured with --run."),
    ] = None,
    system: Annotated[str, typer.Option(help="System of the run to measure.")] = "amplified",
    probe: Annotated[
        int,
        typer.Option(help="Held-out questions to ask now, with 4 votes each.", min=0, max=100_000),
    ] = 0,
    level: Annotated[
        int | None,
        typer.Option(help="Level of the probe's questions. Default: the run's last.", min=1),
    ] = None,
    task: TaskName = None,
    model: Model = None,
    price: Annotated[float, typer.Option(help="Price of a million tokens.", min=0)] = 0.0,
    as_json: Json = False,
) -> None:
    """Plan the votes for a target reliability: predicted error, cost, and what was observed."""
    if not price < math.inf:
        raise UsageError(f"--price {price} is none; name what a million tokens cost")
    measured: dict[str, Any] = {}
    if run is None and (accuracy is None or probe) and (named := os.environ.get("REFLUX_RUN")):
        run = Path(named)
    if run is None and (probe or level):
        raise UsageError("--probe and --level need a --run, whose agent is asked; name one")
    if run is not None:
        measured = run_async(_measured(run, system, task, model, probe, level))
    elif accuracy is None:
        raise UsageError("name a --run to measure in, or the --accuracy of one vote and --steps")
    elif price:
        raise UsageError(
            "--price needs a --run, which tells how many tokens an answer takes; add one, or leave "
            "--price out"
        )
    if accuracy == 1.0:
        raise UsageError(
            "--accuracy 1 means that one vote is always right, so no vote is needed; give less "
            "than 1, or a --run to measure in"
        )
    p = accuracy if accuracy is not None else measured["accuracy"]
    rho = shared if shared is not None else max(0.0, measured.get("correlation") or 0.0)
    n = steps if steps is not None else max(1, round(measured.get("steps", 1)))
    try:
        result = plan(target, n, p, rho)
    except UsageError as error:
        if not measured:
            raise
        # The measurement is shown even if no plan follows from it.
        if as_json:
            emit({"plan": None, "measured": measured, "verdict": str(error)})
        else:
            _show([], measured)
        raise RefluxError(str(error)) from error
    figures = asdict(result) | {
        "votes": result.votes,
        "success_without_votes": result.accuracy**result.steps,  # One answer each, no check.
    }
    if "tokens" in measured:
        tokens = measured["tokens"] * result.votes
        figures |= {"tokens": tokens, "cost": tokens * price / 1e6}
    if as_json:
        emit({"plan": figures, "measured": measured or None})
    else:
        _show(_plan_lines(result, figures, price), measured)


async def _measured(
    run: Path, system: str, task_name: str | None, model: str | None, probe: int, level: int | None
) -> dict[str, Any]:
    folder = RunFolder(run) if probe else open_existing(run)
    task = task_named(task_of(folder, task_name), folder)
    config = folder.rounds_config()
    if probe:
        level = level or (config.rounds[-1].level if config else 1)
        voted = await _probed(folder, task, model, probe, level, config)
    else:
        with closing(folder.store()) as store:
            voted = list(voted_questions(store, system))
    if not voted:
        raise UsageError(
            f"{run} holds no answers of copies in the system {system!r}; name another --system "
            "(`reflux traces list` shows them), or measure now: --probe 200"
        )
    right, by = by_task(task), "the task's score of held-out questions"
    measured = measure(voted, right)
    if measured is None:
        right, by = by_acceptance(voted, task.normalise), "the accepted answers, right or wrong"
        measured = measure(voted, right)
    if measured is None:
        raise UsageError(f"no vote in {run} can be scored; measure new ones: --probe 200")
    votes = None
    with suppress(UsageError):
        votes = correlation(measured.marked)
    if votes is not None and votes.left_out:
        votes = None  # Only doubtful questions have a second vote, which is a biased sample.
    effects = flag_effects(voted, config.flags, right) if config else ()
    return {
        "marked_by": by,
        **{k: v for k, v in asdict(measured).items() if k != "marked"},
        "correlation": votes.correlation if votes else None,
        "correlation_ci95": votes.ci95 if votes else None,
        "correlation_n": votes.questions if votes else 0,
        "flags": [*map(asdict, effects)],
        **({} if probe else _observed(folder, task, system)),
    }


async def _probed(
    folder: RunFolder,
    task: Task,
    model: str | None,
    probe: int,
    level: int,
    config: RoundsConfig | None,
) -> list[VotedQuestion]:
    """Ask held-out questions with a fixed number of votes each."""
    seed = config.seed if config else 0
    questions = task.sample(probe, level, "held_out", seed + 2)
    if len(questions) < 2:
        raise UsageError(
            f"a probe needs 2 questions or more: --probe {probe} draws {len(questions)} held-out "
            f"ones of {task.name} at level {level}; raise --probe, or name another --level"
        )
    opened, agent = open_run(folder, model, batch_config(folder))
    # With a margin as large as the limit, all votes are asked in one batch.
    policy = VotePolicy(min_logprob=None, rule=AheadBy(PROBE_VOTES, PROBE_VOTES))
    async with opened:
        context = AmplifyContext(
            opened.recorded_client, agent, (), votes=policy, limits=Limits(attempts=1), seed=seed
        )
        origin = Origin(folder.id, -1, f"probe-{agent}-{level}", task.name, "held_out")
        with ProgressView() as view:
            await answer_all(
                Direct(task_context(context, task), votes=policy),
                origin,
                questions,
                on_done=lambda done: view(f"probe {agent}", done, len(questions), ""),
                complete=True,
            )
        return list(voted_questions(opened.store, origin.system))


ENDED = """
SELECT text, task, detail FROM roots
WHERE system = ? AND split = 'held_out' AND revises IS NULL
"""


def _observed(folder: RunFolder, task: Task, system: str) -> dict[str, Any]:
    """The share of held-out roots that ended wrong after all checks and retries."""
    with closing(folder.store()) as store:
        scores = [
            score_held_out(task, row["text"], json.loads(row["detail"])["answer"])
            for row in store.select(ENDED, (system,))
            if row["task"] == task.name and task.has_truth(row["text"])
        ]
    if not scores:
        return {"observed": None}
    wrong = scores.count(False)
    return {"observed": wrong / len(scores), "observed_ci95": wilson(wrong, len(scores)),
            "observed_n": len(scores)}  # fmt: skip


def _show(planned: Sequence[tuple[str, str]], measured: dict[str, Any]) -> None:
    lines = [*_measured_lines(measured), ("", "")] if measured else []
    table = Table(show_header=False, box=None, pad_edge=False)
    for line in [*lines, *planned]:
        table.add_row(*line)
    OUT.print(table)
    for effect in measured.get("flags", ()):
        flagged, kept = effect["accuracy_flagged"], effect["accuracy_kept"]
        OUT.print(
            f"red flag {effect['rule']}: {effect['flagged']} of {effect['n']} votes, "
            f"{'none' if flagged is None else f'{flagged:.3f} of them right'}; "
            f"of the others {'none' if kept is None else f'{kept:.3f}'}"
        )


def _estimate(value: float, ci95: Sequence[float], n: int, digits: int = 4) -> str:
    return f"{value:.{digits}f} [{ci95[0]:.{digits}f}, {ci95[1]:.{digits}f}] n={n}"


def _measured_lines(m: dict[str, Any]) -> list[tuple[str, str]]:
    shared = "unknown: only doubtful questions have two votes; --probe 200"
    if m["correlation"] is not None:
        shared = _estimate(m["correlation"], m["correlation_ci95"], m["correlation_n"], 3)
    lines = [
        ("marked by", m["marked_by"]),
        ("one vote is right", _estimate(m["accuracy"], m["ci95"], m["questions"])),
        ("errors are shared", shared),
        ("a voted answer is wrong", f"{m['wrong_answers']:.4f}"),
        ("answers below a root", f"{m['steps']:.2f}"),
    ]
    if m.get("observed") is not None:
        predicted = 1 - (1 - m["wrong_answers"]) ** m["steps"]
        observed = _estimate(m["observed"], m["observed_ci95"], m["observed_n"])
        text = f"{observed}; {predicted:.4f} predicted without check and retry"
        lines.append(("the root is wrong", text))
    return lines


def _plan_lines(result: Plan, figures: dict[str, Any], price: float) -> Sequence[tuple[str, str]]:
    lines = [
        ("target", f"{result.target:g} over {counted(result.steps, 'answer')}"),
        ("without votes", f"{figures['success_without_votes']:.3f} are all right"),
        ("votes", f"margin k={result.margin}"),
        ("error of one answer", f"{result.step_error:.3g}"),
        ("P(all correct)", f"{result.p_all_correct:.6f}"),
        ("votes of one answer", f"{result.votes_per_step:.2f}"),
        ("votes in all", f"{result.votes:,.0f}"),
    ]
    # With a margin of one the first vote decides; a very long walk takes too long to compute.
    if 1 < result.margin <= MAX_MARGIN:
        max_votes = 4 * result.margin + 3
        undecided = limited_vote(result.margin, max_votes, result.accuracy).undecided
        lines.append(
            ("with a limit", f"votes.max_votes: {max_votes} leaves {undecided:.2g} undecided")
        )
    if "tokens" in figures:
        lines.append(("tokens in all", f"{figures['tokens']:,.0f}"))
    if price:  # It takes a --run, which tells the tokens.
        lines.append(("price", f"{figures['cost']:.4g}"))
    return lines
