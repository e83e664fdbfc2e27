"""`reflux students` and `reflux doctor`: a run's students, and the installation."""

import importlib.metadata
import os
import platform
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from reflux.agents.clients.llama_cpp import default_gguf
from reflux.agents.errors import MissingError, RefluxError
from reflux.cli.contract import (
    ERR,
    OUT,
    RUNS,
    Json,
    RunDir,
    emit,
    open_students,
    run_async,
)
from reflux.finetune.gates import failed_gates
from reflux.finetune.run_folder import RunFolder
from reflux.models import endpoint
from reflux.report.terminal import escape

students = typer.Typer(help="List, promote and roll back students.", no_args_is_help=True)


@students.command("list")
def list_students(run: RunDir = RUNS / "demo", as_json: Json = False) -> None:
    """List the students of a run with lineage and scores."""
    registry = open_students(run)
    current = registry.current()
    rows = [
        {
            "id": student.id,
            "parent": student.parent,
            "round": student.round,
            "current": current is not None and student.id == current.id,
            "scores": student.scores,
            "gates": student.gates,
            "path": str(student.path),
        }
        for student in registry.list()
    ]
    if as_json:
        emit(rows)
        return
    table = Table()
    for heading in ("student", "parent", "round", "accuracy", "gates", "promoted"):
        table.add_column(heading)
    for row in rows:
        table.add_row(
            row["id"],
            row["parent"] or "base",
            "–" if row["round"] is None else str(row["round"]),
            _accuracy(row["scores"]),
            _gates(row["gates"]),
            "yes" if row["current"] else "",
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
    student: Annotated[str, typer.Argument(help="Name of the student.")],
    run: RunDir = RUNS / "demo",
    as_json: Json = False,
) -> None:
    """Make a student the agent of the run."""
    registry = open_students(run)
    with RunFolder(run).locked():
        registry.promote(student)
    if as_json:
        emit({"current": student})
        return
    OUT.print(f"{student} is promoted; `reflux students rollback` undoes it")


@students.command("rollback")
def rollback_student(run: RunDir = RUNS / "demo", as_json: Json = False) -> None:
    """Restore the agent before the last promotion."""
    registry = open_students(run)
    with RunFolder(run).locked():
        student = registry.rollback()
    name = student.id if student else "base"
    if as_json:
        emit({"current": name})
        return
    OUT.print(f"{name} is the agent again")


def doctor(as_json: Json = False) -> None:
    """Check packages, model, engine, endpoint and disk, and say how to fix what is missing."""
    checks = [_python(), _packages(), _model(), _engine(), _endpoint(), _disk()]
    if as_json:
        emit(checks)
    else:
        for check in checks:
            mark = "[green]ok[/]     " if check["ok"] else "[red]missing[/]"
            OUT.print(f"{mark} {check['what']}: {escape(check['detail'])}", soft_wrap=True)
    if not all(check["ok"] for check in checks):
        ERR.print("some checks failed; each line says how to fix it")
        raise typer.Exit(MissingError.exit_code)


def _check(what: str, ok: bool, detail: str) -> dict[str, Any]:
    return {"what": what, "ok": ok, "detail": detail}


def _python() -> dict[str, Any]:
    return _check("python", True, f"{platform.python_version()}, {os.cpu_count()} cores")


def _packages() -> dict[str, Any]:
    names = ("langgraph", "openai", "transformers", "peft", "trl", "torch", "xllamacpp")
    try:
        versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    except importlib.metadata.PackageNotFoundError as error:
        return _check("packages", False, f"{error.name} is not installed: pip install -e .")
    return _check("packages", True, versions)


def _model() -> dict[str, Any]:
    try:
        return _check("default model", True, f"{default_gguf().name}, sha256 verified")
    except RefluxError as error:
        return _check("default model", False, str(error))


def _engine() -> dict[str, Any]:
    from reflux.agents.clients.llama_cpp import EngineConfig, ModelFiles, start_server

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
                "endpoint", True, "OPENAI_BASE_URL is not set; the embedded engine answers"
            )
        names = run_async(client.models())
    except RefluxError as error:
        return _check("endpoint", False, str(error))
    return _check("endpoint", True, f"{client.base_url} answers: {', '.join(names[:5])}")


def _disk() -> dict[str, Any]:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    return _check(
        "disk", free > 2, f"{free:.1f} GiB free in the working folder (a run takes about 1)"
    )
