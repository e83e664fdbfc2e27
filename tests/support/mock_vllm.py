"""A server that behaves as vLLM 0.32 does towards adapters, without its models.

Paths, statuses and the words of refusals are those of `vllm/entrypoints/openai/models/serving.py`,
`vllm/lora/worker_manager.py` and `vllm/v1/worker/lora_model_runner_mixin.py`. `python -m
tests.support.mock_vllm serve FOLDER …` takes the options of `vllm serve` and answers sums.
"""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.endpoint_server import Asked, Reply, Served, serving
from tests.support.sums import add

Answer = Callable[[str, str], str]
"""The reply to (path of the adapter, or empty for the base; the last message)."""


def sums(adapter: str, question: str) -> str:
    """Every model adds, in whatever words a sum is asked for."""
    return add(question.split()[-1]) if question.endswith("=") else f"a general answer: {question}"


@dataclass
class MockVllm:
    """The state of one server."""

    root: str
    """What it serves as the base."""
    name: str = "base"
    lora: bool = True
    """Started with --enable-lora."""
    updating: bool = True
    """Started with VLLM_ALLOW_RUNTIME_LORA_UPDATING."""
    max_rank: int = 16
    key: str = ""
    sees: Callable[[str], bool] = os.path.isdir
    """Whether a path exists on the server's machine."""
    answer: Answer = sums
    adapters: dict[str, str] = field(default_factory=dict[str, str])
    """Paths by name."""
    loads: list[str] = field(default_factory=list[str])
    """Every name that was ever loaded."""
    served: Served = field(default_factory=Served)

    @property
    def chats(self) -> list[dict[str, Any]]:
        return [asked.body for asked in self.served.requests if "messages" in asked.body]

    def respond(self, asked: Asked) -> Reply:
        path = asked.path.split("?")[0]
        if path == "/health":
            return Reply(b"")
        if self.key and asked.headers.get("authorization") != f"Bearer {self.key}":
            return Reply({"error": "Unauthorized"}, 401)
        if path == "/v1/models":
            return Reply({"object": "list", "data": self._cards()})
        if path == "/v1/chat/completions":
            return self._chat(asked.body)
        if self.updating and path == "/v1/load_lora_adapter":
            return self._load(asked.body["lora_name"], asked.body["lora_path"])
        if self.updating and path == "/v1/unload_lora_adapter":
            return self._unload(asked.body["lora_name"])
        return Reply({"detail": "Not Found"}, 404)

    def _cards(self) -> list[dict[str, Any]]:
        def card(name: str, root: str, parent: str | None) -> dict[str, Any]:
            return {"id": name, "object": "model", "created": 0, "owned_by": "vllm", "root": root,
                    "parent": parent}  # fmt: skip

        adapters = [card(name, path, self.name) for name, path in self.adapters.items()]
        return [card(self.name, self.root, None), *adapters]

    def _load(self, name: str, path: str) -> Reply:
        if name in self.adapters:
            return refusal(
                f"The lora adapter '{name}' has already been loaded. If you want to load the "
                "adapter in place, set 'load_inplace' to True.",
                400,
                "InvalidUserInput",
            )
        failed = "Call to add_lora method failed: "
        if not self.lora:
            return broken(f"{failed}LoRA is not enabled. Use --enable-lora to enable LoRA.")
        if not self.sees(path):
            words = f"Loading lora {name} failed: No adapter found for {path}"
            return refusal(words, 404, "NotFoundError")
        config = json.loads((Path(path) / "adapter_config.json").read_text(encoding="utf-8"))
        if config["r"] > self.max_rank:
            words = f"LoRA rank {config['r']} is greater than max_lora_rank {self.max_rank}."
            return broken(failed + words)
        self.adapters[name] = path
        self.loads.append(name)
        return Reply(f"Success: LoRA adapter '{name}' added successfully.")

    def _unload(self, name: str) -> Reply:
        if name not in self.adapters:
            return refusal(f"The lora adapter '{name}' cannot be found.", 404, "NotFoundError")
        del self.adapters[name]
        return Reply(f"Success: LoRA adapter '{name}' removed successfully.")

    def _chat(self, body: dict[str, Any]) -> Reply:
        name = body["model"]
        if name != self.name and name not in self.adapters:
            return refusal(f"The model `{name}` does not exist.", 404, "NotFoundError")
        text = self.answer(self.adapters.get(name, ""), body["messages"][-1]["content"])
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
        return Reply({"id": "chatcmpl-1", "object": "chat.completion", "created": 0, "model": name,
                      "choices": [choice], "usage": usage})  # fmt: skip


def refusal(words: str, status: int, kind: str = "BadRequestError") -> Reply:
    """An error body of vLLM."""
    return Reply({"error": {"message": words, "type": kind, "param": None, "code": status}}, status)


def broken(words: str) -> Reply:
    """What the engine raised."""
    return refusal(words, 500, "InternalServerError")


@contextmanager
def mock_vllm(root: str | Path, **options: Any) -> Iterator[MockVllm]:
    """Serve until the block ends; `options` are further fields of `MockVllm`."""
    server = MockVllm(str(root), **options)
    with serving(server.respond, models=None) as served:
        server.served = served
        yield server


def main() -> None:
    """Serve as `vllm serve` would, until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("verb", choices=["serve"])
    parser.add_argument("folder")
    parser.add_argument("--fails", default="")
    parser.add_argument("--enable-lora", action="store_true")
    for name in ("served-model-name", "host", "dtype", "chat-template", "generation-config"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("port", "max-lora-rank", "max-loras"):
        parser.add_argument(f"--{name}", type=int, required=True)
    if sys.argv[2].startswith("-"):
        sys.exit(
            "`model` should be provided as the first positional argument when using `vllm serve`"
        )
    given = parser.parse_args()
    if given.fails:
        sys.exit(f"ERROR: {given.fails}")
    updating = os.environ.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING") == "True"
    server = MockVllm(
        given.folder, given.served_model_name, given.enable_lora, updating, given.max_lora_rank,
        os.environ.get("VLLM_API_KEY", ""),
    )  # fmt: skip
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with serving(server.respond, models=None, port=given.port):
        print("Application startup complete.", flush=True)
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    main()
