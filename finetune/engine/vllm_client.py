"""The client of one vLLM: its chat protocol, the list of its models, and its LoRA adapters."""

import json
import re
from dataclasses import dataclass
from typing import Any

import openai

from reflux.agents.clients.chat_protocol import request_body
from reflux.agents.clients.openai import OpenAIClient
from reflux.agents.clients.refusals import Refusal
from reflux.agents.errors import EndpointError, MissingError, RefluxError, UsageError
from reflux.agents.types import ChatRequest

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Those that `--max-lora-rank` takes."""
OVER_RANK = re.compile(r"rank (\d+) is greater than max_lora_rank (\d+)")
NO_FILE = re.compile(r"no adapter found|no such file|not found for|does not exist", re.IGNORECASE)
PLAIN_SAMPLING = {"top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
"""Against the defaults of the model's generation config, which the other engines do not read."""


@dataclass(frozen=True)
class Card:
    """One entry of the list of models."""

    id: str
    root: str
    """Folder or Hub id of its weights."""
    parent: str
    """The base of an adapter; empty for a base."""


class VllmClient(OpenAIClient):
    """The chat protocol of one vLLM, and its adapters."""

    thinking = False
    """As the base is configured: rows and requests are rendered alike."""

    def _body(self, request: ChatRequest, stream: bool = False) -> dict[str, Any]:
        body = super()._body(request, stream)
        # An empty system message keeps a template from adding its own: rows are rendered with it.
        body["messages"] = request_body(request)["messages"]
        chosen = {"enable_thinking": self.thinking, **body.get("chat_template_kwargs", {})}
        return PLAIN_SAMPLING | body | {"chat_template_kwargs": chosen}

    async def cards(self) -> list[Card]:
        """The models that the server has now.

        Raises:
            EndpointError: it does not answer, or with something else.
        """
        reply = await self._call("/models")
        try:
            return [
                Card(card["id"], card.get("root") or card["id"], card.get("parent") or "")
                for card in json.loads(reply)["data"]
            ]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EndpointError(f"{self.base_url} lists no models: is it a vLLM?") from error

    async def load_adapter(self, name: str, path: str) -> None:
        """Load the PEFT adapter at `path`, as the server sees it, under a name.

        Raises:
            UsageError: its rank is above the server's limit.
            MissingError: the server loads no adapters, or does not find this one.
            EndpointError: it failed, or does not answer.
        """
        try:
            await self._call("/load_lora_adapter", {"lora_name": name, "lora_path": path})
        except openai.APIStatusError as error:
            refusal = Refusal.of(error)
            if "already been loaded" not in refusal.words:
                raise self._explain(refusal, name, path) from error

    async def unload_adapter(self, name: str) -> None:
        """Forget an adapter; one that is gone already is fine.

        Raises:
            EndpointError: the server does not answer.
        """
        try:
            await self._call("/unload_lora_adapter", {"lora_name": name})
        except openai.APIStatusError as error:
            if Refusal.of(error).status != 404 and error.status_code != 404:
                raise EndpointError(f"{self.base_url} keeps {name}: {error}") from error

    def forget(self, name: str) -> None:
        """Ask for a model again that was refused a moment ago."""
        self._closed.pop(name, None)
        for request in [request for request in self._refused if request.model == name]:
            del self._refused[request]

    async def _call(self, path: str, body: Any = None) -> bytes:
        """One request beside the chat: a GET, or a POST of `body`.

        Raises:
            openai.APIStatusError: the server refused a POST.
            EndpointError: it does not answer, or refused a GET.
        """
        failures: list[str] = []
        refused: openai.APIStatusError | None = None
        with self._explained("", failures), self._client() as client:
            try:
                if body is None:
                    return await client.get(path, cast_to=bytes)
                return await client.post(path, cast_to=bytes, body=body)
            except self.errors as error:
                if body is None or not isinstance(error, openai.APIStatusError):
                    failures.append(self._one_line(error))
                    raise
                refused = error
        raise refused

    def _explain(self, refusal: Refusal, name: str, path: str) -> RefluxError:
        words, url = refusal.words, self.base_url
        if "is not enabled" in words:
            return MissingError(f"{url} serves no adapters: start vLLM with --enable-lora")
        if match := OVER_RANK.search(words):
            enough = next((rank for rank in RANKS if rank >= int(match[1])), match[1])
            return UsageError(
                f"{name} has rank {match[1]}, and {url} takes at most {match[2]}: start vLLM with "
                f"--max-lora-rank {enough}, or lower lora.r"
            )
        if NO_FILE.search(words):
            return MissingError(
                f"{url} does not find {path}: give its machine the run folder, and name in "
                "engine.students where it finds `students`"
            )
        if refusal.kind in ("missing", "page") or "Not Found" in words:
            return MissingError(
                f"{url} loads no adapters while it runs: start vLLM with "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, or with --lora-modules "
                f"{name}={path}"
            )
        if refusal.kind == "key":
            return MissingError(f"{url} refused {name}: {words}; check {self._names[1]}")
        return EndpointError(
            f"{url} could not load {name}: {words}; does it serve the base that the student was "
            "trained from?"
        )
