"""The graph of calls that a question's tree may make: who may call whom. It is made of what the
user granted, before any text is read, so no text can add to it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from reflux.agents.policy.typed import TYPED, type_of
from reflux.agents.tools.protocol import Grants, Tool

OVERSEER, COPY, QUARANTINED = "overseer", "copy", "quarantined copy"
"""Who calls. A quarantined copy has no edge: it answers, and calls nobody."""


@dataclass(frozen=True)
class CallGraph:
    """Which calls there can be. A copy is asked a question and nothing else; an overseer one level
    below asks sub-questions of it, within the depth that the limits set.

    Covered are the calls that a tree makes: sub-questions, tools, experts. Not covered is what a
    tool does by itself, nor what an allowed call says: see `reflux.agents.policy.policy`.
    """

    tools: tuple[str, ...] = ()
    """That an overseer's sub-questions may go to."""
    experts: tuple[str, ...] = ()
    granted: Mapping[str, tuple[str, ...]] | None = None
    """Tools that a model may call by itself, by role."""

    @classmethod
    def of(cls, tools: Iterable[str], experts: Iterable[str], grants: Grants) -> "CallGraph":
        granted = {role: _names(each) for role, each in grants.items()}
        return cls(tuple(tools), tuple(experts), granted)

    @cached_property
    def edges(self) -> frozenset[tuple[str, str]]:
        """(caller, callee); a callee is written as `SubQuestion.to` is."""
        granted = self.granted or {}
        callees = {"", *(f"tool:{name}" for name in (*self.tools, *granted.get("overseer", ())))}
        callees |= {f"expert:{name}" for name in self.experts}
        callees |= {"experts"} if self.experts else set()
        copies = (f"tool:{name}" for name in granted.get("answer", ()))
        return frozenset([*((OVERSEER, to) for to in callees), *((COPY, to) for to in copies)])

    def problem(self, to: str) -> str | None:
        """Why an overseer's sub-question must not go there; None where it may."""
        kind, _, name = to.partition(":")
        if to.startswith(TYPED):
            named = type_of(to)
            return named and named.problem
        if kind == "tool":
            names = ", ".join(sorted(self.tools)) or "no tool"
            problem = (
                f"the overseer asked the tool {name!r}, which it was not given; it has {names}"
            )
            return None if name in self.tools else problem
        asked = name.split(",") if to.startswith("experts:") else [name] if kind == "expert" else []
        is_known = self.experts if kind == "experts" else kind in ("", "expert")
        if is_known and all(each in self.experts for each in asked):
            return None
        known = ", ".join(f"expert:{each}" for each in self.experts) or "no expert"
        return f"the overseer asked {to!r}, which does not exist; there is {known}"


def _names(tools: Sequence[Tool]) -> tuple[str, ...]:
    return tuple(tool.spec.name for tool in tools)
