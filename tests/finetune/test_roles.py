"""Role adapters: rows of one tree, an aggregator and a verifier in their places, and rounds that
learn them."""

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest

import reflux
from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.errors import UsageError
from reflux.agents.types import ChatRequest
from reflux.agents.verifiers import RuleChecker
from reflux.cli.runs.distill import distill, role_rows_for
from reflux.finetune.configs.canaries import CanaryConfig
from reflux.finetune.configs.run import RoundsConfig
from reflux.finetune.data.rows import Row
from reflux.finetune.gates import GateConfig
from reflux.finetune.registry import role_of
from reflux.finetune.roles.adapters import Combining, with_roles
from reflux.finetune.roles.rows import rows_of_role
from reflux.finetune.rounds import run_rounds
from reflux.finetune.run_folder import OpenRun, RunFolder
from reflux.graphs.amplify.context import AmplifyContext
from reflux.graphs.ask import Amplified, Origin, answer_all
from reflux.graphs.evals.task import Task, is_held_out, task_context
from reflux.graphs.traces.recorded_client import RecordedClient
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.voting.voting import VotePolicy
from reflux.models import model_named
from tests.support.run_folders import make_run, put_base
from tests.support.small_runs import silent
from tests.support.sums import compare_little

TRAIN = Origin("run", 1, "amplified", "sums", "train")


class Sums(Task):
    """Sums of three numbers, whose script adds two and then the third."""

    name = "sums"

    def overseers(self) -> Sequence[reflux.Overseer]:
        return (reflux.ScriptedOverseer("sums", divide),)

    def questions(self) -> Sequence[str]:
        return [f"{a} + {b} + 4" for a in range(2, 9) for b in range(2, 9)]

    def checker(self) -> RuleChecker:
        return RuleChecker({"number": lambda question, answer: answer.isdecimal()})

    def score(self, question: str, answer: str) -> bool:
        return answer == str(sum(map(int, question.split(" + "))))


def divide(question: str, transcript: Sequence[reflux.Exchange], may_ask: bool) -> reflux.Step:
    terms = question.split(" + ")
    if not may_ask or len(terms) < 3:
        return reflux.PASS
    if not transcript:
        return reflux.Ask.of(" + ".join(terms[:2]))
    if len(transcript) == 1:
        return reflux.Ask.of(f"{transcript[0].answer} + {terms[2]}")
    return reflux.Answer(str(transcript[-1].answer))


def adds(request: ChatRequest) -> str:
    """Copies, of whom the second is one too high; an aggregator and a verifier that have learned
    the script and to find every answer right."""
    text = request.messages[-1][1]
    if request.model.endswith(":verifier"):
        return "RIGHT"
    if request.model.endswith(":aggregator"):
        known = [line for line in text.splitlines() if " + " in line][1:]
        last = known[-1].rpartition(" ")[2]
        return f"1. {last} + 4" if len(known) == 1 else f"Answer: {last}"
    total = sum(int(term) for term in text.split(" + ")) if " + " in text else 0
    return str(total + (request.vote == 1))


def context_of(store: TraceStore, task: Task, client: ScriptedClient) -> AmplifyContext:
    votes = VotePolicy(margin=2, max_votes=3, min_logprob=None)
    context = AmplifyContext(RecordedClient(client, store), "base", (), votes=votes)
    return task_context(context, task)


def shown(rows: Sequence[Row]) -> set[tuple[str, str]]:
    return {(str(row.prompt[-1]["content"]), row.reply) for row in rows}


async def test_one_tree_has_rows_of_every_role(store: TraceStore) -> None:
    task = Sums()
    one, two = next(
        (a, b)
        for a, b in product(range(2, 9), repeat=2)
        if not any(
            is_held_out(task, text) for text in (f"{a} + {b}", f"{a + b} + 4", f"{a} + {b} + 4")
        )
    )
    question = f"{one} + {two} + 4"
    system = Amplified(context_of(store, task, ScriptedClient(adds)))
    (outcome,) = await answer_all(system, TRAIN, [question])
    assert outcome["answer"] == str(one + two + 4)
    answers = {(f"{one} + {two}", str(one + two)), (f"{one + two} + 4", str(one + two + 4))}
    answerer = rows_of_role("answerer", store, task)
    assert shown(answerer.rows) == answers
    aggregator = rows_of_role("aggregator", store, task)
    assert [row.reply for row in aggregator.rows if "Answer" in row.reply] == [
        f"Answer: {one + two + 4}"
    ]
    assert {row.reply for row in aggregator.rows} == {
        f"1. {one + two} + 4", f"Answer: {one + two + 4}",
    }  # fmt: skip
    assert aggregator.style is not None
    assert (aggregator.style.brief, aggregator.style.plan) == (True, False)
    verifier = rows_of_role("verifier", store, task)
    # Both parts had a vote that lost; the root's check found nothing wrong.
    assert sorted(row.reply for row in verifier.rows) == ["RIGHT", "RIGHT", "WRONG", "WRONG"]
    assert verifier.left_out.counts["more of the other verdict"] == 1


@pytest.mark.parametrize(
    ("role", "words"),
    [
        ("answerer", "its tree was not accepted.*copies answer"),
        ("aggregator", "not accepted.*combine sub-answers"),
        ("verifier", "no rows of a verifier.*give the task a check"),
    ],
)
async def test_where_nothing_is_accepted_the_message_says_what_left_the_rows_out(
    store: TraceStore, role: Any, words: str
) -> None:
    task = Sums()
    client = ScriptedClient(lambda request: "no number")
    await answer_all(
        Amplified(context_of(store, task, client)), TRAIN, task.sample(2, 1, "train", 0)
    )
    with pytest.raises(UsageError, match=words):
        rows_of_role(role, store, task)


async def test_an_aggregator_combines_and_a_verifier_refuses(store: TraceStore) -> None:
    task = Sums()
    client = ScriptedClient(adds)
    context = context_of(store, task, client)
    taught = with_roles(context, {"aggregator": "a:aggregator", "verifier": "a:verifier"})
    again = with_roles(taught, {"aggregator": "b:aggregator", "verifier": "b:verifier"})
    (overseer,) = again.overseers
    assert isinstance(overseer, Combining)
    assert (overseer.name, len(again.verifiers)) == ("script:sums+b:aggregator", 1)
    question = task.sample(1, 1, "train", 0)[0]
    (outcome,) = await answer_all(Amplified(again), TRAIN, [question])
    assert (outcome["answer"], outcome["status"]) == (
        str(sum(map(int, question.split(" + ")))), "ok",
    )  # fmt: skip
    models = [request.model for request in client.requests]
    # A step after each batch, and one verdict.
    assert (models.count("b:aggregator"), models.count("b:verifier")) == (2, 1)

    def refuses(request: ChatRequest) -> str:
        return "WRONG" if request.model.endswith(":verifier") else adds(request)

    refused = with_roles(
        context_of(store, task, ScriptedClient(refuses)), {"verifier": "c:verifier"}
    )
    other = Origin("run", 2, "amplified", "sums", "train")
    (outcome,) = await answer_all(Amplified(refused), other, [question])
    assert outcome["status"] == "rejected"


CONFIG = RoundsConfig.model_validate(
    {
        "rounds": [{"questions": 6, "held_out": 4}] * 2,
        "roles": ["aggregator", "verifier"],
        "anchor": 2,
        "canaries": CanaryConfig(prompts=0, probes=0),
        "votes": {"margin": 2, "max_votes": 3, "min_logprob": None},
        "gates": GateConfig(parity=0.0, retention=0.0),
        "sft": {"max_steps": 2, "per_device_train_batch_size": 2},
    }
)


@pytest.mark.engine
async def test_rounds_train_the_roles_and_the_next_round_is_made_of_them(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_base(tiny_base, monkeypatch.setattr)
    compare_little(monkeypatch.setattr)
    client = ScriptedClient(adds)
    async with OpenRun(RunFolder(tmp_path), client=client) as run:
        await run_rounds(run, CONFIG, Sums(), silent)
    report = json.loads((tmp_path / "report.json").read_text())
    learned = [each for row in report["rounds"] for each in row["roles"]]
    ids = [f"student-r{n}:{role}" for n in (1, 2) for role in ("aggregator", "verifier")]
    assert [each["id"] for each in learned] == ids
    assert all(each["promoted"] for each in learned)
    registry = RunFolder(tmp_path).registry
    assert [registry.current(role_of(id)).id for id in ids[2:]] == ids[2:]  # type: ignore[union-attr]
    assert registry.get("student-r2:aggregator").path.name == "student-r2.aggregator"
    assert registry.list("verifier")[-1].parent == "student-r1:verifier"
    asked = {request.model for request in client.requests}
    assert {"student-r1:aggregator", "student-r1:verifier"} <= asked
    with pytest.raises(UsageError, match=r"not ending in \.json"):
        registry.check_new("a.verifier")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"data": Path("rows.jsonl")}, "verifiers learn from trees, leave it out"),
        ({"demos": Path("demos.jsonl")}, "--demos is for an overseer"),
        ({"by": "calls"}, "a verifier learns from whole trees"),
        ({"dry_run": True}, "a verifier learns from whole trees"),
    ],
)
def test_the_command_says_what_a_role_does_not_learn_from(
    tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        distill(tmp_path, role="verifier", **options)


async def test_a_role_needs_a_run_and_its_student_is_not_asked_questions(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no run, whose trees verifiers learn from"):
        await role_rows_for(RunFolder(tmp_path / "none"), "verifier", 0)
    folder = make_run(tmp_path / "run", ["a", "a:verifier"])
    assert (folder.current_model(), folder.registry.current("verifier").id) == ("a", "a:verifier")  # type: ignore[union-attr]
    with pytest.raises(UsageError, match=r"a:verifier has the role verifier and answers no"):
        model_named(folder, "a:verifier")


def test_all_parts_fit_into_the_memory_of_the_engine_at_once() -> None:
    body = {"rounds": 1, "roles": ["aggregator", "verifier"], "overseer": {"learn": 5}}
    config: Any = RoundsConfig.model_validate(body)
    assert (config.engine_settings.models, config.batched.models) == (4, 3)
