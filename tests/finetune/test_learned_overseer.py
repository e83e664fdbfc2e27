"""A learned overseer: its rows, how it is asked, what it may do wrong, and rounds that learn it."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import reflux
from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.errors import UsageError
from reflux.agents.overseers.demonstration_file import demonstration_of
from reflux.agents.overseers.step_forms import BRIEF
from reflux.agents.types import ChatRequest
from reflux.ask_context import context_of
from reflux.finetune.configs.canaries import CanaryConfig
from reflux.finetune.configs.run import RoundsConfig, RoundSpec, config_from
from reflux.finetune.configs.task import OverseerConfig
from reflux.finetune.data.overseer_rows import overseer_rows
from reflux.finetune.data.questions import check_questions
from reflux.finetune.gates import GateConfig
from reflux.finetune.learned_overseer import Fallback, learned_overseer
from reflux.finetune.rounds import run_rounds
from reflux.finetune.run_folder import OpenRun, RunFolder
from reflux.graphs.ask_options import AskOptions
from reflux.graphs.evals.task import Task, is_held_out
from reflux.models import check_student, model_named
from tests.support.run_folders import make_run, put_base
from tests.support.small_runs import silent
from tests.support.sums import compare_little

NAME = "student-x:overseer"
PLAN = demonstration_of({"question": "2 + 3 + 4", "ask": ["2 + 3", "{0} + 4"]})
STEPS = demonstration_of(
    {
        "question": "1 + 1 + 6",
        "steps": [{"ask": ["1 + 1"], "answers": ["2"]}, {"ask": ["2 + 6"], "answers": ["8"]}],
        "answer": "8",
    }
)
WHOLE = demonstration_of({"question": "2 + 2", "ask": []})


def written(*demos: Any, **more: Any) -> list[tuple[str, str]]:
    """(what the user's turn says, the reply) of the rows of demonstrations."""
    rows = overseer_rows(demos, **more).rows
    assert {row.prompt[0]["content"] for row in rows} == {BRIEF}
    return [(row.prompt[1]["content"], row.reply) for row in rows]


@pytest.mark.parametrize(
    ("demos", "more", "rows"),
    [
        ([PLAN], {}, [("2 + 3 + 4", "1. 2 + 3\n2. {1} + 4")]),
        (
            [STEPS],
            {},
            [
                ("1 + 1 + 6", "1. 1 + 1"),
                ("1 + 1 + 6\nAnswers so far:\n- 1 + 1 2", "1. 2 + 6"),
                ("1 + 1 + 6\nAnswers so far:\n- 1 + 1 2\n- 2 + 6 8", "Answer: 8"),
            ],
        ),
        (
            [PLAN, WHOLE],
            {},
            [("2 + 3 + 4", "1. 2 + 3\n2. {1} + 4"), ("2 + 2", "Indivisible: one simple question")],
        ),
        # One row in three at most is a sub-question that the agent answered.
        (
            [PLAN, WHOLE],
            {"direct": ["5 + 5", "6 + 6", "2 + 2"]},
            [
                ("2 + 3 + 4", "1. 2 + 3\n2. {1} + 4"),
                ("2 + 2", "Indivisible: one simple question"),
                ("5 + 5", "Indivisible: one simple question"),
            ],
        ),
        # A sub-question that is held out leaves the whole demonstration out.
        (
            [PLAN, STEPS, PLAN],
            {"withheld": lambda text: text == "2 + 6"},
            [("2 + 3 + 4", "1. 2 + 3\n2. {1} + 4")],
        ),
    ],
)
def test_rows_are_the_overseers_request_and_its_step(
    demos: list[Any], more: dict[str, Any], rows: list[tuple[str, str]]
) -> None:
    assert written(*demos, **more) == rows


@pytest.mark.parametrize("demos", [[], [WHOLE]])
def test_demonstrations_that_divide_nothing_teach_no_overseer(demos: list[Any]) -> None:
    with pytest.raises(UsageError, match="no demonstration divides its question"):
        overseer_rows(demos)


def copies(request: ChatRequest) -> str:
    """A copy that adds two numbers, and gets longer sums wrong."""
    terms = request.messages[-1][1].removesuffix("=").split(" + ")
    digits = all(term.strip().isdigit() for term in terms)
    if not digits or len(terms) > 2:
        return "7"
    return str(sum(map(int, terms)))


def answering(divide: str) -> ScriptedClient:
    """Copies, beside a learned overseer that always replies the same."""
    return ScriptedClient(lambda r: divide if r.model.endswith(":overseer") else copies(r))


async def test_it_is_asked_in_the_words_of_its_training() -> None:
    client = answering("1. 2 + 3\n2. {1} + 4")
    limits = reflux.Limits(attempts=1)
    result = await reflux.amplify(
        "2 + 3 + 4", learned_overseer(NAME), client=client, limits=limits, weighing=None
    )
    asked = next(r for r in client.requests if r.model == NAME)
    (row,) = overseer_rows([PLAN]).rows
    assert [{"role": t[0], "content": t[1]} for t in asked.messages] == list(row.prompt)
    assert (asked.schema, result.answer) == ("", "9")
    assert {r.model for r in client.requests} == {NAME, "base"}


@pytest.mark.parametrize(
    ("reply", "calls"),
    [
        ("", 3),
        ("Indivisible: it is simple", 1),
        ("1. What is the answer?", 3),
        ("1. 2 + 3 + 4", 3),
        ("1. {7} + 4", 3),
        ("\n".join(f"{n}. {n} + {n}" for n in range(1, 51)), 3),
        ("\n".join(f"{n}. 2 + 3" for n in range(1, 9)), 3),
        ("Pregunta: ¿cuánto es?", 3),
    ],
)
async def test_a_bad_one_never_makes_an_answer_worse_than_the_direct_one(
    reply: str, calls: int
) -> None:
    client = answering(reply)
    result = await reflux.amplify("2 + 3 + 4", learned_overseer(NAME), client=client)
    assert (result.answer, result.outcome["status"]) == ("7", "unchecked")
    by_overseer = [r for r in client.requests if r.model == NAME]
    assert 1 <= len(by_overseer) <= 2 * calls  # In both decompositions.
    assert len(client.requests) < 40
    assert result.tree.note


class Sums(Task):
    """Sums of three numbers, which the script divides; no primitives."""

    name = "three_sums"

    def overseers(self) -> Sequence[reflux.Overseer]:
        return (reflux.ScriptedOverseer("sums", divide),)

    def questions(self) -> Sequence[str]:
        return [f"{a} + {b} + 9" for a in range(2, 9) for b in range(2, 9)]

    def score(self, question: str, answer: str) -> bool:
        return answer == str(sum(map(int, question.split(" + "))))


class Unscored(Sums):
    def has_truth(self, question: str) -> bool:
        return False


def divide(question: str, transcript: Any, may_ask: bool) -> reflux.Step:
    terms = question.split(" + ")
    if not may_ask or len(terms) < 3:
        return reflux.PASS
    if not transcript:
        first = reflux.SubQuestion(f"{terms[0]} + {terms[1]}")
        return reflux.Ask((first, reflux.SubQuestion(f"{{0}} + {terms[2]}", needs=(0,))))
    return reflux.Answer(transcript[-1].answer)


def by_plan(request: ChatRequest) -> str:
    """A learned overseer that has learned the script."""
    if not request.model.endswith(":overseer"):
        return copies(request)
    one, two, three = request.messages[-1][1].split(" + ")
    return f"1. {one} + {two}\n2. {{1}} + {three}"


def spoilt(request: ChatRequest) -> str:
    """The same, but what it learned from its own trees has spoilt it."""
    if request.model == "student-r1:overseer":
        return "Indivisible: one simple question"
    return by_plan(request)


CONFIG = RoundsConfig.model_validate(
    {
        "rounds": [{"questions": 5, "held_out": 6}] * 2,
        "overseer": {"learn": 6},
        "anchor": 2,
        "canaries": CanaryConfig(prompts=0, probes=0),
        "gates": GateConfig(parity=0.0, retention=0.0),
        "sft": {"max_steps": 2, "per_device_train_batch_size": 2},
    }
)


async def climb(folder: Path, client: ScriptedClient, task: Task, **changes: Any) -> dict[str, Any]:
    """The report of a run."""
    config = CONFIG.model_copy(update=changes)
    async with OpenRun(RunFolder(folder), client=client) as run:
        await run_rounds(run, config, task, silent)
    return json.loads((folder / "report.json").read_text())


@pytest.fixture
def small(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_base(tiny_base, monkeypatch.setattr)
    compare_little(monkeypatch.setattr)


@pytest.mark.engine
async def test_rounds_learn_an_overseer_and_ask_the_original_no_more(
    small: None, tmp_path: Path
) -> None:
    client = ScriptedClient(by_plan)
    report = await climb(tmp_path, client, Sums())
    learned = [each for row in report["rounds"] for each in row["overseers"]]
    assert [each["id"] for each in learned] == [f"student-r{n}:overseer" for n in range(3)]
    assert [each["promoted"] for each in learned] == [True, True, True]
    assert all("unchecked" not in each["left_out"] for each in learned)
    assert [each["demonstrations"] for each in learned] == [6, 11, 16]
    assert [row["amplified"]["accuracy"] for row in report["rounds"]] == [1.0, 1.0]
    calls = {each.pop("round"): each for each in report["overseer_calls"]}
    # Of each question two steps, and two parts that it leaves to the agent.
    assert calls[0] == {"original": 24, "learned": 0}
    assert calls[1]["original"] == calls[2]["original"] == 0
    assert calls[1]["learned"] > 0
    registry = RunFolder(tmp_path).registry
    assert registry.current("overseer").id == "student-r2:overseer"
    assert registry.rollback("overseer").id == "student-r1:overseer"
    assert [each.parent for each in registry.list("overseer")] == [
        None, "student-r0:overseer", "student-r1:overseer",
    ]  # fmt: skip
    trained = registry.get("student-r1:overseer")
    assert (trained.role, trained.style.plan, trained.path.name) == (
        "overseer", True, "student-r1.overseer",
    )  # fmt: skip


@pytest.mark.engine
@pytest.mark.parametrize("task", [Sums(), Unscored()])
async def test_an_overseer_that_became_worse_is_not_promoted(
    small: None, tmp_path: Path, task: Task
) -> None:
    rounds = (RoundSpec(questions=5, held_out=6),)
    report = await climb(tmp_path, ScriptedClient(spoilt), task, rounds=rounds)
    _, second = report["rounds"][0]["overseers"]
    (gate,) = [gate for gate in second["gates"] if gate["name"] == "overseer"]
    assert (gate["value"] <= -0.5, gate["passed"], second["promoted"]) == (True, False, False)
    assert RunFolder(tmp_path).registry.current("overseer").id == "student-r0:overseer"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"overseer": {"learn": 0}}, "greater than or equal to 1"),
        ({"overseer": {"fallback": "original"}}, "add `learn`"),
        ({"overseer": {"name": NAME, "learn": 5}}, "has learned already"),
    ],
)
def test_configs_that_cannot_learn_an_overseer(body: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        config_from({"rounds": 1, **body}, "run.yaml")


def test_no_question_of_these_sums_is_in_both_splits() -> None:
    held_out = [question for question in Sums().questions() if is_held_out(Sums(), question)]
    assert 6 <= len(held_out) <= 20


def registered(tmp_path: Path) -> RunFolder:
    """A run folder with the promoted agent `a` and the promoted overseer `a:overseer`."""
    return make_run(tmp_path, ["a", "a:overseer"])


async def found(folder: RunFolder, name: str) -> Any:
    """The overseer of a name in the context of a question that is asked with it."""
    async with OpenRun(folder) as run:
        (overseer,) = context_of(run, AskOptions(name, "a")).overseers
        return overseer


async def test_its_name_finds_it_beside_the_agent(tmp_path: Path) -> None:
    folder = registered(tmp_path)
    assert (folder.current_model(), model_named(folder, "student")) == ("a", "a")
    for name in ("a:overseer", "student:overseer"):
        overseer = await found(folder, name)
        assert (overseer.name, overseer.brief, overseer.form) == ("a:overseer", True, "lines")
    assert [each.id for each in folder.registry.list("agent")] == ["a"]
    assert folder.registry.ids() == {"a", "a:overseer"}


def delete(folder: RunFolder) -> None:
    shutil.rmtree(folder.registry.get("a:overseer").path)


def move_base(folder: RunFolder) -> None:
    card = folder.registry.get("a:overseer").path / "student.json"
    body = json.loads(card.read_text())
    body["base"]["gguf_sha256"] = "ab" * 32
    card.write_text(json.dumps(body))


def roll_back(folder: RunFolder) -> None:
    folder.registry.rollback("overseer")


@pytest.mark.parametrize(
    ("change", "name", "message"),
    [
        (delete, "a:overseer", "there is no student 'a:overseer'.*known: a"),
        (move_base, "a:overseer", "was trained on .*abababababab.*needs its own base"),
        (roll_back, "student:overseer", "no learned overseer is promoted.*there are: a:overseer"),
        (roll_back, "a", "no overseer is called 'a'.*STUDENT:overseer"),
    ],
)
async def test_a_learned_overseer_that_cannot_be_asked_is_told_at_once(
    tmp_path: Path, change: Any, name: str, message: str
) -> None:
    folder = registered(tmp_path)
    change(folder)
    with pytest.raises(UsageError, match=message):
        await found(folder, name)


def test_it_answers_no_question_as_the_agent(tmp_path: Path) -> None:
    folder = registered(tmp_path)
    for refuse in (model_named, check_student):
        with pytest.raises(UsageError, match=r"a:overseer is an overseer.*name it with --overseer"):
            refuse(folder, "a:overseer")


@pytest.mark.parametrize("fallback", [False, True])
async def test_what_it_cannot_divide_goes_to_the_agent_or_to_the_original(
    fallback: bool, tmp_path: Path
) -> None:
    overseer: Any = learned_overseer(NAME)
    if fallback:
        overseer = Fallback(overseer, Sums().overseers()[0])
    client = answering("1. 2 + 3 + 9")
    result = await reflux.amplify("2 + 3 + 9", overseer, client=client, weighing=None)
    assert result.answer == ("14" if fallback else "7")
    assert ("asked of script:sums: sub-questions rejected" in result.tree.note) is fallback


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (None, "there are no demonstrations at .*no such file"),
        ('{"question": "2 + 2", "ask": []}', "no demonstration divides its question"),
        ('{"prompt": "2 + 2", "completion": "4"}', "line 1: not a demonstration"),
        ('{"question": "HELD OUT", "ask": ["2 + 3", "{0} + 9"]}', "is a held-out question"),
    ],
)
def test_demonstrations_are_checked_before_a_run_begins(
    lines: str | None, message: str, tmp_path: Path
) -> None:
    path, task = tmp_path / "demos.jsonl", Sums()
    if lines is not None:
        (held_out,) = task.sample(1, 1, "held_out", 0)
        path.write_text(lines.replace("HELD OUT", held_out))
    config = CONFIG.model_copy(update={"overseer": OverseerConfig(learn=str(path))})
    with pytest.raises(UsageError, match=message):
        check_questions(config, task)


def test_questions_that_the_original_divides_are_counted() -> None:
    config = CONFIG.model_copy(update={"overseer": OverseerConfig(learn=40)})
    with pytest.raises(UsageError, match=r"2 rounds are to ask 10 and overseer\.learn 40"):
        check_questions(config, Sums())
