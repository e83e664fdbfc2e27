"""The learned overseer of a run: trained from demonstrations before the first amplification, and in
each round again, from the pristine base, on the demonstrations and on its own accepted trees.

A new one takes over where it divides no worse than the one before: on the held-out questions of the
round, with the same agent, by accuracy, by the answers that pass the check, or by the share of
questions on which different ways agree. Imitating H with a model (Christiano et al. 2018, section
2.2), whose trees need no labels.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from reflux.agents.overseers.step_forms import OVERSEER, StepStyle
from reflux.finetune.data.demonstrations import (
    MAX_TREES,
    ORIGINAL,
    from_record,
    is_agreed,
    learned_from,
    withheld_by,
)
from reflux.finetune.data.overseer_rows import OverseerRows, overseer_rows
from reflux.finetune.data.rows import Row, rows_digest, training_order
from reflux.finetune.gates import Gate, failed_gates, passed_checks
from reflux.finetune.stages import Stages, cancellable
from reflux.graphs.ask import Amplified
from reflux.graphs.traces.revisions import NEWEST

COMPARED = 200
"""Held-out questions, at most, on which a new overseer is compared with the one before."""
WEIGHED = f"""
SELECT q.detail ->> 'candidates' AS candidates, q.detail ->> 'answer' AS answer FROM roots q
WHERE q.run = ? AND q.round = ? AND q.system = ? AND q.split = 'held_out' AND {NEWEST}
"""  # noqa: S608 - the part is a constant of ours


def overseer_name(number: int) -> str:
    """The id of a round's learned overseer."""
    return f"student-r{number}{OVERSEER}"


async def begin_learning(stages: Stages, model: str) -> dict[str, Any] | None:
    """Round 0 of the overseer: demonstrations, and a student that imitates them; None where the
    run learns none."""
    if not stages.config.overseer.learn:
        return None
    if questions := stages.demonstrated:
        source = stages.source(0, ORIGINAL, "train")
        system = Amplified(stages.context(model, None))
        await stages.answers(system, source, questions, "the original overseer divides")
    return await _learn(stages, 0, {})


async def improve(stages: Stages, number: int, scores: Mapping[str, Any]) -> dict[str, Any] | None:
    """The overseer of a round, which learns from the trees so far; None where none is learned.

    Args:
        scores: of the round; `amplified` is that of the overseer before.
    """
    setup = stages.config.overseer
    if number == 0 or not (setup.learn and setup.improve):
        return None
    return await _learn(stages, number, scores)


async def _learn(stages: Stages, number: int, scores: Mapping[str, Any]) -> dict[str, Any]:
    name, registry = overseer_name(number), stages.run.folder.registry
    made = _rows(stages, number)
    told = {"round": number, "id": name, "demonstrations": made.demonstrations}
    told |= {"rows": len(made.rows), "left_out": dict(made.left_out)}
    if name not in registry.ids():
        before = registry.current("overseer") if number else None
        rows = training_order(made.rows, stages.config.seed)
        digest = rows_digest(rows)
        if before is not None and before.rows_digest == digest:
            return {**told, "id": before.id, "gates": [], "promoted": False, "note": "nothing new"}
        await _train(stages, number, made.style, rows, before.id if before else None)
    await stages.run.load(name)
    parent, parity = registry.get(name).parent, registry.get(name).parity
    gates: list[Gate] = []
    if parity is not None:
        gates.append(Gate("parity", parity["agreement"], stages.config.gates.parity))
    if parent is not None:
        gates.append(await _compare(stages, number, name, parent, scores))
    recorded = [gate.to_json() for gate in gates]
    registry.record_evaluation(name, {}, recorded)
    if promoted := not failed_gates(recorded):
        registry.promote(name)
    return {**told, "parent": parent, "gates": recorded, "promoted": promoted, "parity": parity}


async def _train(
    stages: Stages, number: int, style: StepStyle, rows: Sequence[Row], parent: str | None
) -> None:
    from reflux.finetune.distillation import StudentPlan, distill

    spec = stages.spec(max(number, stages.first))
    plan = StudentPlan(
        id=overseer_name(number),
        parent=parent,
        round=number,
        rows=[row.train() for row in rows],
        rows_digest=rows_digest(rows),
        config=stages.config.distillation(spec),
        style=style,
    )
    registry = stages.run.folder.registry
    await stages.run.rest()
    await cancellable(lambda stop: distill(registry, plan, stages.progress, stop))


def _rows(stages: Stages, number: int) -> OverseerRows:
    """Rows of the demonstrations, and of the accepted trees up to a round."""
    task, learn = stages.task, stages.config.overseer.learn
    withheld = withheld_by(task)
    shown = learned_from(learn, task) if isinstance(learn, str) else ()
    made = from_record(stages.run.store, MAX_TREES, False, withheld, number)
    tools = {*task.tools(), *(tool.spec.name for tool in stages.grants.get("answer", ()))}
    rows = overseer_rows([*shown, *made.items], made.direct, withheld, task.name, tools)
    rows.left_out += made.left_out
    return rows


async def _compare(
    stages: Stages, number: int, name: str, parent: str, scores: Mapping[str, Any]
) -> Gate:
    """How much better a new overseer divides than the one before, for the same agent."""
    spec, model = stages.spec(number), scores["amplified"]["model"]
    questions = stages.held_out(number)[:COMPARED]
    measured: list[float] = []
    for overseer in (parent, name):
        system = Amplified(stages.context(model, overseer))
        source = stages.source(number, f"divided-by-{overseer}", "held_out")
        activity = f"level {spec.level}: {overseer}"
        score = await stages.score(system, source, questions, activity)
        if score.unscored < score.n:
            measured.append(score.accuracy)
        elif system.context.has_rules:
            measured.append(passed_checks(score)["passed"]["share"])
        else:
            measured.append(_agreed_share(stages, number, source.system, len(questions)))
    gain = round(measured[1] - measured[0], 6)
    return Gate("overseer", gain, -stages.config.gates.regression)


def _agreed_share(stages: Stages, number: int, system: str, n: int) -> float:
    """The share of a system's questions on which a decomposition and another way agree."""
    values = (stages.run.folder.id, number, system)
    roots = stages.run.store.select(WEIGHED, values)
    agreed = (is_agreed(json.loads(r["candidates"] or "[]"), r["answer"] or "") for r in roots)
    return sum(agreed) / n
