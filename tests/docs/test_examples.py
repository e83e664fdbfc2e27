"""The examples run: on a scripted model if the words matter, otherwise on the real one."""

import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from reflux.agents.clients.llama_cpp import EngineConfig
from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.types import ChatRequest, Completion, ToolCall
from reflux.finetune.configs.run import RoundSpec, read_config
from reflux.finetune.run_folder import RunFolder
from reflux.tasks import run_task, task_named, task_of
from tests.support.documented import module_at
from tests.support.small_runs import run_small

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> ModuleType:
    return module_at(EXAMPLES / f"{name}.py")


def clinic(request: ChatRequest) -> str:
    """Specialists that read their passages."""
    persona = request.messages[0][1]
    if "nurse" in persona:
        return "Fever every evening, aching knees, green fingernails"
    return "Salt spots" if "doubt" in persona else "Marsh fever"


async def test_the_specialists_agree_on_one_report_with_its_sources() -> None:
    medical = example("medical")

    def reply(request: ChatRequest) -> str:
        return "Marsh fever" if "Consensus:" in request.messages[-1][1] else clinic(request)

    client = ScriptedClient(reply)
    result = await medical.diagnosis(medical.CASE, client)
    assert result.outcome["status"] == "unchecked"
    report = dict(line.split(": ", 1) for line in result.answer.splitlines())
    assert report["Symptoms"] == "fever every evening, aching knees, green fingernails"
    assert report["Conditions to consider"].startswith("marsh fever")
    assert report["The specialists"] == "Marsh fever"
    assert "The lantern test confirms marsh fever" in report["Tests"]
    conditions = report["Conditions to consider"].split(", ")
    tested = re.findall(r"test confirms ([^.:]+)[.:]", report["Tests"])
    assert set(tested) and {name.replace("'", "") for name in tested} <= set(conditions)
    for source in report["Sources"].split(", "):
        name, first, last = re.fullmatch(r"([a-z-]+\.md):(\d+)-(\d+)", source).groups()
        assert (
            0
            < int(first)
            <= int(last)
            <= len((EXAMPLES / "handbook" / name).read_text().split("\n"))
        )
    answered_by = [node.answered_by for node in result.tree.walk()]
    assert answered_by.count("tool:documents") >= 4


async def test_a_reviewer_sees_the_report_first_and_the_comment_is_kept(tmp_path: Path) -> None:
    medical, client = example("medical"), ScriptedClient(clinic)
    async with medical.reviewed(tmp_path, client) as interruptible_run:
        store = interruptible_run.context.recorded_client.store
        await store.add_question({"id": "case", "text": medical.CASE})
        (waiting,) = (await interruptible_run.ask(medical.CASE, "case")).pending
        report = waiting.form["proposal"]["text"]
        assert report.startswith("Case: Wim")
    request_count = len(client.requests)
    async with medical.reviewed(tmp_path, client) as interruptible_run:
        edited = {"kind": "answer", "text": f"{report}\nSee him again on Monday."}
        progress = await interruptible_run.reply(
            "case", {waiting.id: edited | {"comment": "no date was given"}}
        )
        rows = interruptible_run.context.recorded_client.store.select(
            "SELECT ok, author, detail FROM judgements WHERE kind='review'"
        )
        ((ok, author, detail),) = [tuple(row) for row in rows]
    assert progress.outcome["answer"].endswith("See him again on Monday.")
    assert (ok, author) == (0, "human")
    assert json.loads(detail)["comment"] == "no date was given"
    assert json.loads(detail)["proposal"]["text"] == report
    assert len(client.requests) == request_count


async def test_a_model_that_names_nothing_reaches_a_report_too() -> None:
    medical, client = example("medical"), ScriptedClient(lambda _: "I am not sure, ask a doctor.")
    result = await medical.diagnosis(medical.CASE, client)
    texts = ["".join(turn[1] for turn in request.messages) for request in client.requests]
    assert max(map(len, texts)) < EngineConfig().context  # The default model can read them all.
    assert result.outcome["status"] == "unchecked"
    assert "marsh-fever.md" in result.answer
    assert 4 <= result.outcome["spent"]["calls"] <= 6


async def test_a_model_divides_and_combines() -> None:
    def reply(request: ChatRequest) -> str:
        prompt = request.messages[-1][1]
        if request.schema and "Rome was founded" not in prompt:
            return json.dumps({"step": {"ask": [
                {"question": "When was Rome founded?", "needs": []},
                {"question": "When was Kyoto founded?", "needs": []},
            ]}})  # fmt: skip
        if prompt.startswith("When was Rome"):
            return "Rome was founded in 753 BC."
        if prompt.startswith("When was Kyoto"):
            return "Kyoto was founded in 794."
        return json.dumps({"step": {"answer": "Rome"}}) if request.schema else "Kyoto"

    result = await example("model_overseer").ask(
        "Which is older, Rome or Kyoto?", ScriptedClient(reply), "any"
    )
    assert result.answer == "Rome"
    parts = ["When was Rome founded?", "When was Kyoto founded?"]
    assert [node.question for node in result.tree.walk()][1:] == 2 * parts
    assert 'both decompositions say "Rome"' in result.tree.note


async def test_a_human_approves_on_another_day(tmp_path: Path) -> None:
    client = ScriptedClient(lambda _: json.dumps({"step": {"answer": "Go to Belem"}}))
    human = example("human")
    waiting = await human.advance(tmp_path, client, question="A day in Lisbon?")
    (pending,) = waiting.pending
    assert pending.form["proposal"]["text"] == "Go to Belem"
    progress = await human.advance(tmp_path, client, reply="approve")
    assert progress.outcome["answer"] == "Go to Belem"
    assert len(client.requests) == 1


async def test_a_human_takes_another_step_than_the_proposed_one(tmp_path: Path) -> None:
    client = ScriptedClient(lambda _: json.dumps({"step": {"answer": "Go to Belem"}}))
    human = example("human")
    await human.advance(tmp_path, client, question="A day in Lisbon?")
    progress = await human.advance(tmp_path, client, reply="answer: Stay in bed")
    assert progress.outcome["answer"] == "Stay in bed"


PRODUCTS = ("kettle", "toaster", "mixer", "blender")


def clerk(request: ChatRequest) -> str:
    """Calls a ticket indivisible, and answers it in JSON, in a fence, as models do; the base alone
    answers in words."""
    if request.schema:
        return json.dumps({"step": {"not_decomposable": "one ticket"}})
    ticket = request.messages[-1][1].rpartition("Ticket: ")[2]
    product = next((each for each in PRODUCTS if each in ticket.lower()), "none")
    body = {"product": product, "topic": "defect", "urgent": "fire" in ticket}
    return f"```json\n{json.dumps(body)}\n```"


FACTS = re.compile(r"born in (\d+)|trade is (\w+)|is (\d+) km long")
HOPS = {
    "In which year": ("Who is the mayor of {}?", r"mayor of \w+ is (\w+ \w+)", 0),
    "What is the trade": ("Who is the mayor of {}?", r"mayor of \w+ is (\w+ \w+)", 1),
    "How many km": ("On which river does {} lie?", r"lies on (the river \w+)", 2),
}


ARCHIVE = {
    "Alder": ("1961", "clockmaking", "120"),
    "Birkheim": ("1974", "baking", "85"),
    "Corvey": ("1958", "glassblowing", "120"),
    "Dornau": ("1980", "carpentry", "40"),
    "Elmstad": ("1969", "printing", "85"),
}
"""What the student answers: born, trade, km."""


def archivist(request: ChatRequest) -> str | Completion:
    """Asks for one fact after the other; copies look each up with the tool. The student, which has
    learned the archive, answers at once."""
    prompt = request.messages[-1][1]
    town = re.search(r"(Alder|Birkheim|Corvey|Dornau|Elmstad)", prompt)
    hop, person, group = next((HOPS[key] for key in HOPS if key in prompt), ("", "", 0))
    if request.schema and town:
        if (first := hop.format(town[1])) not in prompt:
            return json.dumps({"step": {"ask": [{"question": first, "needs": []}]}})
        name = re.search(person, prompt)[1]
        if (second := f"What is known about {name}?") not in prompt:
            return json.dumps({"step": {"ask": [{"question": second, "needs": []}]}})
        facts = FACTS.findall(prompt.partition(second)[2])
        return json.dumps({"step": {"answer": next(f[group] for f in facts if f[group])}})
    if hop and request.model.startswith("student"):
        return ARCHIVE[town[1]][group]
    results = [turn[1] for turn in request.messages if turn[0] == "tool"]
    if request.tools and not results:
        words = json.dumps(
            {next(iter(json.loads(request.tools[0].parameters)["properties"])): prompt}
        )
        return Completion("", 1, 1, tool_calls=(ToolCall("1", request.tools[0].name, words),))
    about = re.search(r"(?:about|mayor of|river does) (.+?)(?: lie)?\?", prompt_of(request))
    texts = "\n".join(results).split("\n\n") if about else []
    return next((text for text in texts if f"{about[1]} " in text), "I do not know.")


def prompt_of(request: ChatRequest) -> str:
    """The question of a request, before the tool's results."""
    return next(turn[1] for turn in request.messages if turn[0] == "user")


def grocer(request: ChatRequest) -> str:
    """Knows products, and not how to add them up; the student does."""
    question = request.messages[-1][1]
    if factors := re.search(r"What is (\d+) times (\d+)", question):
        return f"It is {int(factors[1]) * int(factors[2])}."
    pairs = re.findall(r"(\d+) \w+ at (\d+) cents", question)
    knows = request.model.startswith("student")
    return str(sum(int(a) * int(b) for a, b in pairs)) if knows else "9 cents"


@pytest.mark.engine
@pytest.mark.parametrize(
    ("name", "agent", "scores"),
    [
        ("tickets", clerk, (None, None, None)),
        ("two_hop", archivist, (0.0, 1.0, 1.0)),
        ("baskets", grocer, (0.0, 1.0, 1.0)),
    ],
)
async def test_a_config_with_questions_of_ones_own_runs(
    name: str, agent: Any, scores: tuple[float | None, ...], tiny_base: Path, tmp_path: Path
) -> None:
    config = read_config(EXAMPLES / name / f"{name}.yaml")
    rounds = config.rounds if name != "baskets" else (RoundSpec(questions=8, held_out=4),)
    client = ScriptedClient(agent)
    reports = await run_small(config, tmp_path, tiny_base, client, rounds=rounds)
    assert [report["round"] for report in reports] == [1, 2][: len(reports)]
    systems = [reports[-1][system] for system in ("direct", "amplified", "student")]
    assert tuple(system["accuracy"] for system in systems) == scores
    assert all(report["promoted"] for report in reports)
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    asked = RunFolder(tmp_path)
    if name == "tickets":
        assert reports[-1]["agreement"]["share"] == 1.0
        assert systems[2]["passed"]["share"] == 1.0
        gates = {gate["name"] for gate in reports[-1]["gates"]}
        assert gates - {"parity"} == {"checks_passed"}
    assert task_named(task_of(asked, None), asked) is run_task(asked.config())
