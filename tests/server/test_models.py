"""What a server serves: the embedded base, students that are promoted while it runs, a task's H."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import openai
import pytest
from openai import OpenAI

from reflux.agents.clients.llama_cpp import DEFAULT_MODEL_ID, DEFAULT_SHA256
from reflux.finetune.configs.run import config_from
from reflux.finetune.run_folder import RunFolder
from reflux.graphs.traces.store import TraceStore
from tests.support.serving import Scripted, X, serving

FRANCE: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]


def make_student(run: Path, id: str, promoted: bool) -> None:
    """A student whose adapter changes nothing."""
    registry = RunFolder(run).registry
    with registry.staging(id) as (folder, card):
        (folder / "adapter_config.json").write_text("{}")
        (folder / "adapter_model.safetensors").write_text(id)
        writer = gguf.GGUFWriter(folder / "adapter.gguf", "llama")
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", 1.0)
        for side, shape in (("a", (4, 576)), ("b", (576, 4))):
            zeros = np.zeros(shape, dtype=np.float32)
            writer.add_tensor(f"blk.0.attn_q.weight.lora_{side}", zeros)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        base = {"model_id": DEFAULT_MODEL_ID, "gguf_sha256": DEFAULT_SHA256}
        card.update(
            parent=None,
            round=0,
            base=base | {"dequantised_sha256": "0"},
            rows_digest="rows",
            config={},
        )
    if promoted:
        registry.promote(id)


def served(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


@pytest.mark.engine
def test_the_embedded_base_streams_and_a_student_promoted_meanwhile_is_served(
    tmp_path: Path,
) -> None:
    with serving(tmp_path) as url, served(url) as client:
        stream = client.chat.completions.create(
            model="base", messages=FRANCE, max_tokens=24, stream=True
        )
        pieces = [chunk.choices[0].delta.content for chunk in stream if chunk.choices]
        base_said = "".join(filter(None, pieces))
        assert "Paris" in base_said and len(pieces) > 4
        assert "student" not in [model.id for model in client.models.list()]
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="student", messages=FRANCE)

        make_student(tmp_path, "student-r0", promoted=False)
        assert "student-r0" in [model.id for model in client.models.list()]
        said = client.chat.completions.create(
            model="student-r0", messages=FRANCE, max_tokens=24, logprobs=True
        )
        assert said.choices[0].message.content == base_said
        assert said.choices[0].logprobs is not None and said.choices[0].logprobs.content

        make_student(tmp_path, "student-r1", promoted=True)
        client.chat.completions.create(model="student", messages=FRANCE, max_tokens=4)
        client.chat.completions.create(model="amplified:plain", messages=FRANCE, max_tokens=4)
        long = [{"role": "user", "content": "word " * 12_000}]
        with pytest.raises(openai.BadRequestError, match="context"):
            client.chat.completions.create(model="base", messages=long)  # type: ignore[arg-type]
    store = TraceStore(tmp_path / "traces.db")
    made = "kind='model' AND error IS NULL ORDER BY id"
    rows = list(store.select(f"SELECT model, model_digest FROM calls WHERE {made}"))  # noqa: S608
    store.close()
    assert [row["model"] for row in rows] == ["base", "student-r0", "student-r1", "student-r1"]
    assert ["+" in row["model_digest"] for row in rows] == [False, True, True, True]


def test_a_student_whose_files_were_altered_is_not_served(tmp_path: Path) -> None:
    make_student(tmp_path, "student-r0", promoted=False)
    (tmp_path / "students" / "student-r0" / "adapter.gguf").write_text("other")
    with (
        serving(tmp_path) as url,
        served(url) as client,
        pytest.raises(openai.BadRequestError, match="corrupted or foreign"),
    ):
        client.chat.completions.create(model="student-r0", messages=FRANCE)


def test_the_runs_own_task_has_its_h_served_by_the_tasks_name(
    tmp_path: Path, script: Scripted
) -> None:
    RunFolder(tmp_path).save_config({"task": "addition", "rounds": [{"level": 1}]})
    with serving(tmp_path, script) as url, served(url) as client:
        listed = [model.id for model in client.models.list()]
        assert listed[:2] == ["amplified:addition", "amplified"]  # The page asks the first.
        assert len(set(listed)) == len(listed)

        def asked(text: str) -> Any:
            messages: Any = [
                {"role": "user", "content": "hello"},
                {"role": "assistant", "content": "hello"},
                {"role": "user", "content": text},
            ]
            return client.chat.completions.create(model="amplified:addition", messages=messages)

        assert asked("3+4").choices[0].message.content == "7"
        with pytest.raises(openai.BadRequestError, match="sum"):
            asked("What is love?")
        assert X in [model.id for model in client.models.list()]


OWN_TASK = """
import reflux

def lookup(key: str) -> str:
    \"\"\"The value of a key.\"\"\"
    return f"value of {key}"

def divide(question, transcript, may_ask):
    if transcript:
        return reflux.Answer(transcript[0].answer)
    return reflux.Ask((reflux.SubQuestion("red", to="tool:lookup"),))

class Tickets(reflux.Task):
    tool_names = (f"{__file__}:lookup",)
    def questions(self):
        return [f"ticket {i}?" for i in range(40)]
    def overseers(self):
        return [reflux.ScriptedOverseer("divides", divide)]
"""


@pytest.mark.parametrize(
    ("tools", "said"),
    [((), "value of red"), (("documents:nowhere",), "the tools of tickets did not open: ")],
)
def test_a_run_on_one_s_own_task_is_served_with_its_tools(
    tools: tuple[str, ...], said: str, tmp_path: Path, script: Scripted
) -> None:
    (tmp_path / "own.py").write_text(OWN_TASK)
    config = {"task": f"{tmp_path}/own.py:Tickets", "rounds": 1, "tools": tools}
    run = RunFolder(tmp_path / "run")
    run.save_config(config_from(config, "").model_dump(mode="json"))
    question: list[Any] = [{"role": "user", "content": "ticket 99?"}]
    with serving(run.path, script) as url, served(url) as client:
        create = client.chat.completions.create
        if tools:
            with pytest.raises(openai.BadRequestError, match=said):
                create(model="amplified:tickets", messages=question)
            assert create(model=X, messages=question).choices[0].message.content
            return
        assert (
            create(model="amplified:tickets", messages=question).choices[0].message.content == said
        )
