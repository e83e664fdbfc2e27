"""Rounds of amplify → distill → evaluate → promote, as a LangGraph graph that can be resumed.

    START → amplify → distill → evaluate → promote ──more rounds──► amplify
                                              └──done, or a gate failed──► END

Implements the seed's 8.4.3. The checkpoint holds the stage of the round and its results. The call
log and the registry hold all else, so a repeated stage repeats no call.
"""

import time
from typing import Any, TypedDict, cast

from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime

from reflux.agents.errors import UsageError
from reflux.finetune.config import RoundsConfig
from reflux.finetune.report import score_amplified_levels, score_student_levels, write_report
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
    amplified: dict[str, Any] | None
    distilled: dict[str, Any] | None
    scores: dict[str, Any] | None
    by_level: list[dict[str, Any]]
    gates: list[dict[str, Any]]
    done: list[dict[str, Any]]
    """Reports of the finished rounds."""
    seconds: float
    """Time spent in stages."""


StageRuntime = Runtime[Stages]


async def amplify(state: RoundsState, runtime: StageRuntime) -> dict[str, Any]:
    """Stage 1: trajectories."""
    begun = time.perf_counter()
    amplified = await runtime.context.amplify(state["number"], state["model"])
    return {"amplified": amplified, **_seconds(state, begun)}


async def distill(state: RoundsState, runtime: StageRuntime) -> dict[str, Any]:
    """Stage 2: a student."""
    begun = time.perf_counter()
    distilled = await runtime.context.distill(state["number"])
    return {"distilled": distilled, **_seconds(state, begun)}


async def evaluate(state: RoundsState, runtime: StageRuntime) -> dict[str, Any]:
    """Stage 3: scores, scores by level, and gates."""
    begun = time.perf_counter()
    stages, number, model = runtime.context, state["number"], state["model"]
    scores = await stages.evaluate(number, model)
    gates = await stages.gates(number, model, scores)
    by_level = await score_student_levels(stages, number)
    return {"scores": scores, "gates": gates, "by_level": by_level, **_seconds(state, begun)}


async def promote(state: RoundsState, runtime: StageRuntime) -> dict[str, Any]:
    """Stage 4: the student becomes the agent if its gates pass; the report grows by a round."""
    begun = time.perf_counter()
    stages, number = runtime.context, state["number"]
    scores, distilled = state["scores"] or {}, state["distilled"] or {}
    promoted = stages.promote(number, scores, state["gates"])
    by_level = state["by_level"]
    is_last = number + 1 == stages.total_rounds
    if number > 0 and (is_last or not promoted):
        by_level = [*by_level, *await score_amplified_levels(stages, number, state["model"])]
    report = {
        "round": number,
        "task": stages.task.name,
        "level": stages.spec(number).level,
        "agent": state["model"],
        **scores,
        "rows": distilled["rows"],
        "trained_rows": distilled["trained_rows"],
        "train_seconds": round(distilled["seconds"], 1),
        "examples_per_second": round(distilled["examples_per_second"], 2),
        "amplify": state["amplified"],
        "gates": state["gates"],
        "promoted": promoted,
        "by_level": by_level,
    }
    if is_last and number > 0:
        report["parity"] = await stages.parity(number)
    seconds = _seconds(state, begun)
    done = [*state["done"], report]
    write_report(stages, done, seconds["seconds"])
    return {
        **_fresh_round(number + 1, student_name(number) if promoted else state["model"]),
        "done": done,
        **seconds,
    }


def _fresh_round(number: int, model: str) -> dict[str, Any]:
    return {
        "number": number,
        "model": model,
        "amplified": None,
        "distilled": None,
        "scores": None,
        "by_level": [],
        "gates": [],
    }


def _seconds(state: RoundsState, begun: float) -> dict[str, float]:
    return {"seconds": state["seconds"] + time.perf_counter() - begun}


def build_rounds_graph() -> StateGraph[RoundsState, Stages, RoundsState, RoundsState]:
    """The graph of a run, uncompiled."""
    graph = StateGraph(RoundsState, context_schema=Stages)
    for node in (amplify, distill, evaluate, promote):
        graph.add_node(node.__name__, node)
    graph.add_edge(START, "amplify")
    graph.add_edge("amplify", "distill")
    graph.add_edge("distill", "evaluate")
    graph.add_edge("evaluate", "promote")

    def next_round(state: RoundsState, runtime: StageRuntime) -> str:
        over = state["number"] >= runtime.context.total_rounds
        # The next level is out of reach for an agent that did not learn this one.
        return END if over or not state["done"][-1]["promoted"] else "amplify"

    graph.add_conditional_edges("promote", next_round, [END, "amplify"])
    return graph


async def run_rounds(
    run: OpenRun, config: RoundsConfig, task: Task, progress: Progress, rounds: int | None = None
) -> list[dict[str, Any]]:
    """Begin or resume the rounds of a folder; returns the reports of its finished rounds.

    Args:
        rounds: number of rounds after which to stop; all of the config where None.

    Raises:
        UsageError: more rounds than the config has.
    """
    total = len(config.rounds) if rounds is None else rounds
    if not 1 <= total <= len(config.rounds):
        raise UsageError(f"the config has {len(config.rounds)} rounds, not {total}")
    stages = Stages(config, task, run, progress, config.spend_limit.open(), total)
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
            start = cast(RoundsState, {**_fresh_round(0, "base"), "done": [], "seconds": 0.0})
        elif state["number"] >= total:
            return state["done"]
        elif not snapshot.next:
            # The run ended after fewer rounds, or at a gate. Resuming it begins the next round.
            start = cast(RoundsState, state)
        final = await graph.ainvoke(start, settings, context=stages, durability="sync")
    return final["done"]
