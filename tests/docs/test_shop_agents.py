"""The agents of `examples/shop`: recorded, and answered by another model, or by a student."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from reflux.agents.clients.endpoints import Endpoint
from reflux.agents.clients.openai import OpenAIClient
from reflux.finetune.data.conversations import tools_of, turn_of
from reflux.finetune.data.encoding import for_template
from reflux.graphs.traces.store import TraceStore
from reflux.graphs.traces.trajectories import Trajectory, load
from tests.support.commanding import begin
from tests.support.endpoint_server import Served
from tests.support.endpoint_server import serving as endpoint
from tests.support.families import FAMILIES, make_family
from tests.support.family_gguf import write_gguf
from tests.support.serving import serving
from tests.support.shop_teacher import respond, solves

pytestmark = pytest.mark.process
SHOP = Path(__file__).parents[2] / "examples" / "shop"
AGENTS = {"openai": "openai", "langgraph": "langchain_openai", "pydantic": "pydantic_ai"}
"""What each needs."""


@pytest.fixture
def teacher() -> Iterator[Served]:
    with endpoint(respond, ("gpt-4.1",)) as served:
        yield served


def command(name: str, tasks: Path) -> list[str]:
    if find_spec(AGENTS[name]) is None:
        pytest.skip(f"{AGENTS[name]} is not installed")
    return [sys.executable, str(SHOP / f"{name}_agent.py"), str(tasks)]


def few(file: str, folder: Path) -> tuple[Path, list[str]]:
    """One task of each kind, and the true answers."""
    lines = (SHOP / file).read_text().splitlines()[:3]
    path = folder / file
    path.write_text("\n".join(lines))
    return path, [json.loads(line)["answer"] for line in lines]


def solved(stdout: str, wanted: list[str]) -> int:
    answers = [json.loads(line)["answer"] for line in stdout.splitlines()]
    assert len(answers) == len(wanted)
    return sum(map(solves, answers, wanted))


def recorded(run: Path) -> list[Trajectory]:
    with closing(TraceStore(run / "traces.db")) as store:
        ids = [row["id"] for row in store.select("SELECT id FROM questions ORDER BY rowid")]
        return [found for id in ids if (found := load(store, id)) is not None]


@pytest.mark.parametrize("name", AGENTS)
def test_an_agent_is_recorded_and_another_model_takes_the_place_of_its_own(
    name: str, teacher: Served, tmp_path: Path
) -> None:
    tasks, wanted = few("tasks.jsonl", tmp_path)
    words = ["record", "--run", str(tmp_path / "app"), "--upstream", teacher.url, "--"]
    ended = begin([*words, *command(name, tasks)], {"OPENAI_API_KEY": "none"}).wait()
    assert ended.code == 0, ended.stderr
    assert solved(ended.stdout, wanted) == 3
    trajectories = recorded(tmp_path / "app")
    assert [len(each.calls) for each in trajectories] == [2, 4, 6]
    assert all(each.outcome and each.outcome.status == "unchecked" for each in trajectories)

    held_out, wanted = few("held_out.jsonl", tmp_path)
    client = OpenAIClient(teacher.url, "none", retries=0)
    settings = {"endpoints": {"other": Endpoint(client, "other")}, "alias": {"gpt-4.1": "other"}}
    with serving(tmp_path / "served", **settings) as url:
        env = {**os.environ, "OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": "none"}
        words = command(name, held_out)
        done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=240)
    assert solved(done.stdout, wanted) == 3, done.stderr
    served = recorded(tmp_path / "served")
    assert [len(each.calls) for each in served] == [2, 4, 6]
    assert {call.model for each in served for call in each.calls} == {"other"}


@pytest.mark.engine
def test_an_agent_is_answered_by_the_student_that_was_distilled_from_it(
    teacher: Served, tmp_path: Path
) -> None:
    """The base is a tiny random one: what its student says is not told, but whence it comes."""
    app, held_out = tmp_path / "app", tmp_path / "held_out"
    for run, file in ((app, "tasks.jsonl"), (held_out, "held_out.jsonl")):
        tasks, _ = few(file, tmp_path)
        words = ["record", "--run", str(run), "--upstream", teacher.url, "--"]
        ended = begin([*words, *command("openai", tasks)], {"OPENAI_API_KEY": "none"}).wait()
        assert ended.code == 0, ended.stderr
    base = make_family("llama", tmp_path / "base", max_position_embeddings=4096)
    gguf = write_gguf(base, FAMILIES["llama"], tmp_path / "base.gguf")
    config = {"base": {"model": str(gguf), "tools": "text"}, "sft": {"max_steps": 1}}
    (tmp_path / "distill.yaml").write_text(json.dumps(config))
    words = ["distill", "--run", str(app), "--rows", "trajectories", "--student", "student-shop"]
    ended = begin([*words, "--config", str(tmp_path / "distill.yaml")]).wait()
    assert ended.code == 0, ended.stderr
    assert "3 rows" in ended.stdout

    with serving(app, alias={"gpt-4.1": "student-shop"}) as url:
        env = {**os.environ, "OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": "none"}
        done = subprocess.run(command("openai", tasks), env=env, capture_output=True, text=True)
        assert len(done.stdout.splitlines()) == 3, done.stderr
    calls = [call for each in recorded(app) if each.source == "serve" for call in each.calls]
    assert {call.model for call in calls} == {"student-shop"}
    # It was asked as it was trained, tools and all: a token of this base is a byte.
    tokenizer = AutoTokenizer.from_pretrained(app / "students" / "student-shop")
    for call in calls:
        turns = [for_template(turn_of(message)) for message in call.messages]
        text = tokenizer.apply_chat_template(
            turns, tools=tools_of(list(call.tools)), add_generation_prompt=True, tokenize=False
        )
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert len(call.tools) == 3 and call.reply.prompt_tokens == len(ids)

    words = ["eval", "--run", str(app), "--replay", str(held_out), "--json"]
    ended = begin([*words, "--systems", "student-shop,recorded", "--limit", "4"]).wait()
    assert ended.code == 0, ended.stderr
    systems = json.loads(ended.stdout)["systems"]
    assert systems["recorded"]["shares"]["exact"]["share"] == 1
    assert systems["student-shop"]["calls"] == 4
    assert systems["student-shop"]["failed"] == 0
    assert systems["student-shop"]["shares"]["exact"]["n"] == 4
