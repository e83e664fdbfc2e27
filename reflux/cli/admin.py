"""`reflux students` and `reflux doctor`: a run's students, and the installation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from reflux import cli
from reflux.cli.contract import (
    DEFAULT_RUN,
    BaseName,
    Json,
    Model,
    RunDir,
    folder_of,
    known_runs,
    open_students,
    run_async,
    unread_endpoint,
)

if TYPE_CHECKING or not cli.SHOWS_HELP:
    import importlib.metadata
    import os
    import platform
    import shutil
    import tempfile
    from collections.abc import Callable
    from contextlib import suppress
    from functools import partial
    from pathlib import Path

    from reflux.agents.clients.endpoints import KEY
    from reflux.agents.clients.llama_cpp import EngineConfig, ModelFiles, default_gguf, start_server
    from reflux.agents.clients.openai import OpenAIClient
    from reflux.agents.errors import (
        MissingError,
        RefluxError,
        UsageError,
        from_os_error,
        pip_install,
    )
    from reflux.agents.overseers.form_probe import QUESTIONS, forms_kept, recommended
    from reflux.agents.types import ChatRequest, Sampling
    from reflux.finetune import check_cache_folder, missing_training_packages
    from reflux.finetune.gates import failed_gates
    from reflux.finetune.registry import POINTERS, role_of
    from reflux.finetune.run_folder import RunFolder
    from reflux.models import endpoint, open_run
    from reflux.report.rounds_tables import parity_text
    from reflux.report.terminal import (
        ERR,
        OUT,
        command,
        emit,
        escape,
        print_result,
        table_of,
    )


LISTED = ("id", "role", "parent", "round", "scores", "gates", "parity")


def list_students(run: RunDir = DEFAULT_RUN, as_json: Json = False) -> None:
    """List the students of a run with lineage and scores."""
    registry = open_students(run)
    current = {getattr(registry.current(role), "id", None) for role in POINTERS}
    rows = [
        {name: getattr(each, name) for name in LISTED}
        | {"path": str(each.path), "current": each.id in current}
        for each in registry.list()
    ]
    headings = ("student", "role", "parent", "round", "accuracy", "gates", "parity", "promoted")
    cells = (
        (
            row["id"],
            row["role"],
            row["parent"] or "base",
            "–" if row["round"] is None else str(row["round"]),
            _accuracy(row["scores"]),
            _gates(row["gates"]),
            parity_text(row["parity"]),
            "yes" if row["current"] else "",
        )
        for row in rows
    )
    print_result(rows, table_of(headings, cells), as_json)


def _accuracy(scores: dict[str, Any] | None) -> str:
    if not (score := (scores or {}).get("student")):
        return "–"
    if score["accuracy"] is not None:
        return f"{score['accuracy']:.3f} (n={score['n']})"
    passed = score.get("passed")
    return f"{passed['share']:.3f} pass the check (n={score['n']})" if passed else "–"


def _gates(gates: list[dict[str, Any]] | None) -> str:
    if not gates:
        return "–"
    failed = [gate["name"] for gate in failed_gates(gates)]
    return f"failed: {', '.join(failed)}" if failed else "passed"


def promote_student(
    student: Annotated[str, typer.Argument(help="Name of the student.", metavar="STUDENT")],
    run: RunDir = DEFAULT_RUN,
    as_json: Json = False,
) -> None:
    """Make a student the agent of the run, or what its name ends in: an overseer, say."""
    registry = open_students(run)
    with RunFolder(run).lock():
        registry.promote(student)
    role = () if role_of(student) == "agent" else ("--role", role_of(student))
    undo = command("reflux", "students", "rollback", *role, "--run", run)
    done = f"{student} is promoted; `{undo}` undoes it"
    print_result({"current": student}, done, as_json)


def rollback_student(
    run: RunDir = DEFAULT_RUN,
    role: Annotated[
        Literal["agent", "overseer", "aggregator", "verifier"],
        typer.Option(help="Whom to roll back."),
    ] = "agent",
    as_json: Json = False,
) -> None:
    """Restore the agent, or the overseer, before the last promotion."""
    registry = open_students(run)
    with RunFolder(run).lock():
        student = registry.rollback(role)
    name = student.id if student else "base" if role == "agent" else "none"
    print_result({"current": name}, f"{name} is the {role} again", as_json)


def doctor(
    model: Model = None,
    base: BaseName = "",
    probe: Annotated[
        bool,
        typer.Option("--probe", help="Ask the model to divide two questions, as an overseer does."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Check packages, model, engine, endpoint and disk, and say how to fix what is missing.

    With --model, one short request tells what the endpoint refuses of that model; with --probe,
    four more tell in which form of replies it divides questions.
    """
    to_do = {**CHECKS, "endpoint": partial(_endpoint, model)}
    checks = [_outcome(name, check) for name, check in to_do.items()]
    answers = next(check["ok"] for check in checks if check["what"] == "endpoint")
    if probe and answers:
        checks.append(_outcome("as an overseer", partial(_forms, model, base)))
    if as_json:
        emit(checks)
    else:
        for check in checks:
            mark = "[green]ok[/]     " if check["ok"] else "[red]missing[/]"
            OUT.print(f"{mark} {check['what']}: {escape(check['detail'])}", soft_wrap=True)
    if not all(check["ok"] for check in checks):
        ERR.print("some checks failed; each line says how to fix it")
        raise typer.Exit(MissingError.exit_code)


def _outcome(name: str, check: Callable[[], str]) -> dict[str, Any]:
    """`what` was checked, whether it is `ok`, and the `detail` or remedy."""
    try:
        return {"what": name, "ok": True, "detail": check()}
    except (RefluxError, ImportError) as error:
        if name in LOCAL_CHECKS and os.environ.get("OPENAI_BASE_URL"):
            detail = f"not installed, and not needed with an endpoint ({error})"
            return {"what": name, "ok": True, "detail": detail}
        return {"what": name, "ok": False, "detail": str(error)}


def _packages() -> str:
    names = ("langgraph", "openai", "xllamacpp", "torch", "transformers", "peft", "trl")
    versions: list[str] = []
    for name in names:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name} {importlib.metadata.version(name)}")
    detail = ", ".join(versions)
    if missing := missing_training_packages():
        detail += f"; init, run, distill and demo need {', '.join(missing)}: {pip_install('train')}"
    return detail


def _engine() -> str:
    server = start_server(ModelFiles(default_gguf()), EngineConfig(parallel=1))
    return f"llama.cpp starts ({server.listening_address})"


def _endpoint(model: str | None = None) -> str:
    client = endpoint()
    if client is None:
        key = " (a key alone names no endpoint)" if os.environ.get(KEY) else ""
        unread = "; .env sets it: add --env-file .env" if unread_endpoint() else ""
        return f"OPENAI_BASE_URL is not set{key}; the embedded engine answers{unread}"
    return run_async(_asked(client, model))


async def _asked(client: OpenAIClient, wanted: str | None) -> str:
    """The models of an endpoint, and what it refuses of a request to one of them."""
    try:
        models = await client.models()
        detail = f"{client.base_url} answers: {', '.join(models[:5])}"
        if len(models) > 5:
            detail += f" and {len(models) - 5} more"
        if wanted or len(models) == 1:
            detail += await _probed(client, wanted or models[0])
        return detail
    finally:
        await client.close()


async def _probed(client: OpenAIClient, model: str) -> str:
    prompt = (("system", "Answer briefly."), ("user", "Say OK."))
    schema = '{"type": "object", "properties": {"answer": {"type": "string"}}}'
    sampling = Sampling(max_tokens=16, top_logprobs=1)
    reply = await client.complete(ChatRequest(model, prompt, sampling, schema=schema))
    notes = list(reply.notes) or ["refuses no setting"]
    if not (reply.reasoning or reply.text.strip()):
        notes.append("replies with nothing")
    elif not (reply.reasoning or reply.truncated) and not reply.text.lstrip().startswith("{"):
        notes.append("ignores a JSON schema")
    if not reply.logprobs and "log-probabilities are unknown" not in notes:
        notes.append("gives no log-probabilities")
    if reply.reasoning:
        notes.append("reasons before it answers")
    return f"; {model}: {', '.join(notes)}"


def _forms(model: str | None, base: str) -> str:
    """In which form a model divides questions, and what to set."""

    async def ask(folder: Path) -> tuple[str, dict[str, int]]:
        opened, name = open_run(folder_of(folder, base), model)
        async with opened:
            return name, await forms_kept(opened.cache, name)

    with tempfile.TemporaryDirectory() as folder:
        name, kept = run_async(ask(Path(folder)))
    n = len(QUESTIONS)
    told = f"{name} divides {kept['json']} of {n} questions in JSON, {kept['lines']} in lines"
    if not (form := recommended(kept)):
        return f"{told}: give the overseer another `model`, or `demos`"
    return f"{told}: overseer.form: {form}"


def _folder(folder: Path, what: str) -> str:
    """The free space of a folder, which must be writable.

    Raises:
        UsageError: it cannot be written.
        MissingError: its disk is nearly full.
    """
    try:
        with tempfile.TemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free / 2**30
    except OSError as error:
        raise UsageError(f"{from_os_error(error)}, which is {what}") from error
    if free <= 2:
        raise MissingError(f"{free:.1f} GiB free in {folder}, {what}; a run takes about 1")
    return f"{free:.1f} GiB free in {folder}"


def _cache() -> str:
    if missing_training_packages():
        return "not needed, since nothing trains here"
    return _folder(check_cache_folder(), "the cache folder")


def _runs() -> str:
    runs = known_runs()
    others = f", before it {', '.join(map(str, runs[1:5]))}" if runs[1:] else ""
    return f"the last one used is {runs[0]}{others}" if runs else "none in runs/ yet"


CHECKS: dict[str, Callable[[], str]] = {
    "python": lambda: f"{platform.python_version()}, {os.cpu_count()} cores",
    "packages": _packages,
    "default model": lambda: f"{default_gguf().name}, sha256 verified",
    "embedded engine": _engine,
    "endpoint": _endpoint,
    "disk": lambda: _folder(Path.cwd(), "the working folder"),
    "cache": _cache,
    "runs": _runs,
}
LOCAL_CHECKS = ("default model", "embedded engine")
"""Checks of parts that an endpoint replaces."""
