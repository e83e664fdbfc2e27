"""`reflux plan`: figures given, or measured in a run."""

import json
import random
from pathlib import Path

import pytest

from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.types import ChatRequest
from reflux.finetune.run_folder import OpenRun, RunFolder
from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.ask import Amplified, Origin, answer_all
from reflux.graphs.evals.task import task_context
from reflux.graphs.voting.stopping import AheadBy
from reflux.graphs.voting.voting import VotePolicy
from reflux.tasks.addition import Addition, read
from tests.support.commanding import begin

pytestmark = pytest.mark.process


def test_given_figures_are_planned_without_a_run() -> None:
    ended = begin(["plan", "--accuracy", "0.9978", "--steps", "1048575", "--json"]).wait()
    assert ended.code == 0, ended.stderr
    made = json.loads(ended.stdout)["plan"]
    assert made["margin"] == 4
    assert made["p_all_correct"] > 0.99
    assert made["votes"] == pytest.approx(4 / (2 * 0.9978 - 1) * 1048575, rel=1e-6)


def test_a_plan_says_what_happens_without_votes() -> None:
    words = ["plan", "--accuracy", "0.99", "--steps", "10"]
    shown = begin(words).wait().stdout
    assert "without votes" in shown
    assert "0.904 are all right" in shown
    made = json.loads(begin([*words, "--json"]).wait().stdout)["plan"]
    assert made["success_without_votes"] == pytest.approx(0.99**10)


def test_a_lead_of_one_leaves_nothing_undecided_and_names_no_limit() -> None:
    words = ["plan", "--accuracy", "0.999", "--steps", "2"]
    shown = begin(words).wait().stdout
    assert "margin k=1" in shown
    assert "votes.max_votes" not in shown


def test_a_lead_too_long_to_be_walked_is_planned_without_a_limit() -> None:
    shown = begin(["plan", "--accuracy", "0.50000001", "--steps", "9"]).wait(60).stdout
    assert "margin k=" in shown
    assert "votes.max_votes" not in shown


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--accuracy", "0.4", "--steps", "9"], "voting does not converge"),
        (["--accuracy", "0.5"], "voting does not converge"),
        (["--accuracy", "0.9", "--correlation", "0.4", "--steps", "99"], "voting cannot help"),
        (["--accuracy", "0.9", "--target", "2"], "between 0 and 1"),
        ([], "--accuracy"),
        (["--accuracy", "1", "--steps", "9"], "no vote is needed; give less"),
        (["--accuracy", "0.9", "--price", "2"], "--price needs a --run"),
        (["--run", "nowhere"], "holds no run"),
        (["--accuracy", "0.9", "--steps", "1" + "0" * 400], "401 digits"),
        (["--accuracy", "0.9", "--price", "inf"], "--price inf is none"),
        (["--accuracy", "0.9", "--probe", "9"], "need a --run"),
    ],
)
def test_what_cannot_be_planned_is_said_with_a_remedy(words: list[str], says: str) -> None:
    ended = begin(["plan", *words]).wait()
    assert ended.code == 2
    assert says in ended.stderr
    assert "Traceback" not in ended.stderr


def sometimes_wrong(request: ChatRequest) -> str:
    """A copy that adds right nine times in ten, each vote by itself."""
    a, b, carry = read(request.messages[-1][1])
    total = str(int(a[::-1]) + int(b[::-1]) + carry).zfill(len(a) + 1)[::-1]
    draw = random.Random(f"{a}:{b}:{carry}:{request.vote}")
    return total if draw.random() < 0.9 else ("1" * len(total))


async def amplify(folder: RunFolder) -> None:
    task = Addition()
    votes = VotePolicy(min_logprob=None, rule=AheadBy(2, 9))
    async with OpenRun(folder, client=ScriptedClient(sometimes_wrong)) as opened:
        context = AmplifyContext(opened.recorded_client, "base", (), votes=votes)
        asked = Origin("run", 1, "amplified", task.name, "held_out")
        questions = task.sample(300, 3, "held_out", 1)
        await answer_all(Amplified(task_context(context, task)), asked, questions)


async def test_a_run_tells_accuracy_correlation_and_what_came_of_them(tmp_path: Path) -> None:
    await amplify(RunFolder(tmp_path / "run"))
    ended = begin(["plan", "--run", str(tmp_path / "run"), "--task", "addition", "--json"]).wait()
    assert ended.code == 0, ended.stderr
    body = json.loads(ended.stdout)
    found = body["measured"]
    assert found["marked_by"].startswith("the task's score")
    assert found["ci95"][0] <= 0.9 <= found["ci95"][1]
    # Each vote errs by itself.
    assert found["correlation_ci95"][0] <= 0.0 <= found["correlation_ci95"][1]
    assert found["steps"] == pytest.approx(2, abs=0.3)
    assert found["observed"] <= 0.05
    assert found["observed_n"] == 300
    assert body["plan"]["p_all_correct"] >= 0.99
    table = begin(["plan", "--run", str(tmp_path / "run"), "--task", "addition"]).wait()
    assert "margin k=" in table.stdout
    assert "n=300" in table.stdout


async def test_what_was_measured_is_shown_where_no_vote_can_help(tmp_path: Path) -> None:
    await amplify(RunFolder(tmp_path / "run"))
    words = ["plan", "--run", str(tmp_path / "run"), "--task", "addition", "--correlation", "0.6"]
    shown = begin(words).wait()
    assert shown.code == 1
    assert "one vote is right" in shown.stdout and "n=300" in shown.stdout
    assert "voting cannot help" in shown.stderr
    body = json.loads(begin([*words, "--json"]).wait().stdout)
    assert body["plan"] is None and "voting cannot help" in body["verdict"]
    assert body["measured"]["observed_n"] == 300
