"""vLLM as the engine: a server with the base, which loads students as LoRA adapters while it runs.

A student is loaded under a name that holds its digest, such as `student-r1-3fa9c2d18a07`: vLLM may
answer from the prefix cache of an earlier adapter of the same name (vllm#42125). Requests keep our
own names, and the record does. An adapter that is gone, because the server was started anew or
another run has unloaded it, is loaded again with the next request.

After vLLM 0.32, on which `make vllm` runs a loop. Not covered: SGLang, which names adapters and
loads them otherwise.
"""

import asyncio
import hashlib
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from reflux.agents.clients.endpoints import endpoint_with_key
from reflux.agents.clients.llama_cpp import ModelFiles, file_sha256
from reflux.agents.errors import EndpointError, MissingError, UsageError
from reflux.agents.types import ChatRequest, Completion
from reflux.finetune.bases import Base
from reflux.finetune.configs.engine import EngineSpec
from reflux.finetune.engine.vllm_client import Card, VllmClient
from reflux.finetune.engine.vllm_server import VllmServer

KEPT = 4
"""Students that stay loaded; the one that was loaded first is unloaded first."""


class VllmEngine:
    """Completes chats on a vLLM for the base and the students of one run folder."""

    def __init__(
        self, resolve: Callable[[str], ModelFiles], spec: EngineSpec, rank: int, log: Path
    ) -> None:
        """
        Args:
            resolve: maps a model name to its files, as for `LlamaCppClient`.
            rank: the highest rank of a student's matrices, for a server that we start.
            log: file for the words of such a server.
        """
        self._resolve, self._spec = resolve, spec
        self._server = VllmServer(spec.start, rank, log) if spec.start else None
        self._client: VllmClient | None = None
        self._names: dict[str, str] = {}
        """Names at the server by those of the run."""
        self._loaded: list[tuple[str, str]] = []
        """(our name, name there) of the students that this process has loaded, in order."""
        self._lock = asyncio.Lock()

    async def complete(self, request: ChatRequest) -> Completion:
        """Answer one request; see `ChatClient.complete`.

        Raises:
            EndpointError, MissingError, UsageError: as `load`, or the server failed.
        """
        for last in (False, True):
            client, name = await self._served(request.model)
            try:
                return await client.complete(replace(request, model=name))
            except EndpointError as error:
                if self._server is not None and self._server.ended:
                    raise EndpointError(self._server.epitaph()) from error
                if last or error.status != 404 or request.model == "base":
                    raise
                client.forget(name)
                self._names.pop(request.model, None)
        raise AssertionError

    async def model_digest(self, model: str) -> str:
        """Digest of base and adapter, whatever the server's address; other engines round
        otherwise, so theirs differs."""
        files = self._resolve(model)
        hashes = [_base_of(files).digest, self._spec.model, *_adapter_hashes(files)]
        return f"vllm:{hashlib.sha256(' '.join(hashes).encode()).hexdigest()[:32]}"

    async def load(self, model: str) -> None:
        """Make a student answerable; the server is started or found first.

        Raises:
            UsageError: the server serves another base, or the student's rank is above its limit.
            MissingError: it loads no adapters, or does not find this one; or it does not start.
            EndpointError: it does not answer.
        """
        await self._served(model)

    async def check(self) -> None:
        """Check that the server has the base and would load a student.

        Raises:
            UsageError, MissingError, EndpointError: as `load`.
        """
        if self._server is not None:  # We start it as it has to be.
            return
        client, _ = await self._served("base")
        nowhere = f"/{secrets.token_hex(8)}"
        try:
            await client.load_adapter("reflux-probe", nowhere)
        except MissingError as error:
            if f"does not find {nowhere}" not in str(error):
                raise

    async def close(self) -> None:
        """Unload our students, and stop a server of ours; the next request starts over."""
        client, self._client = self._client, None
        loaded, self._loaded, self._names = self._loaded, [], {}
        if client is not None:
            if self._server is None:
                for _, name in loaded:
                    try:
                        await client.unload_adapter(name)
                    except EndpointError:
                        break  # It has gone, and its adapters with it.
            await client.close()
        if self._server is not None:
            await self._server.stop()

    async def rest(self) -> None:
        """Give the memory of a server of ours back, for example to training."""
        if self._server is not None:
            await self.close()

    async def _served(self, model: str) -> tuple[VllmClient, str]:
        """The client, and a model's name at the server."""
        if self._client is not None and (name := self._names.get(model)) is not None:
            return self._client, name
        async with self._lock:
            if self._client is None:
                self._client = await self._connect()
            if model not in self._names:
                files, cards = self._resolve(model), await self._client.cards()
                name = self._base_at(self._client, cards, _base_of(files))
                if files.peft is not None:
                    name = await self._student_at(self._client, cards, model, files)
                self._names[model] = name
            return self._client, self._names[model]

    async def _connect(self) -> VllmClient:
        spec, base = self._spec, _base_of(self._resolve("base"))
        if self._server is None:
            found = endpoint_with_key(
                os.environ, spec.url, spec.api_key_env, "engine",
                kind=VllmClient, concurrency=spec.concurrency,
            )  # fmt: skip
            client = cast(VllmClient, found)
        else:
            url, key = await self._server.start(base)
            client = VllmClient(url, key, concurrency=spec.concurrency, timeout=600.0)
        client.thinking = base.config.thinking
        return client

    def _base_at(self, client: VllmClient, served: Sequence[Card], base: Base) -> str:
        """The name under which the server serves the base.

        Raises:
            UsageError: it serves others only.
        """
        cards = [card for card in served if not card.parent]
        if (wanted := self._spec.model) != "":
            if wanted in [card.id for card in cards]:
                return wanted
            names = ", ".join(card.id for card in cards) or "none"
            raise UsageError(f"{client.base_url} serves {names}, not engine.model: {wanted}")
        if (same := next((card for card in cards if _same(card.root, base)), None)) is not None:
            return same.id
        others = ", ".join(dict.fromkeys(card.root for card in cards)) or "no base"
        named = cards[0].id if cards else "its name"
        raise UsageError(
            f"{client.base_url} serves {others}, and the base of this run is {base.name}: serve "
            f"that one, or, if they are the same weights, set engine.model: {named}"
        )

    async def _student_at(
        self, client: VllmClient, served: Sequence[Card], model: str, files: ModelFiles
    ) -> str:
        """The name under which the server has a student, loaded if needed."""
        assert files.peft is not None  # noqa: S101 - the caller has asked
        digest = hashlib.sha256(" ".join(_adapter_hashes(files)).encode()).hexdigest()
        name = f"{model}-{digest[:12]}"
        folder = self._spec.students.rstrip("/")
        path = f"{folder}/{files.peft.name}" if folder else str(files.peft.resolve())
        for card in served:
            if card.parent and (card.id == name or card.root in (path, str(files.peft))):
                return card.id
        await client.load_adapter(name, path)
        self._loaded.append((model, name))
        while len(self._loaded) > KEPT:
            old, old_name = self._loaded.pop(0)
            self._names.pop(old, None)
            await client.unload_adapter(old_name)
        return name


def _base_of(files: ModelFiles) -> Base:
    assert isinstance(files.base, Base)  # noqa: S101 - run folders name it
    return files.base


def _adapter_hashes(files: ModelFiles) -> list[str]:
    names = ("adapter_model.safetensors", "adapter_config.json")
    return [file_sha256(files.peft / name) for name in names] if files.peft else []


def _same(root: str, base: Base) -> bool:
    """Whether a server's model is the base, as far as its folder or id tells."""
    if root in (base.name, str(base.given)):
        return True
    last = root.rstrip("/").rsplit("/", 1)[-1].lower()
    own = base.name.rstrip("/").rsplit("/", 1)[-1].lower()
    snapshot = f"models--{base.name.replace('/', '--')}/snapshots/"
    return last in (own, f"base-{base.weights_digest}") or snapshot in root
