"""What the record knows of an answer: its votes, its sub-answers, its log-probabilities."""

from contextlib import closing
from pathlib import Path

import pytest

from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.overseers.scripted import ScriptedOverseer
from reflux.agents.types import ChatRequest, Completion, TokenLogprob
from reflux.agents.verifiers import RuleChecker
from reflux.finetune.configs.targets import TargetConfig
from reflux.finetune.data.rows import Row, accepted
from reflux.finetune.targets.evidence import shares_of, with_evidence
from reflux.finetune.targets.recombining import Recombiner
from reflux.graphs.ask import Origin, answer_all
from reflux.graphs.evals.task import Task
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.tree import Node
from reflux.graphs.voting.voting import VotePolicy
from tests.support.amplifying import amplified, asking

WEIGHED = [{"answer": "b", "weight": 1}, {"answer": "a", "weight": 3}]
VOTES = VotePolicy(margin=2, max_votes=5, min_logprob=None)


def saying(request: ChatRequest) -> Completion:
    """The question in capitals; the second vote says another word."""
    text = "NO" if request.vote == 1 else request.messages[-1][1].upper()
    tokens = tuple(TokenLogprob(c, -0.1, ((c, -0.1), ("x", -3.0))) for c in text)
    return Completion(text, 3, len(tokens), finish_reason="stop", logprobs=tokens)


class Joining(Task):
    """Joins the answers to a and b, whose order does not matter; nothing may hold an X."""

    name = "t"

    def overseers(self) -> list[ScriptedOverseer]:
        return [ScriptedOverseer("join", asking("a", "b"))]

    def normalise(self, answer: str) -> str:
        return "+".join(sorted(answer.split("+")))

    def checker(self) -> RuleChecker:
        return RuleChecker({"form": lambda question, answer: "X" not in answer})


async def rows_of(
    folder: Path, question: str, task: Task | None = None, **targets: str
) -> list[Row]:
    with closing(TraceStore(folder / "traces.db")) as store:
        system = amplified(store, ScriptedClient(saying), asking("a", "b"), votes=VOTES)
        await answer_all(system, Origin("run", 1, "amplified", "t", "train"), [question])
        rows = accepted(store, "train", "amplified", 1, "Be brief.")
        config = TargetConfig.model_validate(targets)
        return list(with_evidence(store, rows, config, task))


async def test_every_answer_of_a_vote_is_a_row_by_its_share(tmp_path: Path) -> None:
    rows = await rows_of(tmp_path, "plain", kind="votes")
    assert [(row.reply, row.weight) for row in rows] == [("PLAIN", 0.75), ("NO", 0.25)]
    assert [row.train().get("weight") for row in rows] == [0.75, 0.25]
    assert len({row.question for row in rows}) == 1


async def test_an_answer_that_a_script_combined_weighs_what_its_parts_do(tmp_path: Path) -> None:
    (row,) = await rows_of(tmp_path, "root", kind="votes")
    assert (row.reply, row.weight) == ("A+B", 0.5625)  # Two parts, each with 3 of 4 votes.


async def test_a_script_says_what_follows_from_other_sub_answers(tmp_path: Path) -> None:
    rows = await rows_of(tmp_path, "root", Joining(), kind="votes")
    # Of each part, 3 of 4 votes are for its capital: 9, 3 + 3 and 1 of 16.
    weights = {"A+B": 0.5625, "B+NO": 0.1875, "A+NO": 0.1875, "NO+NO": 0.0625}
    assert {row.reply: row.weight for row in rows} == weights


def test_what_a_script_cannot_know_or_a_check_refuses_has_no_share() -> None:
    again = Recombiner(Joining())
    parts = {"a": [("A", 0.5), ("X", 0.5)], "b": [("B", 1.0)]}
    assert again.shares("root", 0, parts) == [("A+B", 0.5)]
    assert again.shares("root", 3, {"a": [("A", 1.0)]}) == []
    assert again.shares("another", 0, parts) == []


def test_of_many_transcripts_some_are_drawn_by_their_probability() -> None:
    many = [(f"A{i}", 0.08) for i in range(10)]
    parts = {"a": [*many, ("X", 0.1)], "b": [(f"B{i}", 0.1) for i in range(10)]}
    shares = Recombiner(Joining()).shares("root", 0, parts)
    assert shares == Recombiner(Joining()).shares("root", 0, parts)
    assert len(shares) > 30
    assert 0.7 < sum(share for _, share in shares) < 0.9  # Without X, and what is not known.


@pytest.mark.parametrize("kind", ["tokens", "mixed", "on_policy"])
async def test_a_teacher_reads_the_sub_answers(tmp_path: Path, kind: str) -> None:
    (row,) = await rows_of(tmp_path, "root", kind=kind)
    assert [turn["role"] for turn in row.teacher] == ["system", "user"]
    assert row.teacher[0] == row.prompt[0]
    assert row.teacher[1]["content"] == "Answers so far:\n- a A\n- b B\n\nroot"
    assert row.train()["teacher"] == list(row.teacher)


async def test_an_undivided_question_has_no_teacher(tmp_path: Path) -> None:
    (row,) = await rows_of(tmp_path, "plain", kind="tokens")
    assert row.teacher == ()
    assert row.train().keys() == {"prompt", "completion"}


async def test_the_record_of_the_reply_is_found(tmp_path: Path) -> None:
    (row,) = await rows_of(tmp_path, "plain", kind="tokens", source="log")
    assert "".join(token for token, _, _ in row.logged) == "PLAIN"
    both = await rows_of(tmp_path, "root", kind="tokens", source="log")
    assert {row.reply: bool(row.logged) for row in both} == {"PLAIN": True, "A+B": False}


async def test_hard_rows_are_as_they_are_without(tmp_path: Path) -> None:
    (row,) = await rows_of(tmp_path, "root", kind="hard")
    assert row == Row(row.prompt, row.completion, "root", "t", row.provenance)


@pytest.mark.parametrize(
    ("node", "shares"),
    [
        (Node("", "q", "a", tally=[("a", 3), ("b", 1)]), [("a", 0.75), ("b", 0.25)]),
        (Node("", "q", "a", tally=[("a", 3), ("b", 1)], answered_by="human"), [("a", 1.0)]),
        (Node("", "q", "a", tally=[("b", 1)], verdict="approved"), [("a", 1.0)]),
        (Node("", "q", "a", candidates=WEIGHED), [("a", 0.75), ("b", 0.25)]),
        (Node("", "q"), []),
    ],
)
def test_shares(node: Node, shares: list[tuple[str, float]]) -> None:
    assert shares_of(node) == shares
