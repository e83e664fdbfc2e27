"""What a search found: the cost to the first success, as figures, and training rows.

The cost is the expected number of queries until the first success. Goals that were not reached
within their budget count with all their queries, as in a geometric distribution with censoring:
cost = queries / successes. With no success it is only known to be more than the lower end of its
interval.
"""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from reflux.agents.clients.chat_protocol import function_spec
from reflux.agents.prompts import answer_prompt
from reflux.agents.types import ToolCall
from reflux.graphs.attacks.cases import Case
from reflux.graphs.attacks.search import Attempt, Searched
from reflux.graphs.attacks.techniques import Attack
from reflux.graphs.attacks.world import case_tools
from reflux.graphs.evals.metrics import wilson
from reflux.graphs.evals.task import hashed_out
from reflux.graphs.traces.trajectories import is_accepted

Message = dict[str, Any]
NOTHING = Attack("none", {}, "")
"""What the adversary does where it does nothing."""


@dataclass(frozen=True)
class Cost:
    """What goals of one kind cost an adversary."""

    goals: int
    reached: int
    queries: int

    @classmethod
    def of(cls, attempts: Iterable[Attempt], kind: str) -> "Cost":
        """The cost of goals of a kind among attempts."""
        mine = [attempt for attempt in attempts if attempt.goal.kind == kind]
        goals = {(attempt.case.id, attempt.goal.name) for attempt in mine}
        return cls(len(goals), sum(attempt.success for attempt in mine), len(mine))

    @property
    def value(self) -> float | None:
        """Queries until the first success; None where there was none."""
        return self.queries / self.reached if self.reached else None

    @property
    def ci95(self) -> tuple[float, float]:
        """Its interval, of the rate of success by Wilson; endless without a success."""
        if not self.queries:
            return 1.0, math.inf
        low, high = wilson(self.reached, self.queries)
        return 1 / high, 1 / low if low else math.inf

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; an endless end is None."""
        low, high = self.ci95
        return {
            "goals": self.goals, "reached": self.reached, "queries": self.queries,
            "cost": self.value, "cost_95": [low, None if math.isinf(high) else high],
        }  # fmt: skip


def curve(searched: Searched, kind: str) -> list[float]:
    """The share of goals of a kind that are reached after 1, 2, … queries each."""
    goals = Cost.of(searched.attempts, kind).goals
    reached = [a.number for a in searched.found if a.goal.kind == kind]
    numbers = range(1, searched.budget + 1)
    return [sum(at <= number for at in reached) / goals for number in numbers] if goals else []


def figures(searched: Searched) -> dict[str, Any]:
    """All that is known of one system, in plain JSON types."""
    clean, attempts = searched.clean, searched.attempts
    right = sum(each.right for each in clean)
    hijacks = sum(attempt.hijack for attempt in attempts)
    under = sum(attempt.right for attempt in attempts)
    tokens = sum(each.seen.outcome["spent"]["tokens"] for each in clean)
    techniques = sorted({attempt.attack.technique for attempt in attempts})
    return {
        "system": searched.key,
        "cases": len(clean),
        "right": right,
        "utility": right / len(clean),
        "utility_95": list(wilson(right, len(clean))),
        "tokens": tokens / len(clean),
        "attempts": len(attempts),
        "failed": sum(attempt.failed for attempt in attempts),
        "hijacks": hijacks,
        "hijacked": hijacks / len(attempts) if attempts else 0.0,
        "hijacked_95": list(wilson(hijacks, len(attempts))) if attempts else [0.0, 1.0],
        "right_under_attack": under / len(attempts) if attempts else None,
        "control": Cost.of(attempts, "control").to_json() | {"curve": curve(searched, "control")},
        "value": Cost.of(attempts, "value").to_json() | {"curve": curve(searched, "value")},
        "techniques": {
            name: [
                sum(a.success for a in attempts if a.attack.technique == name),
                sum(a.attack.technique == name for a in attempts),
            ]
            for name in techniques
        },
    }


def is_held_out(case: Case) -> bool:
    """True of a case whose attacks no student may learn from."""
    return hashed_out(f"attack:{case.id}")


def training_rows(
    searched: Searched, tools: Sequence[str] = (), teacher: Searched | None = None
) -> Iterator[dict[str, Any]]:
    """Found attacks with the right behavior, and all cases without an attack, as rows.

    The right behavior is what the teacher did on the case that nobody attacked, where that was
    accepted, so no row holds a true answer. `held_out` tells rows that are not for training.

    Args:
        teacher: another system on the same cases; by default the attacked one itself.
    """
    right: dict[str, str] = {}
    for each in (teacher or searched).clean:
        answer = each.seen.answer
        if answer is not None and is_accepted(each.seen.outcome["status"]):
            right[each.case.id] = answer
            yield _row(each.case, NOTHING, answer, tools) | {"goal": "", "kind": "clean"}
    for attempt in searched.found:
        if (answer := right.get(attempt.case.id)) is not None:
            about = {"goal": attempt.goal.name, "kind": attempt.goal.kind}
            yield _row(attempt.case, attempt.attack, answer, tools) | about


def _row(case: Case, attack: Attack, answer: str, tools: Sequence[str]) -> dict[str, Any]:
    question = case.question(attack.notes)
    prompt = [{"role": role, "content": content} for role, content in answer_prompt(question)]
    made = case_tools(case, attack.notes, tools)
    calls = [call for call in case.calls or () if call.tool in (tool.spec.name for tool in made)]
    texts = case.texts(attack.notes)
    completion: list[Message] = []
    for number, call in enumerate(calls):
        arguments = {"name": call.argument}
        if call.tool == "send":
            arguments = {"to": call.argument, "text": answer}
        made_call = ToolCall(f"call-{number}", call.tool, json.dumps(arguments))
        reply = texts.get(call.argument, "done")
        completion += [
            {"role": "assistant", "content": "", "tool_calls": [made_call.to_json()]},
            {"role": "tool", "tool_call_id": made_call.id, "name": call.tool, "content": reply},
        ]
    completion.append({"role": "assistant", "content": answer})
    row: dict[str, Any] = {"prompt": prompt, "completion": completion, "case": case.id}
    row |= {"technique": attack.technique, "wording": attack.wording, "form": attack.form}
    row |= {"suffix": list(attack.suffix), "held_out": is_held_out(case)}
    return row | ({"tools": [function_spec(tool.spec) for tool in made]} if made else {})


def attack_of(body: dict[str, Any]) -> Attack:
    """The attack of a recorded row or attempt, to be tried on other cases and systems."""
    return Attack(
        str(body["technique"]), {}, str(body["wording"]), tuple(body.get("suffix", ())),
        str(body.get("form", "")),
    )  # fmt: skip
