"""Rounds of amplify → distill → evaluate → promote, as a LangGraph graph that can be resumed.

    START → amplify → distill → evaluate → promote → improve → report ──more rounds──► amplify
                                                                 └──done, or a gate failed──► END

Implements section 8.4.3 of the AI Safety Atlas. The checkpoint holds the stage of the round and its
results. The call log and the registry hold all else, so a repeated stage repeats no call.
"""

import time
from collections.abc import Awaitable, Callable
from typing import Any, TypedDict, cast

from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime

from reflux.agents.tools.protocol import Grants
from reflux.finetune.canaries.measure import measure_canaries
from reflux.finetune.configs.run import RoundsConfig
from reflux.finetune.defences.stage import defend
from reflux.finetune.gates import failed_gates, judge
from reflux.finetune.overseer_stage import begin_learning
from reflux.finetune.overseer_stage import improve as improve_overseer
from reflux.finetune.report import score_levels, write_report
from reflux.finetune.retention.measure import measure_retention
from reflux.finetune.role_stage import learn_roles
from reflux.finetune.run_folder import OpenRun
from reflux.finetune.stages import Progress, Stages, student_name
from reflux.graphs.amplify.interrupts import open_checkpoints
from reflux.graphs.evals.task import Task

DAMAGED = "delete it and continue with --resume, which repeats no recorded call"
"""The remedy for damaged checkpoints, which hold nothing but the stage."""


class RoundsState(TypedDict):
    """The stage of a run."""

    number: int
    model: str
    """The agent of this round."""
    results: dict[str, Any]
    """Of the round's stages, by name."""
    done: list[dict[str, Any]]
    """Reports of the finished rounds."""
    seconds: float
    """Time spent in stages."""


StageRuntime = Runtime[Stages]
Stage = Callable[[Stages, RoundsState], Awaitable[dict[str, Any]]]


def _node(stage: Stage) -> Any:
    """A stage as a node, which adds its results and its time to the state."""

    async def node(state: RoundsState, runtime: StageRuntime) -> dict[str, Any]:
        begun = time.perf_counter()
        results = {**state["results"], **await stage(runtime.context, state)}
        return {"results": results, "seconds": state["seconds"] + time.perf_counter() - begun}

    return node


async def amplify(stages: Stages, state: RoundsState) -> dict[str, Any]:
    """Stage 1; before the first one an overseer is learned, where the config says so."""
    first = state["number"] == stages.first
    learned = await begin_learning(stages, state["model"]) if first else None
    made = await stages.amplify(state["number"], state["model"])
    return {"amplify": made, "overseers": [learned] if learned else []}


async def distill(stages: Stages, state: RoundsState) -> dict[str, Any]:
    return {"distill": await stages.distill(state["number"], defend)}


async def evaluate(stages: Stages, state: RoundsState) -> dict[str, Any]:
    """Stage 3: scores, gates, and scores by level."""
    number, model = state["number"], state["model"]
    scores = await stages.evaluate(number, model)
    gates = await stages.gates(number, model, scores)
    canaries = await measure_canaries(stages, number, model, state["done"])
    by_level = await score_levels(stages, None, "base", "base") if number == stages.first else []
    by_level += await score_levels(stages, number, "student", student_name(number))
    retention = await measure_retention(stages, number, scores, by_level, state["done"])
    more = judge(
        stages.config.gates,
        forgotten=retention["forgotten"],
        lost=canaries and canaries["certain_loss"],
        divergence=(retention["perplexity"] or {}).get("divergence"),
    )
    gates += [gate.to_json() for gate in more]
    measured = {"by_level": by_level, "retention": retention, "canaries": canaries}
    return {"scores": scores, "gates": gates, **measured}


async def promote(stages: Stages, state: RoundsState) -> dict[str, Any]:
    """Stage 4: the student becomes the agent if its gates pass."""
    number, results = state["number"], state["results"]
    name, registry = student_name(number), stages.run.folder.registry
    registry.record_evaluation(name, results["scores"], results["gates"])
    if promoted := not failed_gates(results["gates"]):
        registry.promote(name)
    is_last = number == stages.last
    by_level = results["by_level"]
    if number > 0 and (is_last or not promoted):
        amplified = await score_levels(stages, number, "amplified", state["model"])
        by_level = [*by_level, *amplified]
    parity = registry.get(name).parity
    return {"promoted": promoted, "by_level": by_level, "parity": parity}


async def improve(stages: Stages, state: RoundsState) -> dict[str, Any]:
    """Stage 5: the learned overseer and the role adapters learn from the trees so far."""
    results = state["results"]
    learned = await improve_overseer(stages, state["number"], results["scores"])
    before = results.get("overseers", [])  # An older version had none.
    roles = await learn_roles(stages, state["number"], state["model"])
    return {"overseers": [*before, *([learned] if learned else [])], "roles": roles}


async def report(state: RoundsState, runtime: StageRuntime) -> dict[str, Any]:
    """The report grows by a round, and the next round begins."""
    stages, number, results = runtime.context, state["number"], state["results"]
    distilled = results["distill"]
    entry = {
        "round": number,
        "task": stages.task.name,
        "level": stages.spec(number).level,
        "agent": state["model"],
        **results["scores"],
        "rows": distilled["rows"],
        "trained_rows": distilled["trained_rows"],
        **({"defences": distilled["defences"]} if distilled.get("defences") else {}),
        "train_seconds": round(distilled["seconds"], 1),
        "examples_per_second": round(distilled["examples_per_second"], 2),
        "loss": distilled.get("curve", {}),
        **{key: results[key] for key in ("amplify", "gates", "promoted", "by_level", "parity")},
        "overseers": results["overseers"],
        # An older version had none of these.
        "retention": results.get("retention"),
        "canaries": results.get("canaries"),
        **({"roles": results["roles"]} if results.get("roles") else {}),
    }
    done = [*state["done"], entry]
    write_report(stages, done, state["seconds"])
    model = stages.next_agent(number, state["model"], results["promoted"])
    return {"number": number + 1, "model": model, "results": {}, "done": done}


def build_rounds_graph() -> StateGraph[RoundsState, Stages, RoundsState, RoundsState]:
    """The graph of a run, uncompiled."""
    graph = StateGraph(RoundsState, context_schema=Stages)
    stages = [
        (stage.__name__, _node(stage)) for stage in (amplify, distill, evaluate, promote, improve)
    ]
    graph.add_sequence([*stages, ("report", report)])
    graph.add_edge(START, "amplify")

    def next_round(state: RoundsState, runtime: StageRuntime) -> str:
        over = state["number"] > runtime.context.last
        # The next level is out of reach for an agent that did not learn this one.
        return END if over or not state["done"][-1]["promoted"] else "amplify"

    graph.add_conditional_edges("report", next_round, [END, "amplify"])
    return graph


async def run_rounds(
    run: OpenRun,
    config: RoundsConfig,
    task: Task,
    progress: Progress,
    rounds: int | None = None,
    grants: Grants | None = None,
) -> list[dict[str, Any]]:
    """Begin or resume the rounds of a folder; returns the reports of its finished rounds.

    Args:
        rounds: number of rounds after which to stop; all of the config where None.
        grants: tools of the copies.
    """
    total = rounds or len(config.rounds)
    stages = Stages(config, task, run, progress, config.spend_limit.open(), total, grants or {})
    async with open_checkpoints(run.folder.checkpoints_path, DAMAGED) as saver:
        graph = build_rounds_graph().compile(checkpointer=saver)
        settings: Any = {
            "configurable": {"thread_id": "rounds"},
            "recursion_limit": 10 * len(config.rounds) + 10,
        }
        snapshot = await graph.aget_state(settings)
        state = snapshot.values
        start: RoundsState | None = None
        if not state:
            start = {
                "number": stages.first, "model": config.first_agent, "results": {}, "done": [],
                "seconds": 0.0,
            }  # fmt: skip
        elif state["number"] > stages.last:
            return state["done"]
        elif not snapshot.next:
            # The run ended after fewer rounds, or at a gate. Resuming it begins the next round.
            start = cast(RoundsState, state)
        final = await graph.ainvoke(start, settings, context=stages, durability="sync")
    return final["done"]
