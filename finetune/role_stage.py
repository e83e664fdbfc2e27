"""The role adapters of a run: trained in each round on the pristine base and the trees so far, and
given their part where the amplified system is none the worse for it."""

from collections.abc import Mapping
from typing import Any

from reflux.agents.errors import UsageError
from reflux.finetune.cancelling import cancellable
from reflux.finetune.data.rows import rows_digest
from reflux.finetune.gates import Gate, failed_gates, passed_checks
from reflux.finetune.roles.adapters import ServedRole, with_roles
from reflux.finetune.roles.rows import rows_of_role
from reflux.finetune.stages import Stages, student_name
from reflux.graphs.ask import Amplified

COMPARED = 200
"""Held-out questions, at most, on which the system is compared with and without a new adapter."""


async def learn_roles(stages: Stages, number: int, model: str) -> list[dict[str, Any]]:
    """Train the adapter of each role that the config names, and promote what harms nothing.

    Args:
        model: the agent of the round.
    """
    if number == 0:
        return []  # There are no trees yet.
    return [await _learn(stages, number, model, role) for role in stages.config.roles]


async def _learn(stages: Stages, number: int, model: str, role: ServedRole) -> dict[str, Any]:
    from reflux.finetune.distillation import StudentPlan, distill

    name, registry = f"{student_name(number)}:{role}", stages.run.folder.registry
    tools = {*stages.task.tools(), *(tool.spec.name for tool in stages.grants.get("answer", ()))}
    seed = stages.config.seed
    try:
        made = rows_of_role(role, stages.run.store, stages.task, tools, number, seed)
    except UsageError as error:  # The round's other students stand.
        return {"round": number, "role": role, "promoted": False, "note": str(error)}
    told = {"round": number, "role": role, "id": name, "rows": len(made.rows)}
    told |= {"left_out": dict(made.left_out.counts)}
    before = registry.current(role)
    if name not in registry.ids():
        plan = StudentPlan(
            id=name,
            parent=before.id if before else None,
            round=number,
            rows=[row.train() for row in made.rows],
            rows_digest=rows_digest(made.rows),
            config=stages.config.distillation(stages.spec(number)),
            style=made.style,
        )
        await stages.run.rest()
        await cancellable(lambda stop: distill(registry, plan, stages.progress, stop))
    await stages.run.load(name)
    gates = [await _compare(stages, number, model, role, name)]
    if (parity := registry.get(name).parity) is not None:
        gates.append(Gate("parity", parity["agreement"], stages.config.gates.parity))
    recorded = [gate.to_json() for gate in gates]
    registry.record_evaluation(name, {}, recorded)
    if promoted := not failed_gates(recorded):
        registry.promote(name)
    return {**told, "gates": recorded, "promoted": promoted}


async def _compare(stages: Stages, number: int, model: str, role: ServedRole, name: str) -> Gate:
    """How much better the amplified system answers with the new adapter than without it."""
    spec, questions = stages.spec(number), stages.held_out(number)[:COMPARED]
    context = stages.context(model)
    systems: Mapping[str, Any] = {
        f"before-{role}-{number}": context,
        f"with-{name}": with_roles(context, {role: name}, stages.config.max_tokens),
    }
    measured: list[float] = []
    for key, each in systems.items():
        source, system = stages.source(number, key, "held_out"), Amplified(each)
        score = await stages.score(system, source, questions, f"level {spec.level}: {key}")
        shared = passed_checks(score)["passed"]["share"] if score.unscored == score.n else None
        measured.append(score.accuracy if shared is None else shared)
    return Gate(role, round(measured[1] - measured[0], 6), -stages.config.gates.regression)
