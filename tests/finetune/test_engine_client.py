"""The batched engine as a client: its thread, its models, and who hears of what goes wrong."""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from reflux.agents.clients.llama_cpp import (
    SPIN_VARIABLE,
    SPINS,
    LlamaCppClient,
    ModelFiles,
    default_gguf,
)
from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.errors import EndpointError, MissingError, UsageError
from reflux.agents.prompts import answer_prompt
from reflux.agents.types import ChatRequest, Completion, Sampling, ToolSpec
from reflux.finetune import base_model
from reflux.finetune.base_model import load_base
from reflux.finetune.bases import Base
from reflux.finetune.configs.run import BaseConfig, BatchedConfig
from reflux.finetune.engine import client as batched
from reflux.finetune.engine.client import BatchedClient, load_weights
from reflux.finetune.engine.scheduler import Scheduler
from reflux.finetune.run_folder import OpenRun, RunFolder

pytestmark = pytest.mark.engine

SMALL = BatchedConfig(rows=4, context=256)


def ask(question: str, model: str = "base", **sampling: Any) -> ChatRequest:
    return ChatRequest(model, answer_prompt(question), Sampling(**{"max_tokens": 6, **sampling}))


@pytest.fixture
def files(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> ModelFiles:
    """The tiny base, where the engine looks for the unpacked default model."""
    monkeypatch.setattr(base_model, "dequantised_base", lambda gguf, cache=None: tiny_base)
    return ModelFiles(tiny_base / "config.json")


@pytest.fixture
def loads(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the models loaded, in order; all are the tiny base, in fp32."""
    names: list[str] = []

    def load(found: ModelFiles) -> tuple[Any, Any]:
        assert found.gguf is not None
        names.append(found.gguf.name)
        model, tokenizer = load_base(tiny_base)
        return model.float(), tokenizer

    monkeypatch.setattr(batched, "load_weights", load)
    return names


def by_name(name: str) -> ModelFiles:
    return ModelFiles(Path(name))


async def test_a_crowd_gets_the_answers_that_each_gets_alone(loads: list[str]) -> None:
    requests = [ask(f"{'so ' * (n % 4)}{n}?", max_tokens=3 + n % 4) for n in range(20)]
    client = BatchedClient(by_name, SMALL)
    crowd = await asyncio.gather(*map(client.complete, requests))
    alone = [await client.complete(request) for request in requests]
    await client.close()
    assert [c.text for c in crowd] == [c.text for c in alone]
    assert all(c.prompt_tokens and c.completion_tokens and c.seconds > 0 for c in crowd)
    assert loads == ["base"]


async def test_requests_of_several_models_are_answered_though_few_are_kept(
    loads: list[str],
) -> None:
    names = ["a", "b", "c", "d"]
    client = BatchedClient(by_name, BatchedConfig(rows=4, models=2))
    asked = [ask(f"{n}?", name) for n in range(5) for name in names]
    await asyncio.gather(*map(client.complete, asked))
    assert sorted(loads) == names
    loads.clear()
    for name in ("a", "b", "a", "c", "a", "b"):  # c takes the place of b, which is older.
        await client.complete(ask("?", name))
    await client.close()
    assert loads[-2:] == ["c", "b"]


@pytest.mark.parametrize(
    "request_",
    [
        ChatRequest("base", answer_prompt("?"), tools=(ToolSpec("t", "", "{}"),)),
        ChatRequest("base", answer_prompt("?"), schema="{}"),
        ChatRequest("base", (("user", "?"), ("assistant", "", '{"tool_calls": []}'))),
    ],
    ids=["tools", "schema", "calls"],
)
async def test_what_takes_a_grammar_goes_to_llama_cpp(
    loads: list[str], request_: ChatRequest
) -> None:
    client = BatchedClient(by_name, SMALL)
    client.llama_cpp = ScriptedClient(lambda _: "from llama.cpp")  # type: ignore[assignment]
    assert (await client.complete(request_)).text == "from llama.cpp"
    assert loads == []


async def test_a_cancelled_request_leaves_and_the_others_are_answered(loads: list[str]) -> None:
    client = BatchedClient(by_name, BatchedConfig(rows=2, context=512))
    expected = await client.complete(ask("stay", max_tokens=8))
    endless = [asyncio.create_task(client.complete(ask(f"{n}", max_tokens=400))) for n in range(8)]
    await asyncio.sleep(0.05)
    for task in endless:
        task.cancel()
    assert (await client.complete(ask("stay", max_tokens=8))).text == expected.text
    assert all(isinstance(x, asyncio.CancelledError) for x in
               await asyncio.gather(*endless, return_exceptions=True))  # fmt: skip
    worker = client._worker
    assert worker is not None
    assert not worker._jobs
    await client.close()


async def test_a_failed_step_is_told_to_all_and_the_next_request_is_served(
    loads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = BatchedClient(by_name, SMALL)
    step: Callable[..., Any] = Scheduler.step

    def fail(self: Scheduler) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Scheduler, "step", fail)
    asked = [client.complete(ask(f"{n}")) for n in range(6)]
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(error, EndpointError) for error in found)
    assert all("out of memory; set engine: llama.cpp" in str(error) for error in found)
    assert len({id(error) for error in found}) == 6
    monkeypatch.setattr(Scheduler, "step", step)
    assert (await client.complete(ask("again"))).text
    await client.close()


async def test_a_model_that_cannot_be_loaded_is_told_to_all_who_asked_for_it(
    loads: list[str],
) -> None:
    def resolve(name: str) -> ModelFiles:
        if name == "none":
            raise UsageError("there is no student 'none'")
        return by_name(name)

    client = BatchedClient(resolve, SMALL)
    asked = [client.complete(ask(f"{n}", "none" if n % 2 else "base")) for n in range(6)]
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(x) for x in found] == [Completion, UsageError] * 3
    await client.close()


async def test_a_prompt_too_long_fails_alone(loads: list[str]) -> None:
    client = BatchedClient(by_name, SMALL)
    asked = [client.complete(ask("x" * 300)), client.complete(ask("x"))]
    long, short = await asyncio.gather(*asked, return_exceptions=True)
    await client.close()
    assert isinstance(long, EndpointError)
    assert long.refused
    assert isinstance(short, Completion)


async def test_closing_ends_the_thread_and_tells_who_waits(loads: list[str]) -> None:
    client = BatchedClient(by_name, SMALL)
    await client.complete(ask("first"))
    waiting = [asyncio.create_task(client.complete(ask(f"{n}", max_tokens=200))) for n in range(9)]
    await asyncio.sleep(0.01)
    await client.close()
    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert any(isinstance(x, EndpointError) and "was closed" in str(x) for x in found)
    assert not [t for t in threading.enumerate() if t.name == "reflux-batched"]
    assert (await client.complete(ask("after"))).text
    await client.close()
    await client.close()


async def test_two_event_loops_share_one_engine(loads: list[str]) -> None:
    client = BatchedClient(by_name, SMALL)
    mine = client.complete(ask("same"))
    theirs = asyncio.to_thread(lambda: asyncio.run(client.complete(ask("same"))))
    one, other = await asyncio.gather(mine, theirs)
    await client.close()
    assert one.text == other.text


async def test_training_in_this_process_finds_torch_as_it_was(loads: list[str]) -> None:
    client = BatchedClient(by_name, SMALL)
    await client.complete(ask("?"))
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert torch.get_default_dtype() == torch.float32
    await client.close()


@pytest.fixture(scope="module")
def adapter(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PEFT folder with an adapter that changes answers."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear")
    student: Any = get_peft_model(load_base(tiny_base)[0], lora)
    for name, parameter in student.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.2)
    folder = tmp_path_factory.mktemp("adapter")
    student.save_pretrained(folder, save_embedding_layers=False)
    (folder / "adapter.gguf").write_text("not looked at")
    return folder


async def test_a_student_is_the_base_with_its_adapter_added(
    files: ModelFiles, adapter: Path, tiny_base: Path
) -> None:
    from peft import PeftModel

    student = ModelFiles(files.gguf, adapter / "adapter.gguf", adapter)
    model, _ = load_weights(student)
    apart: Any = PeftModel.from_pretrained(load_base(tiny_base)[0].float(), str(adapter))
    exact = {
        name: layer.base_layer.weight + layer.get_delta_weight("default")
        for name, layer in apart.base_model.model.named_modules()
        if hasattr(layer, "get_delta_weight")
    }
    found = dict(model.named_parameters())
    assert len(exact) == 14
    for name, weight in exact.items():
        assert torch.equal(found[f"{name}.weight"], weight.to(torch.bfloat16))
    client = BatchedClient(lambda name: student if name == "student-r0" else files, SMALL)
    one, other = [await client.complete(ask("?", name)) for name in ("base", "student-r0")]
    await client.close()
    assert one.text != other.text


async def test_an_adapter_in_llama_cpps_form_alone_is_refused(
    files: ModelFiles, adapter: Path
) -> None:
    client = BatchedClient(lambda _: ModelFiles(files.gguf, adapter / "adapter.gguf"), SMALL)
    for asking in (client.model_digest("base"), client.complete(ask("?"))):
        with pytest.raises(MissingError, match="name the PEFT folder"):
            await asking
    await client.close()


async def test_the_digest_tells_the_engine_the_base_and_the_adapter(
    files: ModelFiles, adapter: Path
) -> None:
    exported = adapter / "adapter.gguf"
    known = {"base": files, "student-r0": ModelFiles(files.gguf, exported, adapter)}
    digests = {
        await client.model_digest(name)
        for client in (BatchedClient(known.__getitem__), LlamaCppClient(known.__getitem__))
        for name in known
    }
    assert len({digest[-12:] for digest in digests}) == 4  # `reflux eval` keeps that much.
    assert len([digest for digest in digests if digest.startswith("bf16:")]) == 2


@pytest.mark.parametrize(("engine", "is_batched"), [(SMALL, True), (None, False)])
async def test_a_run_asks_the_engine_of_its_config(
    tmp_path: Path, engine: BatchedConfig | None, is_batched: bool
) -> None:
    async with OpenRun(RunFolder(tmp_path), engine) as run:
        digest = await run.recorded_client.client.model_digest("base")
        assert digest.startswith("bf16:") == is_batched


def test_its_threads_soon_sleep_while_they_wait_for_each_other() -> None:
    # libgomp reads the variable when it is loaded and prints what it has read.
    code = """
import asyncio, os, sys, pathlib
from reflux.agents.clients.llama_cpp import ModelFiles
from reflux.agents.errors import MissingError
from reflux.agents.types import ChatRequest
from reflux.finetune.engine.client import BatchedClient
before = dict(os.environ)
assert "torch" not in sys.modules
async def ask():
    client = BatchedClient(lambda _: ModelFiles(pathlib.Path("none.gguf")))
    try:
        await client.complete(ChatRequest("base", ()))
    except MissingError:
        print("not there")
    await client.close()
asyncio.run(ask())
assert os.environ == before
"""
    env = {key: value for key, value in os.environ.items() if key != SPIN_VARIABLE}
    env |= {"OMP_DISPLAY_ENV": "verbose"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "not there\n"), done.stderr
    assert f"{SPIN_VARIABLE} = '{SPINS}'" in done.stderr


async def test_the_default_model_answers_as_in_llama_cpp() -> None:
    files = ModelFiles(default_gguf())
    client = BatchedClient(lambda _: files)
    request = ask("What is the capital of France?", max_tokens=12, top_logprobs=2)
    ours = await client.complete(request)
    theirs = await client.llama_cpp.complete(request)
    await client.close()
    assert "Paris" in ours.text
    for name in ("text", "prompt_tokens", "completion_tokens", "finish_reason"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert [t.token for t in ours.logprobs] == [t.token for t in theirs.logprobs]
    for one, other in zip(ours.logprobs, theirs.logprobs, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=0.3)
        assert len(one.top) == 2


async def test_a_base_without_a_gguf_answers_schemas_freely_and_calls_no_tools(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = ModelFiles(base=Base(BaseConfig(), given=tiny_base))
    monkeypatch.setattr(batched, "load_weights", lambda _: load_base(tiny_base))
    client = BatchedClient(lambda _: files, SMALL)
    free = await client.complete(ask("why?"))
    held = await client.complete(replace(ask("why?"), schema='{"type": "object"}'))
    assert held.text == free.text
    with pytest.raises(UsageError, match=r"tools: .* name a GGUF as the base"):
        await client.complete(replace(ask("why?"), tools=(ToolSpec("now", "", "{}"),)))
    await client.close()
