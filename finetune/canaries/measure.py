"""Measures the behaviors of a round's student: beside the base, beside a control student, and of
the amplified system by depth."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from reflux.finetune.canaries.control import train_control
from reflux.finetune.canaries.probes import BEHAVIORS, TOKENS, Probe, probes
from reflux.finetune.canaries.sequential import ALPHA, Pairs, certain_loss, pairs_of
from reflux.finetune.data.questions import canary_prompts
from reflux.finetune.stages import Stages, student_name
from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.amplify.state import Outcome
from reflux.graphs.ask import Amplified, Direct
from reflux.graphs.evals.metrics import wilson
from reflux.graphs.voting.voting import VotePolicy

Shown = Mapping[Probe, bool | None]
"""Whether a system behaved on each probe; None where it gave no answer."""
Report = Mapping[str, Any]
ALL = "all"
"""All behaviors together, in which small losses of each add up."""


async def measure_canaries(
    stages: Stages, number: int, model: str, done: Sequence[Report]
) -> dict[str, Any] | None:
    """The behaviors of a round's student, as plain JSON types; None where no probe is asked.

    Args:
        model: the agent of the round.
        done: reports of the rounds before.
    """
    config = stages.config.canaries
    await _general_prompts(stages, config.prompts)
    asked = probes(config.probes, begin=number * config.probes)
    if not asked:
        return None
    name = student_name(number)
    base = await _shown(stages, "base", number, asked)
    student = await _shown(stages, name, number, asked)
    systems: dict[str, Shown] = {"base": base, "student": student}
    against = {"base": _losses(base, student, "base", done)}
    control = await train_control(stages, number) if config.control and number else None
    if control is not None:
        systems["control"] = await _shown(stages, control, number, asked)
        against["control"] = _losses(systems["control"], student, "control", done)
    for depth in config.depths:
        systems[f"amplified, depth {depth}"] = await _amplified(stages, model, number, depth, asked)
    return {
        "control": control,
        "rates": [row for system, shown in systems.items() for row in rates(system, shown)],
        "against": against,
        "certain_loss": {
            reference: max((row["certain_loss"] for row in rows), default=0.0)
            for reference, rows in against.items()
        },
    }


async def _general_prompts(stages: Stages, n: int) -> None:
    """The base's replies to general prompts, on which the student's divergence is measured."""
    if prompts := canary_prompts(n):
        source = stages.source(0, "canary-base", "canary", task="canary")
        await stages.answers(stages.plain("base"), source, prompts, "canaries: base")


class Probed:
    """A system that is asked each question with the system prompt of its probe."""

    def __init__(
        self, context: AmplifyContext, asked: Sequence[Probe], kind: type[Direct | Amplified]
    ) -> None:
        self.context = context
        texts = {probe.system for probe in asked}
        systems = {text: kind(replace(context, system_prompt=text)) for text in texts}
        self._by_question = {probe.question: systems[probe.system] for probe in asked}

    async def answer(self, question: str, question_id: str) -> Outcome:
        return await self._by_question[question].answer(question, question_id)


async def _shown(stages: Stages, model: str, number: int, asked: Sequence[Probe]) -> Shown:
    """Whether one model behaves, asked without an overseer."""
    context = replace(stages.plain(model).context, max_tokens=TOKENS)
    system = Probed(context, asked, Direct)
    return await _asked(stages, system, f"probes-{model}", number, asked, f"canaries: {model}")


async def _amplified(
    stages: Stages, model: str, number: int, depth: int, asked: Sequence[Probe]
) -> Shown:
    """Whether the amplified system behaves whose trees are so deep, without a task's checks."""
    own = stages.context(model)
    context = replace(
        stages.plain(model).context,
        overseers=own.overseers,
        limits=replace(own.limits, depth=depth),
        policy=own.policy,
        votes=VotePolicy(max_votes=1),
        max_tokens=TOKENS,
    )
    system, activity = Probed(context, asked, Amplified), f"canaries: {model}, depth {depth}"
    return await _asked(stages, system, f"probes-depth-{depth}", number, asked, activity)


async def _asked(
    stages: Stages, system: Probed, key: str, number: int, asked: Sequence[Probe], activity: str
) -> Shown:
    """How a system replied to probes."""
    source = stages.source(number, key, "canary", task="canary")
    questions = [probe.question for probe in asked]
    outcomes = await stages.answers(system, source, questions, activity)
    replies = [outcome["answer"] for outcome in outcomes]
    return {
        probe: None if reply is None else probe.shows(reply)
        for probe, reply in zip(asked, replies, strict=True)
    }


def rates(system: str, shown: Shown) -> list[dict[str, Any]]:
    """How often a system behaved, by behavior, with its 95% interval; nothing of a behavior to
    whose probes it gave no answer."""
    rows: list[dict[str, Any]] = []
    for behavior in BEHAVIORS:
        marks = [mark for probe, mark in shown.items() if probe.behavior == behavior]
        known = [mark for mark in marks if mark is not None]
        if known:
            right, n = sum(known), len(known)
            rate = {"rate": right / n, "n": n, "ci95": list(wilson(right, n))}
            rows.append({"system": system, "behavior": behavior, **rate})
    return rows


def _losses(
    reference: Shown, student: Shown, name: str, done: Sequence[Report]
) -> list[dict[str, Any]]:
    """What the student lost beside a reference, by behavior: in this round, and for certain with
    the promoted students before it."""
    rows: list[dict[str, Any]] = []
    for behavior in (*BEHAVIORS, ALL):
        both = [
            (mark, bool(student[probe]))
            for probe, mark in reference.items()
            if behavior in (ALL, probe.behavior) and mark is not None and student[probe] is not None
        ]
        here = pairs_of([a for a, _ in both], [b for _, b in both])
        so_far = sum(_earlier(name, behavior, done), start=here)
        certain = certain_loss(so_far, ALPHA / (len(BEHAVIORS) + 1))
        measured = {"loss": here.loss, "certain_loss": certain}
        rows.append({"behavior": behavior, **asdict(here), **measured})
    return rows


def _earlier(reference: str, behavior: str, done: Sequence[Report]) -> list[Pairs]:
    """The pairs of the promoted students before."""
    return [
        Pairs(row["lost"], row["gained"], row["n"])
        for report in done
        if report["promoted"] and (canaries := report.get("canaries"))
        for row in canaries["against"].get(reference, ())
        if row["behavior"] == behavior
    ]
