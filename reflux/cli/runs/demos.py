"""`reflux demos`: demonstrations for a model overseer, out of the record or of a task's script."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reflux import cli
from reflux.cli.contract import DEFAULT_RUN, Json, RunDir, open_existing, run_async

if TYPE_CHECKING or not cli.SHOWS_HELP:
    from collections import Counter
    from contextlib import closing

    from reflux.agents.errors import RefluxError, UsageError
    from reflux.agents.overseers.demonstration_file import write_demonstrations
    from reflux.finetune.data.demonstrations import Made, from_record
    from reflux.finetune.data.rows import is_withheld
    from reflux.finetune.data.scripted_demonstrations import from_script
    from reflux.finetune.run_folder import RunFolder
    from reflux.report.terminal import command, counted, plain, print_result
    from reflux.tasks import run_task, task_named

MAX_DEMOS, MAX_LEVEL = 100_000, 1000


def make_demos(
    out: Annotated[Path, typer.Option("--out", help="The .jsonl file to write.")],
    run: RunDir = DEFAULT_RUN,
    task: Annotated[
        str | None,
        typer.Option(
            help="Take the script of this task on its training questions, not the record.",
            metavar="NAME",
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option("-n", "--limit", help="Maximum demonstrations.", min=1, max=MAX_DEMOS)
    ] = 100,
    level: Annotated[
        int, typer.Option(help="Level of the task's questions.", min=1, max=MAX_LEVEL)
    ] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the task's questions.", min=0)] = 0,
    unchecked: Annotated[
        bool, typer.Option("--unchecked", help="Take answers that nothing tested, too.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write demonstrations: accepted trees of a run, first those that humans edited or approved.

    None is of a held-out question.
    """
    if task is not None:
        if unchecked:
            raise UsageError("--unchecked is for the record: leave it or --task out")
        source = f"task {task}"
        made = run_async(from_script(task_named(task, RunFolder(run)), limit, level, seed))
    else:
        folder, source = open_existing(run), str(run)
        own = run_task(folder.config()) if folder.exists else None
        with closing(folder.store()) as store:
            made = from_record(
                store, limit, unchecked, lambda text: own is not None and is_withheld(own, text)
            )
    if not made.items:
        hint = "" if task is None else "; choose another --level"
        if made.left_out["unchecked"]:
            again = command("reflux", "demos", "make", "--run", run, "--out", out, "--unchecked")
            hint = f"; take unchecked ones by `{again}`"
        raise RefluxError(
            f"no demonstrations in {source}: {_counts(made.left_out) or 'no question is on record'}"
            f"{hint}"
        )
    write_demonstrations(out, made.items)
    print_result(_body(made, out), plain(_text(made, out)), as_json)


def _text(made: Made, out: Path) -> str:
    bare = sum(not item.answer for item in made.items)
    text = f"{counted(len(made.items), 'demonstration')} in {out}: {_counts(made.sources)}"
    text += f"; {bare} without their answers" if bare else ""
    return text + (f"; left out: {_counts(made.left_out)}" if made.left_out else "")


def _body(made: Made, out: Path) -> dict[str, object]:
    return {
        "demonstrations": len(made.items),
        "file": str(out),
        "with_answers": sum(bool(item.answer) for item in made.items),
        "sources": dict(made.sources),
        "left_out": dict(made.left_out),
    }


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counter.most_common())
