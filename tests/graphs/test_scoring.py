"""Feedback and scores of recorded trajectories, and their agreement with humans."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from sklearn.metrics import cohen_kappa_score
from typer.testing import CliRunner

import reflux
from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.errors import UsageError
from reflux.agents.prompts import read_score
from reflux.agents.types import Completion
from reflux.cli.main import app
from reflux.graphs.traces.review import find_item, judge
from reflux.graphs.traces.scoring import (
    Scored,
    agreement,
    by_function,
    by_judge,
    feedback_of,
    score_all,
)
from reflux.graphs.traces.selection import selecting
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.trajectories import (
    Feedback,
    RecordedCall,
    RecordedOutcome,
    Trajectory,
    load,
)
from reflux.graphs.traces.trajectory_writer import TrajectoryWriter
from reflux.graphs.traces.tree import load_tree


def trajectory(text: str, answer: str | None = "yes") -> Trajectory:
    call = RecordedCall(({"role": "user", "content": text},), Completion(answer or ""), model="m")
    outcome = RecordedOutcome(answer) if answer is not None else None
    return Trajectory(text, "url", (call,), outcome=outcome)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TraceStore]:
    store = TraceStore(tmp_path / "app" / "traces.db")
    yield store
    store.close()


def recorded(store: TraceStore, count: int) -> list[str]:
    writer = TrajectoryWriter(store)
    made = [trajectory(f"q{index}") for index in range(count)]
    for each in made:
        writer.record(each).result()
    return [each.id for each in made]


async def scored(store: TraceStore, ids: list[str], scorer: Any) -> list[Scored]:
    return [each async for each in score_all(store, ids, scorer)]


async def test_scores_of_a_function_and_their_agreement_with_humans(store: TraceStore) -> None:
    ids = recorded(store, 6)
    program, humans = [1, 0, 1, 1, 0, 0], [1, 0, 0, 1, 1, None]

    def function(each: Trajectory) -> float:
        return program[int(each.text[1:])]

    done = await scored(store, ids, by_function(function, "right", "mine:f"))
    assert [each.id for each in done] == ids
    for id, verdict in zip(ids[:3], humans[:3], strict=True):
        await judge(store, find_item(store, id), bool(verdict))
    for id, verdict in zip(ids[3:5], humans[3:5], strict=True):
        reflux.feedback(id[:16], float(verdict or 0), run=store.path.parent)
    found = agreement(store, "mine:f", "right")
    assert (found.n, found.rate) == (5, 0.6)
    assert found.kappa == pytest.approx(cohen_kappa_score(program[:5], humans[:5]))
    assert agreement(store, "mine:f", "other").n == 0


async def test_a_function_that_fails_or_answers_oddly_stops_no_other(store: TraceStore) -> None:
    ids = recorded(store, 3)

    async def function(each: Trajectory) -> Any:
        if each.text == "q1":
            raise ValueError("no idea")
        return {"score": True, "comment": each.text}

    first, second, third = await scored(store, ids, by_function(function, "", "mine:f"))
    assert (second.feedback, second.error) == (None, "ValueError: no idea")
    assert [f.comment for f in (first.feedback, third.feedback) if f] == ["q0", "q2"]
    for odd in ("good", [1], {"score": "1"}, float("nan"), {}, None, 7, -0.1):
        with pytest.raises(UsageError, match=r"mine:f returned .* from 0 to 1"):
            feedback_of(odd, "", "mine:f")


async def test_a_judge_reads_rubric_question_steps_and_answer(store: TraceStore) -> None:
    (id,) = recorded(store, 1)
    client = ScriptedClient(lambda request: "It is short.\n**SCORE: 7.5**/10")
    (done,) = await scored(store, [id], by_judge(client, "big", "Is it brief?", "brief"))
    assert done.feedback is not None
    assert (done.feedback.score, done.feedback.author) == (0.75, "judge:big")
    (system, user) = client.requests[0].messages
    assert "Is it brief?" in system[1] and "q0" in user[1] and "yes" in user[1]
    silent = ScriptedClient(lambda request: "fine")
    (none,) = await scored(store, [id], by_judge(silent, "big", "r", ""))
    assert none.feedback is None and "gave no score" in none.error


@pytest.mark.parametrize(
    ("text", "score"),
    [("SCORE: 10", 1.0), ("score = 0", 0.0), ("SCORE: 3\nno, SCORE: 4", 0.4), ("SCORE: 11", None),
     ("7", None)],
)  # fmt: skip
def test_the_last_score_of_a_reply_counts(text: str, score: float | None) -> None:
    assert read_score(text) == score


def test_feedback_from_python_says_what_is_wrong_with_it(store: TraceStore) -> None:
    (id,) = recorded(store, 1)
    run = store.path.parent
    assert reflux.feedback(id, comment="ok", run=run, name="tone", author="ann") == id
    found = load(store, id)
    assert found is not None
    assert found.feedback == (Feedback(None, "tone", "ok", "ann"),)
    reflux.feedback(id, 0.75, "short", run=run, name="helpful")
    reflux.feedback(id, 1, run=run, path="/0.0.9/0.0.1")  # Of a node that is not there.
    assert load_tree(store, id).comments == ["tone by ann: ok", "helpful 0.75 by human: short"]
    wrong: list[tuple[str, float | None, str]] = [
        (id, None, "empty"), ("x", 1, "no trajectory"), (id, float("inf"), "0 to 1"),
        (id, 4, "score 4 is not from 0 to 1"), (id, cast(float, "good"), "'good' is no number"),
    ]  # fmt: skip
    for named, score, says in wrong:
        with pytest.raises(UsageError, match=says):
            reflux.feedback(named, score, run=run)
    with pytest.raises(UsageError, match="holds no trajectories"):
        reflux.feedback(id, 1, run=run / "other")


async def test_an_approved_answer_is_selected_as_such(store: TraceStore) -> None:
    ids = recorded(store, 2)
    await judge(store, find_item(store, ids[0]), True, "good")
    with selecting(store.path, "approved") as selection:
        assert [each.id for each in selection.trajectories()] == ids[:1]


def test_the_command_scores_each_once_and_tells_the_agreement(
    store: TraceStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = recorded(store, 3)
    TrajectoryWriter(store).record(trajectory("unfinished", None)).result()
    for id in ids:
        reflux.feedback(id, id != ids[2], run=store.path.parent)
    monkeypatch.chdir(tmp_path)
    Path("checks.py").write_text("def is_q(trajectory):\n    return trajectory.text != 'q2'\n")
    words = ["traces", "score", "--with", "checks.py:is_q", "--run", str(store.path.parent)]
    first = CliRunner().invoke(app, [*words, "--json"])
    assert first.exit_code == 0, first.output
    body = json.loads(first.stdout)
    assert (body["scored"], body["mean"], body["agreement"]["kappa"]) == (3, 2 / 3, 1.0)
    again = CliRunner().invoke(app, words).stdout
    assert "0 trajectories scored" in again
    assert "Cohen's kappa 1.00, 100% the same, n = 3" in again
