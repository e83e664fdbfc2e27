"""The examples run: on a scripted model if the words matter, otherwise on the real one."""

import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from reflux.agents.clients.llama_cpp import LlamaCppClient, ModelFiles, default_gguf
from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.types import ChatRequest
from tests.support.documented import module_at

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


@pytest.mark.engine
async def test_the_real_model_reaches_a_report_too() -> None:
    medical = example("medical")
    client = LlamaCppClient(lambda _: ModelFiles(default_gguf()))
    try:
        result = await medical.diagnosis(medical.CASE, client)
    finally:
        await client.close()
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
        return json.dumps({"step": {"answer": "Rome"}})

    result = await example("model_overseer").ask(
        "Which is older, Rome or Kyoto?", ScriptedClient(reply), "any"
    )
    assert result.answer == "Rome"
    assert [node.question for node in result.tree.walk()][1:] == [
        "When was Rome founded?", "When was Kyoto founded?"
    ]  # fmt: skip


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
