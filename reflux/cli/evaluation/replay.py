"""`reflux eval --replay`: systems asked the recorded calls of a run, compared call by call."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from reflux.agents.clients.endpoints import Endpoint, close_clients
from reflux.agents.errors import UsageError
from reflux.agents.files import write_json, write_whole
from reflux.cli.ask import batch_config
from reflux.cli.contract import run_async
from reflux.cli.evaluation.plan import Settings
from reflux.cli.evaluation.systems import SystemSpecs, is_graph
from reflux.cli.progress import ProgressView
from reflux.finetune.run_folder import RunFolder
from reflux.graphs.evals.replay import (
    MEASURES,
    RECORDED,
    Comparison,
    ReplayCall,
    Replayer,
    ReplayScore,
    compared,
    replay_calls,
    score,
)
from reflux.graphs.traces.database import reading
from reflux.graphs.traces.selection import selecting
from reflux.models import open_run
from reflux.report.terminal import OUT, emit, say, table_of

if TYPE_CHECKING:
    from reflux.graphs.evals.runner import SystemSpec

JUDGE = "judge:"
NO_TASK: Any = None


@dataclass(frozen=True)
class ReplayPlan:
    """Which calls are asked again, and of whom."""

    source: Path
    """The run folder that holds the calls."""
    where: str
    keys: Sequence[str]
    limit: int | None
    judge: str = ""
    concurrency: int | None = None

    @staticmethod
    def of(
        source: Path, where: str, keys: Sequence[str], limit: int | None, scorer: str,
        concurrency: int | None,
    ) -> ReplayPlan:  # fmt: skip
        """The plan of a command's options.

        Raises:
            UsageError: a system is asked questions, not calls; another scorer; no record.
        """
        for key in keys:
            if key in ("amplified", "direct") or key.startswith("best-of-") or is_graph(key):
                raise UsageError(
                    f"--replay asks models single calls, and {key} is none: name recorded, base, a "
                    "student, or endpoint:MODEL in --systems"
                )
        if scorer and not scorer.startswith(JUDGE):
            raise UsageError(f"--score {scorer}: with --replay it is judge:MODEL, or left out")
        if not (source / "traces.db").is_file():
            raise UsageError(f"--replay {source}: there is no record of calls in this folder")
        return ReplayPlan(source, where, keys, limit, scorer.removeprefix(JUDGE), concurrency)

    def calls(self) -> list[ReplayCall]:
        """The calls that are asked again.

        Raises:
            UsageError: `where` is wrong, or selects none.
        """
        path = self.source / "traces.db"
        with closing(RunFolder(self.source).store()):  # Adds what an older file lacks.
            pass
        with reading(path) as store, selecting(path, self.where or "1") as selection:
            return replay_calls(store, selection, self.limit)


async def replay(
    folder: RunFolder, plan: ReplayPlan, model: str | None, endpoints: Mapping[str, Endpoint]
) -> dict[str, list[Comparison]]:
    """The comparisons of each system, with the judge's verdict where the plan has one.

    Raises:
        UsageError: there is no such system, or no call is selected.
        MissingError: a system needs an endpoint, and none is set.
    """
    calls = plan.calls()
    opened, agent = open_run(
        folder, model or "base", batch_config(folder), endpoints, plan.concurrency
    )
    results: dict[str, list[Comparison]] = {}
    async with opened, AsyncExitStack() as stack:
        stack.push_async_callback(close_clients, [each.client for each in endpoints.values()])
        systems = SystemSpecs(
            opened, agent, lambda name, seed: _context(opened, name), str, stack,
            frozenset(endpoints),
        )  # fmt: skip
        asked = [key for key in plan.keys if key != RECORDED]
        specs = {key: await systems.system_spec(key) for key in asked}
        judge = await systems.judge_spec(plan.judge) if plan.judge else None

        def replayer(spec: SystemSpec) -> Replayer:
            context = spec.make(0).context
            return Replayer(
                context.recorded_client, spec.model, spec.digest, folder.id, plan.concurrency or 8
            )

        with ProgressView() as view:
            n = len(calls)
            for key in plan.keys:
                if key == RECORDED:
                    made = [compared(call, call.reply) for call in calls]
                else:
                    made = await replayer(specs[key]).ask(
                        calls, lambda done, key=key: view(f"replay {key}", done, n, "")
                    )
                if judge is not None:
                    made = await replayer(judge).judge(
                        key, made, lambda done, key=key: view(f"judge {key}", done, n, "")
                    )
                results[key] = made
    return results


def _context(opened: Any, name: str) -> Any:
    from reflux.graphs.amplify.context import AmplifyContext

    return AmplifyContext(opened.recorded_client, name, (), limits=_limits())


def _limits() -> Any:
    from reflux.cli.contract import limits_of

    return limits_of(0, 1, Settings().tokens, None, 0)


def to_json(plan: ReplayPlan, results: Mapping[str, Sequence[Comparison]]) -> dict[str, Any]:
    """The figures in plain JSON types."""
    return {
        "replay": str(plan.source),
        "where": plan.where,
        "systems": {key: score(made).to_json() for key, made in results.items()},
        "nodes": {
            node: {
                key: score([each for each in made if each.call.node == node]).to_json()
                for key, made in results.items()
            }
            for node in _nodes(results)
        },
    }


def _nodes(results: Mapping[str, Sequence[Comparison]]) -> list[str]:
    first = next(iter(results.values()))
    return sorted({each.call.node for each in first})


def tables(results: Mapping[str, Sequence[Comparison]]) -> list[Table]:
    """The figures of all calls, and of each node where there are several."""
    made = [
        _table("Replies beside the recorded ones, with 95% intervals over trajectories", results)
    ]
    nodes = _nodes(results)
    for node in nodes if len(nodes) > 1 else ():
        part = {k: [each for each in m if each.call.node == node] for k, m in results.items()}
        made.append(_table(f"Node {node}", part))
    return made


def _table(title: str, results: Mapping[str, Sequence[Comparison]]) -> Table:
    scores = {key: score(made) for key, made in results.items()}
    shown = [name for name in MEASURES if any(name in each.shares for each in scores.values())]
    rows = [
        (
            key, str(each.calls), *(_share(each, name) for name in shown),
            f"{each.tokens / max(1, each.calls):.0f}",
            f"{each.seconds / max(1, each.calls):.2f} s",
        )
        for key, each in scores.items()
    ]  # fmt: skip
    heads = ("system", "calls", *shown, "tokens/call", "latency")
    return table_of(heads, rows, title=title, wraps=("system", *shown), right=heads[1:])


def _share(scored: ReplayScore, name: str) -> str:
    if name not in scored.shares:
        return "–"
    share, n, low, high = scored.shares[name]
    return f"{share:.3f} [{low:.3f}, {high:.3f}] of {n}"


def write(out: Path, plan: ReplayPlan, results: Mapping[str, Sequence[Comparison]]) -> None:
    """`replay.json` with the figures, `replay.jsonl` with every reply beside the recorded one."""
    out.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"system": key, **each.to_json()})
        for key, made in results.items()
        for each in made
    ]
    write_whole(out / "replay.jsonl", "".join(f"{line}\n" for line in lines))
    write_json(out / "replay.json", to_json(plan, results))


def ask_again(
    folder: RunFolder,
    plan: ReplayPlan,
    model: str | None,
    endpoints: Mapping[str, Endpoint],
    out: Path | None,
    *,
    as_json: bool,
) -> None:
    """Ask recorded calls again, and print how the replies compare."""
    results = run_async(replay(folder, plan, model, endpoints))
    if out is not None:
        write(out, plan, results)
    if as_json:
        emit(to_json(plan, results))
        return
    for table in tables(results):
        OUT.print(table)
    if out is not None:
        say(f"every reply beside the recorded one: {out}")
