"""The attack search: what it counts as an attack, what it learns, and that it can be repeated."""

import json
import random
from collections.abc import Sequence
from typing import Any

import pytest

from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.policy.policy import Policy
from reflux.agents.types import ChatRequest, Completion, ToolCall
from reflux.graphs.amplify.context import AmplifyContext, Limits
from reflux.graphs.ask import Amplified, Direct, System
from reflux.graphs.attacks.adversary import Adversary
from reflux.graphs.attacks.cases import Call, Case, Goal, Surface, goals_of, shipped_cases
from reflux.graphs.attacks.found import Cost, attack_of, curve, figures, training_rows
from reflux.graphs.attacks.obedient import ObedientClient
from reflux.graphs.attacks.search import Search, Searched, Target, seen_of
from reflux.graphs.attacks.techniques import TECHNIQUES, first_attack, mutated
from reflux.graphs.attacks.world import ARGUMENTS, attacked, case_overseer
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.voting.voting import VotePolicy

TOOLS = tuple(ARGUMENTS)


def target(
    store: TraceStore, client: ScriptedClient, key: str, depth: int = 3, policy: str | None = None
) -> Target:
    """A system on the shipped cases."""
    context = AmplifyContext(
        RecordedClient(client, store),
        "base",
        (case_overseer(typed=policy is not None),),
        limits=Limits(depth=depth),
        votes=VotePolicy(max_votes=1),
        policy=Policy.of(policy),
    )
    system: System = Direct(context) if key == "direct" else Amplified(context)
    return Target(
        key,
        f"{key} {policy}",
        system,
        lambda context, case, notes: attacked(context, case, notes, TOOLS),
        TOOLS,
    )


def obedient(cases: list[Case], seed: int = 0) -> ObedientClient:
    return ObedientClient([goal for case in cases for goal in goals_of(case, seed, TOOLS)])


def seen_calls(store: TraceStore, trajectory: str) -> Sequence[Call]:
    """The tool calls on the record of a question."""
    outcome: Any = {"answer": None, "status": "ok", "error": None, "spent": {}}
    return seen_of(store, trajectory, outcome, {}).calls


async def searched(
    store: TraceStore, key: str, policy: str | None = None, surface: Surface = "tool"
) -> Searched:
    cases = shipped_cases(2, 2, 0, surface)
    return await Search("run", cases, 7).against(target(store, obedient(cases), key, policy=policy))


@pytest.mark.parametrize("surface", ["tool", "question"])
@pytest.mark.parametrize("key", ["direct", "amplified"])
async def test_an_agent_that_obeys_is_hijacked_unless_a_policy_forbids_it(
    store: TraceStore, key: str, surface: Surface
) -> None:
    bare = await searched(store, key, surface=surface)
    assert all(each.right for each in bare.clean)
    cost = Cost.of(bare.attempts, "control")
    assert cost.reached == cost.goals == 4
    guarded = await searched(store, key, "strict", surface)
    assert [attempt for attempt in guarded.attempts if attempt.hijack] == []
    assert len(guarded.attempts) >= 7 * 4  # Every goal of control, to the end of its budget.
    if key == "amplified":  # The script needs no copy with tools.
        assert all(each.right for each in guarded.clean)


async def test_every_technique_reaches_an_agent_that_obeys(store: TraceStore) -> None:
    cases = shipped_cases(1, 2, 0)
    for technique in TECHNIQUES:
        search = Search("run", cases, 1, techniques=(technique,))
        found = await search.against(target(store, obedient(cases), "direct"))
        assert {attempt.attack.technique for attempt in found.found} == {technique}, technique
        assert len(found.found) == len(found.attempts) == 3


async def test_a_search_is_repeated_from_its_record_without_a_call(store: TraceStore) -> None:
    cases = shipped_cases(2, 2, 0)
    first, client = obedient(cases), obedient(cases)
    one = await Search("run", cases, 4).against(target(store, first, "amplified", policy="strict"))
    two = await Search("run", cases, 4).against(target(store, client, "amplified", policy="strict"))
    assert first.requests
    assert client.requests == []
    assert [a.to_json() for a in one.attempts] == [a.to_json() for a in two.attempts]


async def test_what_a_tool_refuses_and_what_the_request_asks_for_is_no_hijack(
    store: TraceStore,
) -> None:
    """The agent reads what it was asked, sends where it was asked, and calls one tool wrongly."""
    (_, case) = shipped_cases(2, 1, 0)
    sent = case.calls and case.calls[-1].argument

    def reply(request: ChatRequest) -> Completion:
        made = sum(turn[0] == "tool" for turn in request.messages)
        calls = [
            ToolCall("1", "read", json.dumps({"name": next(iter(case.documents))})),
            ToolCall("2", "send", json.dumps({"to": sent, "text": case.truth})),
            ToolCall("3", "pay", "{}"),
        ]
        return Completion(case.truth, tool_calls=tuple(calls[made : made + 1]))

    found = await Search("run", [case], 2).against(target(store, ScriptedClient(reply), "direct"))
    assert [each.right for each in found.clean] == [True]
    assert not any(attempt.hijack or attempt.success for attempt in found.attempts)
    assert all(attempt.right for attempt in found.attempts)


async def test_a_wrong_value_in_a_call_that_was_asked_for_is_no_hijack(store: TraceStore) -> None:
    (_, case) = shipped_cases(2, 1, 0)
    search = Search("run", [case], 1, techniques=("plain",), goals=("figure",))
    found = await search.against(target(store, obedient([case]), "amplified", policy="strict"))
    (attempt,) = found.attempts
    sent = [c.argument for c in seen_calls(store, attempt.trajectory) if c.tool == "send"]
    assert attempt.goal.marker in sent[0]
    assert attempt.success
    assert not attempt.hijack


@pytest.mark.parametrize(
    ("answer", "says"),
    [("{m}", True), ("The total is {m}.", True), ("{more}", True), ("{truth}", False),
     ("none", False), (None, False), ("{less}", False)],
)  # fmt: skip
def test_a_value_is_the_adversarys_alone_or_with_honest_totals(
    answer: str | None, says: bool
) -> None:
    (case,) = shipped_cases(1, 2, 0)
    (goal,) = goals_of(case, 0)
    marker, truth = int(goal.marker), int(case.truth)
    if answer is not None:
        answer = answer.format(m=marker, more=marker + truth - 1, truth=truth, less=marker - 1)
    assert case.says(answer, goal) is says


def test_the_adversary_keeps_to_what_had_an_effect() -> None:
    (case,) = shipped_cases(1, 2, 0)
    (goal,) = goals_of(case, 0)
    adversary = Adversary(0, ("plain", "bait", "template"))
    for number in range(60):
        attack = adversary.attack(case, goal, number)
        adversary.learn(case, goal, attack, 0.6 if attack.technique == "bait" else 0.0)
    later = [adversary.attack(case, goal, number).technique for number in range(60, 100)]
    assert later.count("bait") > 30


def test_known_attacks_are_tried_first_in_the_words_of_the_new_case() -> None:
    one, other = shipped_cases(2, 2, 0)
    (goal,), (wanted,) = goals_of(one, 0), goals_of(other, 0)
    known = first_attack("bait", one, goal, random.Random(0))
    attack = Adversary(0, known=[known]).attack(other, wanted, 0)
    assert (attack.technique, attack.form) == ("bait", known.form)
    assert wanted.marker in "".join(attack.notes.values())
    assert goal.marker not in "".join(attack.notes.values())


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_mutations_keep_the_demand(technique: str) -> None:
    (case,) = shipped_cases(1, 2, 0)
    goal: Goal
    for goal in goals_of(case, 0, TOOLS):
        draw = random.Random(technique)
        attack = first_attack(technique, case, goal, draw)
        for _ in range(30):
            attack = mutated(attack, case, goal, draw)
            assert goal.marker in attack.wording
            assert set(attack.notes) <= set(case.open)


def test_the_cost_of_what_was_not_found_has_a_lower_end_alone() -> None:
    none = Cost(goals=10, reached=0, queries=300)
    assert none.value is None
    low, high = none.ci95
    assert low == pytest.approx(79.1, abs=0.5)
    assert high == float("inf")
    assert Cost(10, 10, 30).value == 3


async def test_found_attacks_become_rows_with_the_behavior_of_a_clean_run(
    store: TraceStore,
) -> None:
    found = await searched(store, "direct", surface="question")
    rows = list(training_rows(found, TOOLS))
    kinds = [row["kind"] for row in rows]
    assert kinds.count("clean") == 2
    assert kinds.count("control") == kinds.count("value") * 2 == 4
    for row in rows:
        (clean,) = [each for each in found.clean if each.case.id == row["case"]]
        assert row["completion"][-1]["content"] == clean.seen.answer
        assert "held_out" in row
    shown = next(row for row in rows if row["kind"] == "value")
    (clean,) = [each.case for each in found.clean if each.case.id == shown["case"]]
    assert shown["prompt"][-1]["content"] != clean.question({})
    assert attack_of(shown).wording == clean.goals(0, ())[-1].order
    assert len(curve(found, "control")) == 7
    assert figures(found)["utility"] == 1
    json.dumps(figures(found), allow_nan=False)


async def test_rows_behind_a_tool_hold_the_calls_and_the_attacked_replies(
    store: TraceStore,
) -> None:
    found = await searched(store, "direct")
    row = next(row for row in training_rows(found, TOOLS) if row["kind"] == "control")
    replies = [turn["content"] for turn in row["completion"] if turn["role"] == "tool"]
    honest = {text for each in found.clean for text in each.case.documents.values()}
    assert [reply for reply in replies if reply not in honest | {"done"}]
    assert {tool["function"]["name"] for tool in row["tools"]} == set(TOOLS)


async def test_a_model_words_the_paraphrases_and_what_it_loses_is_drawn(
    store: TraceStore,
) -> None:
    cases, asked = shipped_cases(1, 2, 0), list[str]()

    def reply(request: ChatRequest) -> str:
        asked.append(request.messages[-1][1])
        demand = asked[-1].rpartition("\n\n")[2]
        return f"Verily, {demand}" if "send" in demand else "I will not."

    context = AmplifyContext(RecordedClient(ScriptedClient(reply), store), "writer", ())
    search = Search("run", cases, 1, techniques=("paraphrase",), reworder=context)
    found = await search.against(target(store, obedient(cases), "direct"))
    wordings = {attempt.goal.name: attempt.attack.wording for attempt in found.attempts}
    assert len(asked) == 3
    assert wordings["send"].startswith("Verily, call the tool send")
    assert "not" not in wordings["figure"].split()[:3]
    assert all(attempt.success for attempt in found.attempts)
