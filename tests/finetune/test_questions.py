"""What a round found hard, the next round asks again."""

from pathlib import Path

from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.types import ChatRequest, Completion, TokenLogprob
from reflux.finetune.data.questions import hardness
from reflux.finetune.run_folder import OpenRun, RunFolder
from reflux.finetune.stages import Stages
from reflux.graphs.evals.task import is_held_out
from reflux.report.rounds_tables import hard_lines
from reflux.tasks.addition import read
from tests.support.sums import CONFIG, SuspiciousAddition, exact


def at_odds(request: ChatRequest) -> Completion:
    """Of sums with a 7 the copies say two things; of those with a 9 nothing of use."""
    asked = request.messages[-1][1]
    if not asked.endswith("=") or read(asked)[0] == "":
        return Completion(exact(request), 3, 2)
    if "9" in asked:
        return Completion("?", 3, 2)
    right = exact(request)
    text = right if "7" not in asked or request.vote else "0" * (len(right) - 1) + "0"
    return Completion(text, 3, 2, logprobs=(TokenLogprob(text, -1.0 if "7" in asked else 0.0),))


def stages(folder: Path) -> Stages:
    run = OpenRun(RunFolder(folder), client=ScriptedClient(at_odds))
    return Stages(CONFIG, SuspiciousAddition(), run, lambda *_: None)


async def test_failed_questions_come_before_doubtful_ones_and_the_next_round_asks_them(
    tmp_path: Path,
) -> None:
    s = stages(tmp_path / "r")
    async with s.run:
        one = await s.amplify(1, "base")
        hard = hardness(s.run.store, 1)
        two = await s.amplify(2, "base")
        asked = {row["text"] for row in s.run.store.select(
            "SELECT text FROM questions WHERE round = 2 AND system = 'amplified'"
        )}  # fmt: skip
    assert one["questions"] == 24
    assert one["failed"] == len(hard.failed) > 0
    assert all("9" in question for question in hard.failed)
    assert one["asked_again"] == 0
    again = hard.hardest(4)  # A tenth of the 40 questions of round 2.
    assert two["asked_again"] == len(again) == 4
    assert two["accepted_again"] == 0
    assert two["questions"] == 44
    assert set(again) <= asked
    assert not [question for question in again if is_held_out(s.task, question)]


def test_the_report_says_what_was_hard_and_what_became_of_it() -> None:
    made = {"questions": 200, "failed": 10, "doubtful": 5, "asked_again": 8, "accepted_again": 6}
    (line,) = hard_lines([{"round": 0, "amplify": made}, {"round": 2, "amplify": made}])
    assert "5.0% failed" in line
    assert "2.5% were in doubt" in line
    assert "8 had been hard in the round before, 6 of these" in line
