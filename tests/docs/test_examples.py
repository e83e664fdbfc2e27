"""The examples run, on a scripted model where the words matter and on the real one where not."""

import json
import re
from pathlib import Path
from types import ModuleType

from reflux.agents.clients.llama_cpp import LlamaCppClient, ModelFiles, default_gguf
from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.types import ChatRequest
from tests.support.documented import module_at

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> ModuleType:
    return module_at(EXAMPLES / f"{name}.py")


def clinic(request: ChatRequest) -> str:
    """Specialists that read what they are given."""
    persona = request.messages[0][1]
    if "nurse" in persona:
        return "Fever every evening, aching knees, green fingernails"
    return "Salt spots" if "doubt" in persona else "Marsh fever"


async def test_the_specialists_agree_on_one_report_with_its_sources() -> None:
    medical = example("medical")

    def reply(request: ChatRequest) -> str:
        return "Marsh fever" if "Consensus:" in request.messages[-1][1] else clinic(request)

    client = ScriptedClient(reply)
    found = await medical.diagnosis(medical.CASE, client)
    assert found.outcome["status"] == "unchecked"
    report = dict(line.split(": ", 1) for line in found.answer.splitlines())
    assert report["Symptoms"] == "fever every evening, aching knees, green fingernails"
    assert report["Conditions to consider"].startswith("marsh fever")
    assert report["The specialists"] == "Marsh fever"
    assert "The lantern test confirms marsh fever" in report["Tests"]
    considered = report["Conditions to consider"].split(", ")
    tested = re.findall(r"test confirms ([^.:]+)[.:]", report["Tests"])
    assert set(tested) and {each.replace("'", "") for each in tested} <= set(considered)
    for source in report["Sources"].split(", "):
        name, first, last = re.fullmatch(r"([a-z-]+\.md):(\d+)-(\d+)", source).groups()
        assert (
            0
            < int(first)
            <= int(last)
            <= len((EXAMPLES / "handbook" / name).read_text().split("\n"))
        )
    asked = {node.path: node.answered_by for node in found.tree.walk()}
    assert sum(by == "tool:documents" for by in asked.values()) >= 4


async def test_a_reviewer_sees_the_report_first_and_the_comment_is_kept(tmp_path: Path) -> None:
    medical, client = example("medical"), ScriptedClient(clinic)
    async with medical.reviewed(tmp_path, client) as interruptible_run:
        store = interruptible_run.context.recorded_client.store
        await store.add_question({"id": "case", "text": medical.CASE})
        (waiting,) = (await interruptible_run.ask(medical.CASE, "case")).pending
        report = waiting.form["proposal"]["text"]
        assert report.startswith("Case: Wim")
    asked = len(client.requests)
    async with medical.reviewed(tmp_path, client) as interruptible_run:
        edited = {"kind": "answer", "text": f"{report}\nSee him again on Monday."}
        done = await interruptible_run.reply(
            "case", {waiting.id: edited | {"comment": "no date was given"}}
        )
        rows = interruptible_run.context.recorded_client.store.select(
            "SELECT ok, author, detail FROM judgements WHERE kind='review'"
        )
        ((ok, author, detail),) = [tuple(row) for row in rows]
    assert done.outcome["answer"].endswith("See him again on Monday.")
    assert (ok, author) == (0, "human")
    assert json.loads(detail)["comment"] == "no date was given"
    assert json.loads(detail)["proposal"]["text"] == report
    assert len(client.requests) == asked


async def test_the_real_model_comes_to_a_report_as_well() -> None:
    medical = example("medical")
    client = LlamaCppClient(lambda _: ModelFiles(default_gguf()))
    try:
        found = await medical.diagnosis(medical.CASE, client)
    finally:
        await client.close()
    assert found.outcome["status"] == "unchecked"
    assert "marsh-fever.md" in found.answer
    assert 4 <= found.outcome["spent"]["calls"] <= 6


async def test_a_model_divides_and_combines() -> None:
    def reply(request: ChatRequest) -> str:
        asked = request.messages[-1][1]
        if request.schema and "Rome was founded" not in asked:
            return json.dumps({"step": {"ask": [
                {"question": "When was Rome founded?", "needs": []},
                {"question": "When was Kyoto founded?", "needs": []},
            ]}})  # fmt: skip
        if asked.startswith("When was Rome"):
            return "Rome was founded in 753 BC."
        if asked.startswith("When was Kyoto"):
            return "Kyoto was founded in 794."
        return json.dumps({"step": {"answer": "Rome"}})

    found = await example("model_overseer").ask(
        "Which is older, Rome or Kyoto?", ScriptedClient(reply), "any"
    )
    assert found.answer == "Rome"
    assert [node.question for node in found.tree.walk()][1:] == [
        "When was Rome founded?", "When was Kyoto founded?"
    ]  # fmt: skip


async def test_a_person_approves_on_another_day(tmp_path: Path) -> None:
    client = ScriptedClient(lambda _: json.dumps({"step": {"answer": "Go to Belem"}}))
    person = example("person")
    waiting = await person.go_on(tmp_path, client, question="A day in Lisbon?")
    (form,) = [each.form for each in waiting.pending]
    assert form["proposal"]["text"] == "Go to Belem"
    done = await person.go_on(tmp_path, client, reply="approve")
    assert done.outcome["answer"] == "Go to Belem"
    assert len(client.requests) == 1


async def test_a_person_takes_another_step_than_the_proposed_one(tmp_path: Path) -> None:
    client = ScriptedClient(lambda _: json.dumps({"step": {"answer": "Go to Belem"}}))
    person = example("person")
    await person.go_on(tmp_path, client, question="A day in Lisbon?")
    done = await person.go_on(tmp_path, client, reply="answer: Stay in bed")
    assert done.outcome["answer"] == "Stay in bed"
