"""Learned overseers: students that divide questions, served beside the agent by its engine."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from reflux.agents.errors import UsageError
from reflux.agents.overseers.model import REJECTED, UNREADABLE, ModelOverseer
from reflux.agents.overseers.protocol import Overseer, OverseerContext, WrappedOverseer
from reflux.agents.overseers.scripted import Reviewed
from reflux.agents.overseers.step_forms import LEARNED, OVERSEER, is_learned
from reflux.agents.types import Ask, Step
from reflux.finetune.registry import Registry, Student
from reflux.finetune.run_folder import OpenRun

ASKED_OF = "asked of"
"""How the note begins of a step that the original overseer took."""
PROMOTED = f"student{OVERSEER}"
"""Means the learned overseer that the run divides with."""


def learned_overseer(name: str, max_tokens: int | None = None) -> ModelOverseer:
    """A learned overseer by its name, before `resolved` looks for it in a run."""
    tokens = max_tokens or ModelOverseer.max_tokens
    return ModelOverseer(
        name, max_tokens=tokens, form=LEARNED.form, plan=LEARNED.plan, brief=LEARNED.brief
    )


def resolved(run: OpenRun, overseers: Sequence[Overseer]) -> tuple[Overseer, ...]:
    """The overseers, of which learned ones are asked as they were trained.

    Raises:
        UsageError: the run has none of the name, or it was trained on another base than the one
            that the run's engine serves.
    """
    return tuple(_resolved(run, overseer) for overseer in overseers)


def _resolved(run: OpenRun, overseer: Overseer) -> Overseer:
    if isinstance(overseer, Reviewed):
        return replace(overseer, inner=_resolved(run, overseer.inner))
    if not (isinstance(overseer, ModelOverseer) and is_learned(overseer.model)):
        return overseer
    student = _found(run, overseer.model)
    style = student.style or LEARNED
    return replace(
        overseer, model=student.id, form=style.form, plan=style.plan,
        instructions=style.instructions, brief=style.brief,
    )  # fmt: skip


def overseer_student(registry: Registry, name: str) -> Student:
    """The student behind the name of a learned overseer.

    Raises:
        UsageError: there is none.
    """
    student = registry.current("overseer") if name == PROMOTED else registry.get(name)
    if student is None:
        made = ", ".join(each.id for each in registry.list("overseer")) or "none"
        raise UsageError(f"no learned overseer is promoted in {registry.root}; there are: {made}")
    return student


def _found(run: OpenRun, name: str) -> Student:
    student, base = overseer_student(run.folder.registry, name), run.folder.base
    if run.serves_students and student.base.weights != base.weights_digest:
        raise UsageError(
            f"{student.id} was trained on {student.base.model_id} (sha256 "
            f"{student.base.weights[:12]}…), and the engine serves {base.name} (sha256 "
            f"{base.weights_digest[:12]}…): an overseer needs its own base; name that with --base, "
            "or make it again with `reflux distill --role overseer`"
        )
    return student


@dataclass(frozen=True)
class Fallback(WrappedOverseer):
    """A learned overseer; what it cannot divide by the rules is asked of the original one."""

    original: Overseer

    @property
    def name(self) -> str:
        return self.inner.name

    async def act(self, context: OverseerContext) -> Step:
        step = await self.inner.act(context)
        if not (isinstance(step, Ask) and step.note.startswith((REJECTED, UNREADABLE))):
            return step
        # As a member, so that its calls are told from those of the learned one.
        (member,) = context.members(1)
        other = await self.original.act(member)
        if not isinstance(other, Ask):
            return other
        reason = f"{ASKED_OF} {self.original.name}: {step.note}"
        return replace(other, note="; ".join(filter(None, (other.note, reason))))
