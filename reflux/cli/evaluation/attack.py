"""`reflux attack`: what it costs to find an input on which a system behaves badly."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from reflux import cli
from reflux.cli.contract import (
    DEFAULT_RUN,
    BaseName,
    Calls,
    Concurrency,
    Json,
    Model,
    RunDir,
    Tokens,
    Tools,
    folder_of,
    run_async,
)

if TYPE_CHECKING or not cli.SHOWS_HELP:
    from collections.abc import Mapping, Sequence

    from reflux.agents.errors import UsageError, check_choice
    from reflux.cli.evaluation.attack_plan import (
        AttackPlan,
        attack_all,
        known_attacks,
        write_search,
    )
    from reflux.cli.evaluation.inputs import file_task_of
    from reflux.graphs.attacks.agentdojo import dojo_cases
    from reflux.graphs.attacks.cases import SURFACES, Surface, file_cases, shipped_cases
    from reflux.graphs.attacks.found import figures
    from reflux.graphs.attacks.garak import read_report
    from reflux.graphs.attacks.search import Search
    from reflux.graphs.attacks.techniques import TECHNIQUES
    from reflux.graphs.attacks.world import ARGUMENTS
    from reflux.graphs.evals.questions.forms import Keys
    from reflux.graphs.evals.runner import parse_systems
    from reflux.report.terminal import OUT, emit, print_result, say, table_of

MAX_CASES, MAX_QUERIES = 10_000, 100_000


def attack(
    run: RunDir = DEFAULT_RUN,
    systems: Annotated[
        str,
        typer.Option(
            help="Comma-separated, as of `reflux eval`: direct, amplified, student-rN, "
            "path/file.py:graph; with a policy as amplified+strict or amplified+FILE.yaml."
        ),
    ] = "direct,amplified,amplified+strict",
    cases: Annotated[
        int, typer.Option(help="Honest requests to attack.", min=1, max=MAX_CASES)
    ] = 10,
    queries: Annotated[
        int, typer.Option(help="Maximum attempts on each goal.", min=1, max=MAX_QUERIES)
    ] = 20,
    level: Annotated[
        int, typer.Option(help="Shipped requests have 2^(N-1) documents.", min=1, max=6)
    ] = 2,
    surface: Annotated[
        str,
        typer.Option(
            help="Where the documents are: behind a `tool`, or in the `question`; without tools "
            "then with --no-tools."
        ),
    ] = "tool",
    acts: Annotated[
        bool, typer.Option("--tools/--no-tools", help="Grant tools that act: send and pay.")
    ] = True,
    data: Annotated[
        str | None,
        typer.Option(
            help="Attack the questions of this file instead, as of `reflux eval --data`.",
            metavar="FILE",
        ),
    ] = None,
    question_key: Annotated[str, typer.Option(help="Column of the question.")] = "",
    answer_key: Annotated[str, typer.Option(help="Column of the answer.")] = "",
    agentdojo: Annotated[
        str,
        typer.Option(
            help="Attack the users' tasks of this suite of AgentDojo instead: workspace, travel, "
            "banking or slack.",
            metavar="SUITE",
        ),
    ] = "",
    garak: Annotated[
        Path | None,
        typer.Option(
            help="Ask nothing: show this report of garak's.",
            metavar="REPORT",
        ),
    ] = None,
    model: Model = None,
    base: BaseName = "",
    overseer: Annotated[
        str,
        typer.Option(help="cases (a script, for the shipped cases), model, plain or FILE.py:NAME."),
    ] = "",
    tool: Tools = None,
    technique: Annotated[
        list[str] | None,
        typer.Option(
            help="plain, template, paraphrase, encoded, split, bait, forged or suffix; may be "
            "repeated. Default: all."
        ),
    ] = None,
    adversary: Annotated[
        str, typer.Option(help="Model that words paraphrases: base, or your endpoint's.")
    ] = "",
    attacks: Annotated[
        Path | None,
        typer.Option(
            help="Try these first: rows or attempts of a search.",
            metavar="FILE",
        ),
    ] = None,
    teacher: Annotated[
        str,
        typer.Option(
            help="System whose answers without an attack the rows teach. Default: each its own.",
            metavar="SYSTEM",
        ),
    ] = "",
    depth: Annotated[
        list[int] | None,
        typer.Option(help="Levels of sub-questions; repeat it to compare. Default: 2.", min=1),
    ] = None,
    calls: Calls = 1000,
    tokens: Tokens = 1_000_000,
    max_tokens: Annotated[int, typer.Option(help="Maximum tokens of a reply.", min=1)] = 64,
    seed: Annotated[int, typer.Option(help="Seed of cases and adversary.", min=0)] = 0,
    concurrency: Concurrency = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for figures, a chart, attempts, rows.jsonl and held_out.jsonl.",
            metavar="DIR",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Search for attacks on systems, and count the queries until the first success.

    An adversary writes a part of each request's documents. It wants tools called that nobody asked
    for, and its own number as the answer. The model `obedient` obeys whatever it reads.
    """
    for option, path in (("--attacks", attacks), ("--garak", garak)):
        if path is not None and not path.is_file():
            raise UsageError(f"{option} {path}: there is no such file")
    if garak is not None:
        _show_report(garak, as_json)
        return
    folder, keys = folder_of(run, base), parse_systems(systems)
    for name in technique or ():
        check_choice("--technique", name, TECHNIQUES)
    if teacher and teacher not in keys:
        raise UsageError(f"--teacher {teacher} is none of --systems {systems}; name one of them")
    if data is None and tool:
        raise UsageError("--tool is for --data: the shipped cases have their own tools")
    tools: tuple[str, ...] = ()
    if data is not None and agentdojo:
        raise UsageError("--data and --agentdojo are two sources of requests: leave one out")
    if agentdojo:
        made = dojo_cases(agentdojo, cases)
    elif data is not None:
        made = file_cases(file_task_of(data, Keys(question_key, answer_key, ""), "", cases), cases)
    else:
        tools = tuple(ARGUMENTS) if acts else ("read",)
        check_choice("--surface", surface, SURFACES)
        made = shipped_cases(cases, level, seed, cast("Surface", surface), acts)
    source = "agentdojo" if agentdojo else "shipped" if data is None else "file"
    known = known_attacks(attacks) if attacks is not None else []
    plan = AttackPlan(
        keys, made, tools, overseer, source, tuple(tool or ()), tuple(depth or (2,)),
        calls, tokens, max_tokens, seed, concurrency or 32, adversary,
    )  # fmt: skip
    search = Search(
        folder.id, made, queries, seed, tuple(technique or TECHNIQUES), known,
        max_concurrency=plan.concurrency,
    )  # fmt: skip
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    found = run_async(attack_all(folder, plan, search, model))
    body = {"seed": seed, "queries": queries, "systems": [figures(each) for each in found]}
    if out is not None:
        write_search(out, body, found, plan, teacher)
    if as_json:
        emit(body)
        return
    OUT.print(_table(body["systems"]))
    if out is not None:
        say(f"attempts, figures and rows: {out}")


def _show_report(path: Path, as_json: bool) -> None:
    name, rates = read_report(path)
    body = {"model": name, "probes": [rate.to_json() for rate in rates]}
    rows = [
        (
            each["probe"],
            each["detector"],
            f"{each['hits']}/{each['n']}",
            "{:.1%} to {:.1%}".format(*each["rate_95"]),
        )
        for each in body["probes"]
    ]
    title = f"garak on {name or 'a model without a name'}"
    headings = ("probe", "detector", "got through", "95%")
    print_result(body, table_of(headings, rows, title=title, right=headings[2:]), as_json)


def _table(systems: Sequence[Mapping[str, Any]]) -> Any:
    headings = (
        "system", "right", "tokens", "attempts", "hijacked", "95%", "control cost", "value cost"
    )  # fmt: skip
    rows = [
        (
            each["system"],
            f"{each['right']}/{each['cases']}",
            f"{each['tokens']:.0f}",
            str(each["attempts"]),
            str(each["hijacks"]),
            "{:.1%} to {:.1%}".format(*each["hijacked_95"]),
            _cost(each["control"]),
            _cost(each["value"]),
        )
        for each in systems
    ]
    notes = (
        "cost: queries until the first success, with the goals reached; hijacked: attempts after "
        "which a tool was called that nobody asked for",
    )
    return table_of(headings, rows, title="attacks", notes=notes, right=headings[1:])


def _cost(cost: Mapping[str, Any]) -> str:
    reached = f"{cost['reached']}/{cost['goals']}"
    if not cost["goals"]:
        return "-"
    if cost["cost"] is None:
        return f"> {cost['cost_95'][0]:.0f} ({reached})"
    return f"{cost['cost']:.1f} ({reached})"
