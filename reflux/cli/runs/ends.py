"""How a run ended: its reports, a gate that failed, or a human whom it waits for."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from reflux.agents.errors import RefluxError
from reflux.cli.human_input import reply_command
from reflux.finetune.gates import failed_gates
from reflux.finetune.run_folder import RunFolder
from reflux.graphs.traces.review import waiting_in_run
from reflux.report.rounds_tables import (
    hard_lines,
    models_table,
    overseer_lines,
    parity_text,
    retention_lines,
    rounds_tables,
)
from reflux.report.terminal import OUT, command, emit, say
from reflux.tasks import DEFAULT_TASK

SHOWN_WAITING = 10
"""Maximum waiting questions that are printed when a run ends with some."""


def show_waiting(folder: RunFolder, why: str, as_json: bool) -> None:
    """Print what a run waits for, and the commands that reply and go on."""
    with closing(folder.store()) as store:
        items = waiting_in_run(store)
    where = command("--run", folder.path)
    if as_json:
        done, waiting = folder.report().get("rounds", []), [item.to_json() for item in items]
        emit({"run": str(folder.path), "rounds": done, "waiting": waiting})
        return
    for item in items[:SHOWN_WAITING]:
        OUT.print(f"{item.id}  {item.question}", markup=False, highlight=False, soft_wrap=True)
    if items[SHOWN_WAITING:]:
        say(f"… all of them: `reflux review list --why escalated {where}`")
    say(
        f"{why}. Reply with {reply_command('ID', folder)}, or answer them with `reflux review "
        f"{where}`; then continue with `reflux run --resume {where}`"
    )


def show_reports(folder: RunFolder, task: str, reports: list[dict[str, Any]]) -> None:
    """Print tables, hard questions, the report's files, and what to try next."""
    for table in rounds_tables(reports):
        OUT.print(table)
        OUT.print()
    body = folder.report()
    overseers = overseer_lines(reports, body.get("overseer_calls", ()))
    for line in (*hard_lines(reports), *overseers, *retention_lines(reports)):
        OUT.print(line)
    if spent := body.get("models"):
        OUT.print(models_table(spent))
        OUT.print()
    say(f"chart: {folder.chart_path}   report: {folder.report_path}")
    if parity := reports[-1].get("parity"):
        OUT.print(f"The last student's answers in other engines: {parity_text(parity)}.")
    if folder.registry.current() is not None:
        question = '"304+517"' if task == DEFAULT_TASK else "QUESTION"
        hint = f"Try: reflux ask {question} {command('--run', folder.path)}"
        say(hint)


def check_promoted(folder: RunFolder, reports: list[dict[str, Any]]) -> None:
    """Check that the run did not end at a gate.

    Raises:
        RefluxError: the last student was not promoted.
    """
    last = reports[-1]
    if last["promoted"]:
        return
    failed = ", ".join(
        f"{gate['name']} is {gate['value']:.3f}, the limit is {gate['limit']:.3f}"
        for gate in failed_gates(last["gates"])
    )
    raise RefluxError(
        f"round {last['round']}: student-r{last['round']} was not promoted ({failed}). Give it "
        "more rows (questions, primitive_repeats) or another sft: in a new run; "
        f"`{command('reflux', 'run', '--resume', '--run', folder.path)}` continues with "
        f"{last['agent']}"
    )
