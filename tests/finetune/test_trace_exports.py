"""Exports: what `datasets`, OpenAI, ShareGPT's readers and our own import get of the same rows."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset
from typer.testing import CliRunner

from reflux.agents.errors import UsageError
from reflux.cli.main import app
from reflux.finetune.data.conversations import read_rows
from reflux.finetune.data.export import Exported, Form, export, in_form
from reflux.finetune.data.rows import Row, reply_of
from reflux.graphs.traces.protocols.messages import chat_messages

TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "The weather.",
                 "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}  # fmt: skip
OTHER = {
    "type": "function",
    "function": {"name": "count", "description": "", "parameters": {
        "type": "object", "properties": {"city": {"type": "integer"}}}},
}  # fmt: skip


def call(name: str, arguments: str) -> dict[str, Any]:
    return {"id": f"c-{name}", "type": "function",
            "function": {"name": name, "arguments": arguments}}  # fmt: skip


AGENT = Row(
    prompt=({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Lima?"}),
    completion=(
        {"role": "assistant", "content": "", "tool_calls": [call("weather", '{"city": "Lima"}')]},
        {"role": "tool", "content": "12 C", "tool_call_id": "c-weather"},
        {"role": "assistant", "content": "Cold.", "weight": 0},
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": "", "tool_calls": [call("count", '{"city": 2}')]},
    ),
    question="Lima?", task="", provenance={"trajectory": "t1"}, tools=(TOOL, OTHER),
)  # fmt: skip
PLAIN = Row(
    ({"role": "user", "content": "1+1?"},), reply_of("2"), "1+1?", "", {"trajectory": "t2"},
    rejected="3",
)  # fmt: skip
ROWS = [AGENT, PLAIN]
FORMS: tuple[Form, ...] = ("prompt-completion", "messages", "preference", "openai", "sharegpt")


def loaded(folder: Path) -> list[dict[str, Any]]:
    """The rows as `load_dataset` gives them, without what a row lacks."""
    rows = load_dataset(str(folder), split="train", cache_dir=str(folder.parent / "cache"))
    return [{k: v for k, v in dict(row).items() if v not in (None, [])} for row in rows]  # type: ignore[call-overload]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("form", FORMS)
def test_load_dataset_takes_the_folder_as_it_is(form: Form, kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    done = export(iter(ROWS), folder, form, kind, folder=True)
    expected = [body for row in ROWS if (body := in_form(row, form)) is not None]
    assert done == Exported(len(expected), 2 - len(expected))
    assert loaded(folder) == [{k: v for k, v in each.items() if v != []} for each in expected]
    ids = [
        json.loads(line) for line in (folder / "provenance/train.jsonl").read_text().splitlines()
    ]
    assert ids == [r.provenance for r in ROWS if in_form(r, form) is not None]
    # LLaMA-Factory reads one form as we mean it.
    assert (folder / "dataset_info.json").is_file() == (form == "sharegpt")
    if form == "sharegpt":
        (info,) = json.loads((folder / "dataset_info.json").read_text()).values()
        assert (folder / info["file_name"]).is_file()
        assert set(info["columns"].values()) == set(expected[0])


def test_openai_rows_weigh_what_is_learned_alone() -> None:
    body = in_form(AGENT, "openai")
    assert body is not None
    weights = [message.get("weight") for message in body["messages"]]
    assert weights == [None, None, 1, None, 0, None, 1]
    assert json.loads(body["messages"][2]["tool_calls"][0]["function"]["arguments"]) == {
        "city": "Lima"
    }


def test_sharegpt_turns_alternate_as_llama_factory_wants_them() -> None:
    body = in_form(AGENT, "sharegpt")
    assert body is not None
    roles = [turn["from"] for turn in body["conversations"]]
    assert roles == ["human", "function_call", "observation", "gpt", "human", "function_call"]
    assert body["system"] == "Be brief."
    assert json.loads(body["conversations"][1]["value"]) == {
        "name": "weather", "arguments": {"city": "Lima"},
    }  # fmt: skip
    assert [tool["name"] for tool in json.loads(body["tools"])] == ["weather", "count"]


def test_text_before_a_tool_call_is_of_its_turn() -> None:
    reply = {**AGENT.completion[0], "content": "I look."}
    body = in_form(replace(AGENT, completion=(reply,)), "sharegpt")
    assert body is not None
    (asked, turn) = body["conversations"]
    assert asked["from"] == "human" and turn["from"] == "function_call"
    assert turn["value"].startswith('I look.\n<tool_call>\n{"name": "weather"')
    again = chat_messages([asked, turn])[-1]
    assert again["content"] == "I look."
    assert again["tool_calls"][0]["function"]["name"] == "weather"


def test_trl_rows_are_read_back_unchanged(tmp_path: Path) -> None:
    export(ROWS, tmp_path / "rows.jsonl", "prompt-completion")
    assert list(read_rows(tmp_path / "rows.jsonl")) == [row.train() for row in ROWS]


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--format jsonl or parquet"):
        export(ROWS, tmp_path / "set", "messages", "csv", folder=True)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("form", ["prompt-completion", "openai", "sharegpt", "preference"])
def test_an_export_of_imported_traces_is_imported_again(form: Form, tmp_path: Path) -> None:
    rows = [
        {"messages": [*AGENT.prompt, *AGENT.completion[:2], *reply_of("Cold.")], "tools": [TOOL]},
        {"prompt": "a", "chosen": "b", "rejected": "c"},
    ]  # fmt: skip
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def command(*words: str) -> Any:
        ended = CliRunner().invoke(app, ["traces", *words, "--json"])
        assert ended.exit_code == 0, ended.output
        return json.loads(ended.stdout)

    run, again, out = (str(tmp_path / name) for name in ("run", "again", "out"))
    assert command("import", str(source), "--run", run)["trajectories"] == 2
    done = command("export", out, "--form", form, "--run", run)
    assert done["rows"] == (1 if form == "preference" else 2)
    back = command("import", f"{out}/data/train.jsonl", "--run", again)
    assert back["trajectories"] == done["rows"] and back["left_out"] == []
    first = tmp_path / "run2.jsonl"
    command("export", str(first), "--form", form, "--run", again)
    both = [path.read_text() for path in (Path(out) / "data/train.jsonl", first)]
    assert both[0] == both[1]
