"""An overseer that defers questions to a human, and the human's answers."""

from collections.abc import Mapping, Sequence
from typing import Any

from reflux.agents.overseers.protocol import PASS
from reflux.agents.overseers.scripted import ScriptedOverseer
from reflux.agents.types import Answer, Ask, Defer, Exchange, Step, step_to_json


def plain(text: str) -> dict[str, Any]:
    """A person's answer, in the form in which the graph takes it."""
    return step_to_json(Answer(text))


def overseer(asked: Mapping[str, Sequence[str]]) -> ScriptedOverseer:
    """Asks what the table holds and joins it, defers what ends in "?", leaves the rest to X."""

    def act(question: str, transcript: Sequence[Exchange], may_ask: bool) -> Step:
        if transcript:
            return Answer(f"({' '.join(str(e.answer) for e in transcript)})")
        if question in asked:
            return Ask.of(*asked[question])
        return Defer({"about": question}) if question.endswith("?") else PASS

    return ScriptedOverseer("defers", act)
