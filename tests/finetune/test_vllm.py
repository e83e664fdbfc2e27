"""vLLM as the engine, against a server that behaves as it does; `make vllm` asks a real one."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reflux.agents.clients.llama_cpp import ModelFiles
from reflux.agents.errors import EndpointError, MissingError, RefluxError, UsageError
from reflux.agents.types import ChatRequest
from reflux.finetune.bases import Base
from reflux.finetune.configs.engine import EngineSpec
from reflux.finetune.configs.run import BaseConfig, RoundsConfig, config_from
from reflux.finetune.engine.vllm import KEPT, VllmEngine
from reflux.finetune.rounds import run_rounds
from reflux.finetune.run_folder import OpenRun, RunFolder
from reflux.graphs.evals.task import Task
from reflux.tasks import run_task
from reflux.tasks.addition import Addition
from tests.support.mock_vllm import MockVllm, mock_vllm
from tests.support.sums import add

ROOT = Path(__file__).parents[2]


@pytest.fixture
def base(tmp_path: Path) -> Base:
    """A base that nobody loads."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).write_text("{}")
    return Base(BaseConfig(model=str(folder)), given=folder)


def student(folder: Path, weights: str = "", rank: int = 8) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"r": rank}))
    (folder / "adapter_model.safetensors").write_text(weights or folder.name)
    return folder


class Models(dict[str, ModelFiles]):
    """Files by model name, as a run folder resolves them."""

    def __init__(self, base: Base, root: Path) -> None:
        super().__init__(base=base.files())
        self.root = root

    def add(self, name: str, **options: Any) -> Path:
        path = student(self.root / "students" / name, **options)
        self[name] = replace(self["base"], peft=path)
        return path


@pytest.fixture
def models(base: Base, tmp_path: Path) -> Models:
    return Models(base, tmp_path / "run")


@pytest.fixture
def server(base: Base) -> Iterator[MockVllm]:
    with mock_vllm(base.folder, name="tiny") as server:
        yield server


def engine_at(server: MockVllm, models: Models, **options: Any) -> VllmEngine:
    spec = EngineSpec("vllm", server.served.url, **options)
    return VllmEngine(models.__getitem__, spec, 16, models.root / "vllm.log")


def question(model: str, text: str = "12+34=") -> ChatRequest:
    return ChatRequest(model, (("system", ""), ("user", text)))


async def test_students_are_asked_under_names_that_hold_their_digest(
    server: MockVllm, models: Models
) -> None:
    models.add("student-r1")
    engine = engine_at(server, models)
    assert (await engine.complete(question("base"))).text == add("12+34=")
    await asyncio.gather(*(engine.complete(question("student-r1", f"{n}2+10=")) for n in (1, 2, 3)))
    (name,) = server.loads
    assert name.startswith("student-r1-") and len(name) == len("student-r1-") + 12
    assert [chat["model"] for chat in server.chats] == ["tiny", name, name, name]
    # A system message that says nothing is sent: rows are rendered with it.
    assert server.chats[0]["messages"][0] == {"role": "system", "content": ""}
    assert server.chats[0]["chat_template_kwargs"] == {"enable_thinking": False}
    assert server.chats[0]["top_k"] == -1
    await engine.close()
    assert server.adapters == {}


async def test_the_same_name_with_other_weights_is_another_adapter(
    server: MockVllm, models: Models
) -> None:
    path = models.add("student-r1")
    engine = engine_at(server, models)
    first = await engine.model_digest("student-r1")
    await engine.load("student-r1")
    await engine.close()
    shutil.rmtree(path)
    models.add("student-r1", weights="others")
    assert await engine.model_digest("student-r1") != first
    await engine.load("student-r1")
    assert len(set(server.loads)) == 2
    assert await engine.model_digest("base") != await engine.model_digest("student-r1")
    await engine.close()


async def test_old_students_are_unloaded_and_come_back_when_asked(
    server: MockVllm, models: Models
) -> None:
    names = [f"student-r{number}" for number in range(KEPT + 2)]
    engine = engine_at(server, models)
    for name in names:
        models.add(name)
        await engine.load(name)
    assert len(server.adapters) == KEPT
    assert (await engine.complete(question(names[0]))).text == add("12+34=")
    assert len(server.loads) == len(names) + 1
    await engine.close()


async def test_an_adapter_that_a_restart_lost_is_loaded_again(
    server: MockVllm, models: Models
) -> None:
    models.add("student-r1")
    engine = engine_at(server, models)
    await engine.load("student-r1")
    server.adapters.clear()
    replies = await asyncio.gather(*(engine.complete(question("student-r1")) for _ in range(4)))
    assert {reply.text for reply in replies} == {add("12+34=")}
    assert len(server.loads) == 2
    await engine.close()


async def test_an_adapter_that_is_there_is_used_as_it_is(server: MockVllm, models: Models) -> None:
    path = models.add("student-r1")
    server.updating = False
    server.adapters["by hand"] = str(path)
    engine = engine_at(server, models)
    assert (await engine.complete(question("student-r1"))).text == add("12+34=")
    assert server.chats[-1]["model"] == "by hand"
    await engine.close()
    assert server.adapters


async def test_another_machine_finds_the_students_elsewhere(
    server: MockVllm, models: Models
) -> None:
    path = models.add("student-r1")
    (models.root / "mount").symlink_to(path.parent)
    server.sees = lambda seen: "/mount/" in seen
    engine = engine_at(server, models, students=f"{models.root}/mount/")
    await engine.load("student-r1")
    assert list(server.adapters.values()) == [f"{models.root}/mount/student-r1"]
    await engine.close()


@pytest.mark.parametrize(
    ("state", "error", "words"),
    [
        ({"lora": False}, MissingError, "start vLLM with --enable-lora"),
        ({"updating": False}, MissingError, "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"),
        ({"root": "/models/other"}, UsageError, "serves /models/other, and the base of this run"),
        (
            {"max_rank": 4},
            UsageError,
            r"rank 8, and .* at most 4: start vLLM with --max-lora-rank 8",
        ),
        ({"sees": lambda path: False}, MissingError, "engine.students"),
        ({"key": "secret"}, EndpointError, "401"),
    ],
)
async def test_what_a_server_cannot_do_is_said_with_the_remedy(
    server: MockVllm, models: Models, state: dict[str, Any], error: type[RefluxError], words: str
) -> None:
    vars(server).update(state)
    models.add("student-r1")
    engine = engine_at(server, models)
    with pytest.raises(error, match=words) as caught:
        await engine.load("student-r1")
    assert "\n" not in str(caught.value)
    if "max_rank" in state or "sees" in state:
        await engine.check()  # Only an adapter of the run tells.
    else:
        with pytest.raises(error, match=words):
            await engine.check()
    await engine.close()


async def test_a_base_under_another_name_has_to_be_named(server: MockVllm, models: Models) -> None:
    server.root = "/models/tiny-converted"
    engine = engine_at(server, models, model="tiny")
    assert (await engine.complete(question("base"))).text == add("12+34=")
    await engine.close()
    engine = engine_at(server, models, model="huge")
    with pytest.raises(UsageError, match=r"serves tiny, not engine\.model: huge"):
        await engine.check()
    await engine.close()


async def test_an_address_where_nobody_is_is_one_message(models: Models) -> None:
    spec = EngineSpec("vllm", "http://127.0.0.1:9/v1")
    engine = VllmEngine(models.__getitem__, spec, 16, models.root / "vllm.log")
    with pytest.raises(EndpointError, match=r"http://127\.0\.0\.1:9/v1 failed"):
        await engine.check()
    await engine.close()


async def test_a_key_comes_from_the_variable_that_the_config_names(
    server: MockVllm, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.key = "secret"
    engine = engine_at(server, models, api_key_env="GPU_KEY")
    with pytest.raises(MissingError, match="GPU_KEY, the key of engine, is not set"):
        await engine.check()
    monkeypatch.setenv("GPU_KEY", "secret")
    assert (await engine.complete(question("base"))).text == add("12+34=")
    await engine.close()


def test_engines_by_name_mapping_and_text() -> None:
    def read(**keys: Any) -> RoundsConfig:
        return config_from({"rounds": [{"level": 1}], **keys}, "x.yaml")

    assert read(engine="llama.cpp").engine.kind == "llama.cpp"
    vllm = read(engine={"kind": "vllm", "url": "http://gpu:8000/v1"})
    assert vllm.engine_settings is vllm.engine
    assert config_from(vllm.model_dump(mode="json"), "x.yaml") == vllm
    agent = read(agent="endpoint:qwen3:32b@http://gpu:8000/v1")
    assert (agent.first_agent, agent.agent and agent.agent.url) == (
        "qwen3:32b",
        "http://gpu:8000/v1",
    )
    assert read(agent="endpoint:base@http://x/v1").first_agent == "endpoint:base"
    assert read().first_agent == "base"
    assert read(lora={"r": 4, "rank_pattern": {"q_proj": 32}}).lora_rank == 32


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"engine": {"kind": "vllm"}}, "either a `url`, or `start: true`"),
        ({"engine": {"kind": "vllm", "url": "http://x/v1", "start": True}}, "either a `url`"),
        ({"engine": {"kind": "batched", "url": "http://x/v1"}}, "leave out url"),
        ({"engine": {"kind": "endpoint", "url": "http://x/v1"}}, "needs the `model`"),
        ({"engine": {"kind": "endpoint", "model": "m"}}, "loads no student"),
        ({"engine": "vlm"}, "engine"),
        ({"engine": {"kind": "vllm", "port": 8000}}, "port: unknown key"),
        ({"agent": "llama.cpp"}, "write endpoint:MODEL@URL"),
        ({"overseer": {"url": "http://x/v1"}}, "name it, too"),
        ({"overseer": {"url": "http://x/v1", "model": "base"}}, "names another model of the run"),
        (
            {"agent": "endpoint:m@http://y/v1", "overseer": {"url": "http://x/v1", "model": "m"}},
            "names another model of the run",
        ),
    ],
)
def test_an_engine_that_does_not_fit_is_refused_before_the_run(
    keys: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        config_from({"rounds": [{"level": 1}], **keys}, "x.yaml")


ROUNDS: dict[str, Any] = {
    "rounds": [
        {"level": 1, "primitive_repeats": 1},
        {"level": 2, "questions": 6, "held_out": 4},
        {"level": 3, "questions": 6, "held_out": 4},
    ],
    "anchor": 2,
    "canaries": 1,
    "questions_per_level": 4,
    "gates": {"behavior": 1},
    "sft": {"max_steps": 1, "warmup_steps": 0, "per_device_train_batch_size": 4},
    "lora": {"r": 4},
    "batched": {"context": 512},
}


class Short(Addition):
    """Addition with few primitives, so that a run takes seconds."""

    def primitives(self) -> list[str]:
        return list(super().primitives())[:8]


async def climb(
    folder: RunFolder, config: RoundsConfig, task: Task | None = None
) -> list[dict[str, Any]]:
    folder.save_config(config.model_dump(mode="json"))
    run = OpenRun(folder, config.engine_settings, endpoints=config.endpoints)
    async with run:
        await run.check_engine()
        return await run_rounds(run, config, task or Short(), lambda *_: None)


@pytest.mark.engine
async def test_rounds_amplify_on_a_vllm_train_here_and_load_the_student_there(
    tiny_base: Path, tmp_path: Path
) -> None:
    with mock_vllm(tiny_base) as server:
        engine = {"kind": "vllm", "url": server.served.url}
        config = config_from({**ROUNDS, "base": str(tiny_base), "engine": engine}, "x.yaml")
        folder = RunFolder(tmp_path / "run")
        reports = await climb(folder, config)
        assert [each["agent"] for each in reports] == ["base", "student-r0", "student-r1"]
        assert all(each["promoted"] for each in reports)
        assert [name.rsplit("-", 1)[0] for name in server.loads] == [
            "student-r0",
            "student-r1",
            "student-r2",
        ]
        assert {chat["model"] for chat in server.chats} == {"base", *server.loads}
        spent = {each["model"]: each for each in folder.report()["models"]}
        assert {"base", "student-r0", "student-r1", "student-r2"} <= spent.keys()
        assert spent["student-r1"]["calls"] > spent["student-r1"]["cached"]
        assert spent["student-r1"]["tokens"] % 12 == 0
        asked = len(server.chats)
        assert await climb(folder, config) == reports
        assert len(server.chats) == asked


@pytest.mark.engine
@pytest.mark.parametrize("keep", [False, True])
async def test_a_named_agent_answers_until_a_student_takes_its_place(
    tiny_base: Path, tmp_path: Path, keep: bool
) -> None:
    """Three models: a script oversees, a model at an endpoint answers, a tiny base learns."""
    with mock_vllm(tiny_base) as server, mock_vllm("any", name="mid-size") as other:
        config = config_from(
            {
                **ROUNDS,
                "base": str(tiny_base),
                "engine": {"kind": "vllm", "url": server.served.url},
                "agent": f"endpoint:mid-size@{other.served.url}",
                "keep_agent": keep,
                "spend_limit": {"prices": {"mid-size": {"prompt": 1e6, "completion": 0}}},
            },
            "x.yaml",
        )
        folder = RunFolder(tmp_path / "run")
        reports = await climb(folder, config)
        last = "mid-size" if keep else "student-r1"
        assert [each["agent"] for each in reports] == ["mid-size", "mid-size", last]
        assert all(each["promoted"] for each in reports)
        assert folder.current_model() == "student-r2"
        assert {chat["model"] for chat in other.chats} == {"mid-size"}
        spent = {each["model"]: each for each in folder.report()["models"]}
        assert spent["mid-size"]["cost"] == pytest.approx(10 * len(other.chats))
        assert spent["base"]["cost"] is None
        # Its students are measured against each other, not against it.
        (gate,) = [gate for gate in reports[2]["gates"] if gate["name"] == "no_regression"]
        assert gate["value"] == 0.0
        with closing(folder.store()) as store:
            systems = {row["system"] for row in store.select("SELECT system FROM questions")}
        assert "regression-student-r1" in systems
        assert "regression-mid-size" not in systems


@pytest.mark.engine
async def test_overseer_agent_and_base_may_be_three_models(tiny_base: Path, tmp_path: Path) -> None:
    """A strong endpoint oversees, a mid-size one answers, a tiny base learns from a file."""
    questions = tmp_path / "capitals.jsonl"
    towns = [f"town {number}" for number in range(30)]
    rows = [{"question": f"Capital of {town}?", "answer": f"Of {town}"} for town in towns]
    questions.write_text("".join(f"{json.dumps(row)}\n" for row in rows))

    def oversee(_: str, words: str) -> str:
        ask = {"ask": [{"question": "Which town is meant?", "needs": []}]}
        return json.dumps({"step": {"answer": "Of town"} if "Of town" in words else ask})

    with (
        mock_vllm(tiny_base, answer=lambda *_: "Of town") as server,
        mock_vllm("any", name="mid-size", answer=lambda *_: "Of town") as middle,
        mock_vllm("any", name="strong", answer=oversee) as strong,
    ):
        config = config_from(
            {
                **ROUNDS,
                "rounds": [{"questions": 6, "held_out": 4}],
                "questions": str(questions),
                "base": str(tiny_base),
                "engine": {"kind": "vllm", "url": server.served.url},
                "agent": f"endpoint:mid-size@{middle.served.url}",
                "overseer": {"model": "strong", "url": strong.served.url},
                "gates": {"retention": 0, "regression": 1, "behavior": 1, "agreement": 0},
            },
            "x.yaml",
        )
        folder = RunFolder(tmp_path / "run")
        reports = await climb(folder, config, run_task(config))
        assert [each["agent"] for each in reports] == ["mid-size"]
        for asked, name in ((middle, "mid-size"), (strong, "strong")):
            assert {chat["model"] for chat in asked.chats} == {name}
        spent = {each["model"] for each in folder.report()["models"]}
        assert spent == {"base", "mid-size", "strong", reports[0]["student"]["model"]}


@pytest.mark.engine
async def test_an_endpoint_answers_for_the_base_and_students_run_here(
    tiny_base: Path, tmp_path: Path
) -> None:
    with mock_vllm("hosted", name="hosted") as server:
        engine = {"kind": "endpoint", "url": server.served.url, "model": "hosted"}
        config = config_from(
            {
                **ROUNDS,
                "rounds": ROUNDS["rounds"][:2],
                "base": str(tiny_base),
                "engine": engine,
                "keep_agent": True,
                "gates": {
                    "imitation": 0,
                    "retention": 0,
                    "regression": 1,
                    "behavior": 1,
                    "forgetting": 1,
                },
            },
            "x.yaml",
        )
        reports = await climb(RunFolder(tmp_path / "run"), config)
        assert [each["agent"] for each in reports] == ["base", "base"]
        assert {chat["model"] for chat in server.chats} == {"hosted"}
        assert reports[1]["direct"]["accuracy"] == 1.0
        assert reports[1]["student"]["accuracy"] < 1.0


START = f"{sys.executable} -m tests.support.mock_vllm serve"


def started(folder: Path, base: Base, command: str = START) -> VllmEngine:
    spec = EngineSpec("vllm", start=command)
    return VllmEngine({"base": base.files()}.__getitem__, spec, 20, folder / "vllm.log")


@pytest.mark.engine
@pytest.mark.process
async def test_a_server_of_ours_starts_rests_and_ends(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("REFLUX_RETRIES", "0")
    base = Base(BaseConfig(model=str(tiny_base)), given=tiny_base)
    engine = started(tmp_path, base)
    await engine.check()
    assert not (tmp_path / "vllm.log").exists()
    assert (await engine.complete(question("base"))).text == add("12+34=")
    server = engine._server
    assert server is not None and server._process is not None
    first = server._process.pid
    await engine.rest()
    assert (await engine.complete(question("base"))).text == add("12+34=")
    second = server._process.pid
    assert first != second
    # Whoever kills it learns from our message.
    os.killpg(second, signal.SIGKILL)
    with pytest.raises(EndpointError, match=r"vLLM ended with status .*Application startup"):
        for _ in range(2):
            await engine.complete(question("base", "1+1="))
    await engine.close()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("no-such-vllm serve", "no-such-vllm is not installed"),
        (f"{START} --fails 'RuntimeError: no room'", r"status 1: RuntimeError: no room; see .*log"),
    ],
)
@pytest.mark.engine
@pytest.mark.process
async def test_a_server_that_does_not_start_says_why(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, words: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    engine = started(tmp_path, Base(BaseConfig(model=str(tiny_base)), given=tiny_base), command)
    with pytest.raises(MissingError, match=words):
        await engine.load("base")
    await engine.close()


ORPHAN = """
import asyncio, os, sys
from pathlib import Path
from reflux.finetune.bases import Base
from reflux.finetune.configs.run import BaseConfig
from reflux.finetune.engine.vllm_server import VllmServer
folder = Path(sys.argv[1])
server = VllmServer(sys.argv[2], 8, folder / "vllm.log")
async def main():
    base = Base(BaseConfig(model=sys.argv[1]), given=folder)
    print(await server.start(base), flush=True)
    os._exit(9)
asyncio.run(main())
"""


@pytest.mark.engine
@pytest.mark.process
def test_a_server_of_ours_does_not_outlive_us(tiny_base: Path, tmp_path: Path) -> None:
    import httpx2

    folder = Path(shutil.copytree(tiny_base, tmp_path / "tiny"))
    command = [sys.executable, "-c", ORPHAN, str(folder), START]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 9, done.stderr
    url = done.stdout.split("'")[1].removesuffix("/v1")

    async def gone() -> bool:
        async with httpx2.AsyncClient(trust_env=False) as client:
            for _ in range(600):
                try:
                    await client.get(f"{url}/health")
                except httpx2.TransportError:
                    return True
                await asyncio.sleep(0.05)
        return False

    assert asyncio.run(gone())
