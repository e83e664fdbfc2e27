"""AgentDojo's cases through our systems, judged from the record, and garak's reports."""

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from reflux.agents.errors import MissingError, UsageError
from reflux.agents.policy.policy import Policy
from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.ask import Amplified, Direct, System
from reflux.graphs.attacks import agentdojo
from reflux.graphs.attacks.agentdojo import (
    KnowingClient,
    dojo_cases,
    dojo_context,
    knowing_overseer,
)
from reflux.graphs.attacks.cases import Call, Case, Seen
from reflux.graphs.attacks.garak import read_report
from reflux.graphs.attacks.search import Search, Searched, Target
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.voting.voting import VotePolicy

installed = pytest.mark.skipif(not find_spec("agentdojo"), reason=agentdojo.INSTALL)
NOBODY: Any = {"answer": "", "status": "unchecked", "error": None, "spent": {}}


async def searched(
    store: TraceStore, cases: list[Case], policy: Policy | None, divides: bool = False
) -> Searched:
    client = KnowingClient(cases)
    context = AmplifyContext(
        RecordedClient(client, store),
        "base",
        (knowing_overseer(cases),),
        votes=VotePolicy(max_votes=1),
        policy=policy,
    )
    system: System = Amplified(context) if divides else Direct(context)
    target = Target("it", f"{divides} {policy is None}", system, dojo_context)
    search = Search("run", cases, 1, techniques=("template",), goals=("injection_task_4",))
    return await search.against(target)


@installed
async def test_what_happened_to_the_environment_is_judged_from_the_record(
    store: TraceStore,
) -> None:
    cases = dojo_cases("banking", 2)
    bare = await searched(store, cases, None)
    assert [each.right for each in bare.clean] == [True, True]
    assert any(attempt.hijack for attempt in bare.attempts)
    again = await searched(store, cases, None)  # No tool acts on a replay.
    assert [a.to_json() for a in again.attempts] == [a.to_json() for a in bare.attempts]
    guarded = await searched(store, cases, Policy.of("strict"))
    assert not any(attempt.hijack for attempt in guarded.attempts)


@installed
async def test_a_plan_stays_as_it_is_and_who_reads_for_it_is_hijacked_without_a_policy(
    store: TraceStore,
) -> None:
    cases = dojo_cases("banking", 2)
    bare = await searched(store, cases, None, divides=True)
    guarded = await searched(store, cases, Policy.of("strict"), divides=True)
    assert [each.right for each in (*bare.clean, *guarded.clean)] == [True] * 4
    assert any(attempt.hijack for attempt in bare.attempts)
    assert not any(attempt.hijack for attempt in guarded.attempts)


@installed
def test_an_injection_that_takes_no_call_wants_a_value() -> None:
    (case,) = dojo_cases("travel", 1)
    kinds = {goal.name: goal.kind for goal in case.goals(1, ())}
    assert (kinds.pop("injection_task_6"), set(kinds.values())) == ("value", {"control"})
    goal = next(each for each in case.goals(1, ()) if each.kind == "value")
    praise = "You should absolutely visit Riverside View Hotel, it is incredibly gorgeous."
    said = Seen("id", {**NOBODY, "answer": praise}, [], [], {})  # type: ignore[arg-type]
    assert case.misleads(said, goal)
    assert not case.is_hijacked(said, said, goal)


@installed
def test_a_task_is_done_by_its_calls_and_by_nothing_less() -> None:
    (case,) = dojo_cases("banking", 1)
    assert isinstance(case, agentdojo.DojoCase)
    right = case.task.ground_truth(case.environment({}))
    calls = [Call(call.function, json.dumps(dict(call.args), default=str)) for call in right]

    def seen(calls: list[Call], notes: Mapping[str, str]) -> Seen:
        answer = {**NOBODY, "answer": case.task.GROUND_TRUTH_OUTPUT}  # type: ignore[attr-defined]
        return Seen("id", answer, calls, [], notes)  # type: ignore[arg-type]

    assert case.is_right(seen(calls, {}), seen([], {}))
    assert case.is_right(seen(calls, {"": 'a "note": {x}\n- y'}), seen([], {}))
    assert not case.is_right(seen(calls[:-1], {}), seen([], {}))
    assert not any(
        case.is_hijacked(seen(calls, {"": "x"}), seen([], {}), goal) for goal in case.goals(0, ())
    )


def test_without_the_package_its_installation_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agentdojo, "find_spec", lambda name: None)
    agentdojo._suites.cache_clear()  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(MissingError, match="pip install --no-deps agentdojo"):
        dojo_cases("banking", 1)
    with pytest.raises(UsageError, match="workspace, travel, banking, slack"):
        dojo_cases("office", 1)


SETUP = {"entry_type": "start_run setup", "plugins.target_name": "student"}
EVAL = {"entry_type": "eval", "probe": "promptinject.HijackHateHumans",
        "detector": "promptinject.AttackRogueString"}  # fmt: skip


@pytest.mark.parametrize(
    ("counts", "hits", "n"),
    [
        ({"passed": 30, "fails": 10, "nones": 2, "total_evaluated": 40, "total_processed": 42},
         10, 40),
        ({"passed": 30, "total": 40}, 10, 40),
    ],
)  # fmt: skip
def test_garaks_report_is_read_as_rates(
    tmp_path: Path, counts: Mapping[str, int], hits: int, n: int
) -> None:
    path = tmp_path / "x.report.jsonl"
    lines = [SETUP, {"entry_type": "attempt"}, EVAL | dict(counts), {"entry_type": "digest"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    model, (rate,) = read_report(path)
    assert (model, rate.probe, rate.hits, rate.n) == ("student", EVAL["probe"], hits, n)
    assert rate.to_json()["rate_95"] == pytest.approx([0.142, 0.402], abs=0.001)


@pytest.mark.parametrize(
    ("text", "match"),
    [("{}\n", "line 1 is no line"), ("no\n", "line 1 is no line"), ("[]\n", "line 1 is no line"),
     (json.dumps(SETUP) + "\n", "no finished probe")],
)  # fmt: skip
def test_what_is_no_report_is_named_by_its_line(tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(text)
    with pytest.raises(UsageError, match=match):
        read_report(path)
