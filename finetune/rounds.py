"""K rounds of amplify → distill → evaluate → promote, as a LangGraph graph that can be resumed.

    START → amplify → distill → evaluate → promote ──more rounds──► amplify
                                              └──done, or a gate failed──► END

Implements the seed's 8.4.3. The checkpoint holds the stage of the round and nothing else; what a
stage did is in the call log and the registry, so a stage that is run again repeats no call.
"""

import time
from typing import Any, TypedDict, cast

from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime

from reflux.agents.clients.llama_cpp import DEFAULT_MODEL_ID, DEFAULT_SHA256
from reflux.agents.errors import UsageError
from reflux.finetune.config import RoundsConfig
from reflux.finetune.report import draw
from reflux.finetune.run_folder import OpenRun, write_json
from reflux.finetune.stages import Progress, Stages
from reflux.graphs.amplify.interrupts import open_checkpoints
from reflux.graphs.evals.task import Task

DAMAGED = "delete it and go on with --resume, which asks no recorded call again"
"""The remedy for damaged checkpoints: they hold the stage of a round, no more."""


class RoundsState(TypedDict):
    """Where a run stands."""

    number: int
    model: str
    """X of this round."""
    amplified: dict[str, Any] | None
    distilled: dict[str, Any] | None
    scores: dict[str, Any] | None
    gates: list[dict[str, Any]]
    done: list[dict[str, Any]]
    """Reports of the rounds that are over."""
    seconds: float
    """Time spent in stages so far."""


Ran = Runtime[Stages]


async def amplify(state: RoundsState, runtime: Ran) -> dict[str, Any]:
    """Stage 1: trajectories."""
    begun = time.perf_counter()
    amplified = await runtime.context.amplify(state["number"], state["model"])
    return {"amplified": amplified, **_took(state, begun)}


async def distill(state: RoundsState, runtime: Ran) -> dict[str, Any]:
    """Stage 2: a student."""
    begun = time.perf_counter()
    distilled = await runtime.context.distill(state["number"])
    return {"distilled": distilled, **_took(state, begun)}


async def evaluate(state: RoundsState, runtime: Ran) -> dict[str, Any]:
    """Stage 3: scores and gates."""
    begun = time.perf_counter()
    stages, number, model = runtime.context, state["number"], state["model"]
    scores = await stages.evaluate(number, model)
    gates = await stages.gates(number, model, scores)
    return {"scores": scores, "gates": gates, **_took(state, begun)}


async def promote(state: RoundsState, runtime: Ran) -> dict[str, Any]:
    """Stage 4: the student becomes X, or does not; the report grows by a round."""
    begun = time.perf_counter()
    stages, number = runtime.context, state["number"]
    scores, distilled = state["scores"] or {}, state["distilled"] or {}
    promoted = stages.promote(number, scores, state["gates"])
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
    }
    last = number + 1 == len(stages.config.rounds)
    if last and number > 0:
        report["twin"] = await stages.twin(number)
    took = _took(state, begun)
    done = [*state["done"], report]
    write_report(stages, done, took["seconds"])
    return {
        "done": done,
        "number": number + 1,
        "model": f"student-r{number}" if promoted else state["model"],
        "amplified": None,
        "distilled": None,
        "scores": None,
        "gates": [],
        **took,
    }


def _took(state: RoundsState, begun: float) -> dict[str, float]:
    return {"seconds": state["seconds"] + time.perf_counter() - begun}


def write_report(stages: Stages, done: list[dict[str, Any]], seconds: float) -> None:
    """Write `report.json` and `report.png` for the rounds so far."""
    folder = stages.run.folder
    body = {
        "run": folder.name,
        "task": stages.task.name,
        "seed": stages.config.seed,
        "model": {"id": DEFAULT_MODEL_ID, "gguf_sha256": DEFAULT_SHA256},
        "seconds": round(seconds, 1),
        "rounds": done,
    }
    write_json(folder.report_path, body)
    draw(done, folder.chart_path, f"{stages.task.name}: accuracy on held-out questions, by round")


def build_rounds_graph() -> StateGraph[RoundsState, Stages, RoundsState, RoundsState]:
    """The graph of a run, uncompiled."""
    graph = StateGraph(RoundsState, context_schema=Stages)
    for node in (amplify, distill, evaluate, promote):
        graph.add_node(node.__name__, node)
    graph.add_edge(START, "amplify")
    graph.add_edge("amplify", "distill")
    graph.add_edge("distill", "evaluate")
    graph.add_edge("evaluate", "promote")

    def more(state: RoundsState, runtime: Ran) -> str:
        over = state["number"] >= len(runtime.context.config.rounds)
        # The next level is out of reach for an agent that did not learn this one.
        return END if over or not state["done"][-1]["promoted"] else "amplify"

    graph.add_conditional_edges("promote", more, [END, "amplify"])
    return graph


async def run_rounds(
    run: OpenRun, config: RoundsConfig, task: Task, progress: Progress, rounds: int | None = None
) -> list[dict[str, Any]]:
    """Begin the run of a folder, or go on where it was; the reports of its rounds.

    Args:
        rounds: rounds in all after which to stop; all that the config has where None.

    Raises:
        UsageError: more rounds than the config has.
    """
    total = len(config.rounds) if rounds is None else rounds
    if not 1 <= total <= len(config.rounds):
        raise UsageError(f"the config has {len(config.rounds)} rounds, not {total}")
    config = config.model_copy(update={"rounds": config.rounds[:total]})
    stages = Stages(config, task, run, progress, config.spend_limit.open())
    path = run.folder.checkpoints_path
    async with open_checkpoints(path, DAMAGED) as saver:
        graph = build_rounds_graph().compile(checkpointer=saver)
        settings: Any = {
            "configurable": {"thread_id": "rounds"},
            "recursion_limit": 10 * len(config.rounds) + 10,
        }
        found = await graph.aget_state(settings)
        known = found.values
        given: RoundsState | None = None
        if not known:
            given = {
                "number": 0,
                "model": "base",
                "amplified": None,
                "distilled": None,
                "scores": None,
                "gates": [],
                "done": [],
                "seconds": 0.0,
            }
        elif known["number"] >= total:
            return known["done"]
        elif not found.next:
            # It ended after fewer rounds than are asked for now, or at a gate: whoever resumes it
            # wants to go on after the last, so its state begins anew.
            given = cast(RoundsState, known)
        final = await graph.ainvoke(given, settings, context=stages, durability="sync")
    return final["done"]
