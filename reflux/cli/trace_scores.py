"""`reflux traces score`: scores of trajectories by a function or a judge, compared with humans'."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reflux import cli
from reflux.cli.contract import DEFAULT_RUN, MAX_LIMIT, Json, RunDir, open_existing, run_async

if TYPE_CHECKING or not cli.SHOWS_HELP:
    from collections.abc import Iterator
    from contextlib import AsyncExitStack, closing
    from itertools import islice

    from rich.console import Group

    from reflux.agents.errors import UsageError
    from reflux.agents.files import read_text
    from reflux.finetune.run_folder import RunFolder
    from reflux.graphs.external.user_code import load_object
    from reflux.graphs.external.user_sources import is_reference
    from reflux.graphs.traces.scoring import (
        Agreement,
        Scorer,
        agreement,
        by_function,
        by_judge,
        has_score,
        score_all,
    )
    from reflux.graphs.traces.selection import selecting
    from reflux.graphs.traces.store import TraceStore
    from reflux.models import open_run
    from reflux.report.terminal import ERR, counted, plain, print_result, say

JUDGE = "judge:"
RUBRIC = (
    "Does the answer do what the question asks for: is it right, complete and to the point, and do "
    "the steps support it?"
)
"""The rubric where none is named."""


def score_traces(
    scorer: Annotated[
        str,
        typer.Option(
            "--with",
            help="FILE.py:FUNCTION of a trajectory, or judge:MODEL.",
            metavar="SCORER",
        ),
    ],
    run: RunDir = DEFAULT_RUN,
    rubric: Annotated[
        str, typer.Option(help="What a judge grades by: a file, or the text.", metavar="RUBRIC")
    ] = "",
    where: Annotated[
        str,
        typer.Option(
            help="Only trajectories with such calls: SQL, as of `reflux distill --where`.",
            metavar="SQL",
        ),
    ] = "status != 'unfinished'",
    name: Annotated[str, typer.Option(help="What is scored, such as helpful.")] = "",
    again: Annotated[bool, typer.Option("--again", help="Score anew what it has scored.")] = False,
    limit: Annotated[int, typer.Option(help="Maximum trajectories.", min=1, max=MAX_LIMIT)] = 1_000,
    concurrency: Annotated[int, typer.Option(help="Trajectories at a time.", min=1)] = 8,
    as_json: Json = False,
) -> None:
    """Score recorded trajectories, and compare the scores with what humans judged.

    A score is from 0 to 1. `reflux distill --where "score >= 0.8"` takes what is scored well.
    """
    is_judge = scorer.startswith(JUDGE) and len(scorer) > len(JUDGE)
    if rubric and not is_judge:
        raise UsageError(f"--rubric is for --with judge:MODEL; {scorer} has none: leave it out")
    if not is_judge and not is_reference(scorer):
        raise UsageError(
            f"--with {scorer}: name a FILE.py:FUNCTION, a module:function or judge:MODEL"
        )
    folder = open_existing(run)
    rubric = read_text(Path(rubric)) if rubric and Path(rubric).is_file() else rubric
    plan = _Plan(folder, scorer, name, where, again, limit, concurrency, rubric)
    body, found = run_async(plan.run(is_judge))
    print_result(body, _view(body, found), as_json)
    if body["failed"] and not body["scored"]:
        raise typer.Exit(1)


class _Plan:
    """One scoring, as the options ask for it."""

    def __init__(
        self, folder: RunFolder, scorer: str, name: str, where: str, again: bool, limit: int,
        concurrency: int, rubric: str,
    ) -> None:  # fmt: skip
        self.folder, self.author, self.name = folder, scorer, name
        self.where, self.again, self.limit = where, again, limit
        self.concurrency, self.rubric = concurrency, rubric
        self.before = 0

    async def run(self, is_judge: bool) -> tuple[dict[str, Any], Agreement]:
        """What was scored, and the agreement with humans."""
        async with AsyncExitStack() as stack:
            if is_judge:
                model = self.author.removeprefix(JUDGE)
                opened, model = open_run(self.folder, model, warm=False)
                await stack.enter_async_context(opened)
                scorer = by_judge(opened.cache, model, self.rubric or RUBRIC, self.name)
                self.author = f"{JUDGE}{model}"
                return await self._scored(opened.store, scorer)
            function, _ = load_object(self.author)
            if not callable(function):
                raise UsageError(f"{self.author} is no function; name one of a trajectory")
            store = stack.enter_context(closing(self.folder.store()))
            return await self._scored(store, by_function(function, self.name, self.author))

    async def _scored(self, store: TraceStore, scorer: Scorer) -> tuple[dict[str, Any], Agreement]:
        scores, count, failures = list[float](), 0, list[str]()
        ids = islice(self._ids(store), self.limit)
        async for each in score_all(store, ids, scorer, self.concurrency):
            if each.feedback is None:
                failures.append(f"{each.id}: {each.error}")
                if len(failures) == 1:
                    say(f"not scored: {failures[0]}", ERR)
            else:
                count += 1
                scores += [] if each.feedback.score is None else [each.feedback.score]
        found = agreement(store, self.author, self.name)
        body = {
            "author": self.author,
            "name": self.name,
            "scored": count,
            "before": self.before,
            "failed": len(failures),
            "mean": sum(scores) / len(scores) if scores else None,
            "agreement": found.to_json(),
        }
        return body, found

    def _ids(self, store: TraceStore) -> Iterator[str]:
        with selecting(store.path, self.where) as selection:
            for selected in selection.trajectories():
                if self.again or not has_score(store, selected.id, self.author, self.name):
                    yield selected.id
                else:
                    self.before += 1


def _view(body: dict[str, Any], found: Agreement) -> Group:
    mean = "" if body["mean"] is None else f", mean {body['mean']:.3f}"
    lines = [f"{counted(body['scored'], 'trajectory')} scored by {body['author']}{mean}"]
    if body["before"]:
        lines.append(f"{body['before']:,} scored before: left as they are, without --again")
    if body["failed"]:
        lines.append(f"{body['failed']} could not be scored")
    if not found.n:
        lines.append(
            "agreement with humans: unknown, no human has judged one of them; `reflux review` or "
            "`reflux.feedback` does"
        )
    else:
        kappa = "undefined, one of them says the same of all"
        if found.kappa is not None:
            kappa = f"{found.kappa:.2f}"
        same = f"{found.rate:.0%} the same, n = {found.n}"
        lines.append(f"agreement with humans: Cohen's kappa {kappa}, {same}")
    return Group(*(plain(line) for line in lines))
