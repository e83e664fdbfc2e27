"""A run on a real vLLM, on the CPU: the default base, a real student, the words of its refusals.

`make vllm` installs it and runs this file; REFLUX_VLLM names its command.
"""

import asyncio
import json
import os
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from reflux.agents.errors import MissingError
from reflux.agents.types import ChatRequest, Sampling
from reflux.finetune.configs.engine import EngineSpec
from reflux.finetune.configs.run import RoundsConfig, config_from
from reflux.finetune.engine.client import BatchedClient
from reflux.finetune.engine.vllm import VllmEngine
from reflux.finetune.rounds import run_rounds
from reflux.finetune.run_folder import OpenRun, RunFolder
from reflux.tasks.addition import Addition

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(3600)]

OPTIONS = "serve --max-model-len 1024 --max-num-seqs 32 --enforce-eager"
COMMAND = f"{os.environ.get('REFLUX_VLLM', 'vllm')} {OPTIONS}"
CONFIG = {
    "engine": {"kind": "vllm", "start": COMMAND},
    "rounds": [
        {"level": 1, "primitive_repeats": 2},
        {"level": 2, "questions": 20, "held_out": 20},
    ],
    "anchor": 10,
    "canaries": 4,
    "questions_per_level": 10,
    "gates": {"imitation": 0, "retention": 0, "regression": 1, "behavior": 1},
    "sft": {"max_steps": 30},
}


@pytest.fixture(scope="module")
def climbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, RoundsConfig]:
    folder = RunFolder(tmp_path_factory.mktemp("vllm") / "run")
    config = config_from(CONFIG, "x.yaml")
    folder.save_config(config.model_dump(mode="json"))
    return folder, config


class Short(Addition):
    """Addition with few primitives, so that a run takes minutes."""

    def primitives(self) -> list[str]:
        return list(super().primitives())[::10]


def request_of(row: Any) -> ChatRequest:
    """The request of a recorded call."""
    turns = tuple((turn["role"], turn["content"]) for turn in json.loads(row["messages"]))
    sampling = {**json.loads(row["sampling"]), "stop": ()}
    return ChatRequest(row["model"], turns, Sampling(**sampling))


async def test_a_run_amplifies_there_trains_here_and_loads_the_student_there(
    climbed: tuple[RunFolder, RoundsConfig],
) -> None:
    folder, config = climbed
    async with OpenRun(folder, config.engine_settings) as run:
        reports = await run_rounds(run, config, Short(), lambda *_: None)
    assert [each["agent"] for each in reports] == ["base", "student-r0"]
    spent = {each["model"] for each in folder.report()["models"]}
    assert {"base", "student-r0", "student-r1"} <= spent
    # The batched engine reads the same adapter, template and stop token: rounding alone differs.
    with closing(folder.store()) as store:
        asked = "SELECT * FROM calls WHERE model='student-r1' AND cached=0 AND error IS NULL"
        calls = [(request_of(row), row["completion"]) for row in store.select(asked)]
    here = BatchedClient(folder.models)
    try:
        replies = await asyncio.gather(*(here.complete(request) for request, _ in calls))
    finally:
        await here.close()
    same = sum(reply.text == text for (_, text), reply in zip(calls, replies, strict=True))
    print(f"vLLM and the batched engine agree on {same} of {len(calls)} answers of student-r1")
    assert same >= 0.9 * len(calls) > 0


async def test_refusals_are_those_that_the_mock_has(
    climbed: tuple[RunFolder, RoundsConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = climbed
    own = VllmEngine(folder.models, EngineSpec("vllm", start=COMMAND), 16, folder.path / "own.log")
    request = ChatRequest("base", (("user", "Hello"),), Sampling(max_tokens=4))
    assert (await own.complete(request)).text
    client = own._client
    assert client is not None
    monkeypatch.setenv("VLLM_KEY", client._key)
    spec: dict[str, Any] = {"url": client.base_url, "api_key_env": "VLLM_KEY"}
    beside = VllmEngine(folder.models, EngineSpec("vllm", **spec), 16, Path("unused"))
    await beside.check()
    await beside.load("student-r0")
    (card,) = [card for card in await client.cards() if card.parent]
    assert card.id.startswith("student-r0-")
    await client.unload_adapter(card.id)
    assert (
        await beside.complete(ChatRequest("student-r0", request.messages, request.sampling))
    ).text
    elsewhere = EngineSpec("vllm", students="/nowhere", **spec)
    engine = VllmEngine(folder.models, elsewhere, 16, Path("unused"))
    with pytest.raises(MissingError, match=r"engine\.students"):
        await engine.load("student-r1")
    for each in (engine, beside, own):
        await each.close()
