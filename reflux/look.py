"""Commands that look at what is there: traces, students, doctor."""

import importlib.metadata
import os
import platform
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from agents.embedded import default_gguf
from agents.errors import MissingError, RefluxError, UsageError
from finetune.datasets import Form, export
from finetune.gates import failed_gates
from finetune.run_folder import RunFolder
from graphs.traces import TraceStore
from graphs.tree import load_tree
from reflux.app import (
    ERR,
    OUT,
    RUNS,
    Json,
    RunDir,
    emit,
    endpoint,
    open_existing,
    open_students,
    run_async,
)
from reflux.distill_source import logged_rows
from reflux.show import escape, tree_view

traces = typer.Typer(help="Trajectories: list, show, export.", no_args_is_help=True)
students = typer.Typer(help="Students: list, promote, rollback.", no_args_is_help=True)

LISTED = """
SELECT q.id, q.round, q.system, q.split, q.text,
  (SELECT detail ->> 'status' FROM judgements j WHERE j.question = q.id AND j.path = ''
   AND j.kind IN ('outcome', 'leaf') ORDER BY j.id DESC LIMIT 1) AS status,
  (SELECT detail ->> 'answer' FROM judgements j WHERE j.question = q.id AND j.path = ''
   AND j.kind IN ('outcome', 'leaf') ORDER BY j.id DESC LIMIT 1) AS answer,
  (SELECT count(*) FROM calls c WHERE c.question = q.id AND c.kind = 'model') AS calls
FROM questions q
WHERE (:system IS NULL OR q.system = :system) AND (:status IS NULL OR status = :status)
ORDER BY q.created DESC LIMIT :limit
"""


@traces.command("list")
def list_traces(
    run: RunDir = RUNS / "demo",
    system: Annotated[str | None, typer.Option(help="direct, amplified, student, …")] = None,
    status: Annotated[str | None, typer.Option(help="ok, rejected, over_budget, failed")] = None,
    limit: Annotated[int, typer.Option(help="The newest so many.", min=1)] = 20,
    as_json: Json = False,
) -> None:
    """The newest trajectories."""
    store = TraceStore(open_existing(run).traces_path)
    asked = {"system": system, "status": status, "limit": limit}
    found = [dict(row) for row in store.select(LISTED, asked)]
    store.close()
    if as_json:
        emit(found)
        return
    table = Table()
    for heading in ("trajectory", "round", "system", "split", "question", "answer", "status"):
        table.add_column(heading, no_wrap=heading == "trajectory")
    table.add_column("calls", justify="right")
    for row in found:
        shown = (row["id"], row["round"], row["system"], row["split"], row["text"])
        table.add_row(
            *(escape(str(value)) for value in shown),
            escape(row["answer"] or "–"),
            row["status"] or "running",
            str(row["calls"]),
        )
    OUT.print(table)


@traces.command("show")
def show_trace(
    trajectory: Annotated[str, typer.Argument(help="Id, or the beginning of one.")],
    run: RunDir = RUNS / "demo",
    as_json: Json = False,
) -> None:
    """The tree of one trajectory, with its costs."""
    store = TraceStore(open_existing(run).traces_path)
    try:
        tree = load_tree(store, trajectory)
    finally:
        store.close()
    if as_json:
        emit(tree.to_json())
        return
    OUT.print(tree_view(tree))


@traces.command("export")
def export_traces(
    out: Annotated[Path, typer.Argument(help="A .jsonl or .parquet file.")],
    run: RunDir = RUNS / "demo",
    form: Annotated[
        str, typer.Option(help="prompt-completion, messages or preference, as TRL takes them.")
    ] = "prompt-completion",
    as_json: Json = False,
) -> None:
    """Accepted trajectories as rows for TRL, with their provenance in a sidecar."""
    forms: dict[str, Form] = {
        "prompt-completion": "prompt-completion",
        "messages": "messages",
        "preference": "preference",
    }
    if form not in forms:
        raise UsageError(f"there is no form {form!r}; there are: {', '.join(forms)}")
    rows = logged_rows(open_existing(run))
    written = export(rows, out, forms[form])
    if as_json:
        emit({"rows": written, "file": str(out)})
        return
    OUT.print(f"{written} rows in {out}", soft_wrap=True)


@students.command("list")
def list_students(run: RunDir = RUNS / "demo", as_json: Json = False) -> None:
    """Every student of a run, with its lineage and scores."""
    registry = open_students(run)
    current = registry.current()
    found = [
        {
            "id": s.id,
            "parent": s.parent,
            "round": s.round,
            "current": current is not None and s.id == current.id,
            "scores": s.scores,
            "gates": s.gates,
            "path": str(s.path),
        }
        for s in registry.list()
    ]
    if as_json:
        emit(found)
        return
    table = Table()
    for heading in ("student", "parent", "round", "accuracy", "gates", "agent now"):
        table.add_column(heading)
    for s in found:
        table.add_row(
            s["id"],
            s["parent"] or "base",
            "–" if s["round"] is None else str(s["round"]),
            _accuracy(s["scores"]),
            _gates(s["gates"]),
            "yes" if s["current"] else "",
        )
    OUT.print(table)


def _accuracy(scores: dict[str, Any] | None) -> str:
    score = (scores or {}).get("student")
    return f"{score['accuracy']:.3f} (n={score['n']})" if score else "–"


def _gates(gates: list[dict[str, Any]] | None) -> str:
    if not gates:
        return "–"
    failed = [gate["name"] for gate in failed_gates(gates)]
    return f"failed: {', '.join(failed)}" if failed else "passed"


@students.command("promote")
def promote_student(
    student: Annotated[str, typer.Argument(help="Its name.")],
    run: RunDir = RUNS / "demo",
    as_json: Json = False,
) -> None:
    """Make a student the agent X of this run."""
    registry = open_students(run)
    with RunFolder(run).locked():
        registry.promote(student)
    if as_json:
        emit({"current": student})
        return
    OUT.print(f"{student} is the agent now; `reflux students rollback` takes it back")


@students.command("rollback")
def rollback_student(run: RunDir = RUNS / "demo", as_json: Json = False) -> None:
    """Go back to the agent before the last promotion."""
    registry = open_students(run)
    with RunFolder(run).locked():
        now = registry.rollback()
    name = now.id if now else "base"
    if as_json:
        emit({"current": name})
        return
    OUT.print(f"{name} is the agent now")


def doctor(as_json: Json = False) -> None:
    """What is installed, which endpoint answers, what is missing and how to get it."""
    checks = [_python(), _packages(), _model(), _engine(), _endpoint(), _disk()]
    if as_json:
        emit(checks)
    else:
        for check in checks:
            mark = "[green]ok[/]     " if check["ok"] else "[red]missing[/]"
            OUT.print(f"{mark} {check['what']}: {escape(check['detail'])}", soft_wrap=True)
    if not all(check["ok"] for check in checks):
        ERR.print("something is missing; each line says how to get it")
        raise typer.Exit(MissingError.exit_code)


def _check(what: str, ok: bool, detail: str) -> dict[str, Any]:
    return {"what": what, "ok": ok, "detail": detail}


def _python() -> dict[str, Any]:
    return _check("python", True, f"{platform.python_version()}, {os.cpu_count()} cores")


def _packages() -> dict[str, Any]:
    names = ("langgraph", "openai", "transformers", "peft", "trl", "torch", "xllamacpp")
    try:
        found = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    except importlib.metadata.PackageNotFoundError as error:
        return _check("packages", False, f"{error.name} is not installed: pip install -e .")
    return _check("packages", True, found)


def _model() -> dict[str, Any]:
    try:
        return _check("default model", True, f"{default_gguf().name}, sha256 verified")
    except RefluxError as error:
        return _check("default model", False, str(error))


def _engine() -> dict[str, Any]:
    from agents.embedded import EngineConfig, ModelFiles, start_server

    try:
        server = start_server(ModelFiles(default_gguf()), EngineConfig(parallel=1))
    except (RefluxError, ImportError) as error:
        return _check("embedded engine", False, str(error))
    address = server.listening_address
    del server
    return _check("embedded engine", True, f"llama.cpp starts ({address})")


def _endpoint() -> dict[str, Any]:
    try:
        client = endpoint()
        if client is None:
            return _check(
                "endpoint", True, "none set (OPENAI_BASE_URL); the embedded engine serves"
            )
        names = run_async(client.models())
    except RefluxError as error:
        return _check("endpoint", False, str(error))
    return _check("endpoint", True, f"{client.base_url} answers: {', '.join(names[:5])}")


def _disk() -> dict[str, Any]:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    return _check("disk", free > 2, f"{free:.1f} GiB free here (a run takes about 1)")
